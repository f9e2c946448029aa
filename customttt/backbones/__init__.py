"""Base models by family: one file a family; this one says what every family offers and opens a base by its name.

The U-Net's blocks are numbered in the order of the data: 0-3 down, 4 middle, 5-8 up.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from customttt.concept import Kind
from customttt.config import Defaults
from customttt.diffusion import Latents, NoiseSchedule, Timesteps

Video = Float[Tensor, "b 3 f height width"]
PromptEmbeds = Float[Tensor, "b l d"]


@dataclass(frozen=True)
class Place:
    """One linear or convolution of a U-Net that a LoRA can wrap."""

    kind: Kind
    layer: int
    shape: tuple[int, ...]
    """Of its weight: (out, in), and of a convolution (out, in, height, width)."""


@runtime_checkable
class Backbone(Protocol):
    """A text-to-video base model, ready to learn from and to sample."""

    name: str
    fingerprint: str
    """Changes when the weights do: a concept only fits the base it was learned on."""
    unet: nn.Module
    schedule: NoiseSchedule
    defaults: Defaults
    device: torch.device

    def encode(self, video: Video) -> Latents:
        """Latents of pixels in [-1, 1]: the mean of the VAE's posterior, scaled to unit variance."""

    def decode(self, latents: Latents) -> Video:
        """Pixels in [-1, 1]."""

    def embed(self, prompts: Sequence[str]) -> PromptEmbeds:
        """The text encoder's last hidden states."""

    def predict(self, noisy_latents: Latents, timesteps: Timesteps, prompt_embeds: PromptEmbeds) -> Latents:
        """The U-Net's output: noise or v, see `schedule.prediction_type`."""

    def without_motion(self) -> AbstractContextManager[None]:
        """While this lasts, the motion modules are bypassed entirely: frames are independent pictures."""

    def targets(self, kind: str, layers: Sequence[int]) -> list[str]:
        """Names of the linears that a LoRA of `kind` wraps in the numbered layers. Raises UsageError."""

    def latent_shape(self, num_frames: int, size: int) -> tuple[int, int, int, int]:
        """(c, f, h, w) of one video's latents. Raises UsageError for more frames than the base knows."""

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """(tokens of the prompt, most that the text encoder reads)."""


def identify(base: str) -> str:
    """The fingerprint of a base without loading it. Raises BaseUnavailableError."""
    from customttt.backbones import animatediff

    return animatediff.fingerprint(animatediff.locate(base), base)


def defaults(base: str) -> Defaults:
    """A base's own settings, read without loading it. Raises BaseUnavailableError."""
    from customttt.backbones import animatediff

    return animatediff.defaults(base)


def places(base: str) -> dict[str, Place]:
    """What a LoRA can wrap in a base's U-Net, by name, read without loading weights. Raises BaseUnavailableError."""
    from customttt.backbones import animatediff

    return animatediff.places(base)


def open_base(base: str, device: torch.device) -> Backbone:
    """Load a base: `tiny`, `animatediff`, a folder in diffusers format, or a hub id. Raises BaseUnavailableError."""
    from customttt.backbones import animatediff

    return animatediff.load(base, device)


def choose_base(asked: str | None) -> tuple[str, str]:
    """(base, why): what was asked for, a folder by its whole path, else what this machine can carry."""
    if asked:
        named = asked in ("tiny", "animatediff") or not is_local(asked)
        return asked if named else str(Path(asked).expanduser().absolute()), "as asked"
    if torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory > 10 * 2**30:
        return "animatediff", "a CUDA GPU with more than 10 GB is here"
    return "tiny", "no CUDA GPU with more than 10 GB is here"


def is_local(base: str) -> bool:
    """Whether a base name means a folder on this machine."""
    return base.startswith((".", "/", "~")) or Path(base).is_dir()
