"""Test-time training: two frozen teachers, one student, and nothing left behind."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from customttt import lora, ttt
from customttt.backbones import Backbone, open_base
from customttt.config import SampleConfig, TTTConfig

CONFIG = TTTConfig(steps=2, learning_rate=1e-3, reference_steps=2, reference_guidance=2.0)
SAMPLE = SampleConfig(num_frames=4, size=64, num_inference_steps=10)


@pytest.fixture(scope="module")
def backbone(tiny_random_base: Path) -> Backbone:
    return open_base(str(tiny_random_base), torch.device("cpu"))


@pytest.fixture(scope="module")
def pair(backbone: Backbone) -> tuple[lora.Weights, lora.Weights]:
    def fresh(kind: str, layers: tuple[int, ...]) -> lora.Weights:
        lora.inject(backbone.network, kind, backbone.targets(kind, layers), rank=2)
        weights = lora.state(backbone.network, kind)
        lora.remove(backbone.network, kind)
        generator = torch.Generator().manual_seed(1)
        return {key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in weights.items()}

    return fresh("appearance", (2, 6)), fresh("motion", (2, 5))


def prompts(backbone: Backbone) -> ttt.Prompts:
    return ttt.Prompts(
        doings=backbone.embed(["A koala is standing.", "A koala is running."]),
        objects=backbone.embed(["A dog is swimming."]),
        student=backbone.embed(["A koala is swimming."]),
        empty=backbone.embed([""]),
    )


Pair = tuple[lora.Weights, lora.Weights]


def adapt(
    backbone: Backbone, pair: Pair, config: TTTConfig = CONFIG, sample: SampleConfig = SAMPLE
) -> tuple[lora.Weights, lora.Weights, list[float]]:
    return ttt.adapt(backbone, *pair, prompts(backbone), config, sample, Accelerator(cpu=True))


def same(first: lora.Weights, second: lora.Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_both_loras_are_trained_and_the_originals_stay(backbone: Backbone, pair: Pair) -> None:
    before = [{key: value.clone() for key, value in weights.items()} for weights in pair]
    appearance, motion, history = adapt(backbone, pair)
    assert appearance.keys() == pair[0].keys()
    assert motion.keys() == pair[1].keys()
    assert not same(appearance, pair[0])
    assert not same(motion, pair[1])
    assert all(same(now, then) for now, then in zip(pair, before, strict=True))
    assert len(history) == CONFIG.steps


def test_zero_steps_change_nothing(backbone: Backbone, pair: Pair) -> None:
    appearance, motion, _ = adapt(backbone, pair, CONFIG.but(steps=0))
    assert same(appearance, pair[0])
    assert same(motion, pair[1])


def test_the_base_is_as_it_was(backbone: Backbone, pair: Pair) -> None:
    modules = [name for name, _ in backbone.network.named_modules()]
    before = {name: weight.clone() for name, weight in backbone.network.state_dict().items()}
    adapt(backbone, pair)
    assert [name for name, _ in backbone.network.named_modules()] == modules
    assert all(torch.equal(weight, before[name]) for name, weight in backbone.network.state_dict().items())


def test_it_is_repeatable_bit_for_bit(backbone: Backbone, pair: Pair) -> None:
    assert same(adapt(backbone, pair)[0], adapt(backbone, pair)[0])


def test_the_teachers_stay_frozen_while_the_student_learns(
    backbone: Backbone, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they show after a step is the same, however far the student has gone."""
    shown: list[torch.Tensor] = []
    show = ttt.Teacher.show

    def watched(teacher: ttt.Teacher, step: int) -> torch.Tensor:
        shown.append(show(teacher, step))
        return shown[-1]

    monkeypatch.setattr(ttt.Teacher, "show", watched)
    far = adapt(backbone, pair, CONFIG.but(steps=2, learning_rate=1.0))
    near = adapt(backbone, pair, CONFIG.but(steps=2, learning_rate=1e-6))
    assert not same(far[0], near[0])
    assert all(torch.equal(one, other) for one, other in zip(shown[:4], shown[4:], strict=True))
    assert not torch.equal(shown[0], shown[2])
    assert {one.shape for one in shown} == {(1, *backbone.latent_shape(4, 64))}
    assert not any(one.requires_grad for one in shown)


@pytest.mark.parametrize(
    "change",
    [
        {"references": 1}, {"debias": 1.0},
        {"reference_guidance": 1.0}, {"renoise_motion": (0.5, 1.0)}, {"plain": 0.0, "debias": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_open_choice_runs_and_matters(backbone: Backbone, pair: Pair, change: dict[str, object]) -> None:
    usual, changed = adapt(backbone, pair), adapt(backbone, pair, CONFIG.but(**change))
    assert all(torch.isfinite(torch.tensor(changed[2])))
    assert not (same(usual[0], changed[0]) and same(usual[1], changed[1]))


def test_the_motion_may_learn_at_a_rate_of_its_own(backbone: Backbone, pair: Pair) -> None:
    usual, faster = (
        adapt(backbone, pair, CONFIG.but(steps=1)),
        adapt(backbone, pair, CONFIG.but(steps=1, motion_rate=3.0)),
    )
    assert same(usual[0], faster[0])
    for name, before in pair[1].items():
        assert torch.allclose(faster[1][name] - before, 3 * (usual[1][name] - before), atol=1e-6)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [((0.6, 1.0), {"motion_student"}), ((0.3, 0.6), {"appearance_student", "motion_student"}),
     ((0.0, 0.3), {"appearance_student"})],
    ids=["early", "both", "late"],
)  # fmt: skip
def test_a_lora_rests_in_the_student_where_it_rests_in_sampling(
    backbone: Backbone, pair: Pair, monkeypatch: pytest.MonkeyPatch, shown: tuple[float, float], expected: set[str]
) -> None:
    acted: list[set[str]] = []
    real = lora.active

    def watched(unet: torch.nn.Module, **scales: float) -> AbstractContextManager[None]:
        acted.append({name for name in scales if name.endswith("student")})
        return real(unet, **scales)

    monkeypatch.setattr(lora, "active", watched)
    rests = SAMPLE.but(appearance_from=0.4, motion_until=0.7)
    adapt(
        backbone,
        pair,
        CONFIG.but(steps=1, renoise_appearance=(0.3, 0.6), renoise_motion=shown, student_rests=True),
        rests,
    )
    assert [one for one in acted if one] == [{"appearance_student", "motion_student"}, expected]
