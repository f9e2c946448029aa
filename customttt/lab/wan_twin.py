"""`tiny-wan`, the twin of Wan 2.1, in training: clips are encoded as a whole, pictures alone, and noise is a flow's."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer, UMT5EncoderModel

from customttt.backbones import DEFAULTS_FILE
from customttt.diffusion import FlowSchedule
from customttt.lab import codec
from customttt.lab.optimizer import OUTER
from customttt.lab.twins import Mode, Sizes, Twin
from customttt.tiny import captions, wan_models, world

THUMBNAILS = 3
"""Latents that are mean colours."""
FEW = 256
"""Tokens over which attention is computed unfused on a CPU."""
ALONE = 3.0
"""How much more the first frame counts in the codec: it is encoded as pictures are, for which nothing else speaks."""


class WanTwin(Twin):
    NETWORK = "transformer"
    PARTS = MappingProxyType({
        "vae": (AutoencoderKLWan, "vae"), "transformer": (WanTransformer3DModel, "transformer"),
        "text": (UMT5EncoderModel, "text_encoder"),
    })  # fmt: skip
    TOKENIZER = AutoTokenizer
    SHARES = MappingProxyType({"codec": 0.25, "still": 0.25, "clip": 0.5})
    TURNS = MappingProxyType({**Twin.TURNS, "clip": ("clip", "window", "window", "crop")})
    """Four frames of a subject are another thing to draw than one, and most of a whole clip is background."""
    SIZES = MappingProxyType({
        "cuda": Sizes({"crop": 256, "frame": 64, "clip": 16, "window": 64}, 16, 4096, 128, 20),
        "cpu": Sizes({"crop": 48, "frame": 12, "clip": 2, "window": 8}, 2, 768, 8, 20),
    })  # fmt: skip
    SCHEDULER = MappingProxyType(wan_models.SCHEDULER)
    FRAMES = wan_models.FRAMES
    SPAN = wan_models.FRAMES
    """All: each latent sees those before it, and after shorter clips the codec fails (LOG.md)."""
    PICTURES = 4
    MAX_TOKENS = wan_models.MAX_TOKENS
    CODEC_MUON, CODEC_RATE = True, 4e-3
    OUTER = (*OUTER, "scale_shift_table", "transformer.proj_out", "shared", "relative_attention_bias")

    schedule: FlowSchedule

    @classmethod
    def build(cls, words: int) -> tuple[Any, Any, Any]:
        return wan_models.build_vae(), wan_models.build_transformer(), wan_models.build_text_encoder(words)

    @classmethod
    def build_tokenizer(cls, folder: Path) -> Any:
        return wan_models.build_tokenizer(folder, captions.corpus(), captions.SYLLABLES)

    @classmethod
    def build_schedule(cls, device: torch.device) -> FlowSchedule:  # noqa: ARG003 it holds no tensors
        return FlowSchedule.from_config(cls.SCHEDULER)

    # -- latents

    def encode(self, video: Tensor) -> Tensor:
        clips = torch.split(video.to(self.vae.dtype), self._at_once(video.device))
        return torch.cat([self.vae.encode(some).latent_dist.mode() for some in clips])

    def decode(self, latents: Tensor) -> Tensor:
        clips = torch.split(latents.to(self.vae.dtype), self._at_once(latents.device))
        return torch.cat([self.vae.decode(some).sample.float() for some in clips])

    @staticmethod
    def _at_once(device: torch.device) -> int:
        """Clips that the codec has in hand: it goes on frame by frame, so that a GPU is kept busy by many alone."""
        return 64 if device.type == "cuda" else 4

    def scale(self) -> dict[str, Any]:
        return {name: list(self.vae.config[name]) for name in ("latents_mean", "latents_std")}

    def measure_scale(self, latents: Tensor) -> None:
        """Zero means; details smaller than coarse colours, so that those are denoised first (see `codec`)."""
        deviation, mean = torch.std_mean(latents, (0, 2, 3, 4))
        wanted = torch.full_like(mean, codec.DETAIL)
        wanted[:THUMBNAILS] = 1.0
        wanted /= wanted.square().mean().sqrt()
        self.vae.register_to_config(latents_mean=mean.tolist(), latents_std=(deviation / wanted).tolist())

    def scaled(self, latents: Tensor) -> Tensor:
        mean, std = self._scale(latents)
        return (latents - mean) / std

    def unscaled(self, latents: Tensor) -> Tensor:
        mean, std = self._scale(latents)
        return latents * std + mean

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(one).view(1, -1, 1, 1, 1).to(like) for one in self.scale().values())
        return mean, std

    def latent_shape(self, frames: int) -> tuple[int, int, int, int]:
        return wan_models.LATENT_CHANNELS, 1 + (frames - 1) // 4, wan_models.LATENT_SIZE, wan_models.LATENT_SIZE

    def pool(self, values: Tensor) -> Tensor:
        """The first frame alone, then four at a time."""
        side = world.SIZE // wan_models.LATENT_SIZE
        first = F.avg_pool2d(values[:, :1], side)
        if values.shape[1] == 1:
            return first
        return torch.cat([first, F.avg_pool3d(values[:, 1:], (4, side, side))], 1)

    # -- learning

    def codec_loss(self, images: Tensor, masks: Tensor) -> Tensor:
        dtype = self.vae.dtype
        latents = self.vae.encode(images.to(dtype)).latent_dist.mode().float()
        decoded = decode_unclamped(self.vae, codec.disturbed(latents).to(dtype)).float()
        thumbnails = torch.stack([self.pool(images[:, channel]) for channel in range(THUMBNAILS)], 1)
        weight = 1 + codec.SUBJECT_WEIGHT * masks
        weight[:, :, :1] *= ALONE
        return codec.picture_loss(decoded, images, weight) + codec.shape_loss(latents, thumbnails, codec.THUMBNAIL)

    def timesteps(self, mode: Mode, count: int, generator: torch.Generator) -> Tensor:
        """Evenly for pictures; for clips with the sampler's shift, as tracks are decided in much noise."""
        share = torch.rand(count, generator=generator, device=generator.device)
        if mode == "clip":
            share = self.schedule.shifted(share)
        return self.schedule.noisiest * share

    def embed(self, tokens: Tensor) -> Tensor:
        """Zero where a prompt is over, as `backbones.wan` reads it."""
        mask = tokens != self.tokenizer.pad_token_id
        states = self.text(tokens, mask.long()).last_hidden_state
        return states.float() * mask[..., None]  # type: ignore[no-any-return]

    def predict(self, noisy: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        dtype = self.network.dtype
        with _fastest_attention(noisy):
            return self.network(noisy.to(dtype), timesteps, embeds.to(dtype)).sample.float()  # type: ignore[no-any-return]

    def write_more(self, folder: Path) -> None:
        """Settings to begin with, unless there are some, and what diffusers' own pipeline opens."""
        (folder / "model_index.json").write_text(json.dumps(wan_models.INDEX, indent=2) + "\n", encoding="utf-8")
        if not (folder / DEFAULTS_FILE).exists():
            (folder / DEFAULTS_FILE).write_text(json.dumps(wan_models.SETTINGS, indent=2) + "\n", encoding="utf-8")


def _fastest_attention(latents: Tensor) -> Any:
    """On a CPU, unfused over few tokens: forward and back in four fifths of the time, over a clip in nearly twice."""
    few = latents[0, 0].numel() <= FEW
    return sdpa_kernel(SDPBackend.MATH) if latents.device.type == "cpu" and few else nullcontext()


def decode_unclamped(vae: Any, latents: Tensor) -> Tensor:
    """As `vae.decode`, but what is darker than black or lighter than white keeps its gradient."""
    vae.clear_cache()
    hidden, frames = vae.post_quant_conv(latents), []
    for index in range(latents.shape[2]):
        vae._conv_idx = [0]
        one, first = hidden[:, :, index : index + 1], index == 0
        frames.append(vae.decoder(one, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=first))
    vae.clear_cache()
    video = torch.cat(frames, 2)
    return unpatchify(video, vae.config.patch_size) if vae.config.patch_size else video
