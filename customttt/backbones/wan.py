"""The Wan family: one transformer over space and time (arXiv 2503.20314), text read by UMT5, a codec of whole clips.

`blocks.N` is layer N, of both experts where there are two (Wan 2.2's A14B). Nothing in it is spatial or temporal alone,
so appearance and motion may learn in the same linears; they are told apart by what they learn from, single pictures or
clips, and by the layers they are given. With two experts, each has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.utils import logging
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel
from transformers.utils import logging as text_logging

from customttt import lora
from customttt.backbones import hub
from customttt.backbones.experts import EXPERTS, Experts
from customttt.backbones.family import (
    NamedBase,
    load_part,
    read_config,
    resting,
    unavailable,
    visiting,
)
from customttt.backbones.interface import Place, PromptEmbeds, computing, precision
from customttt.backbones.reader import TextReader
from customttt.concept import Kind
from customttt.config import Defaults, SampleConfig, TrainConfig, TTTConfig
from customttt.diffusion import FlowSchedule, Latents, Timesteps
from customttt.errors import BaseUnavailableError, UsageError
from customttt.patch import replaced

TOKENS = 512
"""That are read of a prompt at most, padding included: what Wan was trained with, and diffusers' pipeline pads to. A
base whose tokenizer stops earlier reads as many as that."""
TEXT_PRECISION = torch.bfloat16
"""Of UMT5's weights on every device, as in Wan's own configuration: 11.4 GB where float32 takes 22.7."""
NATIVE = MappingProxyType({
    "attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k", "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q", "attn2.to_k": "cross_attn.k", "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2",
})  # fmt: skip
"""The linears of a block: as diffusers names them, and as Wan's own code does, whose names other programs use."""
LINEARS = tuple(NATIVE)
SCHEDULE = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "flow_shift": 3.0}
"""Of a folder without a scheduler: what diffusers' documentation advises for 480 lines (5.0 for 720)."""
TEXT = MappingProxyType({"vocab_size": 256_384, "d_model": 4096, "d_ff": 10_240, "num_layers": 24, "num_heads": 64})
"""UMT5-XXL, 5.7 B parameters; all else in its config.json is transformers' default."""
ARCHITECTURE = {
    "_class_name": "WanTransformer3DModel", "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30,
}  # fmt: skip
"""Of the 1.3B: 30 blocks, 1536 wide; all else in its transformer/config.json is diffusers' default."""
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
BOUNDARY = 0.875
"""Share of the noise from which on the first of two experts works, where a base does not say: that of T2V-A14B."""
HOME = hub.Repository("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "0fad780a534b6463e45facd96134c9f345acfa5b", parts=PARTS)
"""The commit is read in public code of others: ten projects pin it or have it in their cache, none has another, and one
lists its 19 files at 28,928,887,859 bytes, which is what the parts below add up to."""


def recipe(blocks: int, frame_rate: int = 16, size: int = 480) -> Defaults:
    """Settings for a transformer of so many blocks. What is published and what is a guess:

    Published: 50 steps at guidance 5 and 16 frames a second (diffusers' `WanPipeline`; the model's page advises
    guidance 6 for the 1.3B); rank 32 in every linear of a block (musubi-tuner's example, AdamW at 2e-4).
    Guesses of ours, which nobody has measured on this base yet [O]: Lion at a fifth of AdamW's rate (arXiv 2302.06675
    says 3 to 10 times less); appearance in the even blocks and motion in the odd ones, as DreamRunner does on another
    transformer (arXiv 2411.16657), so that the two never share a linear; 33 frames, two seconds, in which trainers put
    clips; a square of 480, or of the 704 lines that the 5B was trained with.
    """
    even, odd = tuple(range(0, blocks, 2)), tuple(range(1, blocks, 2))
    return Defaults(
        appearance=TrainConfig(layers=even, learning_rate=4e-5),
        motion=TrainConfig(layers=odd or even, learning_rate=4e-5),
        ttt=TTTConfig(reference_guidance=5.0),
        sample=SampleConfig(num_frames=33, num_inference_steps=50, guidance_scale=5.0, size=size, fps=frame_rate),
    )


@dataclass
class Wan(TextReader):
    """A loaded base; see `Backbone` for what each method promises."""

    FOLDER = "transformer"
    NETWORKS = ("WanTransformer3DModel",)
    PARTS = PARTS
    EXTRA_PARTS = (EXPERTS["appearance"],)
    CONFIGS = ("vae/config.json", "text_encoder/config.json")
    ARCHITECTURES = MappingProxyType({"appearance": "wan2.1", "motion": "wan2.1"})
    KOHYA_BASE = "wan2.1"
    NAMED = (
        NamedBase(
            "wan", "Wan 2.1 T2V 1.3B, a diffusion transformer", "Apache-2.0", defaults=recipe(30),
            repositories=(HOME,), architecture=ARCHITECTURE,
            # Everything is in float32 there: 1,418,996,800 parameters of transformer, 5,680,910,336 of text encoder
            # and 126,892,531 of VAE; 0.02 GB of tokenizer. Computed, not looked up.
            download=28_930_000_000,
            # 5.6 GB with every block recomputed, at 33 x 480 x 480, and 5.1 to decode (see `NamedBase.memory`).
            memory=8_000_000_000,
        ),
    )  # fmt: skip

    tokens: int
    """That are read of a prompt."""

    @classmethod
    def recipe(cls, config: Mapping[str, Any]) -> Defaults:
        """By its depth; the one of 48 channels, Wan 2.2's 5B, makes 24 frames a second of 704 lines."""
        own = {"frame_rate": 24, "size": 704} if config.get("in_channels") == 48 else {}
        return recipe(config.get("num_layers", 40), **own)

    @classmethod
    def places(cls, config: Mapping[str, Any], folder: Path | None, base: str) -> dict[str, Place]:
        """The linears of all blocks, by name, in the order of the network; each of either kind, but in an expert."""
        network: Any = _bare(config, base)
        shapes = {
            name: (int(name.split(".")[1]), tuple(network.get_submodule(name).weight.shape))
            for name in lora.target_names(network, "blocks.", LINEARS)
        }
        if not _has_experts(folder):
            return {name: Place(None, *place) for name, place in shapes.items()}
        return {
            f"{expert}.{name}": Place(kind, *place)
            for kind, expert in EXPERTS.items()
            for name, place in shapes.items()
        }

    @classmethod
    def load(cls, folder: Path, name: str, fingerprint: str, defaults: Defaults, device: torch.device) -> Wan:
        """Load a folder in diffusers format. Raises BaseUnavailableError."""
        logging.disable_progress_bar()  # of reading shards: this package prints nothing
        text_logging.disable_progress_bar()
        names = ["transformer", *(cls.EXTRA_PARTS if _has_experts(folder) else ())]
        for part in names:
            _check_kind(read_config(folder / part / "config.json"), name)
        with unavailable(name):
            networks = [load_part(WanTransformer3DModel, folder / part, precision(device)) for part in names]
            vae = load_part(AutoencoderKLWan, folder / "vae", torch.float32)  # as diffusers' examples have it
            text = folder / "text_encoder"
            text_encoder = UMT5EncoderModel.from_pretrained(
                text, dtype=TEXT_PRECISION, use_safetensors=True, variant=hub.variant(text)
            )
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
            schedule = _schedule(folder)
        for module in (*networks, vae, text_encoder):
            module.requires_grad_(False).eval()
        network = _put_together(networks, folder, schedule, device, device)
        return cls(
            name=name, fingerprint=fingerprint, network=network, vae=vae, text_encoder=text_encoder,
            tokenizer=tokenizer, tokens=_tokens(folder), schedule=schedule, defaults=defaults, device=device,
        )  # fmt: skip

    @classmethod
    def sketch(
        cls, config: Mapping[str, Any], folder: Path | None, name: str, defaults: Defaults, device: torch.device
    ) -> Wan:
        """The base as it would be on `device`, but on the meta device: shapes without weights, and no tokenizer."""
        path = folder and folder / "vae" / "config.json"
        with unavailable(name), torch.device("meta"):
            vae = AutoencoderKLWan.from_config(read_config(path) if path else {})
            text_encoder = _bare_text_encoder(folder)
        number, schedule, meta = 1 + _has_experts(folder), FlowSchedule(), torch.device("meta")
        networks = [nn.Module.to(_bare(config, name), precision(device)) for _ in range(number)]  # diffusers' own warns
        network = _put_together(networks, folder, schedule, device, meta)
        return cls(
            name=name, fingerprint="", network=network.requires_grad_(False).eval(), vae=vae.requires_grad_(False),
            text_encoder=text_encoder, tokenizer=None, tokens=_tokens(folder), schedule=schedule, defaults=defaults,
            device=meta,
        )  # fmt: skip

    @property
    def networks(self) -> dict[Kind, Any]:
        """Where a LoRA of each kind is learned: in the network, or in its expert."""
        if isinstance(self.network, Experts):
            return {kind: self.network.get_submodule(expert) for kind, expert in EXPERTS.items()}
        return dict.fromkeys(EXPERTS, self.network)

    @property
    def recordable(self) -> bool:
        """Which expert works, timesteps decide."""
        return not isinstance(self.network, Experts)

    def on_gpu(self, decoding: bool = False) -> list[nn.Module]:
        return [self.vae] if decoding else [self.networks["motion"]]

    def noise(self, kind: Kind) -> tuple[float, float]:
        if not isinstance(self.network, Experts):
            return 0.0, 1.0
        return (self.network.share, 1.0) if kind == "motion" else (0.0, self.network.share)

    @property
    def blocks(self) -> list[list[nn.Module]]:
        different = dict.fromkeys(self.networks.values())
        return [list(blocks) for blocks in zip(*(network.blocks for network in different), strict=True)]

    @property
    def heaviest(self) -> list[int]:
        """All keep the same."""
        return list(reversed(self.layers("motion")))

    @property
    def dtype(self) -> torch.dtype:
        """Of what the network reads; to find its own, diffusers looks through all modules."""
        return self.networks["motion"].patch_embedding.weight.dtype  # type: ignore[no-any-return]

    @property
    def prompt_shape(self) -> tuple[int, int]:
        return self.tokens, self.network.config.text_dim

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "b 3 frames height width"]) -> Latents:
        """A clip as a whole, four frames to one of latents after the first; a picture alone. Raises UsageError."""
        self._check_frames(video.shape[2])
        self.check_sides(video.shape[3], video.shape[4], self._side_step)
        with resting(self.network, self.device), visiting(self.vae, self.device):
            clips = torch.split(video.to(self.device, self.vae.dtype), 1)
            means = torch.cat([self.vae.encode(clip).latent_dist.mode() for clip in clips])
        mean, std = self._scale(means)
        return ((means - mean) / std).float()

    @torch.no_grad()
    def decode(self, latents: Latents) -> Float[Tensor, "b 3 frames height width"]:
        mean, std = self._scale(latents)
        with resting(self.network, self.device), visiting(self.vae, self.device):
            clips = torch.split((latents * std + mean).to(self.vae.dtype), 1)
            return torch.cat([self.vae.decode(clip).sample for clip in clips]).float()

    def _scale(self, latents: Latents) -> tuple[Float[Tensor, "1 c 1 1 1"], Float[Tensor, "1 c 1 1 1"]]:
        """Mean and standard deviation of each channel of the VAE's latents."""
        config = self.vae.config
        mean, std = (torch.tensor(one).view(1, -1, 1, 1, 1) for one in (config.latents_mean, config.latents_std))
        return mean.to(latents), std.to(latents)

    def read(self, prompts: Sequence[str]) -> PromptEmbeds:
        """Zero where a prompt is over, as Wan was trained."""
        tokens = self.tokenizer(
            [" ".join(prompt.split()) for prompt in prompts], padding="max_length", truncation=True,
            max_length=self.tokens, return_tensors="pt",
        ).to(self.device)  # fmt: skip
        with self._in_turn():
            states = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        embeds: PromptEmbeds = states.float() * tokens.attention_mask[..., None]
        return embeds

    def _in_turn(self) -> AbstractContextManager[None]:
        """The text encoder's layers visit the device one by one: together they would not fit beside the network."""
        encoder = self.text_encoder.encoder
        layers = [encoder.embed_tokens, *encoder.block, encoder.final_layer_norm]
        return replaced(layers, lambda layer: partial(_visiting, layer, layer.forward, self.device))

    @property
    def vocabulary(self) -> nn.Embedding:
        table: nn.Embedding = self.text_encoder.encoder.embed_tokens
        return table

    def predict(self, noisy_latents: Latents, timesteps: Timesteps, prompt_embeds: PromptEmbeds) -> Latents:
        dtype = self.dtype
        return self.network(noisy_latents.to(dtype), timesteps, prompt_embeds.to(dtype)).sample.float()  # type: ignore[no-any-return]

    def framewise(self) -> AbstractContextManager[None]:
        """Each frame of the latents as a clip of its own, at the place of the first."""
        return replaced([self.network], lambda network: partial(_framewise, network.forward))

    def layers(self, kind: Kind) -> tuple[int, ...]:  # noqa: ARG002 each learns in all
        return tuple(range(self.network.config.num_layers))

    def targets(self, kind: Kind, layers: Sequence[int]) -> list[str]:
        able = self.layers(kind)
        if bad := [layer for layer in layers if layer not in able]:
            raise UsageError(f"Layer {bad[0]} does not exist; the layers of {self.name} are 0 to {able[-1]}.")
        expert = f"{EXPERTS[kind]}." if isinstance(self.network, Experts) else ""
        return [
            name
            for layer in sorted(set(layers))
            for name in lora.target_names(self.network, f"{expert}blocks.{layer}.", LINEARS)
        ]

    def cross_attention(self, layers: Sequence[int]) -> list[str]:
        return [name for name in self.targets("appearance", layers) if ".attn2." in name]

    def heard(self) -> list[str]:
        of_all = dict.fromkeys(name for kind in EXPERTS for name in self.targets(kind, self.readers))
        return [name for name in of_all if ".attn2." in name]

    @property
    def readers(self) -> tuple[int, ...]:
        return self.layers("appearance")

    @contextmanager
    def reading(
        self,
        layer_sets: Sequence[frozenset[int]],
        starred_embeds: PromptEmbeds,
        num_frames: int,  # noqa: ARG002 a clip reads its prompt once
    ) -> Iterator[None]:
        with torch.no_grad(), ExitStack() as hooks:
            for network in dict.fromkeys(self.networks.values()):
                starred = cache(partial(network.condition_embedder.text_embedder, starred_embeds.to(self.dtype)))
                for layer, block in enumerate(network.blocks):
                    rows = [row for row, layers in enumerate(layer_sets) if layer in layers]
                    handle = block.attn2.register_forward_pre_hook(_swapping(rows, starred))
                    hooks.callback(handle.remove)
            yield

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        self._check_frames(num_frames)
        self.check_sides(height, width, self._side_step)
        config = self.vae.config
        frames, pixels = (num_frames - 1) // config.scale_factor_temporal + 1, config.scale_factor_spatial
        return self.network.config.in_channels, frames, height // pixels, width // pixels

    @property
    def _side_step(self) -> int:
        """Pixels to a patch of the network."""
        return int(self.vae.config.scale_factor_spatial * self.network.config.patch_size[-1])

    def _check_frames(self, number: int) -> None:
        """Raise UsageError for a number that the VAE would cut."""
        step = self.vae.config.scale_factor_temporal
        if over := (number - 1) % step:
            raise UsageError(
                f"Frames are {number}; {self.name} takes one and then {step} at a time, such as {number - over} "
                f"or {number - over + step}."
            )

    def spread(self, linear: str, mask: Float[Tensor, "f h w"]) -> Float[Tensor, "r n 1"] | None:
        if ".attn2." in linear and linear.endswith(("to_k", "to_v")):
            return None
        return F.avg_pool2d(mask, self.networks["motion"].config.patch_size[1:]).flatten()[None, :, None]

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        return len(self.tokenizer(prompt).input_ids), self.tokens

    @classmethod
    def kohya(cls, key: str, kind: Kind) -> str:  # noqa: ARG003 they are spelt alike
        """As musubi-tuner writes it, and ComfyUI reads it, too: `lora_unet_blocks_0_self_attn_q.lora_down.weight`."""
        module, role = _native(key).removesuffix(".weight").split(".lora_")
        return f"lora_unet_{module.replace('.', '_')}.lora_{ {'A': 'down', 'B': 'up'}[role] }.weight"

    @classmethod
    def comfyui(cls, key: str, kind: Kind) -> str:  # noqa: ARG003
        return f"diffusion_model.{_native(key)}"


