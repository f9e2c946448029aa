"""The networks of `tiny-wan`: Wan 2.1 in small, as plain diffusers and transformers classes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

MAX_TOKENS = 32
"""That are read of a prompt; Wan itself reads 512, which cost more than the video here."""
FRAMES, FPS = 17, 16
"""A second."""
LATENT_CHANNELS, LATENT_SIZE = 16, 16
TEXT_WIDTH = 128
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
START = "\N{LOWER ONE EIGHTH BLOCK}"
"""What a word begins with, as in sentencepiece."""
RARE = -10.0
"""Of a letter: the logarithm of how probable it is, beside -1 of a word."""

SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0,
}  # fmt: skip
INDEX: dict[str, Any] = {
    "_class_name": "WanPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
"""For diffusers' own pipeline."""
SETTINGS: dict[str, Any] = {
    "appearance": {
        "layers": [0, 1, 2, 3, 4, 5, 6, 7], "learning_rate": 4e-4, "steps": 220, "batch_size": 8, "shift": 0.13,
        "linears": ["ffn.net.0.proj", "ffn.net.2"],
    },
    "motion": {
        "layers": [0, 1, 2, 3, 4, 5, 6, 7], "learning_rate": 2.5e-4, "steps": 300, "batch_size": 1, "noise": [0.4, 1.0],
        "falling": True,
    },
    "ttt": {
        "learning_rate": 1e-5, "motion_rate": 3.0, "reference_guidance": 2.5, "references": 3, "student_rests": True,
        "renoise_appearance": [0.0, 0.53], "renoise_motion": [0.1, 0.53], "subject_moves": True, "plain": 0.0,
        "debias": 1.0, "doings": ["standing still", "running", "jumping", "sliding"],
        "objects": ["dog", "tiger", "fox", "panda"],
    },
    "sample": {
        "num_frames": FRAMES, "num_inference_steps": 15, "guidance_scale": 3.0, "size": 128, "fps": FPS, "magnify": 2,
    },
    "judged": True,
}  # fmt: skip
"""To begin with: those of `tiny` as far as they fit another architecture, and not measured."""


def build_tokenizer(folder: Path, words: Iterable[str], pieces: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of the form of UMT5's in which each of `words` is one token; written to `folder`.

    Other words are read as `pieces` and letters. The same words always give the same tokens.
    """
    known = dict.fromkeys(word for phrase in words for word in phrase.lower().replace(".", " ").split())
    letters = [START, *"abcdefghijklmnopqrstuvwxyz0123456789.,'-"]
    scores = {PAD: 0.0, EOS: 0.0, UNKNOWN: 2 * RARE}
    scores |= dict.fromkeys((f"{START}{word}" for word in known), -1.0)
    scores |= dict.fromkeys(letters, RARE) | dict.fromkeys(pieces, RARE)
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, model_max_length=MAX_TOKENS
    )
    fast.save_pretrained(folder)
    return fast


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    """A two-layer UMT5 encoder, TEXT_WIDTH wide."""
    config = UMT5Config(
        vocab_size=vocab_size, d_model=TEXT_WIDTH, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return UMT5EncoderModel(config)


def build_vae(base_dim: int = 32) -> AutoencoderKLWan:
    """17 x 128 x 128 pixels to 5 x 16 x 16 latents of 16 channels.

    It reads patches of 2 x 2 pixels, as that of Wan 2.2's 5B: half of the time of one that reads pixels (LOG.md).
    What it says of the variance of latents is always the same and small: it is not trained, and only means are used.
    """
    vae = AutoencoderKLWan(
        base_dim=base_dim, z_dim=LATENT_CHANNELS, dim_mult=[1, 2, 2], num_res_blocks=1,
        temperal_downsample=[True, True], in_channels=12, out_channels=12, patch_size=2,
        latents_mean=[0.0] * LATENT_CHANNELS, latents_std=[1.0] * LATENT_CHANNELS,
    )  # fmt: skip
    with torch.no_grad():
        vae.quant_conv.weight[LATENT_CHANNELS:] = 0
        vae.quant_conv.bias[LATENT_CHANNELS:] = -6
    return vae


def build_transformer(num_layers: int = 8, num_attention_heads: int = 6, attention_head_dim: int = 48) -> Any:
    """Eight blocks, 288 wide, as a `WanTransformer3DModel`.

    It reads each latent alone, where Wan reads patches of 2 x 2: of a subject, those would be three on a side (LOG.md).
    """
    width = num_attention_heads * attention_head_dim
    return WanTransformer3DModel(
        num_attention_heads=num_attention_heads, attention_head_dim=attention_head_dim, num_layers=num_layers,
        in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, text_dim=TEXT_WIDTH, freq_dim=128,
        ffn_dim=4 * width, rope_max_seq_len=64, patch_size=(1, 1, 1),
    )  # fmt: skip
