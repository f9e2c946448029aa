"""Let modules do something else for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced(modules: Sequence[nn.Module], forward: Callable[[nn.Module], Any]) -> Iterator[None]:
    """Let every module do what `forward` makes for it while this lasts; contexts of this kind may be nested."""
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = forward(module)
    try:
        yield
    finally:
        for module, earlier in zip(modules, before, strict=True):
            vars(module).pop("forward", None)
            vars(module).update({} if earlier is None else {"forward": earlier})