def _native(key: str) -> str:
    """One of our keys under the names of Wan's own code: `blocks.0.self_attn.q.lora_A.weight`."""
    module, _, role = key.partition(".lora_")
    head, number, linear = module[module.index("blocks.") :].split(".", 2)
    return f"{head}.{number}.{NATIVE[linear]}.lora_{role}"


def _bare(config: Mapping[str, Any], base: str) -> nn.Module:
    """The network without weights, on the meta device. Raises BaseUnavailableError."""
    _check_kind(config, base)
    with unavailable(base), torch.device("meta"):
        return WanTransformer3DModel.from_config(dict(config))  # type: ignore[no-any-return]


def _bare_text_encoder(folder: Path | None) -> nn.Module:
    """For its size alone, which counts where it shares the memory of the network: on a CPU."""
    config = read_config(folder / "text_encoder" / "config.json") if folder else dict(TEXT)
    return UMT5EncoderModel(UMT5Config(**config)).to(TEXT_PRECISION)  # type: ignore[no-any-return]


def _tokens(folder: Path | None) -> int:
    path = folder and folder / "tokenizer" / "tokenizer_config.json"
    config = read_config(path) if path and path.is_file() else {}
    return int(min(TOKENS, config.get("model_max_length") or TOKENS))


def _narrow_norms(network: Any, device: torch.device) -> None:
    """Keep the norms of queries and keys as narrow as products, or they are computed unfused, which torch warns of."""
    for block in network.blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q.to(computing(device))
            attention.norm_k.to(computing(device))


