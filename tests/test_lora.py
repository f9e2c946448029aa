"""Adapters: what changes, what must not, and what comes back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from customttt import lora
from customttt.backbones import Backbone, open_base
from customttt.errors import DamagedError, UsageError


@pytest.fixture(scope="module")
def backbone(any_base: Path) -> Backbone:
    return open_base(str(any_base), torch.device("cpu"))


@pytest.fixture
def bare(backbone: Backbone) -> Iterator[Backbone]:
    yield backbone
    lora.remove(backbone.network, "a", "b")


def predict(backbone: Backbone) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, *backbone.latent_shape(5, 64), generator=generator)
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
    with pytest.raises(DamagedError, match="cannot be read"):
        lora.load(path)


def test_what_is_computed_while_an_adapter_is_frozen_teaches_it_nothing(bare: Backbone) -> None:
    add(bare, "a", fill=0.01)
    add(bare, "b", "motion", fill=0.01)
    both = lora.parameters(bare.network, "a"), lora.parameters(bare.network, "b")
    noisy, embeds = torch.randn(1, *bare.latent_shape(5, 64)), bare.embed(["A koala."])
    with lora.trainable([*both[0], *both[1]]), lora.active(bare.network, a=1.0, b=1.0):
        with lora.trainable(both[0], False):
            prediction = bare.predict(noisy, torch.tensor([500]), embeds)
        assert all(parameter.requires_grad for parameter in both[0])
        prediction.square().mean().backward()
    assert all(parameter.grad is None for parameter in both[0])
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in both[1])
