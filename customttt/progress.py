"""How long steps tell how far they are, and are told to stop. No torch."""

from __future__ import annotations

import time
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


def never() -> bool:
    """Whether to stop, where nobody asks for it."""
    return False


class StoppedError(Exception):
    """Raised in what takes long when it was asked to stop: nothing went wrong, and what can be kept is kept."""


def duration(seconds: float) -> str:
    """`85` as "1 min 25 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Meter:
    """What can be said about a step: loss, speed, time left. Every phase is timed for itself."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.phase, self.before = "", 0

    def note(self, progress: Progress) -> str:
        now = time.monotonic()
        if progress.step == 1 or progress.phase != self.phase:  # a phase began when the one before it ended
            self.began, self.phase = self.last, progress.phase
            self.before = progress.step - 1  # of an interrupted run
        self.last = now
        speed = (progress.step - self.before) / max(now - self.began, 1e-6)
        loss = [] if progress.loss is None else [f"loss {progress.loss:.4f}"]
        left = duration((progress.total - progress.step) / speed if progress.left is None else progress.left)
        return ", ".join([*loss, f"{speed:.3g} steps/s", f"{left} left"])
