"""What the families of U-Nets share: a codec of single frames, CLIP's text encoder, nine numbered layers.

The blocks are numbered in the order of the data: 0-3 `down_blocks.0-3`, 4 `mid_block`, 5-8 `up_blocks.0-3`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.attention_processor import AttnProcessor
from diffusers.utils import logging
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from customttt import lora
from customttt.backbones.attention import attend
from customttt.backbones.family import load_part, read_config, unavailable, visiting
from customttt.backbones.hub import variant
from customttt.backbones.interface import Place, PromptEmbeds, computing, precision
from customttt.backbones.reader import TextReader
from customttt.concept import Kind
from customttt.config import Defaults
from customttt.diffusion import Latents, NoiseSchedule, Schedule, Timesteps
from customttt.errors import UsageError
from customttt.video import Video

STABLE_DIFFUSION_VAE = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
"""The autoencoder of Stable Diffusion 1.5, 83.7 M parameters, which ModelScope and ZeroScope use too."""
SKETCHED = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
"""A sketch's schedule: its numbers change no shape."""
TOKENS = 77
"""That CLIP's text encoder reads, at the most."""
LINEARS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
"""How the names of the linears end that the paper gives a LoRA: all of attention and feed-forward [S]."""
LAYERS = [*(f"down_blocks.{i}" for i in range(4)), "mid_block", *(f"up_blocks.{i}" for i in range(4))]


