"""What the planner needs of torch and torch does not promise to keep: if a new version breaks it, it breaks here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = [
    "DispatchMode",
    "attend",
    "backward",
    "copies",
    "detaches",
    "flops",
    "is_mutable",
    "reads_number",
    "storage_of",
]
aten = torch.ops.aten


def backward(loss: Tensor) -> None:
    """As `loss.backward()`, which would switch autocast off; recomputed blocks must find it as it was."""
    _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, accumulate_grad=True)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Fused attention on the meta device, for which nothing chooses a kernel."""
    return aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[0]  # type: ignore[no-any-return]


def storage_of(tensor: Tensor) -> tuple[torch.UntypedStorage, int]:
    """A tensor's memory, and a number that is the same for all tensors that share it."""
    storage = tensor.untyped_storage()
    return storage, storage._cdata


def reads_number(operation: Any) -> bool:
    """Whether an operation reads one number out of a tensor, as `item()` does."""
    return operation is aten._local_scalar_dense.default


def copies(operation: Any) -> bool:
    """Whether an operation copies to another device or precision."""
    return operation is aten._to_copy.default


def detaches(operation: Any) -> bool:
    """Whether an operation takes a tensor out of autograd, as what is kept for a backward pass is while one counts."""
    return operation is aten.detach.default


def is_mutable(operation: Any) -> bool:
    """Whether an operation writes into a tensor that it is given."""
    return bool(operation._schema.is_mutable)


def flops(operation: Any, args: Any, kwargs: Any, out: Any) -> int:
    """What an operation computes; 0 for those that only move numbers."""
    count = flop_registry.get(operation._overloadpacket)
    return int(count(*args, **kwargs, out_val=out)) if count else 0
