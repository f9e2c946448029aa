"""Lion (arXiv 2302.06675), the paper's optimizer, in a few launches for all parameters together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lion_pytorch import Lion as LionByParameter


class Lion(LionByParameter):  # type: ignore[misc]
    """lion-pytorch's, bit for bit, which goes from parameter to parameter: eight launches for each of hundreds."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # noqa: ARG002 nothing here needs one
        for group in self.param_groups:
            parameters = [one for one in group["params"] if one.grad is not None]
            if not parameters:
                continue
            gradients = [one.grad for one in parameters]
            for one in parameters:
                if not self.state[one]:
                    self.state[one]["exp_avg"] = torch.zeros_like(one)
            momenta = [self.state[one]["exp_avg"] for one in parameters]
            rate, (first, second) = group["lr"], group["betas"]
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
            update = torch._foreach_mul(momenta, first)
            torch._foreach_add_(update, gradients, alpha=1 - first)
            torch._foreach_sign_(update)
            torch._foreach_add_(parameters, update, alpha=-rate)
            torch._foreach_mul_(momenta, second)
            torch._foreach_add_(momenta, gradients, alpha=1 - second)
