"""The AnimateDiff family: a Stable Diffusion 1.5 U-Net with motion modules (arXiv 2307.04725), `tiny` included.

`attentions` are spatial, `motion_modules` temporal; layers 3 and 5 have no attentions, 4 has motion modules in v2 only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import nn

from customttt.backbones import hub
from customttt.backbones.family import NamedBase, load_part, read_config
from customttt.backbones.interface import PromptEmbeds
from customttt.backbones.unets import UNetFamily
from customttt.concept import Kind
from customttt.config import Defaults, SampleConfig, TrainConfig, TTTConfig
from customttt.diffusion import Latents, NoiseSchedule, Schedule, Timesteps
from customttt.errors import BaseUnavailableError
from customttt.patch import replaced
from customttt.tiny import TINY_PATH

PAPER = Defaults(
    appearance=TrainConfig(layers=(2, 6), learning_rate=1e-5),
    motion=TrainConfig(layers=(2, 5), learning_rate=5e-5),
    ttt=TTTConfig(),
    sample=SampleConfig(),
)
"""The paper's own settings for SD 1.5 + AnimateDiff v3 [S]."""

SCHEDULE = {
    "beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012,
    "timestep_spacing": "linspace", "steps_offset": 1,
}  # fmt: skip
"""What AnimateDiff's motion modules were trained with, as diffusers documents it [C]."""

TEXT_WIDTH = 768
"""Numbers a token in the text that SD 1.5 reads; the adapter on the hub is made for it."""

ARCHITECTURE = {"_class_name": "UNetMotionModel", "cross_attention_dim": TEXT_WIDTH, "use_motion_mid_block": False}
"""SD 1.5's U-Net with the motion modules of v3; all else is diffusers' default."""
CHECKPOINT = hub.Repository("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14")
ADAPTER = hub.Repository(
    "guoyww/animatediff-motion-adapter-v1-5-3", "449d8993ead63a068e1030eb26925132814db1c8", parts=("",)
)


