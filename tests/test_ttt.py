"""Test-time training: two frozen teachers, one student, and nothing left behind.

Most of it is seen on the toy base of `test_new_family`, which notes every prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from test_new_family import CPU, OWN, Toy
from torch import Tensor

from customttt import lora, losses, ttt
from customttt.backbones import Backbone, open_base
from customttt.config import SampleConfig, TTTConfig
from customttt.errors import DivergedError
from customttt.progress import Progress

CONFIG = TTTConfig(steps=2, learning_rate=1e-3, reference_steps=2, reference_guidance=2.0)
SAMPLE = SampleConfig(num_frames=13, size=24, num_inference_steps=10)
DOINGS, OBJECTS, JOINT, EMPTY = (1, 2), (3, 4, 5), 6, 0
"""Prompts, by their lengths."""
STUDENT = {"appearance_student": 1.0, "motion_student": 1.0}


@dataclass
class Prediction:
    """What a network was asked, and in which state."""

    acting: dict[str, float]
    framewise: bool
    prompts: list[int]
    timestep: float
    learning: bool


@dataclass
class Watched(Toy):
    """The toy, which notes its predictions; with `shown` and `error`, it is wrong by `error` about what was shown."""

    diary: list[Prediction] = field(default_factory=list)
    shown: Tensor | None = None
    error: float = 0.0

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        layer: Any = self.network[0]
        acting = {name: layer.scaling[name] for name in layer.active_adapters}
        prompts = [round(50 * float(row[0, 0])) for row in prompt_embeds]
        self.diary.append(Prediction(acting, self.alone, prompts, float(timesteps[0]), torch.is_grad_enabled()))
        prediction = super().predict(noisy_latents, timesteps, prompt_embeds)
        if self.shown is None:
            return prediction
        return (noisy_latents - self.shown) / timesteps[0] + self.error + 0 * prediction


@pytest.fixture
def toy() -> Watched:
    return Watched.load(Path(), "toy", "f00d", OWN, CPU)


def pair_for(backbone: Backbone) -> lora.Loras:
    """LoRAs that can be seen."""
    generator, made = torch.Generator().manual_seed(1), {}
    for kind in ("appearance", "motion"):
        names = backbone.targets(kind, backbone.layers(kind)[:2])
        lora.inject(backbone.network, "new", names, rank=2)
        weights = lora.state(backbone.network, "new")
        lora.remove(backbone.network, "new")
        made[kind] = {key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in weights.items()}
    return made


def adapt(
    backbone: Backbone, config: TTTConfig = CONFIG, sample: SampleConfig = SAMPLE, **options: Any
) -> tuple[lora.Weights, lora.Weights, list[float]]:
    """Returns (appearance, motion, losses)."""

    def embed(*lengths: int) -> Tensor:
        return backbone.embed(["a" * length for length in lengths])

    teachers = {"appearance": embed(*DOINGS), "motion": embed(*OBJECTS)}
    prompts = ttt.Prompts(teachers, student=embed(JOINT), empty=embed(EMPTY))
    loras, history = ttt.adapt(backbone, pair_for(backbone), prompts, config, sample, Accelerator(cpu=True), **options)
    return loras["appearance"], loras["motion"], history


def same(first: lora.Weights, second: lora.Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All that teachers show."""
    seen: list[Tensor] = []
    show = ttt.Teacher.show

    def watched(teacher: ttt.Teacher, step: int) -> Tensor:
        seen.append(show(teacher, step))
        return seen[-1]

    monkeypatch.setattr(ttt.Teacher, "show", watched)
    return seen


def test_a_step_is_that_of_the_paper(toy: Watched) -> None:
    """Each teacher shows what it knows with its own LoRA, and the student reads the joint prompt with both."""
    adapt(toy, CONFIG.but(steps=4))
    expected = []
    for step in range(4):
        for kind, framewise, read in (("appearance", True, DOINGS), ("motion", False, OBJECTS)):
            prompts = [read[step % len(read)], EMPTY]
            expected += 2 * [({f"{kind}_teacher": 1.0}, framewise, prompts, False)]
            expected += [(STUDENT, framewise, [JOINT], True)]
    assert [(one.acting, one.framewise, one.prompts, one.learning) for one in toy.diary] == expected