def _has_experts(folder: Path | None) -> bool:
    return folder is not None and hub.has_part(folder, EXPERTS["appearance"])


def _put_together(
    networks: Sequence[Any], folder: Path | None, schedule: FlowSchedule, target: torch.device, device: torch.device
) -> Any:
    """One network on its device, or two as experts, in the precision that they have on `target`."""
    for network in networks:
        _narrow_norms(network if len(networks) > 1 else network.to(device), target)
    if len(networks) == 1:
        return networks[0]
    share = (hub.index(folder) if folder else {}).get("boundary_ratio") or BOUNDARY
    much, little = networks
    return Experts(much, little, share, schedule.noisiest, device)


def _check_kind(config: Mapping[str, Any], base: str) -> None:
    """Raise BaseUnavailableError for a Wan that does not make videos of text alone."""
    if config.get("image_dim") or config.get("in_channels", 16) != config.get("out_channels", 16):
        raise BaseUnavailableError(f"Base {base!r} makes videos of a picture; give one that makes them of text.")


def _schedule(folder: Path) -> FlowSchedule:
    path = folder / "scheduler" / "scheduler_config.json"
    return FlowSchedule.from_config(read_config(path) if path.is_file() else SCHEDULE)


def _visiting(layer: nn.Module, forward: Callable[..., Any], device: torch.device, *args: Any, **kwargs: Any) -> Any:
    with visiting(layer, device):
        return forward(*args, **kwargs)


def _framewise(forward: Callable[..., Any], latents: Latents, timesteps: Timesteps, embeds: PromptEmbeds) -> Any:
    """The network's forward pass over frames as clips of one frame each."""
    frames = latents.shape[2]
    alone = latents.transpose(1, 2).flatten(0, 1)[:, :, None]
    out = forward(alone, timesteps.repeat_interleave(frames), embeds.repeat_interleave(frames, 0))
    out.sample = out.sample[:, :, 0].unflatten(0, (-1, frames)).transpose(1, 2)
    return out


def _swapping(rows: Sequence[int], starred: Callable[[], Float[Tensor, "b l d"]]) -> Callable[..., tuple[Any, ...]]:
    """A hook of cross-attention by which these rows of a batch read what is starred: known once its network is here."""

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, read, *rest = args
        read = read.clone()
        read[list(rows)] = starred()[list(rows)].to(read.dtype)
        return hidden, read, *rest

    return hook
