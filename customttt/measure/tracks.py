"""Points followed through a video by OpenCV's pyramidal Lucas-Kanade, an optional extra: `customttt[evaluate]`.

A well-kept library in place of a learned tracker (Yatim et al. use CoTracker on a grid of 55 x 55). It holds on to
texture: points are lost on smooth areas, and where things turn much or jump by more than an eighth of the frame.
No torch.
"""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from customttt.media import Frames

GRID = 32
"""Points a side in the first frame."""
WINDOW, LEVELS = 15, 3
"""Of Lucas-Kanade: the window's side in pixels, and how many times the pyramid halves the frame."""
RETURN = 1.0
"""A point that ends up farther (pixels) from where it began when it is followed back again was lost."""

Points = NDArray[np.float32]  # (n 2) in pixels


def obstacle() -> str | None:
    """Why nothing can be followed here; None where it can."""
    return None if find_spec("cv2") else "OpenCV is not installed; type pip install 'customttt[evaluate]'"


def name() -> str:
    """What follows the points, as a table shows it."""
    try:
        version = f" {metadata.version('opencv-python-headless')}"
    except metadata.PackageNotFoundError:  # none, or another build of it
        version = ""
    return f"points followed by OpenCV{version} (Lucas-Kanade)"


def follow(frames: Frames, grid: int = GRID) -> NDArray[np.float32]:
    """The points of a grid in the first frame through all frames (n f 2), as shares of the frame's longer side.

    Points that are lost on the way are left out, as are those where there is nothing to hold on to: n may be 0.
    """
    import cv2

    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    path, held = [_grid(frames.shape[1], frames.shape[2], grid)], np.ones(grid * grid, bool)
    for before, after in pairwise(grey):
        points, found = _step(cv2, before, after, path[-1])
        path.append(points)
        held &= found
    return np.stack(path, axis=1)[held] / np.float32(max(frames.shape[1:3]))


def _grid(height: int, width: int, grid: int) -> Points:
    centres = (np.arange(grid, dtype=np.float32) + 0.5) / grid
    x, y = np.meshgrid(centres * width - 0.5, centres * height - 0.5)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _step(cv2: Any, before: NDArray[np.uint8], after: NDArray[np.uint8], points: Points) -> tuple[Points, Any]:
    """Where the points are in the next frame, and which of them (n) were found there and come back again."""
    options = {"winSize": (WINDOW, WINDOW), "maxLevel": LEVELS}
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, **options)
    back, returned, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, **options)
    near = np.linalg.norm(back - points, axis=1) <= RETURN
    return there, (found[:, 0] == 1) & (returned[:, 0] == 1) & near
