"""Files that are no plain LoRA of a U-Net are refused by what they are; names that only wrap known keys are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from material import assert_one_sentence, run, snapshot
from travel import make_weights, safetensors

from customttt import lora
from customttt.backbones.animatediff import AnimateDiff
from customttt.errors import DamagedError
from customttt.interchange import keys, sorts
from customttt.interchange.exchange import Home
from customttt.library import Library

MODULE = "lora_unet_down_blocks_2_attentions_0_transformer_blocks_0_attn1_to_q"
BLOCK = "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (f"{MODULE}.dora_scale", "it is a DoRA"),
        (f"{BLOCK}.lora_magnitude_vector", "it is a DoRA"),
        (f"base_model.model.{BLOCK}.lora_magnitude_vector.default.weight", "it is a DoRA"),
        (f"{MODULE}.hada_w1_a", "it is a LoHa"),
        (f"{MODULE}.lokr_w1", "it is a LoKr"),
        (f"{BLOCK}.lokr_w2_a", "it is a LoKr"),
        (f"{MODULE}.oft_blocks", "it is an OFT"),
        (f"{MODULE}.on_input", "it is an (IA)3"),
        (f"{MODULE}.a1.weight", "it is a GLoRA"),
        (f"{MODULE}.lora_mid.weight", "it is a LoCon"),
        ("lora_unet_down_blocks_2_resnets_0_conv1.lora_down.weight", "it is a LoCon"),
        (f"{BLOCK}.lora_B.bias", "it is a LoRA with biases"),
        (f"{MODULE}.diff_b", "whole differences"),
        (f"{MODULE}.scale_weight", "scaled fp8"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "Stable Diffusion XL"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight", "Stable Diffusion XL"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "such as Wan"),
        ("lora_unet_blocks_0_cross_attn_k.lora_down.weight", "such as Wan"),
        ("transformer.blocks.0.attn1.to_q.lora_A.weight", "such as Wan"),
        ("base_model.model.blocks.0.attn1.to_q.lora_A.weight", "such as Wan"),
        ("diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight", "such as Flux or HunyuanVideo"),
        ("lora_unet_single_blocks_0_linear1.lora_down.weight", "such as Flux or HunyuanVideo"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "such as Flux"),
        ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight", "LTX-Video, CogVideoX or Flux"),
        ("diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight", "LTX-Video, CogVideoX or Flux"),
        ("diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight", "Stable Diffusion 3"),
    ],
)
def test_another_sort_of_adapter_is_refused_by_its_name(
    travel_home: Home, tmp_path: Path, key: str, words: str
) -> None:
    with pytest.raises(DamagedError, match="it is a"):
        sorts.check([key])
    spelt = {AnimateDiff.kohya(name, "appearance"): w for name, w in make_weights(travel_home, "appearance").items()}
    (tmp_path / "koala.safetensors").write_bytes(safetensors(spelt | {key: torch.ones(4, 32)}))
    before = snapshot(tmp_path)
    done = run("import", tmp_path / "koala.safetensors", "--base", travel_home.base)
    assert_one_sentence(done, 6, "koala.safetensors", words)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.input_blocks.0.0.weight",
        "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",
        "emb_params",
    ],
)
def test_weights_that_are_no_lora_are_refused_as_such(travel_home: Home, tmp_path: Path, key: str) -> None:
    """A whole checkpoint, a motion module, a textual inversion."""
    (tmp_path / "koala.safetensors").write_bytes(safetensors({key: torch.ones(4)}))
    done = run("import", tmp_path / "koala.safetensors", "--base", travel_home.base)
    assert_one_sentence(done, 6, "koala.safetensors", f"it holds no LoRA but other weights, such as '{key}'")


def test_none_of_our_own_keys_is_of_another_sort(travel_home: Home) -> None:
    for name in travel_home.places:
        plain = f"{name}.lora_A.weight"
        sorts.check(
            [plain, f"unet.{plain}", AnimateDiff.kohya(plain, "appearance"), AnimateDiff.kohya(plain, "motion")],
            travel_home.places,
        )


@pytest.mark.parametrize(
    "prefix",
    ["diffusion_model.", "model.diffusion_model.", "module.", "motion_module.", "unet.module.", "lycoris_"],
)
@pytest.mark.parametrize("adapter", ["", ".koala", ".default_0"])
def test_a_prefix_and_an_adapters_name_only_wrap(travel_home: Home, prefix: str, adapter: str) -> None:
    weights = make_weights(travel_home, "motion")
    wrapped = {prefix + key.replace(".weight", f"{adapter}.weight"): weight for key, weight in weights.items()}
    kept, left = keys.sift(wrapped, travel_home.places)
    found = keys.translate(kept, travel_home.places)
    assert not left
    assert list(found) == list(weights)
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_two_adapters_in_one_file_are_told_apart(travel_home: Home) -> None:
    weights = make_weights(travel_home, "appearance")
    both = {key.replace(".weight", f".{name}.weight"): w for name in ("koala", "tiger") for key, w in weights.items()}
    with pytest.raises(DamagedError, match="several adapters \\('koala', 'tiger'\\)"):
        keys.sift(both, travel_home.places)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_taken_exactly(travel_home: Home, tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {key: weight.to(dtype) for key, weight in make_weights(travel_home, "appearance").items()}
    (tmp_path / "koala.safetensors").write_bytes(safetensors(weights))
    done = run("import", tmp_path / "koala.safetensors", "--base", travel_home.base)
    assert done.exit_code == 0, done.output
    stored = lora.load(Library().weights("koala"))
    assert all(torch.equal(stored[key], weight.float()) for key, weight in weights.items())
    assert all(torch.equal(stored[key].to(torch.float16), weight.to(torch.float16)) for key, weight in weights.items())
