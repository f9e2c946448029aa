"""What every base offers, whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
    """One linear or convolution of a network that a LoRA can wrap."""

    kind: Kind | None
    """Which LoRAs may use it; None: of either kind."""
    layer: int
    shape: tuple[int, ...]
    """Of its weight: (out, in), and of a convolution (out, in, height, width)."""


@runtime_checkable
class Backbone(Protocol):
    """A text-to-video base model, ready to learn from and to sample.

    Its network has numbered layers, in the order of the data. What is learned of single pictures and what of clips is
    told apart by *where* LoRAs sit, where a base has spatial and temporal modules, and else by what they learn from.
    """

    name: str
    fingerprint: str
    """Changes when the weights do: a concept only fits the base it was learned on."""
    network: nn.Module
    vae: nn.Module
    schedule: Schedule
    defaults: Defaults
    device: torch.device

    @property
    def blocks(self) -> list[list[nn.Module]]:
        """The numbered blocks, each as those of its modules that can be computed again one after the other."""

    @property
    def heaviest(self) -> list[int]:
        """The numbers of the blocks, those first that keep the most for a backward pass."""

    @property
    def recordable(self) -> bool:
        """Whether weights stay where they are, and `predict` asks a GPU for the same where shapes are the same: then it
        can be recorded (`graphs`), and LoRAs can be merged (`thrift`)."""

    def on_gpu(self, decoding: bool = False) -> list[nn.Module]:
        """What is on a GPU at the same time: while the network works, or while the codec does."""

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """(l, d) of a prompt's embeddings."""

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

    def noise(self, kind: Kind) -> tuple[float, float]:
        """Between which shares of the noise (0 clean, 1 noise) a LoRA of `kind` can act at all."""

    def framewise(self) -> AbstractContextManager[None]:
        """While this lasts, `predict` sees every frame as a picture by itself: nothing that mixes frames acts."""

    @property
    def readers(self) -> tuple[int, ...]:
        """The layers that read the prompt."""

    def reading(
        self, layer_sets: Sequence[frozenset[int]], starred_embeds: PromptEmbeds, num_frames: int
    ) -> AbstractContextManager[None]:
        """While this lasts, video k of a batch reads p* in the layers of `layer_sets[k]` and its own prompt elsewhere.

        `starred_embeds` is (b l d), one row a video; rows of the batch beyond b (those of the empty prompt) are left
        alone.
        """

    def layers(self, kind: Kind) -> tuple[int, ...]:
        """The numbered layers that a LoRA of `kind` can learn in."""

    def targets(self, kind: Kind, layers: Sequence[int]) -> list[str]:
        """Names of the linears that a LoRA of `kind` wraps in the numbered layers. Raises UsageError."""

    def cross_attention(self, layers: Sequence[int]) -> list[str]:
        """Of an appearance's linears there, those by which the prompt is read."""

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(c, f, h, w) of the latents of one video of so many pixels. Raises UsageError for one that it cannot do."""

    def attending(self, hear: Callable[[str, Tensor, Tensor], None]) -> AbstractContextManager[None]:
        """While this lasts, `hear` gets of each cross-attention the name of the linear of its queries, the queries
        (r k n d) and the keys (r k l d), of k heads; the rows r are those of `spread`, one video after the other."""

    def spread(self, linear: str, mask: Float[Tensor, "f h w"]) -> Float[Tensor, "r n 1"] | None:
        """A mask of latents over the rows of tokens of one video in a linear; None where the prompt goes through it."""

    def tokens_of(self, prompt: str, word: str) -> list[int]:
        """Where a word stands among the tokens of a prompt. Raises UsageError where it does not."""

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """(tokens of the prompt, most that the text encoder reads)."""


def precision(device: torch.device) -> torch.dtype:
    """The precision of a network's weights: float32 on a CPU, bfloat16 on a GPU that has it, else float16."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """While this lasts, a network computes in `computing`, where its weights are in another precision: on some CPUs.

    On a GPU all is in that of the weights: norms compute their statistics in float32 all the same, inside of their
    kernels, and nothing is widened and narrowed in between.
    """
    if computing(device) == precision(device):
        return nullcontext()
    return torch.autocast(device.type, computing(device))


def computing(device: torch.device) -> torch.dtype:
    """The precision of its matrix products: that of its weights, but bfloat16 on a CPU that has instructions for it."""
    half = device.type == "cpu" and machine.multiplies_bfloat16()
    return torch.bfloat16 if half else precision(device)
