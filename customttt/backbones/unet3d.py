"""The ModelScope family: a U-Net born with time in it (arXiv 2308.06571), and ZeroScope, trained on from there.

`attentions` are spatial, `temp_attentions` temporal; layers 3 and 5 have neither, only temporal convolutions. Time is
in three kinds of modules: temporal attention, temporal convolution, and one temporal transformer before layer 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import nn

from customttt.backbones import hub
from customttt.backbones.family import NamedBase, load_part, read_config
from customttt.backbones.interface import PromptEmbeds
from customttt.backbones.unets import UNetFamily
from customttt.config import Defaults, SampleConfig, TrainConfig, TTTConfig
from customttt.diffusion import Latents, NoiseSchedule, Schedule, Timesteps
from customttt.patch import replaced

ZEROSCOPE = Defaults(
    appearance=TrainConfig(layers=(2, 6), learning_rate=1e-4, steps=1000),
    motion=TrainConfig(layers=(2, 4), learning_rate=1e-4, steps=150),
    ttt=TTTConfig(reference_guidance=12.0),
    sample=SampleConfig(num_frames=16, num_inference_steps=30, guidance_scale=12.0, size=384, fps=8),
)
"""MotionDirector's public configurations for this base [C], where ours do not differ on purpose.

Theirs: rank 32, dropout 0.1, 16 frames of 384 x 384 at 8 a second, 30 steps at guidance 12, 1,000 steps for pictures
and 150 for one clip, AdamW at 5e-4 in every layer. Ours: Lion, which wants 3 to 10 times less (arXiv 2302.06675). The
layers are the paper's by analogy: 2 and 6, and 2 and 4 for motion, as its analysis says [P], for layer 5 has no
temporal attention here. Nobody has measured either on this base yet [O].
"""

MODELSCOPE = replace(
    ZEROSCOPE, ttt=TTTConfig(), sample=SampleConfig(num_inference_steps=50, guidance_scale=9.0, size=256)
)
"""Learned as ZEROSCOPE; rendered at the 256 x 256 of its training, by the defaults of diffusers' pipeline [C]."""

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
"""What both were trained with; predicts the noise [C]."""

ARCHITECTURE = {"_class_name": "UNet3DConditionModel", "sample_size": 32}
"""Of both; all else in their unet/config.json is diffusers' default."""
ZEROSCOPE_HOME = hub.Repository("cerspense/zeroscope_v2_576w", "1f35e3dc3350d649f342bb7618fe34ac8fae5c9e")
MODELSCOPE_HOME = hub.Repository("damo-vilab/text-to-video-ms-1.7b", "8227dddca75a8561bf858d604cc5dae52b954d01")


@dataclass
class UNet3D(UNetFamily):
    NETWORKS = ("UNet3DConditionModel",)
    BRANCHES = MappingProxyType({"appearance": "attentions", "motion": "temp_attentions"})
    ARCHITECTURES = MappingProxyType({"appearance": "text-to-video-ms", "motion": "text-to-video-ms"})
    OUTSIDE = MappingProxyType({"transformer_in.": ("motion", 0)})
    NAMED = (
        NamedBase(
            "zeroscope", "ZeroScope v2 576w: ModelScope without its watermark", "CC-BY-NC-4.0", defaults=ZEROSCOPE,
            # The main branch holds pickles only; this commit of refs/pr/46 adds the same weights as safetensors.
            repositories=(ZEROSCOPE_HOME,), architecture=ARCHITECTURE,
            # The hub lists 0.68 GB of text encoder and 0.17 of VAE; 1,411,233,860 parameters of U-Net at 2 bytes each.
            download=3_670_000_000,
            # 4.7 GB with every block recomputed, 17.2 with none, at 16 x 384 x 384 (see `NamedBase.memory`).
            memory=7_000_000_000,
        ),
        NamedBase(
            "modelscope", "ModelScopeT2V 1.7B", "CC-BY-NC-4.0", defaults=MODELSCOPE,
            repositories=(MODELSCOPE_HOME,), architecture=ARCHITECTURE,
            # The hub lists 2.82 GB of U-Net; text encoder and VAE are those of zeroscope.
            download=3_670_000_000,
            # As above: 3.7 GB with every block recomputed, 9.3 with none, at 16 x 256 x 256.
            memory=6_000_000_000,
        ),
    )  # fmt: skip

    @classmethod
    def recipe(cls, config: Mapping[str, Any]) -> Defaults:  # noqa: ARG003 all of this architecture are one size
        return ZEROSCOPE

    @classmethod
    def load_unet(cls, folder: Path, dtype: torch.dtype) -> nn.Module:
        return load_part(UNet3DConditionModel, folder / "unet", dtype)  # type: ignore[no-any-return]

    @classmethod
    def bare_unet(cls, config: Mapping[str, Any], folder: Path | None) -> nn.Module:  # noqa: ARG003 all is in it
        return UNet3DConditionModel.from_config(dict(config))  # type: ignore[no-any-return]

    @classmethod
    def load_schedule(cls, folder: Path) -> Schedule:
        path = folder / "scheduler" / "scheduler_config.json"
        return NoiseSchedule.from_config(read_config(path) if path.is_file() else SCHEDULE)

    def predict(self, noisy_latents: Latents, timesteps: Timesteps, prompt_embeds: PromptEmbeds) -> Latents:
        dtype = self.dtype  # the text is repeated for every frame inside
        return self.network(noisy_latents.to(dtype), timesteps, prompt_embeds.to(dtype)).sample.float()  # type: ignore[no-any-return]

    def framewise(self) -> AbstractContextManager[None]:
        """All three kinds: one frame alone still changes in a temporal convolution, and in attention to itself."""
        timely = TransformerTemporalModel | TemporalConvLayer
        modules = [module for module in self.network.modules() if isinstance(module, timely)]
        return replaced(modules, lambda _: _identity)


def _identity(hidden_states: torch.Tensor, *_: object, return_dict: bool | None = None, **__: object) -> Any:
    """What goes in, as a tuple where a transformer is asked for one."""
    return hidden_states if return_dict is None else (hidden_states,)
