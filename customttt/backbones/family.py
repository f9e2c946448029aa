"""What all families share: the VAE, the text encoder, the numbered layers. A family is a subclass in a file of its own.

Every U-Net here has nine blocks: 0-3 `down_blocks.0-3`, 4 `mid_block`, 5-8 `up_blocks.0-3`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.attention_processor import AttnProcessor
from diffusers.utils import logging
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from customttt import lora
from customttt.backbones.hub import Repository, variant
from customttt.backbones.interface import Place, PromptEmbeds, WordEmbedding, precision
from customttt.concept import Kind
from customttt.config import Defaults
from customttt.diffusion import Latents, NoiseSchedule, Schedule, Timesteps
from customttt.errors import BaseUnavailableError, UsageError
from customttt.patch import replaced
from customttt.video import Video

STABLE_DIFFUSION_VAE = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
"""The autoencoder of Stable Diffusion 1.5, 83.7 M parameters, which ModelScope and ZeroScope use too."""
SKETCHED = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
"""A sketch's schedule: its numbers change no shape."""
LAYERS = [*(f"down_blocks.{i}" for i in range(4)), "mid_block", *(f"up_blocks.{i}" for i in range(4))]


@dataclass(frozen=True)
class Known:
    """A base that has a name. Every number is looked up or computed; its comment says where."""

    name: str
    what: str
    licence: str
    defaults: Defaults | None = None
    """None: they are in its folder."""
    folder: Path | None = None
    """Where it is if it came with this package; else it is downloaded."""
    repositories: tuple[Repository, ...] = ()
    """What is downloaded: the checkpoint, and what belongs to it."""
    download: int = 0
    """Bytes."""
    architecture: Mapping[str, Any] | None = None
    """Of its U-Net, as in unet/config.json, so that it can be planned with before the download."""
    memory: int = 0
    """Bytes of a GPU that learning and test-time training can do with; 0: any CPU will do.

    What the planner foretells for a step of test-time training with every block recomputed, a tenth more, and one
    gigabyte for CUDA itself, rounded up. Foretold, not measured; a test holds AnimateDiff's to the planner.
    """


