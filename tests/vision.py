"""CLIP and DINO with random weights, in folders as the hub has them."""

from __future__ import annotations

from pathlib import Path

import torch
from bases import CORPUS
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, ViTConfig, ViTImageProcessor, ViTModel

from customttt.tiny import models

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_clip(folder: Path) -> Path:
    """An image and a text tower in a space of 16 dimensions, 32 pixels a side."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = models.build_tokenizer(folder, CORPUS)
        end = tokenizer.eos_token_id
        text = SMALL | {"vocab_size": len(tokenizer), "eos_token_id": end, "pad_token_id": end}
        vision = SMALL | {"image_size": 32, "patch_size": 8}
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    """A vision transformer of 32 dimensions, 32 pixels a side."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
