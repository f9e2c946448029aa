"""What an entry of the library shows of itself beside its weights: a preview, the curve of its losses, its inputs.

    preview.png or preview.mp4    what its LoRA alone makes of its training prompt
    losses.png                    the losses of its training, first to last
    inputs.png                    the pictures, or frames of the clip, that it was learned from

They are files of the entry like any other, each with its sha256 in the manifest. An export leaves the last out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from customttt.concept import PREVIEWS
from customttt.errors import DamagedError, MediaError
from customttt.media import Frames, Pixels, count_frames, read_png, write_png, write_video

VIDEO, PICTURE, CURVE, INPUTS = PREVIEWS
SHOWN = 8
"""Pictures, or frames of a clip, in a strip."""
CELL = 128
"""Pixels of the longer side of each, at most."""
CURVE_POINTS = 100
CHART = (480, 200)
"""Pixels of a picture of losses."""


def write(
    folder: Path, shown: Frames | None, fps: float, losses: Sequence[float], inputs: Sequence[Pixels] | Frames
) -> None:
    """Put previews into a folder: of `shown`, one frame or several, if there is any, of losses and of inputs."""
    if shown is not None:
        write_shown(folder / "preview", shown, fps)
    if len(losses) > 1:
        write_png(folder / CURVE, chart(losses))
    write_png(folder / INPUTS, strip(inputs))


def write_shown(stem: Path, shown: Frames, fps: float) -> Path:
    """One frame as a picture, several as a video, beside a name without an end; returns the file."""
    if len(shown) == 1:
        path = stem.with_suffix(".png")
        write_png(path, shown[0])
    else:
        path = stem.with_suffix(".mp4")
        write_video(path, shown, fps, {})
    return path


def check(files: Collection[str], folder: Path) -> None:
    """Raise DamagedError for a preview among a stranger's files that is not what its name says."""
    for name in set(PREVIEWS) & set(files):
        try:
            if name != VIDEO:
                read_png(folder / name)
            elif not count_frames(folder / name, 1):
                raise MediaError(f"'{name}' has no frames.")
        except MediaError as error:
            raise DamagedError(f"Its preview cannot be shown: {error}") from error


def strip(pictures: Sequence[Pixels] | Frames) -> Pixels:
    """A row (h w 3) of at most SHOWN small pictures, evenly taken from those that are given."""
    picks = np.linspace(0, len(pictures) - 1, min(len(pictures), SHOWN)).round().astype(int)
    height, width = pictures[0].shape[:2]
    scale = min(1.0, CELL / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    row = Image.new("RGB", (len(picks) * (size[0] + 4) - 4, size[1]), "white")
    for index, pick in enumerate(picks):
        small = Image.fromarray(pictures[pick]).resize(size, Image.Resampling.LANCZOS)
        row.paste(small, (index * (size[0] + 4), 0))
    return np.array(row)


def chart(losses: Sequence[float]) -> Pixels:
    """A picture (h w 3) of the losses, on white, with the highest, the lowest and the number of steps written on."""
    (width, height), left, below = CHART, 64, 24
    font, sheet = ImageFont.load_default(13), Image.new("RGB", CHART, "white")
    draw, means = ImageDraw.Draw(sheet), _means(losses)
    scale = (width - left - 12) / 100, (height - below - 12) / 30
    line = [(left + x * scale[0], 8 + y * scale[1]) for x, y in _points(means)]
    draw.line([(left, 4), (left, height - below), (width - 8, height - below)], (190, 190, 190))
    draw.line(line, (47, 91, 208), 2, "curve")
    for value, y in ((max(means), min(y for _, y in line)), (min(means), max(y for _, y in line))):
        draw.text((left - 6, y), f"{value:.3g}", "black", font, anchor="rm")
    draw.text((width - 8, height - 4), f"{len(losses)} steps", "black", font, anchor="rs")
    return np.array(sheet)


def curve(losses: Sequence[float]) -> str:
    """The points of a line in a box of 100 x 30, each the mean of a stretch of losses; empty for fewer than two."""
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in _points(_means(losses))) if len(losses) > 1 else ""


def _means(losses: Sequence[float]) -> list[float]:
    count = min(len(losses), CURVE_POINTS)
    ends = [round(index * len(losses) / count) for index in range(count + 1)]
    return [sum(losses[a:b]) / (b - a) for a, b in pairwise(ends)]


def _points(means: Sequence[float]) -> list[tuple[float, float]]:
    low, span = min(means), (max(means) - min(means)) or 1.0
    return [(100 * index / (len(means) - 1), 28 - 26 * (mean - low) / span) for index, mean in enumerate(means)]
