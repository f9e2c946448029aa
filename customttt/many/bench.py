"""Where the jobs of a grid are done: a base, kept open, and a library that it works for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from customttt import threads
from customttt.library import Library
from customttt.recipe import VideoRecipe

if TYPE_CHECKING:  # torch comes with the base, so that whoever only hands orders on is there at once
    from customttt.workshop import Plan, Workshop


@dataclass(frozen=True)
class Learn:
    """Learn a concept into the library."""

    plan: Plan


@dataclass(frozen=True)
class Adapt:
    """Test-time training of a recipe, kept in the library."""

    recipe: VideoRecipe


@dataclass(frozen=True)
class Render:
    """Write a recipe's video."""

    recipe: VideoRecipe
    path: Path


Order = Learn | Adapt | Render


def do(shop: Workshop, order: Order) -> None:
    """Do one. Raises what the workshop does."""
    if isinstance(order, Learn):
        shop.preview(order.plan, shop.learn(order.plan))
    elif isinstance(order, Adapt):
        shop.adapt(order.recipe)
    else:
        shop.write(order.recipe, order.path)


def opened(base: str, root: Path, count: int = 0) -> Callable[[Any], None]:
    """What does orders here, with so many CPU threads from now on. Raises BaseUnavailableError or OutOfMemoryError."""
    from customttt import opening
    from customttt.workshop import Workshop

    threads.use(count)
    return partial(do, Workshop(*opening.open_accelerated(base), Library(root)))
