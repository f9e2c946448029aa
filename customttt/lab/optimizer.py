"""How the networks of `tiny` are trained: Muon in batches, AdamW, and averages.

Networks compute in the precision that suits their device; the optimizer keeps full-precision weights beside them.
Nothing here waits for the GPU, so that a whole step can be one CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from customttt.backbones import computing

BETAS, MOMENTUM = (0.9, 0.99), 0.95
MUON_DECAY = 0.01
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
EMA_DECAY = 0.999
"""A step; shorter at first."""


def orthogonal(momentum: Float[Tensor, "n r c"]) -> Float[Tensor, "n r c"]:
    """The nearest semi-orthogonal matrices, by five Newton-Schulz iterations (Muon, Jordan et al. 2024).

    In half precision where the device computes in it: a CPU that only imitates it takes forty times as long.
    """
    a, b, c = NEWTON_SCHULZ
    x = momentum.to(computing(momentum.device))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    oriented: Tensor = (x.mT if tall else x).float()
    return oriented


OUTER = ("embed", "conv_in", "conv_out")
"""Parts of the names of first and last layers."""


def is_inner(name: str, weight: Tensor, outer: Sequence[str] = OUTER) -> bool:
    """Whether Muon moves a weight: matrices and convolutions between the first and the last layer; AdamW has the
    rest.
    """
    return weight.ndim >= 2 and not any(part in name for part in outer)


class Optimizer:
    """Full-precision weights, their averages and moments, of networks whose own weights follow in `dtype`.

    Muon for inner matrices and convolutions (as matrices of their output channels), all of one shape at once, AdamW
    for what else there is, `outer` (see `is_inner`) among it, or for all of it where `muon` is False. Weights without a
    gradient stay where they are.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        dtype: torch.dtype,
        *,
        muon: bool = True,
        outer: Sequence[str] = OUTER,
    ) -> None:
        for network in networks.values():
            network.float()
        named = {f"{name}.{k}": p for name, network in networks.items() for k, p in network.named_parameters()}
        self.weight = {name: p.detach().clone() for name, p in named.items()}
        self.average = {name: p.clone() for name, p in self.weight.items()}
        self.first = {name: torch.zeros_like(p) for name, p in self.weight.items()}
        self.inner = {name for name, p in self.weight.items() if muon and is_inner(name, p, outer)}
        self.second = {name: torch.zeros_like(p) for name, p in self.weight.items() if name not in self.inner}
        for network in networks.values():
            nn.Module.to(network, dtype)
        self.live = {f"{name}.{k}": p for name, network in networks.items() for k, p in network.named_parameters()}
        some = next(iter(self.weight.values()))
        self.rate, self.keep = torch.zeros((), device=some.device), torch.ones((), device=some.device)
        self.steps = 0

    def prepare(self, rate: float) -> None:
        """Set the next step's learning rate and how much of the average stays."""
        self.steps += 1
        self.rate.fill_(rate)
        self.keep.fill_(min(EMA_DECAY, (1 + self.steps) / (10 + self.steps)))

    def step(self, loss: Tensor) -> None:
        """Move the weights down the gradient of `loss`, clipped to a norm of 1."""
        gradients = torch.autograd.grad(loss, list(self.live.values()), allow_unused=True)
        self._update({name: g.float() for name, g in zip(self.live, gradients, strict=True) if g is not None})

    @torch.no_grad()
    def _update(self, gradients: dict[str, Tensor]) -> None:
        every = list(gradients.values())
        norm = torch.stack(torch._foreach_norm(every)).norm()
        torch._foreach_mul_(every, (1.0 / (norm + 1e-6)).clamp(max=1.0))
        self._adam({name: g for name, g in gradients.items() if name not in self.inner})
        self._muon({name: g for name, g in gradients.items() if name in self.inner})
        weights = [self.weight[name] for name in gradients]
        torch._foreach_copy_([self.live[name].data for name in gradients], weights)
        averages = [self.average[name] for name in gradients]
        torch._foreach_mul_(averages, self.keep)
        torch._foreach_add_(averages, torch._foreach_mul(weights, 1 - self.keep))

    def _adam(self, gradients: dict[str, Tensor]) -> None:
        if not gradients:
            return
        g = list(gradients.values())
        m, v, w = ([part[name] for name in gradients] for part in (self.first, self.second, self.weight))
        torch._foreach_lerp_(m, g, 1 - BETAS[0])
        torch._foreach_mul_(v, BETAS[1])
        torch._foreach_addcmul_(v, g, g, 1 - BETAS[1])
        root = torch._foreach_sqrt(v)
        torch._foreach_add_(root, 1e-8)
        move = torch._foreach_div(m, root)
        torch._foreach_mul_(move, self.rate)
        torch._foreach_sub_(w, move)

    def _muon(self, gradients: dict[str, Tensor]) -> None:
        if not gradients:
            return
        g = list(gradients.values())
        m, w = ([part[name] for name in gradients] for part in (self.first, self.weight))
        torch._foreach_lerp_(m, g, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(g, m, MOMENTUM)
        torch._foreach_mul_(w, 1 - MUON_DECAY * self.rate)
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, weight in enumerate(w):
            alike.setdefault(tuple(weight.flatten(1).shape), []).append(index)
        for shape, indices in alike.items():
            scale = 0.2 * math.sqrt(max(shape)) * self.rate  # the size of a step of AdamW (Moonlight, 2502.16982)
            moves = orthogonal(torch.stack([ahead[index].flatten(1) for index in indices])) * scale
            for index, move in zip(indices, moves, strict=True):
                w[index].sub_(move.view_as(w[index]))

    @contextmanager
    def averages(self) -> Iterator[None]:
        """Compute with the averaged weights for a while, and without gradients."""
        self._show(self.average)
        try:
            with torch.no_grad():
                yield
        finally:
            self._show(self.weight)

    @torch.no_grad()
    def _show(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.live.items():
            parameter.copy_(weights[name])

    @torch.no_grad()
    def take_over(self, networks: Mapping[str, nn.Module]) -> None:
        """Go on from the weights of these networks, without what was learned about the way."""
        for name, network in networks.items():
            for key, parameter in network.named_parameters():
                self.weight[f"{name}.{key}"].copy_(parameter)
                self.average[f"{name}.{key}"].copy_(parameter)
        for part in (self.first, self.second):
            for value in part.values():
                value.zero_()
        self._show(self.weight)

    def state_dict(self) -> dict[str, Any]:
        parts = {part: getattr(self, part) for part in ("weight", "average", "first", "second")}
        return {**parts, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for part in ("weight", "average", "first", "second"):
            for name, value in getattr(self, part).items():
                value.copy_(state[part][name])
        self.steps = state["steps"]
        self._show(self.weight)
