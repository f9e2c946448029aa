"""The networks of `tiny`: SD 1.5 + AnimateDiff in small, as plain diffusers and transformers classes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusers import AutoencoderTiny, UNetMotionModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""

SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "steps_offset": 0,
    "clip_sample": False,
    "set_alpha_to_one": True,
}


def build_tokenizer(folder: Path, corpus: Iterable[str]) -> CLIPTokenizer:
    """Train a CLIP-format byte-pair tokenizer in which every word of `corpus` is one token; written to `folder`."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=EOS))
    tokenizer.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Split(Regex(CLIP_SPLIT), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    trainer = trainers.BpeTrainer(
        vocab_size=8192, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocabulary = list(dict.fromkeys([*symbols, *learned["vocab"], BOS, EOS]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({token: index for index, token in enumerate(vocabulary)}), encoding="utf-8"
    )
    merges = [" ".join(pair) for pair in learned["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_text_encoder(vocab_size: int) -> CLIPTextModel:
    """A two-layer CLIP text encoder, 128 wide."""
    config = CLIPTextConfig(
        vocab_size=vocab_size, hidden_size=128, intermediate_size=512, projection_dim=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=MAX_TOKENS,
        bos_token_id=vocab_size - 2, eos_token_id=vocab_size - 1, pad_token_id=vocab_size - 1,
    )  # fmt: skip
    return CLIPTextModel(config)


LATENT_CHANNELS, LATENT_SIZE = 16, 16


def build_vae() -> AutoencoderTiny:
    """128 x 128 pixels to 16 x 16 latents of 16 channels.

    The architecture of TAESD, which has no group norms: it learns true colours in minutes where `AutoencoderKL` was
    still grey (LOG.md).
    """
    return AutoencoderTiny(
        encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(48,) * 4, num_encoder_blocks=(1, 1, 2, 3),
        num_decoder_blocks=(3, 3, 2, 1), latent_channels=LATENT_CHANNELS,
    )  # fmt: skip


def build_unet(block_out_channels: tuple[int, int, int, int] = (64, 128, 192, 192)) -> UNetMotionModel:
    """Nine blocks, text in layers 0, 1, 2, 4, 6, 7 and 8, motion modules everywhere but in the middle."""
    unet = UNetMotionModel(
        sample_size=LATENT_SIZE, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        block_out_channels=block_out_channels, layers_per_block=1, norm_num_groups=16,
        cross_attention_dim=128, num_attention_heads=4, motion_num_attention_heads=4, use_motion_mid_block=False,
    )  # fmt: skip
    for name, module in unet.named_modules():
        if "motion_modules" in name and name.endswith("proj_out"):  # a new motion module changes nothing
            module.weight.data.zero_()
            module.bias.data.zero_()
    return unet
