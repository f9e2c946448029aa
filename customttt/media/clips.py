"""Clips to learn from: which of the frames are taken, in videos by ffmpeg and in gif, webp and avif by Pillow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise, takewhile
from math import prod
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from customttt.config import Aspect, lowest_terms
from customttt.errors import MediaError, UsageError
from customttt.limits import MAX_ANIMATED, MAX_ASPECT, MAX_COUNTED, MAX_DECODED, MAX_SECONDS
from customttt.media import ffmpeg
from customttt.media.pixels import Size, check_local, decoding, digest, open_image, pair, resize, to_rgb

Frames = NDArray[np.uint8]  # (f h w 3)

JITTER = 0.004  # seconds, by which containers round times: of two frames about as near, the earlier is taken
LINES = 720  # of the small picture by which the shape of a clip is told
SHORTEST = 10  # milliseconds of a frame that browsers show as
USUAL = 100  # milliseconds


@dataclass(frozen=True)
class Clip:
    """The frames sampled from one clip."""

    name: str  # the file's
    frames: Frames
    fps: float  # mean rate of the frames taken, in the clip's own time
    sha256: str  # of the file


@dataclass(frozen=True)
class FilmStrip:
    """Frames of a whole clip, to choose a part of it by."""

    frames: Frames
    times: list[float]
    """When each begins, in seconds."""
    seconds: float
    """Of the clip, or of as much of it as is decoded (MAX_SECONDS)."""


def read_strip(path: Path | str, number: int, side: int) -> FilmStrip:
    """At most so many frames evenly over a clip, `side` pixels high, in its shape. Raises what `read_clip` does."""
    path = Path(path)
    with decoding(path):
        reel = open_reel(path)
        if isinstance(reel, Video) and reel.is_large:
            return _sought(reel, number, side)
        times = reel.times(0.0, MAX_SECONDS, MAX_COUNTED)
        if not times:
            raise MediaError(f"'{path.name}' has no frames; give a video.")
        picks = [round(float(pick)) for pick in np.linspace(0, len(times) - 1, min(len(times), number))]
        frames = reel.frames(0.0, times, picks, _of_height(side, reel))
        last = (times[-1] - times[0]) / max(len(times) - 1, 1)
        return FilmStrip(frames, [times[pick] for pick in picks], times[-1] + last)


def _sought(reel: Video, number: int, side: int) -> FilmStrip:
    """The strip of a clip of which too much would be decoded: for each frame it is sought where the frame is."""
    size, seconds = _of_height(side, reel), min(reel.stream.seconds, MAX_SECONDS)
    found: dict[float, Frames] = {}  # by time, as several may lie before one that is shown for long
    for start in np.linspace(0, seconds, number, endpoint=False).tolist():
        for time in reel.times(start, seconds - start, 1):  # of none, where the sound alone goes on
            found[round(start + time, 3)] = reel.frames(start, [time], [0], size)
    return FilmStrip(np.concatenate(list(found.values())), list(found), seconds)


def _of_height(side: int, reel: Video | Animation) -> Size:
    """So many pixels high, in the shape of a clip."""
    width, height = reel.shown()
    return side, max(1, round(side * width / height))


def read_clip(
    path: Path | str,
    num_frames: int,
    fps: float,
    size: int | Size,
    start: float = 0.0,
    end: float | None = None,
) -> Clip:
    """`num_frames` frames of a video, gif or webp, `fps` a second from `start` (seconds) on.

    Each is the frame nearest in time, and none is taken twice: where the clip up to `end` is shorter than
    `num_frames / fps`, the frames are spread over it; where it is slower than `fps`, they are consecutive.
    The centre is cropped to `size` in pixels: the side, or (height, width). Frames are as a player shows them: turned
    and cropped as the file says, without combs, with square pixels, HDR and wide gamuts in BT.709, transparency white.
    Raises NotFoundError, UsageError for impossible numbers, or MediaError.
    """
    _check_sampling(num_frames, fps, start, end)
    path, limit = Path(path), min(MAX_SECONDS, MAX_SECONDS if end is None else end - start)
    with decoding(path):
        reel = open_reel(path)
        times = reel.times(start, min(num_frames / fps, limit), MAX_COUNTED)
        if len(times) < num_frames:  # slower than `fps`, or too short
            times = reel.times(start, limit, num_frames)
        if len(times) < num_frames:
            raise MediaError(_too_short(path.name, len(times), num_frames, start, end))
        picks = _pick(np.array(times), num_frames, fps)
        seconds = times[picks[-1]] - times[picks[0]]
        frames = reel.frames(start, times, picks, pair(size))
        return Clip(path.name, frames, (num_frames - 1) / seconds if seconds > 0 else fps, digest(path))


def aspect_of(path: Path | str) -> Aspect:
    """Width to height of a clip as a player shows it, at most MAX_ASPECT to 1. Raises NotFoundError or MediaError."""
    path = Path(path)
    with decoding(path):
        width, height = open_reel(path).shown()
    return lowest_terms(min(width, MAX_ASPECT * height), min(height, MAX_ASPECT * width))


def count_frames(path: Path, at_most: int) -> int:
    """How many frames a clip has, counted by decoding, up to `at_most`. Raises NotFoundError or MediaError."""
    with decoding(path):
        return len(open_reel(path).times(0.0, MAX_SECONDS, at_most))


def _check_sampling(num_frames: int, fps: float, start: float, end: float | None) -> None:
    if num_frames < 1 or not fps > 0:
        raise UsageError(f"{num_frames} frames at {fps:g} a second cannot be read; both must be above 0.")
    if not num_frames / fps <= MAX_SECONDS:
        raise UsageError(f"{num_frames} frames at {fps:g} a second exceed {MAX_SECONDS:g} s; use fewer.")
    if not start >= 0 or (end is not None and not end > start):
        raise UsageError(f"There is nothing between {start:g} s and {end} s; the end must be after the start.")


def _too_short(name: str, frames: int, num_frames: int, start: float, end: float | None) -> str:
    where = f" from {start:g} s on" if end is None else f" between {start:g} s and {end:g} s"
    count = f"{frames} frame" + "s" * (frames != 1) + where * (start > 0 or end is not None)
    advice = f", or at most --frames {frames}" * (frames > 1)  # a base may take some numbers alone
    return f"Clip '{name}' has {count}; motion needs {num_frames}. Use a longer clip{advice}."


def _pick(times: NDArray[np.float64], num_frames: int, fps: float) -> list[int]:
    """Which of the frames that begin at `times` (seconds) to take: the nearest, each once, in order."""
    order = np.arange(num_frames)
    duration = (times[-1] - times[0]) * len(times) / max(len(times) - 1, 1)  # the last frame lasts, too
    ideal = times[0] + order * min(1 / fps, duration / num_frames)
    nearest = np.abs(times + JITTER - ideal[:, None]).argmin(axis=1)
    once = np.maximum.accumulate(nearest - order) + order
    return [int(pick) for pick in np.minimum(once, len(times) - num_frames + order)]


# -- what is read from


@dataclass(frozen=True)
class Video:
    """What ffmpeg decodes."""

    path: Path
    stream: ffmpeg.Stream

    @property
    def is_large(self) -> bool:
        """Whether there is more of it than may be decoded, as its container tells, and it can be sought in."""
        pixels = self.stream.pixels * self.stream.rate * min(self.stream.seconds, MAX_SECONDS)
        return pixels > MAX_DECODED and not self.stream.blind

    def times(self, start: float, seconds: float, at_most: int) -> list[float]:
        """When each frame of the interval begins, in seconds after `start`: rising."""
        able = MAX_DECODED // self.stream.pixels if self.stream.pixels else at_most
        if able < at_most:
            at_most = able + 1
        exact = ("-enc_time_base:v", "demux")  # of the clip itself, not of its frame rate
        lead = min(start, self.stream.blind)
        small = f"select='gte(t,{lead:.6f})',scale=16:16" if lead else "scale=16:16"
        output = ("-frames:v", str(at_most), "-vf", small, "-pix_fmt", "gray", *exact, "-f", "framecrc")
        lines = ffmpeg.decode(self.path, self.stream, output, at_most, start, seconds).decode().splitlines()
        ticks = {int(line.split(",")[2]) for line in lines if not line.startswith("#")}
        base = next((Fraction(line.split()[-1]) for line in lines if line.startswith("#tb")), Fraction(1))
        if len(ticks) > able:
            raise MediaError(
                f"'{self.path.name}' has over {able} frames of {self.stream.pixels / 1e6:.1f} megapixels in "
                f"{seconds:g} s; make it smaller or slower."
            )
        return sorted(float(tick * base) - lead for tick in ticks)

    def shown(self) -> tuple[int, int]:
        """(width, height) of the first frame, to one in 720: turned, and with square pixels."""
        small = f"scale='clip(round({LINES}*dar),{LINES // MAX_ASPECT},{LINES * MAX_ASPECT})':{LINES}"
        drawn = ("-frames:v", "1", "-vf", small, "-pix_fmt", "gray")
        output = (*drawn, "-f", "image2pipe", "-c:v", "pgm")
        raw = ffmpeg.decode(self.path, self.stream, output, 1, most=2 * MAX_ASPECT * LINES**2)
        width, height = raw.split(maxsplit=3)[1:3]
        return int(width), int(height)

    def frames(self, start: float, times: Sequence[float], picks: Sequence[int], size: Size) -> Frames:
        """Chosen by time: ffmpeg numbers frames anew when their size changes, and its filters are built again."""
        lead = min(start, self.stream.blind)
        between = [time + lead for time in map(mean, pairwise(times))]
        edges = [times[0] + lead - (JITTER if lead else 1), *between, times[-1] + lead + 1]
        near = _any_of([f"between(t,{edges[pick]:.6f},{edges[pick + 1]:.6f})" for pick in picks])
        select = f"select='(isnan(prev_selected_t)+gt(t,prev_selected_t))*{near}'"
        filters = f"{self.stream.whole}{select},{self.stream.filters(size)}"
        output = ("-frames:v", str(len(picks)), "-vf", filters, "-pix_fmt", "rgb24", "-f", "rawvideo")
        until, most = times[-1] + 1, len(picks) * prod(size) * 3
        raw = ffmpeg.decode(self.path, self.stream, output, picks[-1] + 1, start, until, most)
        return np.frombuffer(raw, np.uint8).reshape(len(picks), *size, 3).copy()


def _any_of(conditions: Sequence[str]) -> str:
    """The expression that is true where one of them is; balanced, as ffmpeg nests at most 100 deep."""
    if len(conditions) == 1:
        return conditions[0]
    half = len(conditions) // 2
    return f"({_any_of(conditions[:half])}+{_any_of(conditions[half:])})"


@dataclass(frozen=True)
class Animation:
    """A gif, webp or avif, which Pillow decodes."""

    path: Path

    def times(self, start: float, seconds: float, at_most: int) -> list[float]:
        within = (time - start for time, _ in self.all() if time >= start)
        return list(islice(takewhile(lambda time: time < seconds, within), at_most))

    def shown(self) -> tuple[int, int]:
        with open_image(self.path, "GIF", "WEBP", "AVIF") as image:
            return image.size

    def frames(self, start: float, times: Sequence[float], picks: Sequence[int], size: Size) -> Frames:  # noqa: ARG002
        decoded = islice(enumerate(frame for time, frame in self.all() if time >= start), picks[-1] + 1)
        return np.stack([resize(to_rgb(frame), size) for index, frame in decoded if index in picks])

    def all(self, as_shown: bool = True) -> Iterator[tuple[float, Image.Image]]:
        """All frames with the times at which they begin; `as_shown` by browsers, which make the shortest longer."""
        begins = 0  # milliseconds, which add up exactly
        with open_image(self.path, "GIF", "WEBP", "AVIF") as image:
            for number, frame in enumerate(ImageSequence.Iterator(image), 1):
                if number * image.width * image.height > MAX_ANIMATED:
                    raise MediaError(
                        f"'{self.path.name}' has over {MAX_ANIMATED // 10**6} megapixels in its first {number} frames; "
                        "make it smaller or shorter, or a video."
                    )
                frame.load()  # a webp knows its durations only then
                yield begins / 1000, frame
                lasts = round(frame.info.get("duration") or 0)
                begins += lasts if lasts > SHORTEST or not as_shown else USUAL


def open_reel(path: Path) -> Video | Animation:
    """Raises NotFoundError, or MediaError for what is no clip."""
    if kind_of(path) in ("gif", "webp", "avif"):
        return Animation(path)
    return Video(path, ffmpeg.probe(path))


def kind_of(path: Path) -> str:
    """What the first bytes of a file say that it is, of those that Pillow reads. Raises NotFoundError or MediaError."""
    check_local(path, "clip")
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "webp"
    if head[4:] == b"ftypavis":
        return "avif"
    return {b"GIF8": "gif", b"\x89PNG": "png"}.get(head[:4], "")
