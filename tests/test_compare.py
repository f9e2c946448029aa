"""Comparing methods: each is the recipe it says, cells are not made twice, and everything is laid out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from material import assert_one_sentence, run, snapshot

from customttt import compose, lora, media
from customttt.backbones import open_base
from customttt.compare import METHODS
from customttt.config import SampleConfig, TTTConfig
from customttt.errors import UsageError
from customttt.library import Library
from customttt.recipe import Ingredient, VideoRecipe

RECIPE = VideoRecipe(
    Ingredient("koala", "koala", "a" * 64), Ingredient("swimming", "swimming", "b" * 64), "on Mars", "tiny", "f",
    TTTConfig(), SampleConfig(),
)  # fmt: skip


def test_every_method_is_the_recipe_it_says() -> None:
    made = {name: method.recipe(RECIPE) for name, method in METHODS.items()}
    scales = {name: (one.appearance.scale, one.motion.scale) for name, one in made.items()}
    assert scales == {
        "base": (0, 0), "appearance": (1, 0), "motion": (0, 1), "direct": (1, 1), "switch": (1, 1), "customttt": (1, 1),
    }  # fmt: skip
    assert [name for name, one in made.items() if one.ttt.steps] == ["customttt"]
    assert [name for name, one in made.items() if one.sample.switch] == ["switch"]
    assert {one.target_prompt for one in made.values()} == {"A koala is swimming on Mars."}


def test_switching_lets_one_lora_act_at_a_time(learned: Path, tiny_random_base: Path) -> None:
    backbone, accelerator = open_base(str(tiny_random_base), torch.device("cpu")), Accelerator(cpu=True)
    library = Library(learned)
    pair = lora.load(library.weights("koala")), lora.load(library.weights("swimming"))
    grown = tuple({key: 20 * value for key, value in one.items()} for one in pair)  # so that each can be seen
    sample = backbone.defaults.sample.but(num_inference_steps=4)
    recipe = replace(METHODS["direct"].recipe(RECIPE), sample=sample)

    def frames(recipe: VideoRecipe) -> media.Frames:
        return compose.render(backbone, (grown[0], grown[1]), recipe, accelerator)

    early = frames(replace(recipe, sample=sample.but(switch=0.1)))  # less than a step of motion
    assert np.array_equal(early, frames(recipe)), "no step is cut off"
    halves = frames(replace(recipe, sample=sample.but(switch=0.5)))
    assert not np.array_equal(halves, frames(recipe))
    assert not np.array_equal(halves, frames(METHODS["appearance"].recipe(recipe)))
    assert not np.array_equal(halves, frames(METHODS["motion"].recipe(recipe)))


def test_a_switch_outside_the_video_is_refused() -> None:
    with pytest.raises(UsageError, match=r"switch is 1"):
        SampleConfig(switch=1.0)


@pytest.mark.usefixtures("learned")
def test_a_comparison_is_laid_out_and_not_made_twice(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("compare", "koala", "swimming", "on Mars", "--seeds", 2, "--methods", "base,direct,switch", "-o", out)
    done = run(*command, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"prompt": "A koala is swimming on Mars.", "scores": {}}
    cells = {f"{name}-seed{seed}.mp4" for name in ("base", "direct", "switch") for seed in (0, 1)}
    assert {path.name for path in out.iterdir()} == {*cells, "grid.png", "side-by-side.mp4", "compare.json"}
    before = {name: (out / name).stat().st_mtime_ns for name in cells}
    (out / "direct-seed1.mp4").unlink()
    again = run(*command)
    assert again.exit_code == 0, again.output
    after = {name: (out / name).stat().st_mtime_ns for name in cells}
    assert [name for name in sorted(cells) if after[name] != before[name]] == ["direct-seed1.mp4"]


@pytest.mark.usefixtures("learned")
def test_bad_comparisons_are_refused(tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    out = ("-o", tmp_path / "out")
    assert_one_sentence(run("compare", "koala", "swimming", "--methods", "magic", *out), 2, "no method 'magic'")
    assert_one_sentence(run("compare", "koala", "nobody", *out), 3, "no concept 'nobody'")
    assert_one_sentence(run("compare", "swimming", "koala", *out), 2, "is needed here")
    assert snapshot(tmp_path) == before