@dataclass
class Family(ABC):
    """A loaded base; see `Backbone` for what each method promises."""

    UNETS: ClassVar[tuple[str, ...]]
    """Class names in unet/config.json that this family loads."""
    KNOWN: ClassVar[tuple[Known, ...]]
    BRANCHES: ClassVar[Mapping[str, str]]
    """What the spatial and the temporal modules of a layer are called."""
    OUTSIDE: ClassVar[Mapping[str, tuple[Kind, int]]] = MappingProxyType({})
    """Modules outside the layers in which other programs learn: their kind, and the layer that they are counted to."""

    ARCHITECTURES: ClassVar[Mapping[Kind, str]]
    """What a LoRA of each kind is for, in the words of `modelspec.architecture`."""
    KOHYA: ClassVar[bool]
    """Whether there is a program that reads LoRAs for this family in the spelling of kohya and AnimateDiff."""

    name: str
    fingerprint: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    schedule: Schedule
    defaults: Defaults
    device: torch.device

    @classmethod
    @abstractmethod
    def recipe(cls, unet_config: Mapping[str, Any]) -> Defaults:
        """The settings for a U-Net that has no name."""

    @classmethod
    def beside(cls, unet_config: Mapping[str, Any]) -> tuple[Repository, ...]:  # noqa: ARG003 for those that need it
        """What a U-Net needs besides its own repository. Raises BaseUnavailableError for one that does not fit."""
        return ()

    @classmethod
    @abstractmethod
    def load_unet(cls, folder: Path, dtype: torch.dtype) -> nn.Module:
        """The U-Net of a folder. Raises BaseUnavailableError."""

    @classmethod
    @abstractmethod
    def bare_unet(cls, unet_config: Mapping[str, Any], folder: Path | None) -> nn.Module:
        """The U-Net as its configuration draws it, for a meta device; without a folder it is on the hub."""

    @classmethod
    @abstractmethod
    def load_schedule(cls, folder: Path) -> Schedule:
        """The noise schedule that the U-Net was trained with."""

    @abstractmethod
    def predict(self, noisy_latents: Latents, timesteps: Timesteps, prompt_embeds: PromptEmbeds) -> Latents: ...

    @abstractmethod
    def without_motion(self) -> AbstractContextManager[None]: ...

    @classmethod
    def places(cls, unet_config: Mapping[str, Any], folder: Path | None, base: str) -> dict[str, Place]:
        """The linears and convolutions of all spatial and temporal modules, by name, in the order of the network."""
        with _unavailable(base), torch.device("meta"):
            unet = cls.bare_unet(unet_config, folder)
        kinds: tuple[Kind, ...] = ("appearance", "motion")
        marks: dict[str, tuple[Kind, int]] = dict(cls.OUTSIDE)
        marks |= {
            f"{block}.{cls.BRANCHES[kind]}.": (kind, layer) for layer, block in enumerate(LAYERS) for kind in kinds
        }
        return {
            name: Place(*mark, shape=tuple(module.weight.shape))
            for name, module in unet.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
            for prefix, mark in marks.items()
            if name.startswith(prefix)
        }

    @classmethod
    def load(cls, folder: Path, name: str, fingerprint: str, defaults: Defaults, device: torch.device) -> Family:
        """Load a folder in diffusers format. Raises BaseUnavailableError."""
        logging.disable_progress_bar()  # of reading shards: this package prints nothing
        with _unavailable(name):
            networks = {"unet": cls.load_unet(folder, precision(device)), **_load_autoencoder_and_text(folder)}
            tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
            schedule = cls.load_schedule(folder)
        for network in networks.values():
            network.requires_grad_(False).eval()
        suit(networks["unet"].to(device), device)
        return cls(
            name=name, fingerprint=fingerprint, tokenizer=tokenizer, schedule=schedule, defaults=defaults,
            device=device, **networks,
        )  # fmt: skip

    @classmethod
    def sketch(
        cls, unet_config: Mapping[str, Any], folder: Path | None, name: str, defaults: Defaults, device: torch.device
    ) -> Family:
        """The base as it would be on `device`, but on the meta device: shapes without weights, and no text encoder."""
        with _unavailable(name), torch.device("meta"):
            unet = cls.bare_unet(unet_config, folder).to(precision(device))
            vae = _bare_autoencoder(folder)
        suit(unet, device)
        return cls(
            name=name, fingerprint="", unet=unet.requires_grad_(False).eval(), vae=vae.requires_grad_(False).eval(),
            text_encoder=None, tokenizer=None, schedule=NoiseSchedule.from_config(SKETCHED), defaults=defaults,
            device=torch.device("meta"),
        )  # fmt: skip

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.unet.get_submodule(name) for name in LAYERS]

    @torch.no_grad()
    def encode(self, video: Video) -> Latents:
        b, _, f, _, _ = video.shape
        images = video.transpose(1, 2).flatten(0, 1).to(self.device, self.vae.dtype)
        with visiting(self.vae, self.device):
            encoded = [self.vae.encode(image) for image in images.split(1)]  # type: ignore[no-untyped-call]
        tiny = isinstance(self.vae, AutoencoderTiny)
        mean: Latents = torch.cat([one.latents if tiny else one.latent_dist.mode() for one in encoded])
        mean = mean * self.vae.config.scaling_factor
        return mean.float().view(b, f, *mean.shape[1:]).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latents: Latents) -> Video:
        b, _, f, _, _ = latents.shape
        frames = latents.transpose(1, 2).flatten(0, 1).to(self.vae.dtype) / self.vae.config.scaling_factor
        with visiting(self.vae, self.device):
            images = torch.cat([self.vae.decode(frame).sample for frame in frames.split(1)])
        return images.float().clamp(-1, 1).view(b, f, *images.shape[1:]).transpose(1, 2)

    def embed(self, prompts: Sequence[str]) -> PromptEmbeds:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        with visiting(self.text_encoder, self.device):
            embeds: PromptEmbeds = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state.float()
        return embeds

    def word(self, noun: str) -> WordEmbedding:
        known: Tensor = self.text_encoder.get_input_embeddings().weight[self._token(noun)]
        return known.detach().clone()

    @contextmanager
    def meaning(self, noun: str, vector: WordEmbedding) -> Iterator[None]:
        table, token = self.text_encoder.get_input_embeddings(), self._token(noun)

        def read(ids: Tensor) -> Tensor:
            known = F.embedding(ids, table.weight)
            return torch.where((ids == token)[..., None], vector.to(known), known)

        with replaced([table], lambda _: read), visiting(self.text_encoder, self.device):  # for a backward pass, too
            yield

    def _token(self, noun: str) -> int:
        return int(self.tokenizer(noun, add_special_tokens=False).input_ids[-1])

    def layers(self, kind: str) -> tuple[int, ...]:
        blocks = [lora.target_names(self.unet, [f"{block}.{self.BRANCHES[kind]}"]) for block in LAYERS]
        return tuple(layer for layer, found in enumerate(blocks) if found)

    def targets(self, kind: str, layers: Sequence[int]) -> list[str]:
        if bad := [layer for layer in layers if layer not in range(len(LAYERS))]:
            raise UsageError(f"Layer {bad[0]} does not exist; the layers of {self.name} are 0 to {len(LAYERS) - 1}.")
        names: list[str] = []
        for layer in sorted(set(layers)):
            found = lora.target_names(self.unet, [f"{LAYERS[layer]}.{self.BRANCHES[kind]}"])
            if not found:
                branch = self.BRANCHES[kind].replace("_", " ")
                raise UsageError(f"Layer {layer} of {self.name} has no {branch} to learn in.")
            names += found
        return names

    def latent_shape(self, num_frames: int, size: int) -> tuple[int, int, int, int]:
        most = self.unet.config.get("motion_max_seq_length") or num_frames
        if num_frames > most:
            raise UsageError(f"Frames are {num_frames}; the motion modules of {self.name} know at most {most}.")
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.unet.config.in_channels, num_frames, size // factor, size // factor

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        return len(self.tokenizer(prompt).input_ids), self.tokenizer.model_max_length


