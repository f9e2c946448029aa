"""A base model with random weights in a folder: everything runs through it, and nothing comes out well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet3DConditionModel

from customttt.tiny import models

SETTINGS: dict[str, dict[str, Any]] = {
    "appearance": {"layers": [2, 6], "learning_rate": 1e-4, "steps": 3, "rank": 2, "batch_size": 1},
    "motion": {"layers": [2, 5], "learning_rate": 1e-4, "steps": 3, "rank": 2, "batch_size": 1},
    "ttt": {"steps": 2, "learning_rate": 1e-4, "reference_steps": 1, "reference_guidance": 1.0},
    "sample": {"num_frames": 4, "num_inference_steps": 2, "guidance_scale": 2.0, "size": 64, "magnify": 1},
}
CORPUS = ["a koala is swimming on mars.", "something is standing still under water.", "a man is running."]


def unet_3d() -> UNet3DConditionModel:
    """The architecture of ModelScope in small."""
    return UNet3DConditionModel(
        in_channels=models.LATENT_CHANNELS, out_channels=models.LATENT_CHANNELS, block_out_channels=(32, 32, 32, 32),
        layers_per_block=1, norm_num_groups=16, cross_attention_dim=128, attention_head_dim=8,
    )  # fmt: skip


def build_tiny_random(folder: Path, seed: int = 0, *, three_d: bool = False) -> Path:
    """Write a diffusers folder of the architecture of `tiny`, or of ModelScope with its VAE and text encoder.

    4 frames of 64 x 64 pixels, a few steps of everything.
    """
    motion = {**SETTINGS["motion"], "layers": [2, 4]} if three_d else SETTINGS["motion"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = models.build_tokenizer(folder / "tokenizer", CORPUS)
        models.build_text_encoder(len(tokenizer)).save_pretrained(folder / "text_encoder")
        models.build_vae().save_pretrained(folder / "vae")
        unet = unet_3d() if three_d else models.build_unet((32, 32, 32, 32))
        for parameter in unet.parameters():
            if not parameter.any():  # new temporal modules change nothing; these do
                torch.nn.init.normal_(parameter, std=0.1)
        unet.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(models.SCHEDULER))
    (folder / "customttt.json").write_text(json.dumps({**SETTINGS, "motion": motion}))
    return folder
