"""Settings refuse what cannot work, in one sentence, and survive JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from customttt.backbones.animatediff import PAPER
from customttt.config import Defaults, SampleConfig, TrainConfig, TTTConfig
from customttt.errors import UsageError


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "'steps' is 0"), ({"rank": 0}, "'rank' is 0"), ({"learning_rate": 0.0}, "'learning rate' is 0"),
        ({"learning_rate": float("nan")}, "'learning rate' is nan"), ({"layers": ()}, "'layers' is 0"),
    ],
    ids=str,
)  # fmt: skip
def test_learning_with_impossible_numbers_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TrainConfig(layers=(2, 6), learning_rate=1e-5).but(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"num_frames": 0}, {"guidance_scale": 0.5}, {"num_inference_steps": 0},
        {"unconditional_scale": 1.5}, {"unconditional_scale": -0.1}, {"unconditional_scale": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_sampling_with_impossible_numbers_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SampleConfig().but(**change)


def test_test_time_training_may_have_zero_steps_but_not_fewer() -> None:
    assert TTTConfig().but(steps=0).steps == 0
    with pytest.raises(UsageError, match="'ttt steps' is -1"):
        TTTConfig().but(steps=-1)


def test_a_setting_that_is_gone_is_read_at_the_value_it_had_and_refused_at_another() -> None:
    gone = {"reference_schedule": "full", "batch_size": 1, "target": "noise", "scene_in_student": False}
    assert TTTConfig.from_dict({"steps": 3, **gone}) == TTTConfig(steps=3)
    with pytest.raises(UsageError, match="reference schedule 'truncated', which this version no longer does"):
        TTTConfig.from_dict({"reference_schedule": "truncated"})


def test_settings_survive_json() -> None:
    assert Defaults.from_dict(json.loads(json.dumps(asdict(PAPER)))) == PAPER


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown settings: stepps"):
        TTTConfig.from_dict({"stepps": 3})


def test_the_defaults_are_the_paper_s() -> None:
    assert (PAPER.appearance.layers, PAPER.motion.layers) == ((2, 6), (2, 5))
    assert (PAPER.appearance.learning_rate, PAPER.motion.learning_rate) == (1e-5, 5e-5)
    assert (PAPER.ttt.steps, PAPER.ttt.learning_rate, PAPER.ttt.reference_steps) == (30, 1e-6, 5)
    assert (PAPER.sample.num_frames, PAPER.sample.size, PAPER.sample.num_inference_steps) == (16, 256, 25)


def test_renoising_goes_from_one_share_of_the_schedule_to_a_later_one() -> None:
    assert TTTConfig(renoise_motion=(0.2, 0.8)).renoise_motion == (0.2, 0.8)
    with pytest.raises(UsageError, match="renoise appearance"):
        TTTConfig(renoise_appearance=(0.8, 0.2))
    with pytest.raises(UsageError, match="'noise' is"):
        TrainConfig(layers=(2,), learning_rate=1e-5, noise=(0.5, 1.5))


def test_pictures_are_shifted_by_half_a_frame_at_most() -> None:
    with pytest.raises(UsageError, match="shift"):
        PAPER.appearance.but(shift=0.6)


def test_the_published_recipe_keeps_only_a_base_s_own_learning_rate_and_words() -> None:
    own = TTTConfig(learning_rate=2e-5, references=4, steps=10, doings=("sliding",))
    assert own.as_published(2.5) == TTTConfig(learning_rate=2e-5, doings=("sliding",), reference_guidance=2.5)


def test_settings_are_named_by_what_differs_from_the_defaults() -> None:
    config = TrainConfig(layers=(2,), learning_rate=1e-5, rank=32, shift=0.1)
    assert config.changed() == {"layers": (2,), "learning_rate": 1e-5, "shift": 0.1}
    assert TTTConfig().changed() == {}


@pytest.mark.parametrize(
    ("part", "field", "value", "words"),
    [
        (SampleConfig, "size", 10**9, "at most 4,096"),
        (SampleConfig, "num_frames", 10**9, "at most 4,096"),
        (SampleConfig, "fps", "8", "a whole number"),
        (SampleConfig, "fps", 8.5, "a whole number"),
        (SampleConfig, "guidance_scale", None, "a number"),
        (SampleConfig, "magnify", True, "a whole number"),
        (TTTConfig, "steps", 10**9, "at most 1,000,000"),
        (TTTConfig, "student_rests", 1, "true or false"),
        (TTTConfig, "doings", "standing", "a list, each text"),
        (TTTConfig, "doings", [["standing"]], "a list, each text"),
        (TTTConfig, "renoise_motion", [0.1, "x" * 10**6], "a list, each a number"),
    ],
)
def test_a_stranger_s_setting_is_refused_in_a_sentence(
    part: type[SampleConfig] | type[TTTConfig], field: str, value: object, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        part.from_dict({field: value})
    assert len(str(refused.value)) < 200


def test_whole_numbers_are_numbers() -> None:
    assert SampleConfig.from_dict({"guidance_scale": 9, "appearance_from": 0}).guidance_scale == 9