@dataclass
class AnimateDiff(UNetFamily):
    NETWORKS = ("UNetMotionModel", "UNet2DConditionModel")
    BRANCHES = MappingProxyType({"appearance": "attentions", "motion": "motion_modules"})
    ARCHITECTURES = MappingProxyType({"appearance": "stable-diffusion-v1", "motion": "animatediff"})
    KOHYA_BASE = "sd_v1"
    NAMED = (
        NamedBase(
            "tiny", "the embedded model: a small world of emoji", "Apache-2.0, OFL-1.1", folder=TINY_PATH / "weights",
            architecture_name="customttt-tiny", square=True, subjects=2,
        ),
        NamedBase(
            "animatediff", "Stable Diffusion 1.5 + AnimateDiff v3, the paper's", "CreativeML OpenRAIL-M, Apache-2.0",
            defaults=PAPER, repositories=(CHECKPOINT, ADAPTER), architecture=ARCHITECTURE,
            # The hub lists 1.72 GB of U-Net and 1.67 of adapter; 0.25 of text encoder and 0.17 of VAE at 2 bytes each.
            download=3_810_000_000,
            # 3.4 GB with every block recomputed, 7.8 with none, at 16 x 256 x 256 (see `NamedBase.memory`).
            memory=5_000_000_000,
        ),
    )  # fmt: skip

    @classmethod
    def recipe(cls, config: Mapping[str, Any]) -> Defaults:
        """The paper's; with motion modules in the middle (v2), motion is learned in 2 and 4, as it analyses [P]."""
        if not config.get("use_motion_mid_block", False):
            return PAPER
        return replace(PAPER, motion=PAPER.motion.but(layers=(2, 4)))

    @classmethod
    def companions(cls, config: Mapping[str, Any]) -> tuple[hub.Repository, ...]:
        """The motion adapter, for an image U-Net of the one kind that it fits."""
        if config["_class_name"] == "UNetMotionModel":
            return ()
        if (width := config.get("cross_attention_dim")) != TEXT_WIDTH:
            raise BaseUnavailableError(
                f"Its U-Net reads text of width {width}, and AnimateDiff's motion modules fit Stable Diffusion 1.5 "
                f"({TEXT_WIDTH}) only; give one of those, or put a folder motion_adapter beside its unet."
            )
        return (ADAPTER,)

    @classmethod
    def load_unet(cls, folder: Path, dtype: torch.dtype) -> nn.Module:
        """A whole motion U-Net, or an image U-Net with the motion adapter put in: its own, or the one on the hub."""
        config = read_config(folder / "unet" / "config.json")
        if config["_class_name"] == "UNetMotionModel":
            return load_part(UNetMotionModel, folder / "unet", dtype)  # type: ignore[no-any-return]
        own = folder / "motion_adapter"
        adapter = load_part(MotionAdapter, own if own.is_dir() else hub.fetch(cls.companions(config)[0]), dtype)
        image_unet = load_part(UNet2DConditionModel, folder / "unet", dtype)
        with torch.device("meta"):  # random weights, which would be thrown away, take ten times as long as the files
            unet = UNetMotionModel.from_unet2d(image_unet, adapter, load_weights=False)
        unet.load_state_dict({**image_unet.state_dict(), **adapter.state_dict()}, assign=True)
        return unet  # type: ignore[no-any-return]

    @classmethod
    def bare_unet(cls, config: Mapping[str, Any], folder: Path | None) -> nn.Module:
        if config["_class_name"] == "UNetMotionModel":
            return UNetMotionModel.from_config(dict(config))  # type: ignore[no-any-return]
        own = folder and folder / "motion_adapter"
        path = own / "config.json" if own and own.is_dir() else hub.fetch_config(cls.companions(config)[0])
        adapter = MotionAdapter.from_config(read_config(path))
        image_unet = UNet2DConditionModel.from_config(dict(config))
        return UNetMotionModel.from_unet2d(image_unet, adapter, load_weights=False)  # type: ignore[no-any-return]

    @classmethod
    def load_schedule(cls, folder: Path) -> Schedule:
        """A motion U-Net's own; an image checkpoint's does not fit the motion modules put into it."""
        whole = read_config(folder / "unet" / "config.json")["_class_name"] == "UNetMotionModel"
        path = folder / "scheduler" / "scheduler_config.json"
        return NoiseSchedule.from_config(read_config(path) if whole and path.is_file() else SCHEDULE)

    def predict(self, noisy_latents: Latents, timesteps: Timesteps, prompt_embeds: PromptEmbeds) -> Latents:
        frames = noisy_latents.shape[2]
        embeds = prompt_embeds.repeat_interleave(frames, 0).to(self.dtype)
        return self.network(noisy_latents.to(self.dtype), timesteps, embeds).sample.float()  # type: ignore[no-any-return]

    def framewise(self) -> AbstractContextManager[None]:
        return without_motion(self.network)

    @classmethod
    def kohya(cls, key: str, kind: Kind) -> str:
        """As ComfyUI and AnimateDiff-Evolved read it: an appearance in kohya's spelling, a motion in AnimateDiff's."""
        module, role = key.removesuffix(".weight").split(".lora_")
        end = {"A": "down", "B": "up"}[role]
        if kind == "appearance":
            return f"lora_unet_{module.replace('.', '_')}.lora_{end}.weight"
        module = re.sub(r"(\.motion_modules\.\d+)\.", r"\1.temporal_transformer.", module)
        module = module.replace(".attn1.", ".attention_blocks.0.").replace(".attn2.", ".attention_blocks.1.")
        path, _, leaf = module.removesuffix(".0").rpartition(".")
        return f"{path}.processor.{leaf}_lora.{end}.weight"


def _identity(hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return hidden_states


def without_motion(unet: nn.Module) -> AbstractContextManager[None]:
    """Turn every motion module into the identity while this lasts; passing one frame through them is not that."""
    motion = [module for module in unet.modules() if isinstance(module, AnimateDiffTransformer3D)]
    return replaced(motion, lambda _: _identity)
