"""Names of LoRA weights: every program's spelling means the same modules, and nothing is left over in silence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bases import unet_3d
from diffusers import UNetMotionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from travel import LAYERS, make_weights

from customttt import backbones, lora
from customttt.backbones import animatediff
from customttt.backbones.animatediff import AnimateDiff
from customttt.concept import Kind
from customttt.errors import DamagedError
from customttt.interchange import keys
from customttt.interchange.exchange import Home
from customttt.lora import Weights

Respell = Callable[[str], str]


def down_up(text: str) -> str:
    return text.replace("lora_A", "lora_down").replace("lora_B", "lora_up")


def old_diffusers(key: str) -> str:
    return "unet." + down_up(key).replace(".lora_down.", ".lora.down.").replace(".lora_up.", ".lora.up.")


def animatediff_raw(key: str) -> str:
    """AnimateDiff-MotionDirector's temporal LoRA with `use_motion_lora_format: false`."""
    key = re.sub(r"(motion_modules\.\d+)\.", r"\1.temporal_transformer.", down_up(key))
    return key.replace("attn1.", "attention_blocks.0.").replace("attn2.", "attention_blocks.1.")


def motion_director_temporal(key: str) -> str:
    """The same in the form of MotionLoRAs: `.to_out.processor.0_lora.up.weight`."""
    return re.sub(r"\.([^.]+)\.lora_(up|down)\.weight$", r".processor.\1_lora.\2.weight", animatediff_raw(key))


def motion_director_spatial(key: str) -> str:
    key = down_up(key).replace("attn1.", "attn1.processor.").replace("attn2.", "attn2.processor.")
    return re.sub(r"\.lora_(up|down)\.weight$", r"_lora.\1.weight", key.replace("to_out.0", "to_out"))


@pytest.mark.parametrize(
    ("kind", "respell"),
    [
        ("appearance", lambda key: key),
        ("motion", lambda key: f"unet.{key}"),
        ("motion", lambda key: f"base_model.model.{key}"),
        ("appearance", lambda key: key.replace(".weight", ".default.weight")),
        ("appearance", old_diffusers),
        ("motion", old_diffusers),
        ("appearance", lambda key: AnimateDiff.kohya(key, "appearance")),
        ("motion", lambda key: AnimateDiff.kohya(key, "motion")),
        ("motion", lambda key: AnimateDiff.kohya(key, "appearance")),  # kohya's spelling of motion modules
        ("motion", animatediff_raw),
        ("motion", motion_director_temporal),
        ("appearance", motion_director_spatial),
    ],
)
def test_every_spelling_means_the_same_weights(travel_home: Home, kind: Kind, respell: Respell) -> None:
    weights = make_weights(travel_home, kind)
    respelt = {respell(key): weight for key, weight in weights.items()}
    found = keys.translate(respelt, travel_home.places)
    assert list(found) == list(weights), "ours, in the order of the network"
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_the_spellings_are_those_of_real_files(travel_home: Home) -> None:
    spelt = {AnimateDiff.kohya(key, kind) for kind in LAYERS for key in make_weights(travel_home, kind)}
    spatial = "lora_unet_down_blocks_2_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight"
    block = "down_blocks.2.motion_modules.0.temporal_transformer.transformer_blocks.0"
    assert {
        spatial,
        f"{block}.attention_blocks.1.processor.to_out_lora.up.weight",
        f"{block}.attention_blocks.0.processor.to_q_lora.down.weight",
        f"{block}.ff.net.processor.2_lora.down.weight",
        f"{block}.ff.net.0.processor.proj_lora.up.weight",
    } <= spelt


def test_no_two_modules_of_stable_diffusion_are_spelt_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    def bare(*_: object) -> UNetMotionModel:
        image_unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        return UNetMotionModel.from_unet2d(image_unet, MotionAdapter(), load_weights=False)

    monkeypatch.setattr(backbones, "_config", lambda _: {})
    monkeypatch.setattr(animatediff.AnimateDiff, "bare_unet", bare)
    places = backbones.places("animatediff")
    assert len({keys._flat(name) for name in places}) == len(places) == 444
    assert places["mid_block.motion_modules.0.proj_in"] == backbones.Place("motion", 4, (1280, 1280))
    to_k = "down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k"
    assert places[to_k] == backbones.Place("appearance", 2, (1280, 768))


def test_no_two_modules_of_zeroscope_are_spelt_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "_config", lambda _: {"sample_size": 32})
    places = backbones.places("zeroscope")
    assert len({keys._flat(name) for name in places}) == len(places)
    to_k = "mid_block.temp_attentions.0.transformer_blocks.0.attn2.to_k"
    assert places[to_k] == backbones.Place("motion", 4, (1280, 1280))


