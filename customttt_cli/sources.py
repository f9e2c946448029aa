"""What a concept is learned from: looked at before torch is imported, and read at the base's size after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from customttt.config import SampleConfig
from customttt_cli import output

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
    captions: tuple[tuple[str, str], ...] = ()
    """Of pictures: whose it is, and what it says."""
    prompted: bool = True
    """Whether anything is learned with the prompt, and not with captions of its own."""


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

        found = Look(tuple(picture.sha256 for picture in media.read_pictures(self.paths, LOOK_SIZE)))
        tell_passed_over(self.paths)
        return found

    def read(self, sample: SampleConfig) -> Material:
        from customttt import learn, media

        pictures = media.read_pictures(self.paths, sample.size, self.fit)
        how = "fitted" if self.fit else "cropped"
        summary = f"{count(len(pictures), 'picture')}, {how} to {sample.size} x {sample.size}"
        captions = tuple((f"The caption of '{one.name}'", caption) for one in pictures for caption in one.captions)
        prompted = not all(one.captions for one in pictures)
        teach = partial(learn.appearance, pictures=pictures)
        return Material(summary, 1, learn.picture_digest(pictures), teach, captions=captions, prompted=prompted)


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


def tell_passed_over(paths: Sequence[Path]) -> None:
    """Name what is no picture in the folders among `paths`."""
    from customttt import media

    for line in media.passed_over(paths):
        output.say(line)


def count(number: int, noun: str) -> str:
    """`3, "picture"` as "3 pictures"."""
    return f"{number} {noun}{'s' * (number != 1)}"
