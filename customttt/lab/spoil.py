"""Ways to spoil clips, as generated ones are spoiled (ours): what the judge learns to see through, or not to trust."""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def warp(video: Float[Tensor, "b 3 f h w"], generator: torch.Generator) -> Float[Tensor, "b 3 f h w"]:
    """Move the pixels so far that no subject can be told; colours and the rough path stay."""
    b, _, f, h, w = video.shape
    shifts = torch.randn(b * f, 2, 7, 7, generator=generator) * 0.2
    shifts = F.interpolate(shifts, (h, w), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    still = F.affine_grid(torch.eye(2, 3).expand(b * f, 2, 3), [b * f, 3, h, w], align_corners=False)
    frames = video.transpose(1, 2).flatten(0, 1)
    moved = F.grid_sample(frames, still + shifts, padding_mode="reflection", align_corners=False)
    return moved.view(b, f, 3, h, w).transpose(1, 2)


@cache
def _cosines() -> Float[Tensor, "8 8"]:
    """The orthonormal DCT-II of JPEG's 8 x 8 blocks."""
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)
    matrix = (math.pi / 8 * (n + 0.5) * k).cos() * 0.5
    matrix[0] /= math.sqrt(2)
    return matrix


def compress(video: Float[Tensor, "b 3 f h w"], step: Float[Tensor, " b"]) -> Float[Tensor, "b 3 f h w"]:
    """Quantise the 8 x 8 cosine coefficients in steps of `step`, as a codec does."""
    dct = _cosines()
    h, w = video.shape[-2:]
    blocks = video.reshape(*video.shape[:3], h // 8, 8, w // 8, 8).transpose(-3, -2)
    step = step.view(-1, *[1] * (blocks.ndim - 1))
    blocks = dct.T @ (((dct @ blocks @ dct.T) / step).round() * step) @ dct
    return blocks.transpose(-3, -2).reshape(video.shape)


def augment(video: Float[Tensor, "b 3 f h w"], generator: torch.Generator) -> Float[Tensor, "b 3 f h w"]:
    """Blur, noise, compression and shifts of colour, each of a random strength a clip; half of the clips stay sharp."""
    b = len(video)

    def strength(high: float) -> Tensor:
        drawn = torch.rand(b, generator=generator) * 2 - 1
        return drawn.clamp(min=0) * high

    sigma = strength(1.4).clamp(min=0.05)
    kernel = (-torch.arange(-3.0, 4.0).square() / (2 * sigma[:, None] ** 2)).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    frames = video.transpose(1, 2).transpose(0, 1).flatten(1, 2)  # one group of channels a clip, frames as the batch
    frames = F.conv2d(frames, kernel.unsqueeze(-1), padding=(3, 0), groups=3 * b)
    frames = F.conv2d(frames, kernel.unsqueeze(-2), padding=(0, 3), groups=3 * b)
    video = frames.view(len(frames), b, 3, *frames.shape[-2:]).permute(1, 2, 0, 3, 4)
    video = compress(video, strength(0.5).clamp(min=1e-3))
    gain = 1 + 0.12 * torch.randn(b, 3, 1, 1, 1, generator=generator)
    shift = 0.06 * torch.randn(b, 3, 1, 1, 1, generator=generator)
    noise = torch.randn(video.shape, generator=generator) * strength(0.25).view(-1, 1, 1, 1, 1)
    return (video * gain + shift + noise).clamp(-1, 1)