@contextmanager
def _unavailable(base: str) -> Iterator[None]:
    """Turn what is raised over a base that cannot be had into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseUnavailableError(f"Base {base!r} cannot be loaded ({reason}); use --base tiny.") from error


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file of a base. Raises BaseUnavailableError."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise BaseUnavailableError(f"{path} cannot be read ({error}); get the base once more.") from error


def _load_autoencoder_and_text(folder: Path) -> dict[str, Any]:
    """Both in full precision on every device: they run once, and half precision shows in the colours."""
    tiny = read_config(folder / "vae" / "config.json").get("_class_name") == "AutoencoderTiny"
    autoencoder = AutoencoderTiny if tiny else AutoencoderKL
    return {
        "vae": load_part(autoencoder, folder / "vae", torch.float32),
        "text_encoder": CLIPTextModel.from_pretrained(
            folder, subfolder="text_encoder", use_safetensors=True, variant=variant(folder / "text_encoder")
        ).float(),
    }


def load_part(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network of diffusers from its own folder."""
    return cls.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, variant=variant(folder))


def _bare_autoencoder(folder: Path | None) -> nn.Module:
    """As its configuration draws it; where that is not here, the one that all bases with a name share."""
    path = folder and folder / "vae" / "config.json"
    config = read_config(path) if path and path.is_file() else STABLE_DIFFUSION_VAE
    autoencoder = AutoencoderTiny if config.get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    return autoencoder.from_config(config)  # type: ignore[no-any-return]


def suit(unet: Any, device: torch.device) -> None:
    """On a CPU, plain attention: a third faster than the fused kind on a few frames, which is the default."""
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())


@contextmanager
def visiting(network: nn.Module, device: torch.device) -> Iterator[None]:
    """On a device while it is needed, and then back where it was: the U-Net has the GPU to itself while it learns."""
    home = next(network.parameters()).device
    network.to(device)
    try:
        yield
    finally:
        network.to(home)
