"""What a concept is learned from: looked at before torch is imported, and read at the base's size after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from customttt.config import SampleConfig

if TYPE_CHECKING:
    from customttt.learn import Learned
    from customttt.media import Frames

LOOK_SIZE, LOOK_FPS = 64, 8.0


@dataclass(frozen=True)
class Look:
    """What is known of sources before they are read as the base needs them."""

    digests: tuple[str, ...]
    """sha256 of every file, in order."""


@dataclass(frozen=True)
class Material:
    """Sources as read: in words, and the function that learns from them."""

    summary: str
    num_frames: int
    digest: str
    """Of pixels and captions, see `Concept.inputs`."""
    teach: Callable[..., Learned]
    clip: Frames | None = None
    """Of a movement."""


class Source(Protocol):
    """Pictures or a clip, as named on the command line."""

    def look(self) -> Look:
        """Open every file. Raises NotFoundError, UsageError or MediaError for what is no good."""

    def read(self, sample: SampleConfig) -> Material:
        """Read them as the base needs them."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of one subject: files or folders."""

    paths: list[Path]
    fit: bool

    def look(self) -> Look:
        from customttt import media

        return Look(tuple(picture.sha256 for picture in media.read_pictures(self.paths, LOOK_SIZE)))

    def read(self, sample: SampleConfig) -> Material:
        from customttt import learn, media

        pictures = media.read_pictures(self.paths, sample.size, self.fit)
        how = "fitted" if self.fit else "cropped"
        summary = f"{count(len(pictures), 'picture')}, {how} to {sample.size} x {sample.size}"
        return Material(summary, 1, learn.picture_digest(pictures), partial(learn.appearance, pictures=pictures))


@dataclass(frozen=True)
class Movement:
    """One clip of one movement, or a part of it (seconds)."""

    path: Path
    start: float
    end: float | None
    frames: int | None

    def look(self) -> Look:
        from customttt import media

        fewest = 1 if self.frames is None else self.frames
        clip = media.read_clip(self.path, fewest, LOOK_FPS, LOOK_SIZE, self.start, self.end)
        return Look((clip.sha256,))

    def read(self, sample: SampleConfig) -> Material:
        from customttt import learn, media

        wanted = sample.num_frames if self.frames is None else self.frames
        clip = media.read_clip(self.path, wanted, sample.fps, sample.size, self.start, self.end)
        summary = f"{count(wanted, 'frame')} at {clip.fps:.3g} a second, {sample.size} x {sample.size}"
        return Material(summary, wanted, learn.clip_digest(clip), partial(learn.motion, clip=clip), clip.frames)


def count(number: int, noun: str) -> str:
    """`3, "picture"` as "3 pictures"."""
    return f"{number} {noun}{'s' * (number != 1)}"
