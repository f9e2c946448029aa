"""Concepts of a transformer travel: out in three spellings and back, and into plain diffusers."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from material import assert_one_sentence, run
from safetensors.torch import load_file
from torch import Tensor
from travel import make_weights as weights_of_a_unet
from travel import safetensors

from customttt import backbones, lora
from customttt.backbones.wan import LINEARS, Wan
from customttt.concept import Concept, Kind
from customttt.interchange import exchange, parcel
from customttt.interchange.exchange import Form, Home
from customttt.library import WEIGHTS, Library

LAYERS: dict[Kind, tuple[int, ...]] = {"appearance": (2, 6), "motion": (2, 5)}
"""Some blocks only, of which one is in both."""


@pytest.fixture
def wan_home(tiny_random_wan_base: Path) -> Home:
    base = str(tiny_random_wan_base)
    return Home(base, backbones.identify(base), backbones.places(base))


def make_weights(home: Home, kind: Kind) -> lora.Weights:
    generator, weights = torch.Generator().manual_seed(0), {}
    for module, place in home.places.items():
        if place.layer in LAYERS[kind]:
            out, width = place.shape
            weights[f"{module}.lora_A.weight"] = torch.randn(4, width, generator=generator) * 0.2
            weights[f"{module}.lora_B.weight"] = torch.randn(out, 4, generator=generator) * 0.2
    return weights


def export(home: Home, kind: Kind, form: Form, folder: Path) -> Path:
    concept = Concept(
        name=kind, kind=kind, phrase="purple koala", prompt="A purple koala.", base=home.base,
        base_fingerprint=home.fingerprint, layers=LAYERS[kind], rank=4, steps=3, learning_rate=1e-4, seed=5,
        sources=(), inputs="c" * 64, losses=(0.5,) * 3, versions={}, created=datetime.now(UTC), seconds=1,
    )  # fmt: skip
    weights, path = make_weights(home, kind), folder / f"{kind}.safetensors"
    Library().add(concept, lambda place: lora.save(weights, place / WEIGHTS, kind=kind))
    exchange.export(Library(), concept, form, path)
    return path


def same(found: lora.Weights, weights: lora.Weights) -> bool:
    return found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", ["diffusers", "kohya", "comfyui"])
def test_a_round_trip_is_bit_equal_and_remembers_its_kind(
    wan_home: Home, kind: Kind, form: Form, tmp_path: Path
) -> None:
    again = exchange.admit(parcel.read(export(wan_home, kind, form, tmp_path)), wan_home, "again").add_to(Library())
    assert (again.kind, again.layers, again.phrase) == (kind, LAYERS[kind], "purple koala")
    assert same(lora.load(Library().weights("again")), make_weights(wan_home, kind))


@pytest.mark.parametrize(
    ("form", "first", "feed_forward"),
    [
        ("diffusers", "transformer.blocks.2.attn1.to_q.lora_A.weight", "transformer.blocks.2.ffn.net.0.proj."),
        ("comfyui", "diffusion_model.blocks.2.self_attn.q.lora_A.weight", "diffusion_model.blocks.2.ffn.0."),
        ("kohya", "lora_unet_blocks_2_self_attn_q.lora_down.weight", "lora_unet_blocks_2_ffn_0."),
    ],
)
def test_each_form_is_spelt_as_its_programs_do(
    wan_home: Home, form: Form, first: str, feed_forward: str, tmp_path: Path
) -> None:
    file = load_file(export(wan_home, "appearance", form, tmp_path))
    assert first in file
    assert sum(key.startswith(feed_forward) for key in file) == (3 if form == "kohya" else 2)
    assert {float(file[key]) for key in file if key.endswith(".alpha")} == ({4.0} if form == "kohya" else set())


def comfy_names() -> dict[str, str]:
    """The names of a module that ComfyUI looks for (`comfy/lora.py`), and the module in diffusers."""
    attention = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
    theirs = {f"{one}_attn.{leaf}": f"attn{i}.{ours}" for i, one in ((1, "self"), (2, "cross")) for leaf, ours in attention.items()}  # fmt: skip # noqa: E501
    theirs |= {"ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"}
    found = {}
    for block in range(9):
        for name, ours in theirs.items():
            module = f"blocks.{block}.{name}"
            found[f"diffusion_model.{module}"] = found[f"lora_unet_{module.replace('.', '_')}"] = (
                f"blocks.{block}.{ours}"
            )
    return found


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_comfyui_finds_every_weight(wan_home: Home, form: Form, tmp_path: Path) -> None:
    file, names = load_file(export(wan_home, "motion", form, tmp_path)), comfy_names()
    expected = make_weights(wan_home, "motion")
    for key, tensor in file.items():
        module, role = re.split(r"\.(?=lora_|alpha)", key)
        if role != "alpha":
            ours = {"lora_A": "A", "lora_down": "A"}.get(role.removesuffix(".weight"), "B")
            assert torch.equal(tensor, expected.pop(f"{names[module]}.lora_{ours}.weight"))
    assert not expected


@torch.no_grad()
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", ["diffusers", "comfyui"])
def test_plain_diffusers_loads_it_and_predicts_the_same(wan_home: Home, kind: Kind, form: Form, tmp_path: Path) -> None:
    """Its converter of musubi's spelling knows no LoRA that leaves out blocks, so kohya's form is not for diffusers."""
    path = export(wan_home, kind, form, tmp_path)
    plain: Any = WanTransformer3DModel.from_pretrained(Path(wan_home.base) / "transformer")
    ours: Any = backbones.open_base(wan_home.base, torch.device("cpu"))
    noisy = torch.randn(1, *ours.latent_shape(5, 32, 32), generator=torch.Generator().manual_seed(0))
    at, embeds = torch.tensor([500.0]), ours.embed(["A purple koala."])
    without = plain(noisy, at, embeds).sample
    state = WanPipeline.lora_state_dict(path)
    WanPipeline.load_lora_into_transformer(state, transformer=plain, adapter_name="koala")
    theirs: Tensor = plain(noisy, at, embeds).sample
    lora.restore(ours.network, kind, make_weights(wan_home, kind))
    with lora.active(ours.network, **{kind: 1.0}):
        torch.testing.assert_close(ours.predict(noisy, at, embeds), theirs)
    assert not torch.allclose(theirs, without)


def test_a_stranger_s_file_is_read_at_its_alpha_once_its_kind_is_told(wan_home: Home, tmp_path: Path) -> None:
    """As musubi-tuner writes it; nothing in it says whether it is an appearance or a motion."""
    weights = make_weights(wan_home, "motion")
    theirs = {Wan.kohya(key, "motion"): weight for key, weight in weights.items()}
    alphas = {key.replace(".lora_down.weight", ".alpha"): torch.tensor(2.0) for key in theirs if "lora_down" in key}
    (tmp_path / "sloth.safetensors").write_bytes(safetensors(theirs | alphas))
    told = ["import", str(tmp_path / "sloth.safetensors"), "--base", wan_home.base]
    assert_one_sentence(run(*told), 2, "--kind appearance or --kind motion")
    done = run(*told, "--kind", "motion")
    assert done.exit_code == 0, done.output
    found = lora.load(Library().weights("sloth"))
    assert all(torch.equal(found[key], weights[key] * (0.5 if "lora_B" in key else 1)) for key in weights)


@pytest.mark.parametrize("prefix", ["", "unet.", "base_model.model."])
def test_a_lora_of_another_family_is_refused(wan_home: Home, travel_home: Home, prefix: str, tmp_path: Path) -> None:
    strange = {f"{prefix}{key}": weight for key, weight in weights_of_a_unet(travel_home, "appearance").items()}
    (tmp_path / "koala.safetensors").write_bytes(safetensors(strange))
    done = run("import", str(tmp_path / "koala.safetensors"), "--base", wan_home.base)
    assert_one_sentence(done, 6, "it is a LoRA of a U-Net", "does not fit this one")
    assert not Library().entries()


def test_no_two_linears_of_a_transformer_are_spelt_alike(wan_home: Home) -> None:
    names = [f"{module}.lora_A.weight" for module in wan_home.places]
    assert len(names) == 9 * len(LINEARS)
    for spelt in (Wan.kohya, Wan.comfyui):
        assert len({spelt(name, "motion") for name in names}) == len(names)