def test_alpha_is_multiplied_into_the_second_matrix(travel_home: Home) -> None:
    weights = make_weights(travel_home, "appearance")
    respelt = {AnimateDiff.kohya(key, "appearance"): weight for key, weight in weights.items()}
    alphas = {key.replace(".lora_up.weight", ".alpha"): torch.tensor(2.0) for key in respelt if "lora_up" in key}
    found = keys.translate(respelt | alphas, travel_home.places)
    for key, weight in weights.items():
        assert torch.equal(found[key], weight * (0.5 if "lora_B" in key else 1.0))


def test_half_precision_becomes_single(travel_home: Home) -> None:
    weights = {key: weight.half() for key, weight in make_weights(travel_home, "motion").items()}
    found = keys.translate(weights, travel_home.places)
    assert all(torch.equal(found[key], weight.float()) for key, weight in weights.items())
    assert {weight.dtype for weight in found.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [("appearance", r"\.(attn1|ff)\."), ("appearance", "."), ("motion", r"\.(attn1|attn2|ff)\.")],
)
def test_a_list_without_names_is_read_in_the_order_of_the_network(travel_home: Home, kind: Kind, pattern: str) -> None:
    modules = [name for name, place in travel_home.places.items() if place.kind == kind and re.search(pattern, name)]
    tensors = [torch.randn(shape) for module in modules for shape in shapes(travel_home.places[module].shape)]
    named = keys.named(tensors, travel_home.places, None)
    assert list(keys.wrapped(keys.translate(named, travel_home.places))) == modules
    assert [id(tensor) for tensor in named.values()] == [id(tensor) for tensor in tensors]
    with pytest.raises(DamagedError, match="without names"):
        keys.named(tensors, travel_home.places, "motion" if kind == "appearance" else "appearance")


@pytest.mark.parametrize(
    ("kind", "ancestor", "parts"),
    [
        ("appearance", Transformer2DModel, ("attn1", "ff")),
        ("motion", TransformerTemporalModel, ("attn1", "attn2", "ff")),
    ],
)
def test_motion_directors_own_list_fits_the_u_net_it_was_made_for(
    tiny_random_3d_base: Path, kind: Kind, ancestor: type, parts: tuple[str, ...]
) -> None:
    """In the order in which its `_find_modules_v2` goes through a U-Net: the first transformer is one of them."""
    unet, places = unet_3d(), backbones.places(str(tiny_random_3d_base))
    modules = [
        f"{above}.{name}"
        for above, transformer in unet.named_modules()
        if isinstance(transformer, ancestor)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and any(part in name for part in parts)
    ]
    tensors = [torch.randn(shape) for module in modules for shape in shapes(places[module].shape)]
    assert list(keys.wrapped(keys.named(tensors, places, None))) == modules
    assert any("transformer_in" in module for module in modules) == (kind == "motion")


def shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Of up and down, to a weight of that shape."""
    return [(shape[0], 4, *(1 for _ in shape[2:])), (4, *shape[1:])]


def test_a_list_for_another_network_is_refused(travel_home: Home) -> None:
    zeroscope = [torch.zeros(320, 32), torch.zeros(32, 320)] * 60
    with pytest.raises(DamagedError, match="120 tensors without names"):
        keys.named(zeroscope, travel_home.places, None)


def halved(weights: Weights, pattern: str) -> Weights:
    """The modules that a pattern fits at half the rank."""
    found = {}
    for key, weight in weights.items():
        half = weight if not re.search(pattern, key) else weight[:2] if "lora_A" in key else weight[:, :2]
        found[key] = half.contiguous()
    return found


def test_mixed_ranks_are_filled_up_with_zeros(travel_home: Home) -> None:
    """Which changes nothing: every module adds the product that it added before, each with its own alpha / rank."""
    mixed = halved(make_weights(travel_home, "appearance"), "to_q|net")
    respelt = {AnimateDiff.kohya(key, "appearance"): weight for key, weight in mixed.items()}
    alphas = {key.replace(".lora_up.weight", ".alpha"): torch.tensor(1.0) for key in respelt if "lora_up" in key}
    found = keys.translate(respelt | alphas, travel_home.places)
    assert {len(weight) for key, weight in found.items() if "lora_A" in key} == {4}
    for module in keys.wrapped(mixed):
        down, up = mixed[f"{module}.lora_A.weight"], mixed[f"{module}.lora_B.weight"]
        product = found[f"{module}.lora_B.weight"] @ found[f"{module}.lora_A.weight"]
        assert torch.equal(product, (up / len(down)) @ down), module


def test_a_lora_of_mixed_ranks_acts_as_its_parts(travel_home: Home) -> None:
    mixed = halved(make_weights(travel_home, "motion"), "attn2")
    unet = UNetMotionModel.from_pretrained(travel_home.base, subfolder="unet")
    lora.restore(unet, "motion", keys.translate(mixed, travel_home.places))
    for module in keys.wrapped(mixed):
        layer = unet.get_submodule(module)
        change = mixed[f"{module}.lora_B.weight"] @ mixed[f"{module}.lora_A.weight"]
        assert torch.equal(layer.get_delta_weight("motion"), change)


def test_a_rank_that_would_fill_the_memory_is_refused(travel_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_MATRICES", 20_000)
    mixed = halved(make_weights(travel_home, "appearance"), "to_q")
    with pytest.raises(DamagedError, match="its ranks differ, and at the largest, 4, it would have"):
        keys.translate(mixed, travel_home.places)


TEXT_ENCODERS = [
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj.{}.weight",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.{}.weight",
    "text_encoder.text_model.encoder.layers.0.self_attn.out_proj.{}.weight",
    "base_model.model.text_model.encoder.layers.0.self_attn.v_proj.{}.weight",
]


@pytest.mark.parametrize("spelling", TEXT_ENCODERS)
@pytest.mark.parametrize("between", ["lora_", "lora_linear_layer."])
def test_a_text_encoder_is_left_out(travel_home: Home, spelling: str, between: str) -> None:
    weights = make_weights(travel_home, "appearance")
    text = {spelling.format(between + role): torch.ones(4, 4) for role in ("down", "up")}
    kept, left = keys.sift(weights | text, travel_home.places)
    assert (kept, left) == (weights, {"the text encoder": 2})
    with pytest.raises(DamagedError, match="no LoRA weights but those of the text encoder"):
        keys.sift(text, travel_home.places)
    text.popitem()
    with pytest.raises(DamagedError, match="is alone"):
        keys.sift(weights | text, travel_home.places)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_motion_in_the_middle_is_left_out_where_a_base_has_none(travel_home: Home, prefix: str) -> None:
    """AnimateDiff's MotionLoRAs are for v2, which has it; v3 and v1 have not."""
    weights = make_weights(travel_home, "motion")
    spelt = {prefix + AnimateDiff.kohya(key, "motion"): weight for key, weight in weights.items()}
    block = next(iter(spelt)).split(".motion_modules")[0]
    middle = {
        key.replace(block, f"{prefix}mid_block"): weight
        for key, weight in spelt.items()
        if f"{block}.motion_modules.0" in key
    }
    kept, left = keys.sift(middle | spelt, travel_home.places)
    assert kept == spelt
    assert left == {"motion_modules in mid_block, where this base has none": len(middle)}
    with pytest.raises(DamagedError, match="no LoRA weights but those of motion_modules in mid_block"):
        keys.sift(middle, travel_home.places)


def test_motion_in_the_middle_is_taken_where_a_base_has_it(travel_home: Home) -> None:
    name = next(iter(keys.wrapped(make_weights(travel_home, "motion"))))
    middle = re.sub(r"^\w+\.\d+\.", "mid_block.", name)
    places = travel_home.places | {middle: travel_home.places[name]}
    kept, left = keys.sift({f"{middle}.lora_A.weight": torch.ones(1)}, places)
    assert (list(kept), left) == ([f"{middle}.lora_A.weight"], {})


def test_a_family_that_a_base_is_not_of_is_named(travel_home: Home, tiny_random_3d_base: Path) -> None:
    weights = make_weights(travel_home, "motion")
    with pytest.raises(DamagedError, match="learned in 'motion_modules', which this base has nowhere"):
        keys.translate(weights, backbones.places(str(tiny_random_3d_base)))


@pytest.mark.parametrize(
    "stranger",
    [
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        "unet.down_blocks.2.resnets.0.conv1.lora_A.weight",
        "down_blocks.2.attentions.7.proj_in.lora_A.weight",
        "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a",
        "",
    ],
)
def test_a_key_that_the_base_does_not_know_is_named(travel_home: Home, stranger: str) -> None:
    weights: Weights = make_weights(travel_home, "appearance") | {stranger: torch.zeros(4, 32)}
    with pytest.raises(DamagedError, match=re.escape(repr(stranger))):
        keys.translate(weights, travel_home.places)