def test_references_are_made_in_the_steps_of_a_sampler(toy: Watched) -> None:
    adapt(toy, CONFIG.but(reference_steps=5))
    path = toy.schedule.path(5)[:-1]
    for number, kind in enumerate(("appearance_teacher", "motion_teacher") * CONFIG.steps):
        walked = [one.timestep for one in toy.diary if kind in one.acting]
        assert walked == pytest.approx(path * CONFIG.steps), number


def test_a_teacher_s_lora_is_weaker_in_the_unconditional_half_where_it_is_in_sampling(toy: Watched) -> None:
    adapt(toy, CONFIG.but(steps=1), SAMPLE.but(unconditional_scale=0.5))
    taught = [one for one in toy.diary if "motion_teacher" in one.acting]
    assert [(one.acting["motion_teacher"], one.prompts) for one in taught] == 2 * [(1.0, [3]), (0.5, [EMPTY])]


@pytest.mark.parametrize(
    ("plain", "debias", "expected"), [(1.0, 0.0, 2.0), (0.0, 1.0, 1 + (2**0.5 - 1) ** 2), (3.0, 0.0, 4.0)]
)
def test_the_target_is_the_noise_added_to_what_the_teacher_showed(
    toy: Watched, monkeypatch: pytest.MonkeyPatch, plain: float, debias: float, expected: float
) -> None:
    """A student that is right loses nothing; one that is wrong by 1 loses 1 of the appearance, and of the motion what
    the weights say."""
    toy.shown = torch.randn(1, *toy.latent_shape(13, 24, 24))
    monkeypatch.setattr(ttt.Teacher, "show", lambda teacher, step: toy.shown)  # noqa: ARG005
    config = CONFIG.but(plain=plain, debias=debias, renoise_appearance=(0.2, 1.0), renoise_motion=(0.2, 1.0))
    assert adapt(toy, config)[2] == pytest.approx([0, 0], abs=1e-6)
    toy.error = 1.0
    assert adapt(toy, config)[2] == pytest.approx([expected, expected], rel=1e-4)


