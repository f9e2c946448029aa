"""What is evaluated and what it is held against, read and checked before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from customttt.errors import CustomTTTError, MediaError, NotFoundError, UsageError
from customttt.measure import compare
from customttt.measure.compare import METHODS, RUN
from customttt.recipe import VideoRecipe, check_prompt
from customttt_cli.sources import count as counted
from customttt_cli.sources import tell_passed_over

if TYPE_CHECKING:
    from customttt.media import Frames

ALL = "all"
MOST_FRAMES, FPS, SIZE = 16, 8.0, 256
"""How a video of another program is read: as CustomTTT's own, 16 frames of 256 x 256, 8 a second; or fewer frames."""


@dataclass(frozen=True)
class Exhibit:
    """One video to be evaluated, and what its recipe says."""

    path: Path
    frames: Frames
    fps: float
    prompt: str | None
    base: str | None
    group: str
    """Videos that differ in no more than their seed are of one group."""
    column: str = ALL
    """The method of a comparison."""
    subjects: tuple[str, ...] = ()
    motions: int = 0
    """Both as in `evaluate.Candidate`."""


def collect(paths: Sequence[Path], prompt: str | None) -> list[Exhibit]:
    """The videos, or all those of the folder of a comparison. Raises NotFoundError, MediaError or UsageError."""
    if prompt is not None:
        check_prompt(prompt)
    runs = [path for path in paths if (path / RUN).is_file()]
    if not runs:
        return [read(path, prompt) for path in paths]
    if len(paths) > 1:
        raise UsageError(f"'{runs[0]}' is the folder of a comparison; evaluate it alone.")
    return [read(path, prompt, method) for path, method in _cells(runs[0])]


def _cells(run: Path) -> list[tuple[Path, str]]:
    """The videos of a comparison, method by method in the order in which `compare` knows them."""
    order = list(METHODS)
    videos = compare.cells(run)
    if not videos:
        raise NotFoundError(
            f"Folder '{run}' has no videos of a comparison; run 'customttt compare -o {run} ...' again."
        )
    return sorted(videos.items(), key=lambda one: order.index(one[1]))


def read(path: Path, prompt: str | None, column: str = ALL) -> Exhibit:
    """One video and what its recipe says. Raises NotFoundError or MediaError."""
    from customttt import media

    recipe = _recipe(path)
    try:
        frames, fps = media.read_frames(path)
    except MediaError:  # of another program
        if path.is_dir():
            raise MediaError(
                f"Folder '{path}' holds neither a video's frames nor a comparison; give videos, such as {path}/*.mp4."
            ) from None
        count = media.count_frames(path, MOST_FRAMES)
        if not count:
            raise MediaError(f"'{path.name}' has no frames; give a video.") from None
        clip = media.read_clip(path, count, FPS, SIZE)
        frames, fps = clip.frames, clip.fps
    if recipe is None:
        return Exhibit(path, frames, fps, prompt, None, str(path), column)
    names = recipe.appearance.name, recipe.motion.name, recipe.target_prompt
    subjects, shown = tuple(one.appearance.phrase for one in recipe.subjects), prompt or recipe.target_prompt
    return Exhibit(path, frames, fps, shown, recipe.base, repr(names), column, subjects, len(recipe.motions))


def _recipe(path: Path) -> VideoRecipe | None:
    """What a video was made by; None where it carries nothing that this program can read."""
    from customttt import media

    if not path.exists():
        raise NotFoundError(f"There is no video '{path}'.")
    try:
        return VideoRecipe.from_dict(media.read_recipe(path))
    except CustomTTTError:
        return None


def pictures(paths: Sequence[Path]) -> Frames:
    """Reference pictures (n h w 3), cropped to a square. Raises NotFoundError or MediaError."""
    import numpy as np

    from customttt import media

    stack = np.stack([picture.pixels for picture in media.read_pictures(paths, SIZE)])
    tell_passed_over(paths)
    return stack


def clips(path: Path, shown: Sequence[Exhibit]) -> list[Frames | None]:
    """The clip of the movement for each video: as many frames, as large, as fast. Raises NotFoundError, MediaError."""
    from customttt import media

    read: list[Frames | None] = []
    for one in shown:
        count, height, width, _ = one.frames.shape
        if (has := media.count_frames(path, count)) < count:
            raise MediaError(
                f"Clip '{path.name}' has {counted(has, 'frame')} and video '{one.path.name}' {count}; they are "
                f"compared frame by frame, so give a clip of at least {count}."
            )
        read.append(media.read_clip(path, count, one.fps, (height, width)).frames)
    return read
