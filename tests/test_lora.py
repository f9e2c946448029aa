"""Adapters: what changes, what must not, and what comes back."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from customttt import lora
from customttt.backbones import Backbone, open_base
from customttt.errors import DamagedError, StoreError, UsageError

LINEARS = ["spatial.to_q", "spatial.to_k", "out"]


@pytest.fixture
def network() -> nn.Module:
    """Three linears in a row, in two rooms."""
    torch.manual_seed(0)
    spatial = nn.ModuleDict({"to_q": nn.Linear(4, 4), "norm_to_q": nn.LayerNorm(4), "to_k": nn.Linear(4, 4)})
    return nn.ModuleDict({"spatial": spatial, "out": nn.Linear(4, 4)}).requires_grad_(False)


def output(network: Any) -> torch.Tensor:
    values = torch.arange(4.0)[None].to(network["out"].weight.dtype)
    return network["out"](network["spatial"]["to_k"](network["spatial"]["to_q"](values)))


def fill(network: nn.Module, adapter: str, targets: list[str] = LINEARS, **options: Any) -> list[nn.Parameter]:
    """Add an adapter that does something."""
    made = lora.inject(network, adapter, targets, **{"rank": 2, **options})
    for parameter in made:
        parameter.data += 0.3
    return made


def scales(network: nn.Module) -> list[dict[str, float]]:
    """Of the adapters that act, one layer after the other."""
    layers: list[Any] = [network.get_submodule(name) for name in LINEARS]
    return [
        {name: layer.scaling[name] for name in layer.active_adapters if name in layer.lora_A}
        for layer in layers
        if hasattr(layer, "lora_A")
    ]


# -- any linears


def test_targets_are_linears_that_begin_and_end_so_with_or_without_adapters(network: nn.Module) -> None:
    for _ in range(2):
        assert lora.target_names(network, "spatial.", ("to_q",)) == ["spatial.to_q"]
        assert lora.target_names(network, "spatial.", ("to_q", "to_k")) == ["spatial.to_q", "spatial.to_k"]
        assert lora.target_names(network, "", ("to_q", "out")) == ["spatial.to_q", "out"]
        lora.inject(network, "a", LINEARS)


def test_an_adapter_has_rank_32_and_scale_1_and_no_dropout_unless_asked(network: nn.Module) -> None:
    lora.inject(network, "a", LINEARS)
    lora.inject(network, "b", LINEARS, rank=8, dropout=0.5)
    layer: Any = network.get_submodule("out")
    assert {name: matrix.weight.shape for name, matrix in layer.lora_A.items()} == {"a": (32, 4), "b": (8, 4)}
    assert layer.scaling == {"a": 1.0, "b": 1.0}
    assert [getattr(layer.lora_dropout[name], "p", 0.0) for name in "ab"] == [0.0, 0.5]


def test_adding_adapters_draws_from_no_one_s_randomness_and_warns_of_nothing(network: nn.Module) -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lora.inject(network, "a", LINEARS)
        lora.inject(network, "b", LINEARS, seed=0)
        lora.inject(network, "c", LINEARS, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    first, second, other = (lora.state(network, name)["out.lora_A.weight"] for name in "abc")
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_an_adapter_is_in_full_precision_on_a_base_that_is_not(network: nn.Module) -> None:
    fill(network.bfloat16(), "a")
    assert {parameter.dtype for parameter in lora.parameters(network, "a")} == {torch.float32}
    assert {weight.dtype for weight in lora.state(network, "a").values()} == {torch.float32}
    lora.remove(network, "a")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}


def test_the_device_is_asked_once_as_diffusers_looks_through_all_modules_for_it(network: nn.Module) -> None:
    asked = []

    class Asked(nn.Module):
        @property
        def device(self) -> torch.device:
            asked.append(self)
            return torch.device("cpu")

    whole = Asked()
    whole.parts = network
    fill(whole, "a", [f"parts.{name}" for name in LINEARS])
    assert len(asked) == 1


def test_weights_are_a_copy(network: nn.Module) -> None:
    parameters, weights = fill(network, "a"), lora.state(network, "a")
    before = {key: value.clone() for key, value in weights.items()}
    for parameter in parameters:
        parameter.data += 1
    assert all(torch.equal(weights[key], before[key]) for key in before)


def test_the_parameters_are_those_of_one_adapter(network: nn.Module) -> None:
    fill(network, "a", ["out"])
    layer: Any = network.get_submodule("out")
    fill(network, "aa", ["out"], rank=3)
    assert [id(one) for one in lora.parameters(network, "a")] == [
        id(layer.lora_A["a"].weight), id(layer.lora_B["a"].weight)
    ]  # fmt: skip


def test_what_acted_before_acts_again_even_after_an_error(network: nn.Module) -> None:
    fill(network, "a")
    fill(network, "b", ["out"])
    with lora.active(network, a=0.5, b=2.0):
        outer = scales(network)
        with suppress(KeyError), lora.active(network, b=3.0):
            assert scales(network) == [{}, {}, {"b": 3.0}]
            raise KeyError
        assert scales(network) == outer == [{"a": 0.5}, {"a": 0.5}, {"a": 0.5, "b": 2.0}]


def test_what_is_removed_while_others_act_stays_away(network: nn.Module) -> None:
    fill(network, "a")
    fill(network, "b")
    with lora.active(network, a=0.5, b=1.0):
        lora.remove(network, "a")
    layer: Any = network.get_submodule("out")
    assert layer.scaling == {"b": 1.0}


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_weaker_adapters_act_at_a_factor_of_their_scale(network: nn.Module, factor: float) -> None:
    fill(network, "a")
    fill(network, "b", ["out"])
    fill(network, "c")
    with lora.active(network, a=0.8, b=2.0):
        with lora.weaker(network, factor):
            weak = output(network)
        whole = output(network)
    with lora.active(network, a=0.8 * factor, b=2.0 * factor):
        assert torch.equal(output(network), weak)
    assert torch.equal(weak, whole) == (factor == 1)


def test_parameters_are_frozen_again_even_after_an_error(network: nn.Module) -> None:
    parameters = fill(network, "a")
    with suppress(KeyError), lora.trainable(iter(parameters)):
        assert all(parameter.requires_grad for parameter in parameters)
        raise KeyError
    assert not any(parameter.requires_grad for parameter in parameters)


def test_one_adapter_is_taken_out_from_beside_another(network: nn.Module) -> None:
    plain = output(network)
    fill(network, "a")
    with lora.active(network, a=1.0):
        expected = output(network)
    fill(network, "b", ["out"])
    lora.remove(network, "b")
    with lora.active(network, a=1.0):
        assert torch.equal(output(network), expected)
    lora.remove(network, "a", "never")
    assert torch.equal(output(network), plain)
    assert type(network.get_submodule("spatial.to_q")) is type(network.get_submodule("out")) is nn.Linear


def test_a_restored_adapter_has_its_own_rank_and_the_dropout_it_is_given(network: nn.Module) -> None:
    fill(network, "a", rank=3)
    weights = lora.state(network, "a")
    restored = lora.restore(network, "b", weights, dropout=0.5)
    assert [id(one) for one in restored] == [id(one) for one in lora.parameters(network, "b")]
    assert all(torch.equal(weights[key], value) for key, value in lora.state(network, "b").items())
    lora.restore(network, "c", weights)
    layer: Any = network.get_submodule("out")
    assert [getattr(layer.lora_dropout[name], "p", 0.0) for name in "bc"] == [0.5, 0.0]


def test_what_does_not_fit_is_refused_naming_both(network: nn.Module) -> None:
    fill(network, "a")
    weights = lora.state(network, "a")
    lora.remove(network, "a")
    key = "out.lora_B.weight"
    half = {name: weight for name, weight in weights.items() if name != key}
    with pytest.raises(DamagedError, match=rf"does not fit: {key} holds nothing, expected finite \(4, 2\)\."):
        lora.restore(network, "b", half)
    with pytest.raises(DamagedError, match=rf"does not fit: {key} holds \(4, 3\), expected finite \(4, 2\)\."):
        lora.restore(network, "c", {**weights, key: torch.zeros(4, 3)})
    with pytest.raises(DamagedError, match=r"another model: this one has no 'there'\."):
        lora.restore(network, "d", {**weights, "there.lora_A.weight": torch.zeros(2, 4)})


# -- files


def test_a_file_says_of_what_it_is(tmp_path: Path) -> None:
    place = tmp_path / "lora.safetensors"
    lora.save({"b": torch.ones(2), "a": torch.zeros(1)}, place, kind="motion", layers=[2, 5])
    with safe_open(place, "pt") as file:
        assert file.metadata() == {"kind": "motion", "layers": "[2, 5]"}
    assert list(lora.load(place)) == ["a", "b"]


def test_a_disk_that_refuses_weights_is_told_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"lora.safetensors' cannot be written \(.+\); write elsewhere\."):
        lora.save({"a": torch.ones(1)}, tmp_path / "nowhere" / "lora.safetensors")

    def full(*_: object) -> NoReturn:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(lora, "save_file", full)
    with pytest.raises(StoreError, match=r"\(I/O error.+\); make room\."):
        lora.save({"a": torch.ones(1)}, tmp_path / "lora.safetensors")


def test_several_loras_are_one_file(tmp_path: Path) -> None:
    loras = {
        "appearance": {"out.lora_A.weight": torch.ones(1)}, "appearance2": {"out.lora_A.weight": torch.ones(3)},
        "motion": {"out.lora_A.weight": torch.zeros(1), "motion": torch.ones(2)},
    }  # fmt: skip
    joined = lora.join(loras)
    assert list(joined) == [
        "appearance:out.lora_A.weight", "appearance2:out.lora_A.weight", "motion:out.lora_A.weight", "motion:motion"
    ]  # fmt: skip
    lora.save(joined, tmp_path / "both.safetensors")
    again = lora.split(lora.load(tmp_path / "both.safetensors"))
    assert again.keys() == loras.keys()
    for slot, one in loras.items():
        assert one.keys() == again[slot].keys()
        assert all(torch.equal(one[key], again[slot][key]) for key in one)


# -- real architectures


@pytest.fixture(scope="module")
def backbone(any_base: Path) -> Backbone:
    return open_base(str(any_base), torch.device("cpu"))


@pytest.fixture
def bare(backbone: Backbone) -> Iterator[Backbone]:
    yield backbone
    lora.remove(backbone.network, "a", "b")


def predict(backbone: Backbone) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, *backbone.latent_shape(5, 64, 64), generator=generator)
    with torch.no_grad():
        return backbone.predict(noisy, torch.tensor([500]), backbone.embed(["A koala."]))


def add(backbone: Backbone, adapter: str, kind: str = "appearance", seed: int = 0, fill: float = 0.0) -> None:
    layers = getattr(backbone.defaults, kind).layers
    for parameter in lora.inject(backbone.network, adapter, backbone.targets(kind, layers), rank=4, seed=seed):
        parameter.data += fill * torch.ones_like(parameter)


def test_a_new_adapter_changes_nothing(bare: Backbone) -> None:
    before = predict(bare)
    add(bare, "a")
    with lora.active(bare.network, a=1.0):
        assert torch.equal(predict(bare), before)


def test_a_trained_adapter_changes_the_output(bare: Backbone) -> None:
    before = predict(bare)
    add(bare, "a", fill=0.05)
    with lora.active(bare.network, a=1.0):
        assert not torch.allclose(predict(bare), before)


def test_at_scale_zero_or_inactive_an_adapter_does_nothing(bare: Backbone) -> None:
    before = predict(bare)
    add(bare, "a", fill=0.05)
    with lora.active(bare.network, a=0.0):
        assert torch.equal(predict(bare), before)
    with lora.active(bare.network):
        assert torch.equal(predict(bare), before)


def test_an_adapter_equals_its_merged_weights(bare: Backbone) -> None:
    add(bare, "a", fill=0.05)
    with lora.active(bare.network, a=0.7):
        expected = predict(bare)
    weights = lora.state(bare.network, "a")
    lora.remove(bare.network, "a")
    names = {key.rsplit(".lora_", 1)[0] for key in weights}
    saved = {name: bare.network.get_submodule(name).weight.data.clone() for name in names}
    for name in names:
        product = weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
        bare.network.get_submodule(name).weight.data += 0.7 * product
    merged = predict(bare)
    for name, weight in saved.items():
        bare.network.get_submodule(name).weight.data = weight
    assert torch.allclose(merged, expected, atol=1e-4)


def test_merged_adapters_act_as_beside_and_the_weights_come_back_to_the_bit(bare: Backbone) -> None:
    add(bare, "a", fill=0.05)
    add(bare, "b", "motion", fill=0.05)
    weights = {name: weight.clone() for name, weight in bare.network.state_dict().items()}
    alone = predict(bare)
    with lora.active(bare.network, b=2.0):
        other = predict(bare)
        with lora.active(bare.network, a=0.7, b=0.5):
            beside = predict(bare)
        with suppress(KeyboardInterrupt), lora.merged(bare.network, a=0.7, b=0.5):
            assert (predict(bare) - beside).norm() < 0.001 * (beside - alone).norm()
            raise KeyboardInterrupt
        assert torch.equal(predict(bare), other)
    assert all(torch.equal(weight, weights[name]) for name, weight in bare.network.state_dict().items())


def test_memory_that_runs_out_while_merging_leaves_the_weights(bare: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    add(bare, "a", fill=0.05)
    weights = {name: weight.clone() for name, weight in bare.network.state_dict().items()}
    rounded, calls = lora._rounded, 0

    def failing(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError
        return rounded(*arguments, **options)

    monkeypatch.setattr(lora, "_rounded", failing)
    with pytest.raises(torch.OutOfMemoryError), lora.merged(bare.network, a=1.0):
        raise AssertionError
    assert all(torch.equal(weight, weights[name]) for name, weight in bare.network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_small_beside_a_weight_is_not_lost_by_merging(dtype: torch.dtype) -> None:
    base = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).to(dtype).float()
    base = base[base.abs() >= torch.finfo(dtype).smallest_normal]
    added = 0.02 * torch.finfo(dtype).eps * base.abs()
    narrow = lora._rounded(base + added, dtype, seed=0)
    assert torch.equal(narrow, narrow.to(dtype).float())
    assert torch.equal((base + added).to(dtype).float(), base), "to the nearest, all of it would be lost"
    assert float((narrow - base).sum()) == pytest.approx(float(added.sum()), rel=0.1)
    assert torch.equal(narrow, lora._rounded(base + added, dtype, seed=0))


def test_isolating_one_adapter_restores_the_other(bare: Backbone) -> None:
    add(bare, "a", fill=0.05)
    add(bare, "b", "motion", fill=0.05)
    with lora.active(bare.network, a=0.5, b=2.0):
        both = predict(bare)
        with lora.active(bare.network, a=1.0):
            alone = predict(bare)
        assert torch.equal(predict(bare), both)
    assert not torch.equal(alone, both)


def test_removing_the_last_adapter_gives_the_plain_network_back(bare: Backbone) -> None:
    before, modules = predict(bare), [name for name, _ in bare.network.named_modules()]
    add(bare, "a", fill=0.05)
    add(bare, "b", "motion", fill=0.05)
    lora.remove(bare.network, "a", "b")
    assert [name for name, _ in bare.network.named_modules()] == modules
    assert torch.equal(predict(bare), before)


def test_save_and_load_are_bit_equal(bare: Backbone, tmp_path: Path) -> None:
    add(bare, "a", fill=0.05)
    weights = lora.state(bare.network, "a")
    lora.save(weights, tmp_path / "lora.safetensors", kind="appearance")
    loaded = lora.load(tmp_path / "lora.safetensors")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def test_a_restored_adapter_acts_as_the_saved_one(bare: Backbone) -> None:
    add(bare, "a", fill=0.05)
    with lora.active(bare.network, a=1.0):
        expected = predict(bare)
    weights = lora.state(bare.network, "a")
    lora.remove(bare.network, "a")
    lora.restore(bare.network, "b", weights)
    with lora.active(bare.network, b=1.0):
        assert torch.equal(predict(bare), expected)


def test_the_same_seed_gives_the_same_new_adapter(bare: Backbone) -> None:
    add(bare, "a", seed=3)
    add(bare, "b", seed=3)
    first, second = lora.state(bare.network, "a"), lora.state(bare.network, "b")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_everything_is_frozen_but_what_is_being_trained(bare: Backbone) -> None:
    add(bare, "a")
    parameters = lora.parameters(bare.network, "a")
    assert not any(parameter.requires_grad for parameter in bare.network.parameters())
    with lora.trainable(parameters):
        free = [parameter for parameter in bare.network.parameters() if parameter.requires_grad]
        assert len(free) == len(parameters)
    assert not any(parameter.requires_grad for parameter in bare.network.parameters())


@pytest.mark.parametrize("kind", ["appearance", "motion"])
def test_a_lora_wraps_attention_and_feed_forward_of_its_kind_only(bare: Backbone, kind: str) -> None:
    inside = {
        "AnimateDiff": {"appearance": ".attentions.", "motion": ".motion_modules."},
        "UNet3D": {"appearance": ".attentions.", "motion": ".temp_attentions."},
    }.get(type(bare).__name__, {kind: ""})[kind]
    names = bare.targets(kind, getattr(bare.defaults, kind).layers)
    assert all(inside in name and re.search(r"\.(attn[12]|ffn?)\.", name) for name in names)
    assert not any("proj_in" in name or "proj_out" in name for name in names)


def test_a_layer_with_nothing_to_learn_in_is_refused(bare: Backbone) -> None:
    nothing = {"AnimateDiff": (("appearance", 3), ("motion", 4)), "UNet3D": (("appearance", 3), ("motion", 5))}
    for kind, layer in (*nothing.get(type(bare).__name__, ()), ("appearance", 9), ("motion", -1)):
        with pytest.raises(UsageError, match=f"Layer {layer} "):
            bare.targets(kind, (layer,))


def test_weights_of_another_model_are_refused(bare: Backbone) -> None:
    with pytest.raises(DamagedError, match="another model"):
        lora.restore(bare.network, "a", {"nowhere.lora_A.weight": torch.zeros(4, 32)})


def test_weights_of_another_shape_or_not_finite_are_refused(bare: Backbone) -> None:
    add(bare, "a")
    weights = lora.state(bare.network, "a")
    lora.remove(bare.network, "a")
    key = next(iter(weights))
    for bad in (weights[key][:, :-1].contiguous(), torch.full_like(weights[key], float("nan"))):
        with pytest.raises(DamagedError, match="does not fit"):
            lora.restore(bare.network, "a", {**weights, key: bad})
        lora.remove(bare.network, "a")


def test_a_file_that_is_no_lora_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"not a safetensors file")
    for broken in (path, tmp_path / "nowhere.safetensors"):
        with pytest.raises(
            DamagedError, match=rf"^{broken.name} cannot be read as LoRA weights \(.+\); learn or import"
        ):
            lora.load(broken)


def test_what_is_computed_while_an_adapter_is_frozen_teaches_it_nothing(bare: Backbone) -> None:
    add(bare, "a", fill=0.01)
    add(bare, "b", "motion", fill=0.01)
    both = lora.parameters(bare.network, "a"), lora.parameters(bare.network, "b")
    noisy, embeds = torch.randn(1, *bare.latent_shape(5, 64, 64)), bare.embed(["A koala."])
    with lora.trainable([*both[0], *both[1]]), lora.active(bare.network, a=1.0, b=1.0):
        with lora.trainable(both[0], False):
            prediction = bare.predict(noisy, torch.tensor([500]), embeds)
        assert all(parameter.requires_grad for parameter in both[0])
        prediction.square().mean().backward()
    assert all(parameter.grad is None for parameter in both[0])
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in both[1])
