"""How strongly an adapter acts: as PEFT and diffusers let it, and nothing beyond a plain LoRA is believed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import AnimateDiffPipeline, UNetMotionModel
from material import run, snapshot
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from travel import make_weights, safetensors

from customttt import limits, lora
from customttt.backbones.animatediff import AnimateDiff
from customttt.errors import DamagedError, NotFoundError
from customttt.interchange import exchange, keys, parcel, scales
from customttt.interchange.exchange import Arrival, Home
from customttt.library import Library

WRAPPER = "base_model.model."
CONFIGS: list[dict[str, Any]] = [
    {"r": 2, "lora_alpha": 16},
    {"r": 4, "lora_alpha": 2, "use_rslora": True},
    {"r": 4, "lora_alpha": 3, "rank_pattern": {"attn1.to_q": 2, r"attn2\.to_(k|v)": 8, "to_v": 1, "to_k": 3}},
    {"r": 4, "lora_alpha": 3, "alpha_pattern": {"to_q": 8, "0.to_q": 5, "^mid_block.*to_v": 4, r".*\d\.to_out\.\d": 1}},
    {"r": 4, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"to_k": 9}, "alpha_pattern": {"attn1.to_k": 1}},
    {"r": 4, "lora_alpha": 8, "alpha_pattern": {"ttn1.to_k": 1, "o_q": 2, "attn1": 3}},  # none fits a whole end
    {"r": 4, "fan_in_fan_out": True, "init_lora_weights": "gaussian", "lora_dropout": 0.5},
]


@pytest.fixture
def modules(travel_home: Home) -> list[str]:
    """What the adapters here wrap."""
    return list(keys.wrapped(make_weights(travel_home, "appearance")))


def skeleton(home: Home, modules: Iterable[str]) -> nn.Module:
    """A network of nothing but these linears, under their names."""
    root = nn.Module()
    for name in modules:
        parent = root
        *above, last = name.split(".")
        for part in above:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        out, width = home.places[name].shape
        parent.add_module(last, nn.Linear(width, out, bias=False))
        nn.init.zeros_(parent.get_submodule(last).weight)
    return root


def fill(network: nn.Module) -> None:
    """Give B values: new ones change nothing."""
    torch.manual_seed(1)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)


@pytest.fixture
def adapter(travel_home: Home, modules: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder that PEFT wrote, with a configuration of one of `CONFIGS`."""
    config = LoraConfig(target_modules=modules, **request.param)
    network = get_peft_model(skeleton(travel_home, modules), config)  # type: ignore[arg-type]
    fill(network)
    network.save_pretrained(str(tmp_path / "koala"))
    return tmp_path / "koala"


@torch.no_grad()
def outputs(network: nn.Module, modules: Iterable[str]) -> dict[str, Tensor]:
    """What every linear makes of the same input."""
    found = {}
    for name in modules:
        linear: Any = network.get_submodule(name)
        found[name] = linear(torch.linspace(-1, 1, linear.in_features)[None])
    return found


def admit(path: Path, home: Home, name: str = "koala") -> Arrival:
    return exchange.admit(parcel.read(path, allow_pickle=True), home, name)


def ours(home: Home, modules: list[str], name: str = "koala") -> dict[str, Tensor]:
    network = skeleton(home, modules).eval()
    lora.restore(network, "appearance", lora.load(Library().weights(name)))
    with lora.active(network, appearance=1.0):
        return outputs(network, modules)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 0.01
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("adapter", CONFIGS, indirect=True)
def test_an_adapter_acts_as_strongly_as_peft_lets_it(travel_home: Home, modules: list[str], adapter: Path) -> None:
    theirs = PeftModel.from_pretrained(skeleton(travel_home, modules), str(adapter)).base_model.model.eval()
    arrival = admit(adapter, travel_home)
    assert arrival.notes == ()
    arrival.add_to(Library())
    assert_close(ours(travel_home, modules), outputs(theirs, modules))


@pytest.mark.parametrize("adapter", CONFIGS[:1], indirect=True)
def test_the_weights_alone_find_the_configuration_beside_them(
    travel_home: Home, modules: list[str], adapter: Path
) -> None:
    admit(adapter, travel_home).add_to(Library())
    admit(adapter / "adapter_model.safetensors", travel_home, "again").add_to(Library())
    assert parcel.read(adapter).name == "koala"
    assert all(map(torch.equal, ours(travel_home, modules).values(), ours(travel_home, modules, "again").values()))
    (adapter / "adapter_config.json").unlink()
    assert "acts at 1" in admit(adapter / "adapter_model.safetensors", travel_home).notes[0]


@pytest.mark.parametrize("adapter", CONFIGS[:1], indirect=True)
def test_a_pickled_adapter_has_a_scale_too(travel_home: Home, modules: list[str], adapter: Path) -> None:
    admit(adapter, travel_home).add_to(Library())
    weights = lora.load(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(weights, adapter / "adapter_model.bin")
    admit(adapter, travel_home, "again").add_to(Library())
    assert all(map(torch.equal, ours(travel_home, modules).values(), ours(travel_home, modules, "again").values()))


@pytest.mark.parametrize("adapter", CONFIGS[:1], indirect=True)
def test_a_folder_is_imported_by_its_name(travel_home: Home, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adapter)
    done = run("import", ".", "--base", travel_home.base)
    assert done.exit_code == 0, done.output
    assert [concept.name for concept in Library().concepts()] == ["koala"]
    weights = lora.load(Library().weights("koala"))
    theirs = lora.load(adapter / "adapter_model.safetensors")
    assert all(torch.equal(weights[key], theirs[WRAPPER + key] * (8 if "_B" in key else 1)) for key in weights)


def test_a_folder_of_something_else_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors({"a": torch.ones(1)}))
    with pytest.raises(NotFoundError, match=r"adapter_config\.json"):
        parcel.read(tmp_path)


