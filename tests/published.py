"""The real base models with random weights: their published architectures, written as local diffusers folders.

`CONFIGS` holds what their config.json on the hub say where it is not the default of diffusers or transformers.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bases import CORPUS
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNet3DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging

from customttt.backbones import animatediff, unet3d
from customttt.tiny import models

VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
VIT_L: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip
VIT_H: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "projection_dim": 512, "hidden_act": "gelu",
}  # fmt: skip
CONFIGS: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = {
    "animatediff": {
        "unet": (UNet2DConditionModel, {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}),
        "motion_adapter": (MotionAdapter, {"use_motion_mid_block": False}),
        "vae": (AutoencoderKL, VAE),
        "text_encoder": (CLIPTextModel, VIT_L),
    },
    "zeroscope": {
        "unet": (UNet3DConditionModel, {"sample_size": 32}),
        "vae": (AutoencoderKL, VAE),
        "text_encoder": (CLIPTextModel, VIT_H),
    },
}
"""Base -> part -> (class, configuration)."""
LISTED: dict[str, dict[str, tuple[float, int]]] = {
    "animatediff": {
        "unet": (1.72, 2), "motion_adapter": (1.67, 4), "vae": (0.17, 2), "text_encoder": (0.25, 2),
    },
    "zeroscope": {"unet": (2.82, 2), "vae": (0.17, 2), "text_encoder": (0.68, 2)},
}  # fmt: skip
"""Base -> part -> (GB of weights that the hub lists, bytes a parameter there)."""
LORAS = {"animatediff": (5_980_160, 6_144_000), "zeroscope": (6_062_080, 3_686_400)}
"""Parameters of the appearance's and the motion's: the paper's 12.12 M; for the other base none are published."""
SCHEDULES = {"animatediff": animatediff.SCHEDULE, "zeroscope": unet3d.SCHEDULE}
RECIPES = {"animatediff": animatediff.PAPER, "zeroscope": unet3d.ZEROSCOPE}


def part(base: str, name: str) -> nn.Module:
    """One network of a base, on torch's device and in its precision of the moment."""
    network, config = CONFIGS[base][name]
    return network(CLIPTextConfig(**config)) if network is CLIPTextModel else network(**config)  # type: ignore[no-any-return]


def on_meta(base: str, name: str) -> nn.Module:
    """Its shapes only."""
    with torch.device("meta"):
        return part(base, name)


def count(network: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def write_base(base: str, folder: Path, seed: int = 0) -> None:
    """Write a base in half precision, one part after the other, of which never more than one is in memory.

    The tokenizer knows a few words only; its numbers are some of the text encoder's 49,408.
    """
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    for name in CONFIGS[base]:
        with in_half_precision():
            network: Any = part(base, name)
        for parameter in network.parameters():
            if not parameter.any():  # new temporal modules change nothing; these do
                nn.init.normal_(parameter, std=0.02)
        network.save_pretrained(folder / name, max_shard_size="1GB", variant="fp16")
        del network
        gc.collect()
    models.build_tokenizer(folder / "tokenizer", CORPUS)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULES[base]))


@contextmanager
def in_half_precision() -> Iterator[None]:
    """New networks are made in it while this lasts."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
