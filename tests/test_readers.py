"""What is exported is read by the programs it is for: diffusers itself, and the key rules of ComfyUI and its kin.

The rules are written down here anew, from what these programs look for in a file: ComfyUI (`comfy/lora.py`,
`comfy/utils.py`) and AnimateDiff-Evolved (`animatediff/model_injection.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AnimateDiffPipeline, UNet3DConditionModel, UNetMotionModel
from diffusers.loaders import PeftAdapterMixin
from material import assert_one_sentence, run, snapshot
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from travel import LAYERS, NAMES, add, make_weights

from customttt import backbones, lora
from customttt.concept import Kind
from customttt.interchange import exchange, keys, parcel
from customttt.interchange.exchange import Form, Home
from customttt.library import Library
from customttt.lora import Weights

ATTENTION = [f"attn{i}.{leaf}" for i in (1, 2) for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
LINEARS = [*ATTENTION, "ff.net.0.proj", "ff.net.2"]


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Home:
    """Stable Diffusion 1.5 with AnimateDiff v3, of which nothing is here but the shapes."""
    monkeypatch.setattr(backbones, "_config", lambda _: dict(backbones.locate("animatediff").known.architecture))  # type: ignore[union-attr,arg-type]
    return Home("animatediff", "published", backbones.places("animatediff"))


@pytest.fixture
def home_3d(tiny_random_3d_base: Path) -> Home:
    """ModelScope's architecture, in small."""
    base = str(tiny_random_3d_base)
    return Home(base, backbones.identify(base), backbones.places(base))


def export(home: Home, kind: Kind, form: Form, folder: Path) -> Path:
    path = folder / f"{kind}-{form}.safetensors"
    exchange.export(Library(), add(Library(), home, kind), form, path)
    return path


def products(weights: Weights) -> dict[str, Tensor]:
    """What each module's weight is changed by."""
    return {
        module: weights[f"{module}.lora_B.weight"] @ weights[f"{module}.lora_A.weight"]
        for module in keys.wrapped(weights)
    }


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def comfy_modules() -> Iterator[tuple[str, str]]:
    """(module in diffusers, module in the checkpoint) of SD 1.5: its attention blocks, counted through."""
    places = [(f"down_blocks.{i}.attentions.{j}", f"input_blocks.{3 * i + j + 1}.1") for i in range(3) for j in (0, 1)]
    places += [("mid_block.attentions.0", "middle_block.1")]
    places += [(f"up_blocks.{i}.attentions.{j}", f"output_blocks.{3 * i + j}.1") for i in (1, 2, 3) for j in range(3)]
    for ours, theirs in places:
        for leaf in ("proj_in", "proj_out", *(f"transformer_blocks.0.{linear}" for linear in LINEARS)):
            yield f"{ours}.{leaf}", f"{theirs}.{leaf}"


def test_comfyui_finds_every_weight_of_an_appearance(published: Home, tmp_path: Path) -> None:
    file = load_file(export(published, "appearance", "kohya", tmp_path))
    expected = products(make_weights(published, "appearance"))
    read = set()
    for ours, theirs in comfy_modules():
        name = f"lora_unet_{ours.replace('.', '_')}"
        if f"{name}.lora_up.weight" in file:
            up, down, alpha = (file[f"{name}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha"))
            assert torch.equal(up @ down * (alpha / len(down)), expected.pop(ours)), theirs
            read |= {f"{name}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha")}
    assert read == set(file)
    assert not expected


def motion_module_keys() -> set[str]:
    """The linears of AnimateDiff v3's checkpoint in which a MotionLoRA can learn."""
    places = [f"down_blocks.{i}.motion_modules.{j}" for i in range(4) for j in (0, 1)]
    places += [f"up_blocks.{i}.motion_modules.{j}" for i in range(4) for j in range(3)]
    spelt = [re.sub(r"attn(\d)", lambda found: f"attention_blocks.{int(found[1]) - 1}", leaf) for leaf in LINEARS]
    block = "temporal_transformer.transformer_blocks.0"
    return {f"{place}.{block}.{leaf}.weight" for place in places for leaf in spelt}