@pytest.mark.parametrize("config", CONFIGS[:5])
@pytest.mark.parametrize("of_a_pipeline", [True, False])
def test_the_header_of_diffusers_files_is_read(
    travel_home: Home, modules: list[str], tmp_path: Path, config: dict[str, Any], of_a_pipeline: bool
) -> None:
    unet = UNetMotionModel.from_pretrained(travel_home.base, subfolder="unet")
    unet.add_adapter(lora_config := LoraConfig(target_modules=modules, **config), adapter_name="koala")
    fill(unet)
    if of_a_pipeline:
        layers = get_peft_model_state_dict(unet, adapter_name="koala")
        metadata = lora_config.to_dict()
        AnimateDiffPipeline.save_lora_weights(tmp_path, layers, unet_lora_adapter_metadata=metadata)
    else:
        unet.save_lora_adapter(tmp_path, adapter_name="koala")
    path = tmp_path / "pytorch_lora_weights.safetensors"
    prefix = "unet" if of_a_pipeline else None
    fresh = UNetMotionModel.from_pretrained(travel_home.base, subfolder="unet")
    fresh.load_lora_adapter(path, prefix=prefix, adapter_name="koala", use_safetensors=True)
    opened = parcel.read(tmp_path)
    found = keys.translate(opened.tensors, travel_home.places, scales.find(opened.metadata, ""))
    for name in modules:
        change = found[f"{name}.lora_B.weight"] @ found[f"{name}.lora_A.weight"]
        torch.testing.assert_close(change, fresh.get_submodule(name).get_delta_weight("koala"))


def test_what_stands_beside_a_file_of_another_spelling_is_not_meant_for_it(travel_home: Home, tmp_path: Path) -> None:
    weights = make_weights(travel_home, "appearance")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 16}))
    (tmp_path / "koala.safetensors").write_bytes(
        safetensors({AnimateDiff.kohya(key, "appearance"): weight for key, weight in weights.items()})
    )
    admit(tmp_path / "koala.safetensors", travel_home).add_to(Library())
    found = lora.load(Library().weights("koala"))
    assert all(torch.equal(found[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": 8}, "rank 8 of"),
        ({"r": 4, "rank_pattern": {"to_q": 5}}, "rank 5 of"),
        ({"use_dora": True}, "a DoRA"),
        ({"peft_type": "LOHA"}, "sort 'LOHA'"),
        ({"bias": "all"}, "bias: 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
        ({"modules_to_save": ["proj_in"]}, "modules_to_save"),
        ({"something_new": 1}, "something_new"),
        ({"lora_alpha": "16"}, "'lora_alpha'"),
        ({"lora_alpha": float("nan")}, "'lora_alpha'"),
        ({"lora_alpha": True}, "'lora_alpha'"),
        ({"r": 10**400}, "'r'"),
        ({"rank_pattern": [1]}, "no patterns"),
        ({"alpha_pattern": {"(to_q": 2}}, "no regular expression"),
        ({"alpha_pattern": {"(a+)+b": 2}}, "too intricate"),
        ({"alpha_pattern": {".*.*.*.*b": 2}}, "too intricate"),
        ({"alpha_pattern": {f"to_q{i}.*": 2 for i in range(20)}}, "more than 16 patterns"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "is not JSON"),
        ("", ""),
    ],
)
def test_a_configuration_that_makes_more_of_it_is_refused(
    travel_home: Home, tmp_path: Path, config: dict[str, Any] | str, words: str
) -> None:
    folder = tmp_path / "koala"
    folder.mkdir()
    text = config if isinstance(config, str) else json.dumps({"r": 4, "lora_alpha": 4, **config})
    (folder / "adapter_config.json").write_text(text)
    weights = make_weights(travel_home, "appearance")
    content = safetensors({WRAPPER + key: weight for key, weight in weights.items()})
    (folder / "adapter_model.safetensors").write_bytes(content)
    before = snapshot(tmp_path)
    if not text:
        assert admit(folder, travel_home).notes
        return
    done = run("import", folder, "--base", travel_home.base)
    assert done.exit_code == 6, done.output
    assert words in done.stderr
    assert snapshot(tmp_path) == before


def test_patterns_take_no_time() -> None:
    metadata = {
        scales.HEADER: json.dumps(
            {"r": 4, "lora_alpha": 4, "alpha_pattern": {f".*.*{i}" + "b" * 180: 2 for i in range(limits.MAX_WILD)}}
        )
    }
    strength = scales.find(metadata, "")
    assert strength is not None
    began = time.monotonic()
    assert strength.scale("a." * 60, 4) == 1.0
    assert time.monotonic() - began < 0.5


def test_two_scales_do_not_add_up(travel_home: Home) -> None:
    """An alpha among the tensors goes before what stands outside."""
    weights = make_weights(travel_home, "appearance")
    alphas = {key.replace(".lora_A.weight", ".alpha"): torch.tensor(2.0) for key in weights if "lora_A" in key}
    strength = scales.find({}, json.dumps({"r": 4, "lora_alpha": 16}))
    found = keys.translate(weights | alphas, travel_home.places, strength)
    assert all(torch.equal(found[key], weights[key] * (0.5 if "_B" in key else 1)) for key in weights)


def test_the_fields_of_peft_are_all_known_or_refused() -> None:
    """A configuration that only says defaults is a plain LoRA, whatever this version of PEFT adds to it."""
    fields = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"]).to_dict()
    plain = json.dumps({key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()})
    assert scales.find({}, plain) is not None, peft.__version__
    with pytest.raises(DamagedError, match="use_qalora"):
        scales.find({}, json.dumps({"r": 4, "use_qalora": True}))
