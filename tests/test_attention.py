"""Attention in few operations gives what diffusers' gives."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from customttt import lora, machine
from customttt.backbones import Backbone, open_base, sketch
from customttt.backbones.attention import Attend, attend


@pytest.fixture(params=["tiny_random_base", "tiny_random_3d_base"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    base: Path = request.getfixturevalue(request.param)
    return open_base(str(base), torch.device("cpu"))


def learn(backbone: Backbone, kind: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A prediction, and the gradients of a LoRA."""
    targets = backbone.targets(kind, getattr(backbone.defaults, kind).layers)
    parameters = lora.inject(backbone.network, "a", targets, rank=2)
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, *backbone.latent_shape(4, 64, 64), generator=generator)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    try:
        with lora.trainable(parameters), lora.active(backbone.network, a=1.0):
            predicted = backbone.predict(noisy, torch.tensor([500, 20]), backbone.embed(["A koala.", ""]))
            return predicted.detach(), list(torch.autograd.grad(predicted.square().mean(), parameters))
    finally:
        lora.remove(backbone.network, "a")


@pytest.mark.parametrize("kind", ["appearance", "motion"])
def test_it_gives_the_predictions_and_gradients_of_diffusers_own(backbone: Backbone, kind: str) -> None:
    network: Any = backbone.network.double()  # random networks magnify rounding
    network.set_attn_processor(AttnProcessor2_0())
    expected, gradients = learn(backbone, kind)
    weights = {name: weight.clone() for name, weight in network.state_dict().items()}
    attend(network)
    assert all(torch.equal(weight, weights[name]) for name, weight in network.state_dict().items())
    found, others = learn(backbone, kind)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert any(one.any() for one in gradients)
    for one, other in zip(others, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


def processors(network: torch.nn.Module) -> list[tuple[Attention, Attend]]:
    found = [(module, module.processor) for module in network.modules() if isinstance(module, Attention)]
    return [(module, processor) for module, processor in found if isinstance(processor, Attend)]


def test_every_frozen_self_attention_is_one_product_without_more_memory(backbone: Backbone) -> None:
    attend(backbone.network)
    all_of_them = processors(backbone.network)
    assert len(all_of_them) == sum(isinstance(module, Attention) for module in backbone.network.modules())
    itself = [(module, processor) for module, processor in all_of_them if not module.is_cross_attention]
    assert itself
    for module, processor in itself:
        assert processor.together is not None
        storage = processor.together.untyped_storage().data_ptr()
        assert {one.weight.untyped_storage().data_ptr() for one in (module.to_q, module.to_k, module.to_v)} == {storage}
        assert processor.joined(module) is not None


def test_weights_that_moved_away_are_read_where_they_are(backbone: Backbone) -> None:
    network: Any = backbone.network
    attend(network)
    module, processor = next(one for one in processors(network) if one[1].together is not None)
    states = torch.randn(1, 3, module.to_q.in_features)
    before = module(states)
    module.to_v.weight.data *= 2  # in place: both see it
    assert processor.joined(module) is not None
    doubled = module(states)
    assert not torch.allclose(doubled, before)
    for one in (module.to_q, module.to_k, module.to_v):
        one.weight.data = one.weight.data.clone()
    assert processor.joined(module) is None
    torch.testing.assert_close(module(states), doubled)


def test_weights_that_learn_are_left_as_they_are(backbone: Backbone) -> None:
    network = copy.deepcopy(backbone.network).requires_grad_(True)
    attend(network)
    assert all(processor.together is None for _, processor in processors(network))


def test_a_gpu_gets_it_and_a_cpu_that_computes_in_full(tiny_random_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    cpu = torch.device("cpu")
    for base in (sketch(str(tiny_random_base), torch.device("cuda")), open_base(str(tiny_random_base), cpu)):
        found = processors(base.network)
        assert all((processor.joined(one) is None) == one.is_cross_attention for one, processor in found)
        assert any(processor.together is not None for _, processor in found)
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: True)
    assert not processors(open_base(str(tiny_random_base), cpu).network)