def test_animatediff_evolved_finds_every_weight_of_a_motion(published: Home, tmp_path: Path) -> None:
    """It knows no alpha, takes out the words that MotionLoRAs put into a name, and drops what has no `temporal`."""
    file = load_file(export(published, "motion", "kohya", tmp_path))
    expected, known = products(make_weights(published, "motion")), motion_module_keys()
    for key in file:
        assert "temporal" in key
        if "up." in key:
            continue
        name = re.sub(r"processor\.|_lora|down\.|up\.", "", key)
        name = name if "to_out.0." in name else name.replace("to_out.", "to_out.0.")
        assert name in known
        ours = name.removesuffix(".weight").replace("temporal_transformer.", "")
        for i in (1, 2):
            ours = ours.replace(f"attention_blocks.{i - 1}", f"attn{i}")
        assert torch.equal(file[key.replace(".down.", ".up.")] @ file[key], expected.pop(ours))
    assert not expected


def test_diffusers_reads_an_appearance_in_kohyas_form(travel_home: Home, tmp_path: Path) -> None:
    path = export(travel_home, "appearance", "kohya", tmp_path)
    unet = UNetMotionModel.from_pretrained(travel_home.base, subfolder="unet")
    state, alphas = AnimateDiffPipeline.lora_state_dict(path, unet_config=unet.config)
    AnimateDiffPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=unet, adapter_name="koala")
    assert_acts(unet, make_weights(travel_home, "appearance"))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("place", ["home_3d", "travel_home"])
def test_diffusers_reads_every_family_in_its_own_form(
    place: str, kind: Kind, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    home: Home = request.getfixturevalue(place)
    path = export(home, kind, "diffusers", tmp_path)
    unet = (Loading3D if place == "home_3d" else UNetMotionModel).from_pretrained(home.base, subfolder="unet")
    unet.load_lora_adapter(path, prefix="unet", adapter_name="koala")
    assert_acts(unet, make_weights(home, kind))
    again = exchange.admit(parcel.read(path), home, "again").add_to(Library())
    found, weights = lora.load(Library().weights(again.name)), make_weights(home, kind)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


class Loading3D(UNet3DConditionModel, PeftAdapterMixin):  # type: ignore[misc]
    """ModelScope's U-Net has no loader for LoRAs of its own; this is that of all others."""


def assert_acts(unet: Any, weights: Weights) -> None:
    expected = products(weights)
    for name, module in unet.named_modules():
        if hasattr(module, "lora_A"):
            torch.testing.assert_close(module.get_delta_weight("koala"), expected.pop(name))
    assert not expected


@pytest.mark.parametrize(
    ("base", "kind", "architecture"),
    [
        ("animatediff", "appearance", "stable-diffusion-v1"),
        ("animatediff", "motion", "animatediff"),
        ("tiny", "motion", "customttt-tiny"),
        ("zeroscope", "appearance", "text-to-video-ms"),
        ("zeroscope", "motion", "text-to-video-ms"),
        ("modelscope", "motion", "text-to-video-ms"),
    ],
)
def test_an_export_names_its_architecture(
    travel_home: Home, tmp_path: Path, base: str, kind: Kind, architecture: str
) -> None:
    path = export(Home(base, "1", travel_home.places), kind, "diffusers", tmp_path)
    assert metadata(path)["modelspec.architecture"] == f"{architecture}/lora"


def test_an_architecture_that_cannot_be_told_is_not_made_up(travel_home: Home, tmp_path: Path) -> None:
    path = export(Home(str(tmp_path / "gone"), "1", travel_home.places), "motion", "diffusers", tmp_path)
    assert "modelspec.architecture" not in metadata(path)
    assert_one_sentence(run("export", "swimming", "--format", "kohya", "-o", tmp_path / "x"), 10, "gone")


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("base", ["zeroscope", "modelscope", ""])
def test_a_form_that_no_program_could_read_is_refused(home_3d: Home, tmp_path: Path, kind: Kind, base: str) -> None:
    add(Library(), Home(base or home_3d.base, "1", home_3d.places), kind)
    before = snapshot(tmp_path)
    done = run("export", NAMES[kind], "--format", "kohya", "-o", tmp_path / "lora.safetensors")
    assert_one_sentence(done, 2, f"'{NAMES[kind]}' was learned on", "--format diffusers")
    assert snapshot(tmp_path) == before
