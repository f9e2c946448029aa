"""How long steps tell how far they are. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a long step stands: reported after every step."""

    phase: str
    step: int
    """Steps done."""
    total: int
    loss: float | None = None
    left: float | None = None
    """Seconds, where it is known better than by the steps that are left."""
    note: str | None = None
    """What happened on the way, for people; no step is done then."""


Report = Callable[[Progress], None]
Say = Callable[[str], None]
"""Told a sentence for people."""


def silent(_: object) -> None:
    """A report or a sentence that nobody is told."""