def test_every_frame_may_be_the_anchor_of_the_motion(toy: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    anchors, real = [], losses.motion

    def watched(prediction: Tensor, target: Tensor, anchor: int, *weights: float) -> Tensor:
        anchors.append(anchor)
        return real(prediction, target, anchor, *weights)

    monkeypatch.setattr(losses, "motion", watched)
    adapt(toy, CONFIG.but(steps=30, reference_steps=1, references=1))
    assert set(anchors) == {0, 1, 2, 3}


def test_zero_steps_change_nothing(toy: Watched) -> None:
    appearance, motion, history = adapt(toy, CONFIG.but(steps=0))
    assert (same(appearance, pair_for(toy)["appearance"]), same(motion, pair_for(toy)["motion"]), history) == (
        True,
        True,
        [],
    )


def test_the_base_is_as_it_was_even_after_an_interruption(toy: Watched) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    before = {name: weight.clone() for name, weight in toy.network.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        adapt(toy, report=interrupt)
    assert list(toy.network.state_dict()) == list(before)
    assert all(torch.equal(weight, before[name]) for name, weight in toy.network.state_dict().items())


def test_the_seed_makes_all_of_it(toy: Watched) -> None:
    first, again, other = adapt(toy), adapt(toy, seed=0), adapt(toy, seed=1)
    assert same(first[0], again[0])
    assert same(first[1], again[1])
    assert first[2] == again[2]
    assert not same(first[0], other[0])
    drawing = CONFIG.but(steps=8, references=4, reference_steps=1, debias=1.0, student_rests=True)
    rests = SAMPLE.but(appearance_from=0.4, motion_until=0.7)
    assert adapt(toy, drawing, rests)[2] == adapt(toy, drawing, rests)[2]


def test_a_step_that_ran_out_of_memory_starts_again_at_the_same_noise(
    toy: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, predict, failures = adapt(toy), Watched.predict, []

    def short(toy: Watched, noisy_latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not failures:
            failures.append(1)
            raise torch.OutOfMemoryError
        return predict(toy, noisy_latents, timesteps, prompt_embeds)

    monkeypatch.setattr(Watched, "predict", short)
    assert adapt(toy)[2] == pytest.approx(expected[2])
    assert failures


def test_every_step_is_told(toy: Watched) -> None:
    told: list[Progress] = []
    history = adapt(toy, report=told.append)[2]
    assert told == [Progress("test-time training", step + 1, 2, loss) for step, loss in enumerate(history)]


def test_the_teachers_stay_frozen_while_the_student_learns(toy: Watched, shown: list[Tensor]) -> None:
    """What they show after steps is the same, however far the student has gone."""
    far = adapt(toy, CONFIG.but(steps=4, learning_rate=1.0))
    near = adapt(toy, CONFIG.but(steps=4, learning_rate=1e-6))
    assert not same(far[0], near[0])
    assert all(torch.equal(one, other) for one, other in zip(shown[:8], shown[8:], strict=True))
    assert not torch.equal(shown[0], shown[2])
    assert {one.shape for one in shown} == {(1, *toy.latent_shape(13, 24, 24))}
    assert not any(one.requires_grad for one in shown)


def test_references_of_a_pool_are_made_once_and_drawn_then(toy: Watched, shown: list[Tensor]) -> None:
    adapt(toy, CONFIG.but(steps=20, references=2))
    assert sum("appearance_teacher" in one.acting for one in toy.diary) == 2 * CONFIG.reference_steps
    for first, second, *drawn in (shown[::2], shown[1::2]):
        assert not torch.equal(first, second)
        assert {torch.equal(one, first) + 2 * torch.equal(one, second) for one in drawn} == {1, 2}


def test_a_step_that_starts_again_makes_its_reference_anew(toy: Watched) -> None:
    lora.restore(toy.network, "appearance_teacher", pair_for(toy)["appearance"])
    prompts, empty = toy.embed(["a", "aa"]), toy.embed([""])
    generator = torch.Generator().manual_seed(0)
    teacher = ttt.Teacher(toy, "appearance", prompts, empty, CONFIG.but(references=2), SAMPLE, generator)
    early, first, second = teacher.show(0), teacher.show(0), teacher.show(1)
    assert not torch.equal(early, first)
    assert all(torch.equal(one, other) for one, other in zip(teacher.pool, (first, second), strict=True))


@pytest.mark.parametrize(
    "change",
    [{"references": 1}, {"debias": 1.0}, {"reference_guidance": 1.0}, {"renoise_motion": (0.5, 1.0)},
     {"renoise_appearance": (0.5, 1.0)}, {"plain": 0.0, "debias": 1.0}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_open_choice_matters(toy: Watched, change: dict[str, object]) -> None:
    usual, changed = adapt(toy), adapt(toy, CONFIG.but(**change))
    assert all(torch.isfinite(torch.tensor(changed[2])))
    assert not (same(usual[0], changed[0]) and same(usual[1], changed[1]))


def test_a_loss_that_is_not_a_number_says_what_helps_there(toy: Watched) -> None:
    toy.shown, toy.error = torch.zeros(()), float("nan")
    with pytest.raises(DivergedError, match=r"at step 1 of test-time training .* use fewer --ttt-steps, or --no-ttt"):
        adapt(toy)


def test_the_motion_may_learn_at_a_rate_of_its_own(toy: Watched) -> None:
    before, slow, fast = (
        pair_for(toy),
        adapt(toy, CONFIG.but(steps=1)),
        adapt(toy, CONFIG.but(steps=1, motion_rate=3.0)),
    )
    assert same(slow[0], fast[0])
    for name, start in before["motion"].items():
        assert torch.allclose(fast[1][name] - start, 3 * (slow[1][name] - start), atol=1e-6)


def test_a_reference_is_noised_again_between_the_given_shares(toy: Watched) -> None:
    adapt(toy, CONFIG.but(steps=40, references=1, renoise_appearance=(0.0, 0.3), renoise_motion=(0.6, 0.9)))
    drawn = [one.timestep for one in toy.diary if one.learning]
    for steps, low, high in ((drawn[::2], 0.0, 0.3), (drawn[1::2], 0.6, 0.9)):
        assert low <= min(steps) < low + 0.05
        assert high - 0.05 < max(steps) <= high


def test_a_lora_rests_in_the_student_where_it_rests_in_sampling(toy: Watched) -> None:
    """The motion acts at early steps, which are noisy, and the appearance at late ones; such a part is drawn by its
    length."""
    rests = SAMPLE.but(appearance_from=0.4, motion_until=0.7)
    config = CONFIG.but(steps=60, references=1, renoise_appearance=(0.3, 0.6), student_rests=True)
    adapt(toy, config, rests)
    learned = [(frozenset(one.acting), one.timestep) for one in toy.diary if one.learning]
    assert {acting for acting, _ in learned[::2]} == {frozenset(STUDENT)}
    parts = {("appearance_student",): (0.0, 0.3), tuple(STUDENT): (0.3, 0.6), ("motion_student",): (0.6, 1.0)}
    for acting, (low, high) in parts.items():
        drawn = [timestep for names, timestep in learned[1::2] if names == frozenset(acting)]
        assert low <= min(drawn) < low + 0.1
        assert high - 0.1 < max(drawn) <= high
        assert len(drawn) == pytest.approx(60 * (high - low), abs=9)


def test_it_begins_on_the_rung_of_the_ladder_that_it_is_given(toy: Watched) -> None:
    linear: Any = toy.network[1]
    forward, calls = linear.forward, []

    def counted(values: Tensor) -> Tensor:
        calls.append(1)
        return forward(values)

    linear.forward = counted
    usual, plain = adapt(toy), len(calls)
    saving = adapt(toy, rung=1)
    assert saving[2] == pytest.approx(usual[2])
    assert len(calls) == 2 * plain + 2 * CONFIG.steps, "computed again for every prediction of the student"


def test_both_loras_of_a_real_architecture_are_trained_and_nothing_else(any_base: Path) -> None:
    backbone = open_base(str(any_base), CPU)
    before = {name: weight.clone() for name, weight in backbone.network.state_dict().items()}
    originals = pair_for(backbone)
    appearance, motion, history = adapt(backbone, sample=SAMPLE.but(num_frames=5, size=64))
    for now, then in zip((appearance, motion), originals.values(), strict=True):
        assert now.keys() == then.keys()
        assert not any(torch.equal(now[key], then[key]) for key in now)
    assert len(history) == CONFIG.steps
    after = backbone.network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())


def test_with_several_subjects_each_ingredient_has_a_teacher_and_the_student_has_all_loras(toy: Watched) -> None:
    pair = pair_for(toy)
    loras = pair | {"appearance2": pair["appearance"], "motion2": pair["motion"]}
    lengths = dict(zip(loras, (1, 2, 3, 4), strict=True))
    teachers = {slot: toy.embed(["a" * length]) for slot, length in lengths.items()}
    prompts = ttt.Prompts(teachers, student=toy.embed(["a" * JOINT]), empty=toy.embed([""]))
    adapted, history = ttt.adapt(toy, loras, prompts, CONFIG, SAMPLE, Accelerator(cpu=True))
    students = {f"{slot}_student": 1.0 for slot in loras}
    expected = []
    for slot, length in [*lengths.items()] * CONFIG.steps:
        framewise = slot.startswith("appearance")
        expected += 2 * [({f"{slot}_teacher": 1.0}, framewise, [length, EMPTY], False)]
        expected += [(students, framewise, [JOINT], True)]
    assert [(one.acting, one.framewise, one.prompts, one.learning) for one in toy.diary] == expected
    assert list(adapted) == list(loras)
    assert not any(same(adapted[slot], loras[slot]) for slot in loras)
    assert len(history) == CONFIG.steps