@dataclass
class UNetFamily(TextReader):
    """A loaded base; see `Backbone` for what each method promises."""

    FOLDER = "unet"
    BRANCHES: ClassVar[Mapping[str, str]]
    """What the spatial and the temporal modules of a layer are called."""
    OUTSIDE: ClassVar[Mapping[str, tuple[Kind, int]]] = MappingProxyType({})
    """Modules outside the layers in which other programs learn: their kind, and the layer that they are counted to."""

    @classmethod
    @abstractmethod
    def load_unet(cls, folder: Path, dtype: torch.dtype) -> nn.Module:
        """The U-Net of a folder. Raises BaseUnavailableError."""

    @classmethod
    @abstractmethod
    def bare_unet(cls, config: Mapping[str, Any], folder: Path | None) -> nn.Module:
        """The U-Net as its configuration draws it, for a meta device; without a folder it is on the hub."""

    @classmethod
    @abstractmethod
    def load_schedule(cls, folder: Path) -> Schedule:
        """The noise schedule that the U-Net was trained with."""

    @abstractmethod
    def predict(self, noisy_latents: Latents, timesteps: Timesteps, prompt_embeds: PromptEmbeds) -> Latents: ...

    @abstractmethod
    def framewise(self) -> AbstractContextManager[None]: ...

    @classmethod
    def places(cls, config: Mapping[str, Any], folder: Path | None, base: str) -> dict[str, Place]:
        """The linears and convolutions of all spatial and temporal modules, by name, in the order of the network."""
        with unavailable(base), torch.device("meta"):
            unet = cls.bare_unet(config, folder)
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
    def load(cls, folder: Path, name: str, fingerprint: str, defaults: Defaults, device: torch.device) -> UNetFamily:
        """Load a folder in diffusers format. Raises BaseUnavailableError."""
        logging.disable_progress_bar()  # of reading shards: this package prints nothing
        with unavailable(name):
            networks = {"network": cls.load_unet(folder, precision(device)), **_load_autoencoder_and_text(folder)}
            tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
            schedule = cls.load_schedule(folder)
        for network in networks.values():
            network.requires_grad_(False).eval()
        choose_attention(networks["network"].to(device), device)
        return cls(
            name=name, fingerprint=fingerprint, tokenizer=tokenizer, schedule=schedule, defaults=defaults,
            device=device, **networks,
        )  # fmt: skip

    @classmethod
    def sketch(
        cls, config: Mapping[str, Any], folder: Path | None, name: str, defaults: Defaults, device: torch.device
    ) -> UNetFamily:
        """The base as it would be on `device`, but on the meta device: shapes without weights, and no text encoder."""
        with unavailable(name), torch.device("meta"):
            unet = cls.bare_unet(config, folder).to(precision(device))
            vae = _bare_autoencoder(folder)
        choose_attention(unet.requires_grad_(False).eval(), device)
        return cls(
            name=name, fingerprint="", network=unet, vae=vae.requires_grad_(False).eval(),
            text_encoder=None, tokenizer=None, schedule=NoiseSchedule.from_config(SKETCHED), defaults=defaults,
            device=torch.device("meta"),
        )  # fmt: skip

    @property
    def blocks(self) -> list[list[nn.Module]]:
        """The resnets, attentions and so on of each."""
        children = ([*self.network.get_submodule(name).children()] for name in LAYERS)
        return [[unit for part in some if isinstance(part, nn.ModuleList) for unit in part] for some in children]

    @property
    def heaviest(self) -> list[int]:
        """The outermost first, which work at the highest resolution."""
        return sorted(range(len(LAYERS)), key=lambda layer: (-abs(2 * layer - len(LAYERS) + 1), -layer))

    @property
    def dtype(self) -> torch.dtype:
        """Of what the network reads; to find its own, diffusers looks through all modules."""
        return self.network.conv_in.weight.dtype  # type: ignore[no-any-return]

    @property
    def prompt_shape(self) -> tuple[int, int]:
        return TOKENS, self.network.config.cross_attention_dim

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

    def read(self, prompts: Sequence[str]) -> PromptEmbeds:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        with visiting(self.text_encoder, self.device):
            embeds: PromptEmbeds = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state.float()
        return embeds

    @property
    def vocabulary(self) -> nn.Embedding:
        table: nn.Embedding = self.text_encoder.get_input_embeddings()
        return table

    def layers(self, kind: Kind) -> tuple[int, ...]:
        return tuple(layer for layer in range(len(LAYERS)) if self._linears(kind, layer))

    def targets(self, kind: Kind, layers: Sequence[int]) -> list[str]:
        if bad := [layer for layer in layers if layer not in range(len(LAYERS))]:
            raise UsageError(f"Layer {bad[0]} does not exist; the layers of {self.name} are 0 to {len(LAYERS) - 1}.")
        names: list[str] = []
        for layer in sorted(set(layers)):
            linears = self._linears(kind, layer)
            if not linears:
                branch = self.BRANCHES[kind].replace("_", " ")
                raise UsageError(f"Layer {layer} of {self.name} has no {branch} to learn in.")
            names += linears
        return names

    def _linears(self, kind: Kind, layer: int) -> list[str]:
        """Names of the linears that the paper gives a LoRA [S]."""
        return lora.target_names(self.network, f"{LAYERS[layer]}.{self.BRANCHES[kind]}.", LINEARS)

    def cross_attention(self, layers: Sequence[int]) -> list[str]:
        return [name for name in self.targets("appearance", layers) if ".attn2." in name]

    @cached_property
    def readers(self) -> tuple[int, ...]:
        able = self.layers("appearance")
        return tuple(layer for layer in able if self.cross_attention([layer]))

    @contextmanager
    def reading(
        self, layer_sets: Sequence[frozenset[int]], starred_embeds: PromptEmbeds, num_frames: int
    ) -> Iterator[None]:
        starred = starred_embeds.repeat_interleave(num_frames, 0)

        def swap(layer: int) -> Callable[..., tuple[Any, dict[str, Any]]]:
            mask = torch.tensor([layer in layers for layers in layer_sets]).repeat_interleave(num_frames)
            rows = mask.nonzero()[:, 0].to(starred.device)

            def hook(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                read = kwargs["encoder_hidden_states"].clone()
                read[rows] = starred[rows].to(read.dtype)
                return args, {**kwargs, "encoder_hidden_states": read}

            return hook

        handles = [
            self.network.get_submodule(name.removesuffix(".to_k")).register_forward_pre_hook(
                swap(layer), with_kwargs=True
            )
            for layer in self.readers
            if any(layer in layers for layers in layer_sets)
            for name in self.cross_attention([layer])
            if name.endswith(".to_k")
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        most = self.network.config.get("motion_max_seq_length") or num_frames
        if num_frames > most:
            raise UsageError(f"Frames are {num_frames}; the motion modules of {self.name} know at most {most}.")
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.check_sides(height, width, factor)
        return self.network.config.in_channels, num_frames, height // factor, width // factor

    def spread(self, linear: str, mask: Float[Tensor, "f h w"]) -> Float[Tensor, "r n 1"] | None:
        spatial = f".{self.BRANCHES['appearance']}." in linear
        if spatial and ".attn2." in linear and linear.endswith(("to_k", "to_v")):
            return None
        layer = next((number for number, name in enumerate(LAYERS) if linear.startswith(f"{name}.")), 0)
        for _ in range(min(layer, 3, len(LAYERS) - 1 - layer)):  # how often the frame was halved on the way there
            mask = F.avg_pool2d(mask, 2, ceil_mode=True)
        positions = mask.flatten(1)[..., None]
        return positions if spatial else positions.transpose(0, 1)

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        return len(self.tokenizer(prompt).input_ids), self.tokenizer.model_max_length


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


def _bare_autoencoder(folder: Path | None) -> nn.Module:
    """As its configuration draws it; where that is not here, the one that all bases with a name share."""
    path = folder and folder / "vae" / "config.json"
    config = read_config(path) if path and path.is_file() else STABLE_DIFFUSION_VAE
    autoencoder = AutoencoderTiny if config.get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    return autoencoder.from_config(config)  # type: ignore[no-any-return]


def choose_attention(unet: Any, device: torch.device) -> None:
    """Fused attention in few operations; plain on a CPU that multiplies bfloat16, where it takes two thirds as long.

    A CPU that does not learns a motion in 0.86 of the time with the fused kind (LOG.md).
    """
    if device.type == "cpu" and computing(device) != precision(device):
        unet.set_attn_processor(AttnProcessor())
    else:
        attend(unet)
