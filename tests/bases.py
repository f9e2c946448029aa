"""A base model with random weights in a folder: everything runs through it, and nothing comes out well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, UNet3DConditionModel, WanTransformer3DModel
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from tokenizers.trainers import WordLevelTrainer
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

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


WAN_SETTINGS: dict[str, dict[str, Any]] = {
    **SETTINGS,
    "sample": {**SETTINGS["sample"], "num_frames": 5, "size": 32, "fps": 16},
}


def build_tiny_random_wan(folder: Path, seed: int = 0) -> Path:
    """Write a diffusers folder of the architecture of Wan: nine blocks, 5 frames of 32 x 32 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_words(folder / "tokenizer")
        umt5().save_pretrained(folder / "text_encoder")
        wan_vae().save_pretrained(folder / "vae")
        wan_transformer().save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    (folder / "customttt.json").write_text(json.dumps(WAN_SETTINGS))
    assert len(tokenizer) <= VOCABULARY
    return folder


def build_tiny_random_experts(folder: Path, one: Path) -> Path:
    """The same with a second transformer, from a base of `one`: each for a part of the noise, as in Wan 2.2's A14B."""
    shutil.copytree(one, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        wan_transformer().save_pretrained(folder / "transformer_2")
    parts = {name: ["diffusers", "WanTransformer3DModel"] for name in ("transformer", "transformer_2")}
    (folder / "model_index.json").write_text(json.dumps({"boundary_ratio": 0.875, **parts}))
    return folder


def build_tiny_random_5b(folder: Path, one: Path) -> Path:
    """The same as Wan 2.2's 5B: a residual codec of patches, 4 x 16 x 16 with 48 channels."""
    shutil.copytree(one, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        wan_transformer(in_channels=48, out_channels=48).save_pretrained(folder / "transformer")
        AutoencoderKLWan(
            base_dim=4, decoder_base_dim=4, z_dim=48, dim_mult=[1, 1, 1, 1], num_res_blocks=1, in_channels=12,
            out_channels=12, is_residual=True, patch_size=2, scale_factor_spatial=16, latents_mean=[0.1] * 48,
            latents_std=[1.5] * 48,
        ).save_pretrained(folder / "vae")  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps({"expand_timesteps": True}))
    return folder


VOCABULARY = 64
TEXT_WIDTH = 16


def build_words(folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer of the form of UMT5's, in which every word of the corpus is a token; written to `folder`."""
    tokenizer = Tokenizer(WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, WordLevelTrainer(special_tokens=["<pad>", "</s>", "<unk>"]))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    fast.save_pretrained(folder)
    return fast


def umt5() -> UMT5EncoderModel:
    """Wan's text encoder in small."""
    return UMT5EncoderModel(
        UMT5Config(vocab_size=VOCABULARY, d_model=TEXT_WIDTH, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    )


def wan_vae() -> AutoencoderKLWan:
    """Wan's codec in small: the same 16 channels, 4 x 8 x 8."""
    return AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def wan_transformer(**options: Any) -> WanTransformer3DModel:
    """Wan's transformer in small."""
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=TEXT_WIDTH, freq_dim=16, ffn_dim=32, num_layers=9,
        rope_max_seq_len=32, **options,
    )  # fmt: skip
