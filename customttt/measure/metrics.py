"""What is measured of a video: features or tracks in, one number out. Knows no model and no file.

Text alignment, image similarity and temporal consistency are cosines of whatever embeds pictures and words; they are
called CLIP-T, CLIP-I and DINO-I only where CLIP or DINO embedded them. As in DreamVideo's evaluation (arXiv
2312.04433), whose names CustomTTT's tables share. All are at most 1, and higher is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from customttt.media import Frames

STILL = 1 / 512
"""A displacement of less than this share of the frame's longer side is none: half a pixel in 256 (ours)."""
REACH = 1 / 64
"""A track that never gets farther than this from where it began does not move: 4 pixels in 256 (ours, see LOG.md)."""

Vectors = Float[Tensor, "f d"]
Tracks = Float[Tensor, "n f 2"]
"""n points through f frames, x and y as shares of the frame's longer side."""


@runtime_checkable
class ImageFeatures(Protocol):
    """Whatever turns pictures into vectors."""

    name: str
    """The model and its revision, as a table shows it."""

    def image_features(self, frames: Frames) -> Vectors:
        """One vector a frame; of any length, only their directions count."""


@runtime_checkable
class Features(ImageFeatures, Protocol):
    """Whatever turns pictures and words into vectors of one space."""

    def text_features(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """One vector a prompt."""


def text_alignment(frames: Vectors, prompt: Float[Tensor, " d"]) -> float:
    """CLIP-T: the mean over frames of cos(frame, prompt)."""
    return float((F.normalize(frames, dim=-1) @ F.normalize(prompt, dim=-1)).mean())


def image_similarity(frames: Vectors, pictures: Float[Tensor, "n d"]) -> float:
    """CLIP-I, DINO-I: the mean of cos(frame, picture) over all pairs of a frame and a reference picture."""
    return float((F.normalize(frames, dim=-1) @ F.normalize(pictures, dim=-1).T).mean())


def temporal_consistency(frames: Vectors) -> float:
    """The mean of cos(frame k, frame k + 1). A video of one still picture scores 1; there must be two frames."""
    unit = F.normalize(frames, dim=-1)
    return float((unit[:-1] * unit[1:]).sum(-1).mean())


def displacement_agreement(tracks: Float[Tensor, "m f 2"], truth: Float[Tensor, "n f 2"]) -> Float[Tensor, "m n"]:
    """corr(tau, tau~) = 1/F sum_k cos(v_k, v~_k) of every two tracks, v_k the displacement from frame k to the next.

    Equation 4 of arXiv 2603.22193; what Yatim et al. released computes the same. Where both rest (a displacement below
    `STILL`) the cosine has no value and counts 1, where one of them rests 0 (ours).
    """
    ours, theirs = tracks.diff(dim=1), truth.diff(dim=1)
    moving, moved = ours.norm(dim=-1) >= STILL, theirs.norm(dim=-1) >= STILL
    cosines = torch.einsum("mkc,nkc->mnk", F.normalize(ours, dim=-1), F.normalize(theirs, dim=-1))
    both, neither = moving[:, None] & moved[None], ~moving[:, None] & ~moved[None]
    agreement: Tensor = (cosines * both + neither).mean(-1)
    return agreement


def motion_fidelity(tracks: Float[Tensor, "m f 2"], truth: Float[Tensor, "n f 2"]) -> float:
    """How well the movements of a video and of the clip it is to repeat find each other, from -1 to 1.

    Yatim et al., "Space-Time Diffusion Features for Zero-Shot Text-Driven Motion Transfer" (arXiv 2311.17009), with
    both sides as arXiv 2603.22193 quotes it in equation 3: 1/m sum_tau~ max_tau corr(tau, tau~) +
    1/n sum_tau max_tau~ corr(tau, tau~), where corr is `displacement_agreement`. CustomTTT's own equation was not at
    hand. Ours: half of that sum, so that a video held against itself scores 1; and tracks that do not move (`REACH`)
    are left out, as a still background would find itself and drown the rest. Two videos without any movement agree
    (1), a still one shares nothing with a moving one (0), nor does one in which no point can be followed (0).
    """
    if not len(tracks) or not len(truth):
        return 0.0
    moving, moved = (some[_moves(some)] for some in (tracks, truth))
    if not len(moving) or not len(moved):
        return float(len(moving) == len(moved))
    agreement = displacement_agreement(moving, moved)
    return float((agreement.amax(1).mean() + agreement.amax(0).mean()) / 2)


def _moves(tracks: Tracks) -> Tensor:
    """Which tracks move (n)."""
    moves: Tensor = ((tracks - tracks[:, :1]).norm(dim=-1) >= REACH).any(-1)
    return moves


def correlation(track: Float[Tensor, "f 2"], truth: Float[Tensor, "f 2"]) -> float:
    """Pearson's r of two tracks, both axes centred and taken together; 0 where one of them stands still.

    A mirrored, shifted or still track scores low, a smaller one of the same shape scores 1.
    """
    a, b = (value - value.mean(0) for value in (track.double(), truth.double()))
    scale = a.norm() * b.norm()
    return float((a * b).sum() / scale) if scale > 1e-6 else 0.0
