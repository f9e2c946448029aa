"""What a concept is learned from: looked at before torch is imported, and read at the base's size after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from customttt.config import Aspect
from customttt_cli import output

if TYPE_CHECKING:
    from customttt.learn import Inputs
    from customttt.media import Clip, Size

LOOK_SIZE, LOOK_FPS = 64, 8.0
NOTICED = 0.1
"""Share by which a movement may become faster or slower before it is said (ours)."""


class LessonInput(Protocol):
    """Pictures or a clip, as named on the command line."""

    def look(self) -> tuple[str, ...]:
        """Open every file: the sha256 of each. Raises NotFoundError, UsageError or MediaError for what is no good."""

    def read(self, base: str) -> tuple[Inputs, str]:
        """Read them as a base needs them: (pictures or clip, what they are in words). Raises the same."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of one subject: files or folders."""

    paths: list[Path]
    fit: bool

    def look(self) -> tuple[str, ...]:
        from customttt import media

        digests = tuple(picture.sha256 for picture in media.read_pictures(self.paths, LOOK_SIZE))
        tell_passed_over(self.paths)
        return digests

    def read(self, base: str) -> tuple[Inputs, str]:
        from customttt import backbones, media

        sides = backbones.defaults(base).sample.sides
        pictures = media.read_pictures(self.paths, sides, self.fit)
        how = "fitted" if self.fit else "cropped"
        return pictures, f"{count(len(pictures), 'picture')}, {how} to {measures(sides)}"


@dataclass(frozen=True)
class Movement:
    """One clip of one movement, or a part of it (seconds)."""

    path: Path
    start: float
    end: float | None
    frames: int | None
    aspect: Aspect | None = None

    def look(self) -> tuple[str, ...]:
        return (self._read(1, LOOK_FPS, LOOK_SIZE).sha256,)

    def read(self, base: str) -> tuple[Inputs, str]:
        from customttt import backbones, workshop

        own = backbones.defaults(base).sample
        sample = workshop.for_clip(base, own, self.path, self.aspect)
        clip = self._read(sample.num_frames, sample.fps, sample.sides)
        frames = f"{count(len(clip.frames), 'frame')} at {clip.fps:.3g} a second"
        return clip, f"{frames}{_pace(clip.fps, sample.fps)}, {measures(sample.sides)}"

    def _read(self, num_frames: int, fps: float, size: int | Size) -> Clip:
        from customttt import media

        wanted = num_frames if self.frames is None else self.frames
        return media.read_clip(self.path, wanted, fps, size, self.start, self.end)


def _pace(learned: float, shown: float) -> str:
    """What becomes of the speed of a movement whose frames are shown at another rate than they were taken at."""
    faster = shown / learned
    if abs(math.log(faster)) < NOTICED:
        return ""
    return f", which videos show at {shown:g}: the movement becomes {faster:.2g} times as fast"


def tell_passed_over(paths: Sequence[Path]) -> None:
    """Name what is no picture in the folders among `paths`."""
    from customttt import media

    for line in media.passed_over(paths):
        output.say(line)


def measures(sides: tuple[int, int]) -> str:
    """(height, width) as "832 x 480"."""
    height, width = sides
    return f"{width} x {height}"


def count(number: int, noun: str) -> str:
    """`3, "picture"` as "3 pictures"."""
    return f"{number} {noun}{'s' * (number != 1)}"
