"""What every base offers, whatever its family.

The U-Net's blocks are numbered in the order of the data: 0-3 down, 4 middle, 5-8 up.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from customttt import machine
from customttt.concept import Kind
from customttt.config import Defaults
from customttt.diffusion import Latents, Schedule, Timesteps
from customttt.video import Video

PromptEmbeds = Float[Tensor, "b l d"]
WordEmbedding = Float[Tensor, " d"]


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
    schedule: Schedule
    defaults: Defaults
    device: torch.device

    @property
    def blocks(self) -> list[nn.Module]:
        """The nine numbered blocks."""

    def encode(self, video: Video) -> Latents:
        """Latents of pixels in [-1, 1]: the mean of the VAE's posterior, scaled to unit variance."""

    def decode(self, latents: Latents) -> Video:
        """Pixels in [-1, 1]."""

    def embed(self, prompts: Sequence[str]) -> PromptEmbeds:
        """The text encoder's last hidden states."""

    def word(self, noun: str) -> WordEmbedding:
        """What the text encoder reads where the last token of a noun stands."""

    def meaning(self, noun: str, vector: WordEmbedding) -> AbstractContextManager[None]:
        """While this lasts, `embed` reads `vector` where the last token of a noun stands; gradients reach it."""

    def predict(self, noisy_latents: Latents, timesteps: Timesteps, prompt_embeds: PromptEmbeds) -> Latents:
        """The network's output, which `schedule` reads."""

    def without_motion(self) -> AbstractContextManager[None]:
        """While this lasts, the motion modules are bypassed entirely: frames are independent pictures."""

    def layers(self, kind: str) -> tuple[int, ...]:
        """The numbered layers that a LoRA of `kind` can learn in."""

    def targets(self, kind: str, layers: Sequence[int]) -> list[str]:
        """Names of the linears that a LoRA of `kind` wraps in the numbered layers. Raises UsageError."""

    def latent_shape(self, num_frames: int, size: int) -> tuple[int, int, int, int]:
        """(c, f, h, w) of one video's latents. Raises UsageError for more frames than the base knows."""

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """(tokens of the prompt, most that the text encoder reads)."""


def precision(device: torch.device) -> torch.dtype:
    """What a U-Net is kept in: full precision on a CPU, bfloat16 on a GPU that has it, else float16."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def computing(device: torch.device) -> torch.dtype:
    """What its products are computed in: what it is kept in, but bfloat16 on a CPU that has instructions for that."""
    half = device.type == "cpu" and machine.multiplies_bfloat16()
    return torch.bfloat16 if half else precision(device)
