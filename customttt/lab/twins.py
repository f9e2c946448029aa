"""What pretraining asks of an embedded base: a small twin of a published architecture. One file a family beside this.

A twin holds its networks and its tokenizer; how it is trained, `pretrain` knows, which is the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from customttt.diffusion import Latents, Schedule, Timesteps
from customttt.lab.optimizer import OUTER, Optimizer

Stage = Literal["codec", "still", "clip"]
Mode = Literal["crop", "frame", "clip", "window"]
"""What a step is of: crops around subjects out of frames, whole frames, whole clips, or crops out of clips."""


@dataclass(frozen=True)
class Sizes:
    """How much a step, the cache and the codec's pool of frames hold."""

    batch: Mapping[Mode, int]
    codec_batch: int
    clips: int
    """In the cache of latents, and in the codec's pool an eighth of it."""
    chunk: int
    """Clips that are rendered at once."""
    renew_every: int
    """Steps until a chunk of the cache is made anew."""


class Twin(ABC):
    """An embedded base while it is trained: its networks, and all that only its architecture knows."""

    NETWORK: ClassVar[str]
    """What its denoising network is called: in states, and its folder in an exported base."""
    PARTS: ClassVar[Mapping[str, tuple[Any, str]]]
    """Classes of the networks `vae`, NETWORK and `text`, and their folders in an exported base."""
    TOKENIZER: ClassVar[Any]
    SHARES: ClassVar[Mapping[Stage, float]] = MappingProxyType({"codec": 0.15, "still": 0.33, "clip": 0.52})
    """Of the minutes that a run has."""
    TURNS: ClassVar[Mapping[Stage, Sequence[Mode]]] = MappingProxyType({
        "still": ("crop", "frame", "crop"), "clip": ("clip", "clip", "clip", "crop"),
    })  # fmt: skip
    """The steps of the stages after the codec's, in turn."""
    SIZES: ClassVar[Mapping[str, Sizes]]
    """By device."""
    SCHEDULER: ClassVar[Mapping[str, Any]]
    """As in `scheduler_config.json`."""
    FRAMES: ClassVar[int]
    """Of a clip."""
    SPAN: ClassVar[int] = 1
    """Frames of a crop that the codec is trained on."""
    PICTURES: ClassVar[int] = 0
    """Frames of a clip that are encoded alone, too; 0 where the latents of a clip are those of its frames."""
    MAX_TOKENS: ClassVar[int]
    OUTER: ClassVar[tuple[str, ...]] = OUTER
    """Parts of the names of the layers that AdamW moves: first and last ones."""

    CODEC_MUON: ClassVar[bool] = False
    """Whether Muon moves the inner weights of the codec, too."""

    CODEC_RATE: ClassVar[float] = 1.5e-3
    """Highest learning rate of the codec."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.vae, self.network, self.text = self.build(len(tokenizer))
        self.schedule = self.build_schedule(torch.device("cpu"))

    @property
    def networks(self) -> dict[str, Any]:
        """By the names in PARTS."""
        return {"vae": self.vae, self.NETWORK: self.network, "text": self.text}

    @classmethod
    @abstractmethod
    def build(cls, words: int) -> tuple[Any, Any, Any]:
        """A codec, a denoising network, and an encoder of texts in so many tokens, with random weights."""

    @classmethod
    @abstractmethod
    def build_tokenizer(cls, folder: Path) -> Any:
        """Of the world's words; written to `folder`."""

    @classmethod
    @abstractmethod
    def build_schedule(cls, device: torch.device) -> Schedule:
        """What SCHEDULER says, ready to be used on `device`."""

    def to(self, device: torch.device) -> None:
        """Move all to a device, ready to be trained."""
        for network in self.networks.values():
            nn.Module.to(network, device).requires_grad_(True)
        self.schedule = self.build_schedule(device)

    def start_from(self, folder: Path) -> Stage:
        """Take over the networks of an exported base, and say with which stage training goes on."""
        for (kind, part), network in zip(self.PARTS.values(), self.networks.values(), strict=True):
            network.load_state_dict(kind.from_pretrained(folder / part).float().state_dict())
        self.take_scale(self.PARTS["vae"][0].load_config(folder / "vae"))
        return "still"

    def state(self) -> dict[str, Any]:
        """What a run must keep of it beside the weights."""
        return {"scale": self.scale()}

    def restore(self, state: Mapping[str, Any], stage: Stage) -> None:  # noqa: ARG002
        """Take over what an earlier run has kept. Raises UsageError where something is missing."""
        self.take_scale(state["scale"])

    # -- latents

    @abstractmethod
    def encode(self, video: Float[Tensor, "b 3 f h w"]) -> Latents:
        """Latents as the codec gives them, clips as a whole."""

    @abstractmethod
    def decode(self, latents: Latents) -> Float[Tensor, "b 3 f h w"]:
        """Pixels of such latents, in full precision."""

    @abstractmethod
    def scale(self) -> dict[str, Any]:
        """The settings in the codec's config.json by which latents are scaled for the denoising network."""

    def take_scale(self, config: Mapping[str, Any]) -> None:
        """Take those over from elsewhere."""
        self.vae.register_to_config(**{name: config[name] for name in self.scale()})

    @abstractmethod
    def measure_scale(self, latents: Latents) -> None:
        """Choose those for latents such as these."""

    @abstractmethod
    def scaled(self, latents: Latents) -> Latents:
        """For the denoising network."""

    @abstractmethod
    def unscaled(self, latents: Latents) -> Latents:
        """For the codec."""

    @abstractmethod
    def latent_shape(self, frames: int) -> tuple[int, int, int, int]:
        """(c, f, h, w) of the latents of so many frames."""

    @abstractmethod
    def pool(self, values: Float[Tensor, "b f h w"]) -> Float[Tensor, "b f2 h2 w2"]:
        """Means of pixels under each latent."""

    # -- learning

    @abstractmethod
    def codec_loss(self, images: Float[Tensor, "n 3 f s s"], masks: Float[Tensor, "n 1 f s s"]) -> Tensor:
        """Of crops of SPAN frames."""

    def turn(self, progress: float, optimizer: Optimizer, draw: Callable[[], Iterable[Tensor]]) -> None:  # noqa: B027
        """What there is to do between two steps of the codec; `draw` gives batches of crops."""

    @abstractmethod
    def timesteps(self, mode: Mode, count: int, generator: torch.Generator) -> Timesteps:
        """At which to learn, on the generator's device."""

    @abstractmethod
    def embed(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Prompt embeddings, with gradients."""

    @abstractmethod
    def predict(self, noisy: Latents, timesteps: Timesteps, embeds: Float[Tensor, "b l d"]) -> Latents:
        """The network's output in full precision; of one frame, as of a picture."""

    def write_more(self, folder: Path) -> None:  # noqa: B027
        """What an exported base has beside its networks, tokenizer and scheduler."""
