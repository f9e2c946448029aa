"""`tiny`, the twin of SD 1.5 + AnimateDiff, in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNetMotionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from customttt.backbones.animatediff import without_motion
from customttt.backbones.unets import choose_attention
from customttt.diffusion import NoiseSchedule
from customttt.errors import UsageError
from customttt.lab import codec
from customttt.lab.optimizer import Optimizer
from customttt.lab.twins import Mode, Sizes, Stage, Twin
from customttt.tiny import captions, models, world

SETTLED = 0.3
"""The share of the codec's stage after which its new latents are turned."""


class UNetTwin(Twin):
    NETWORK = "unet"
    PARTS = MappingProxyType({
        "vae": (AutoencoderTiny, "vae"), "unet": (UNetMotionModel, "unet"), "text": (CLIPTextModel, "text_encoder"),
    })  # fmt: skip
    TOKENIZER = CLIPTokenizer
    SIZES = MappingProxyType({
        "cuda": Sizes({"crop": 512, "frame": 192, "clip": 32}, 96, 8192, 256, 20),
        "cpu": Sizes({"crop": 160, "frame": 48, "clip": 6}, 16, 1024, 16, 5),
    })  # fmt: skip
    """A step of clips costs about as much as one of crops or frames."""
    SCHEDULER = models.SCHEDULER
    FRAMES = world.FRAMES
    MAX_TOKENS = models.MAX_TOKENS

    narrow: Any = None
    """The codec that the run started from, while it is widened."""
    settled = False

    @classmethod
    def build(cls, words: int) -> tuple[Any, Any, Any]:
        return models.build_vae(), models.build_unet(), models.build_text_encoder(words)

    @classmethod
    def build_tokenizer(cls, folder: Path) -> CLIPTokenizer:
        return models.build_tokenizer(folder, captions.corpus())

    @classmethod
    def build_schedule(cls, device: torch.device) -> NoiseSchedule:
        schedule = NoiseSchedule.from_config(cls.SCHEDULER)
        return NoiseSchedule(schedule.alphas_cumprod.to(device), schedule.prediction_type, schedule.spacing)

    def to(self, device: torch.device) -> None:
        super().to(device)
        if self.narrow is not None:
            self.narrow.to(device)
        choose_attention(self.network, device)

    def start_from(self, folder: Path) -> Stage:
        """The codec's stage is for one that has fewer latents."""
        vae, unet, text = (kind.from_pretrained(folder / part).float() for kind, part in self.PARTS.values())
        self.text, stage = text, "still"
        if vae.config.latent_channels < models.LATENT_CHANNELS:
            stage, self.narrow = "codec", vae
            vae, unet = codec.widen(vae), codec.widen_unet(unet)
        self.vae.load_state_dict(vae.state_dict())
        self.take_scale(vae.config)
        self.network.load_state_dict(unet.state_dict())
        return stage  # type: ignore[return-value]

    def state(self) -> dict[str, Any]:
        return super().state() | {"widens": self.narrow is not None, "settled": self.settled}

    def restore(self, state: Mapping[str, Any], stage: Stage) -> None:
        if stage == "codec" and state["widens"] and self.narrow is None:
            raise UsageError("This run widens the codec of another base; give it again as --start.")
        super().restore(state, stage)
        self.settled = state["settled"]

    # -- latents

    def encode(self, video: Tensor) -> Tensor:
        frames = video.transpose(1, 2).flatten(0, 1).to(self.vae.dtype)
        latents = torch.cat([self.vae.encode(some).latents for some in torch.split(frames, 64)])
        return latents.view(len(video), -1, *latents.shape[1:]).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        frames = latents.transpose(1, 2).flatten(0, 1).to(self.vae.dtype)
        images = torch.cat([self.vae.decode(some).sample.float() for some in torch.split(frames, 64)])
        return images.view(len(latents), -1, *images.shape[1:]).transpose(1, 2)

    def scale(self) -> dict[str, Any]:
        return {"scaling_factor": float(self.vae.config.scaling_factor)}

    def measure_scale(self, latents: Tensor) -> None:
        """Unit variance; a widened codec keeps the scale of the one it was."""
        if self.narrow is None:
            self.vae.register_to_config(scaling_factor=1 / latents.std().item())

    def scaled(self, latents: Tensor) -> Tensor:
        return latents * float(self.vae.config.scaling_factor)

    def unscaled(self, latents: Tensor) -> Tensor:
        return latents / float(self.vae.config.scaling_factor)

    def latent_shape(self, frames: int) -> tuple[int, int, int, int]:
        return models.LATENT_CHANNELS, frames, models.LATENT_SIZE, models.LATENT_SIZE

    def pool(self, values: Tensor) -> Tensor:
        return F.avg_pool2d(values, world.SIZE // models.LATENT_SIZE)

    # -- learning

    def codec_loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """The first latents stay those of the narrow codec, where one is widened: what a U-Net has learned of them
        stays true.
        """
        dtype, flat = self.vae.dtype, images.squeeze(2)
        latents = self.vae.encoder(flat.to(dtype)).float()
        decoded = self.vae.decoder(codec.disturbed(latents).to(dtype)).float()
        if self.narrow is None:
            shape = codec.shape_loss(latents, F.avg_pool2d(flat, 8), codec.THUMBNAIL)
        else:
            with torch.no_grad():
                target = self.narrow.encoder(flat.to(self.narrow.dtype)).float()
            shape = codec.shape_loss(latents, target, codec.KEPT)
        return codec.picture_loss(decoded, flat, 1 + codec.SUBJECT_WEIGHT * masks.squeeze(2)) + shape

    def turn(self, progress: float, optimizer: Optimizer, draw: Callable[[], Iterable[Tensor]]) -> None:
        """Once, settle the latents that a wider codec has more."""
        if self.narrow is None or self.settled or progress < SETTLED:
            return
        turned = models.build_vae().to(next(self.vae.parameters()).device)
        turned.load_state_dict({name.removeprefix("vae."): value for name, value in optimizer.average.items()})
        with torch.no_grad():
            latents = torch.cat([turned.encoder(some.squeeze(2)) for some in draw()])
        codec.settle(turned, latents, self.narrow.config.latent_channels)
        optimizer.take_over({"vae": turned})
        self.settled = True

    def timesteps(self, mode: Mode, count: int, generator: torch.Generator) -> Tensor:
        """Evenly; of clips half where tracks are decided, and details are not."""
        steps = self.SCHEDULER["num_train_timesteps"]
        drawn = torch.randint(0, steps, (count,), generator=generator, device=generator.device)
        if mode == "clip":
            drawn[: count // 2] = steps // 2 + drawn[: count // 2] // 2
        return drawn

    def embed(self, tokens: Tensor) -> Tensor:
        return self.text(tokens).last_hidden_state  # type: ignore[no-any-return]

    def predict(self, noisy: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        """A clip of one frame bypasses the motion modules."""
        frames = noisy.shape[2]
        with without_motion(self.network) if frames == 1 else nullcontext():
            read = embeds.repeat_interleave(frames, 0)
            return self.network(noisy.to(self.network.dtype), timesteps, read).sample.float()  # type: ignore[no-any-return]
