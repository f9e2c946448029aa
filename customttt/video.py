"""Frames of files, uint8, to a tensor that networks read, and back."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from customttt.media import Frames

Video = Float[Tensor, "b 3 f height width"]
"""Pixels in [-1, 1]."""


def to_video(frames: Frames) -> Video:
    """uint8 frames (f h w 3) to pixels in [-1, 1] (1 3 f h w)."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).float() / 127.5 - 1
    return pixels.permute(3, 0, 1, 2)[None]


def to_frames(video: Video, magnify: int = 1) -> Frames:
    """Pixels in [-1, 1] of one video (1 3 f h w) to uint8 (f h w 3), `magnify` times larger."""
    images = video[0].transpose(0, 1)
    if magnify > 1:
        images = interpolate(images, scale_factor=magnify, mode="bicubic", align_corners=False)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
