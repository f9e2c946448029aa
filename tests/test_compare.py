"""Comparing methods: each is the recipe it says, cells are not made twice, and everything is laid out."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from material import assert_one_sentence, copy, make_clip, make_pictures, run, snapshot
from typer.testing import Result

from customttt import backbones, checkpoint, compose, lora, media, opening, sampling
from customttt.backbones import open_base
from customttt.config import SampleConfig, TTTConfig
from customttt.errors import UsageError
from customttt.library import Library
from customttt.measure import rivals
from customttt.measure.compare import METHODS, cells
from customttt.recipe import Ingredient, Subject, VideoRecipe
from customttt_cli import render

pytestmark = pytest.mark.usefixtures("nobody")

RECIPE = VideoRecipe(
    Ingredient("koala", "koala", "a" * 64), Ingredient("swimming", "swimming", "b" * 64), "on Mars", "tiny", "f",
    TTTConfig(), SampleConfig(motion_until=0.8, unconditional_scale=0.5),
)  # fmt: skip


def test_every_method_is_the_recipe_it_says() -> None:
    made = {name: method.recipe(RECIPE) for name, method in METHODS.items()}
    scales = {name: (one.appearance.scale, one.motion.scale) for name, one in made.items()}
    assert scales == {
        "base": (0, 0), "appearance": (1, 0), "motion": (0, 1), "direct": (1, 1), "switch": (1, 1), "customttt": (1, 1),
        "full": (1, 1), "motiondirector": (1, 1), "diffdirector": (1, 1), "dreamvideo": (1, 1),
        "published": (1, 1), "untrained": (1, 1),
    }  # fmt: skip
    assert [name for name, one in made.items() if one.ttt.steps] == ["published", "customttt"]
    resting = ("base", "appearance", "motion", "switch", "untrained", "customttt")
    assert [name for name, one in made.items() if one.sample.motion_until < 1] == list(resting)
    assert [name for name, one in made.items() if one.sample.unconditional_scale < 1] == [
        "base", "appearance", "motion", "untrained", "customttt"
    ]  # fmt: skip
    assert {one.target_prompt for one in made.values()} == {"A koala is swimming on Mars."}


def test_a_method_without_loras_leaves_out_those_of_every_subject() -> None:
    several = replace(RECIPE, others=(Subject(Ingredient("dog", "dog", "c" * 64), RECIPE.motion),))
    scales = {name: [one.scale for one in METHODS[name].recipe(several).ingredients.values()] for name in METHODS}
    assert scales["base"] == [0, 0, 0]
    assert scales["appearance"] == [1, 0, 1]
    assert scales["customttt"] == [1, 1, 1]


@pytest.mark.usefixtures("learned")
def test_each_motion_of_one_after_another_is_compared() -> None:
    in_turn = replace(RECIPE, then=(Ingredient("jumping", "jumping", "c" * 64),))
    for name in ("base", "appearance"):
        assert [one.scale for one in METHODS[name].recipe(in_turn).motions] == [0, 0]
    assert METHODS["published"].recipe(in_turn).then == in_turn.then
    copy("swimming", "jumping")
    refused = run("compare", "koala", "swimming", "--then", "jumping")
    assert_one_sentence(refused, 2, "4 frames are too few for 2 motions one after the other")


def test_switching_lets_one_lora_act_at_a_time(learned: Path, tiny_random_base: Path) -> None:
    backbone = open_base(str(tiny_random_base), torch.device("cpu"))
    library = Library(learned)
    pair = {"appearance": lora.load(library.weights("koala")), "motion": lora.load(library.weights("swimming"))}
    grown = {kind: {key: 20 * value for key, value in one.items()} for kind, one in pair.items()}  # to be seen
    sample = backbone.defaults.sample.but(num_inference_steps=4)
    recipe = replace(METHODS["direct"].recipe(RECIPE), sample=sample)

    def frames(recipe: VideoRecipe) -> media.Frames:
        return compose.render(backbone, grown, recipe)

    early = frames(replace(recipe, sample=sample.but(appearance_from=0.1)))  # less than a step of motion
    assert np.array_equal(early, frames(recipe)), "no step is cut off"
    halves = frames(replace(recipe, sample=sample.but(appearance_from=0.5, motion_until=0.5)))
    assert not np.array_equal(halves, frames(recipe))
    assert not np.array_equal(halves, frames(METHODS["appearance"].recipe(recipe)))
    assert not np.array_equal(halves, frames(METHODS["motion"].recipe(recipe)))


def test_a_lora_acts_while_the_recipe_does_not_let_it_rest() -> None:
    path = [900, 700, 500, 300, 100, -1]
    both, sample = {"appearance": 1.0, "motion": 0.5}, SampleConfig(appearance_from=0.2, motion_until=0.6)
    assert sampling.phases(sample, both, path) == [
        ({"motion": 0.5}, [900, 700]), (both, [700, 500, 300]), ({"appearance": 1.0}, [300, 100, -1])
    ]  # fmt: skip
    assert sampling.phases(RECIPE.as_published().sample, both, path) == [(both, path)]
    alone = {"appearance": 1.0, "motion": 0.0}
    assert [acting["appearance"] for acting, _ in sampling.phases(sample, alone, path)] == [1.0, 1.0]


@pytest.mark.parametrize(("field", "value"), [("appearance_from", 1.0), ("motion_until", 0.0), ("motion_until", 1.1)])
def test_a_rest_outside_the_video_is_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=field.replace("_", " ")):
        SampleConfig(**{field: value})


@pytest.mark.usefixtures("learned")
def test_a_comparison_is_laid_out_and_not_made_twice(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("compare", "koala", "swimming", "on Mars", "--seeds", 2, "--methods", "base,direct,switch", "-o", out)
    done = run(*command, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "prompt": "A koala is swimming on Mars.", "scores": {name: {} for name in ("base", "direct", "switch")}
    }  # fmt: skip
    assert "No CLIP-I: there are no pictures of the subject" in done.stderr
    cells = {f"{name}-seed{seed}.mp4" for name in ("base", "direct", "switch") for seed in (0, 1)}
    assert {path.name for path in out.iterdir()} == {*cells, "grid.png", "side-by-side.mp4", "compare.json"}
    before = {name: (out / name).stat().st_mtime_ns for name in cells}
    (out / "direct-seed1.mp4").unlink()
    again = run(*command)
    assert again.exit_code == 0, again.output
    after = {name: (out / name).stat().st_mtime_ns for name in cells}
    assert [name for name in sorted(cells) if after[name] != before[name]] == ["direct-seed1.mp4"]


@pytest.mark.usefixtures("learned")
def test_a_comparison_lists_its_videos_and_no_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    command = ("compare", "koala", "swimming", "--methods", "base,direct", "-o", out)
    assert run(*command, "--seeds", 2).exit_code == 0
    assert run(*command[:3], "on Mars", *command[3:], "--seeds", 1).exit_code == 0
    assert json.loads((out / "compare.json").read_text())["videos"] == {
        "base": ["base-seed0.mp4"], "direct": ["direct-seed0.mp4"]
    }  # fmt: skip
    assert set(cells(out)) == {out / "base-seed0.mp4", out / "direct-seed0.mp4"}
    monkeypatch.setattr(render, "videos", lambda *_: os.kill(os.getpid(), 2))  # Ctrl-C once it replaces videos
    assert run(*command, "--seeds", 1).exit_code == 130
    assert cells(out) == {}, "what is there is of two comparisons"


@pytest.mark.usefixtures("learned")
def test_what_a_base_cannot_draw_is_told_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "open_accelerated", refuse)
    out = ("--methods", "direct", "-o", tmp_path / "out")
    copy("swimming", "jumping", phrase="jumping")
    few = run("compare", "koala", "swimming", "--then", "jumping", *out)
    assert_one_sentence(few, 2, "4 frames are too few for 2 motions")
    on_tiny = {"base": "tiny", "base_fingerprint": backbones.identify("tiny")}
    for name in ("dog", "cat", "bear"):
        copy("koala", name, phrase=name, **on_tiny)
    copy("swimming", "diving", **on_tiny)
    many = run("compare", "dog", "diving", "--with", "cat:diving", "--with", "bear:diving", *out)
    assert_one_sentence(many, 2, "has 3 subjects, and tiny has learned to draw 2")


@pytest.mark.usefixtures("learned")
def test_ctrl_c_after_the_first_video_says_that_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render_first(*arguments: object) -> object:
        if (tmp_path / "out" / "direct-seed0.mp4").exists():
            raise KeyboardInterrupt
        return render(*arguments)

    render = compose.render
    monkeypatch.setattr(compose, "render", render_first)
    done = run("compare", "koala", "swimming", "--methods", "direct", "--seeds", 2, "-o", tmp_path / "out")
    assert done.exit_code == 130
    assert done.stderr.endswith("Interrupted; the same command goes on.\n")


@pytest.mark.usefixtures("learned")
def test_bad_comparisons_are_refused(tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    out = ("-o", tmp_path / "out")
    assert_one_sentence(run("compare", "koala", "swimming", "--methods", "magic", *out), 2, "no method 'magic'")
    assert_one_sentence(run("compare", "koala", "nobody", *out), 3, "no concept 'nobody'")
    assert_one_sentence(run("compare", "swimming", "koala", *out), 2, "is needed here")
    assert_one_sentence(run("compare", "koala", "swimming", "--with", "koala", *out), 2, "'koala' is a subject twice")
    assert snapshot(tmp_path) == before


# -- methods that learn anew


@pytest.fixture
def sources(learned: Path, pictures: Path, clip: Path) -> tuple[str | Path, ...]:  # noqa: ARG001
    """What the concepts were learned from, as options."""
    return "--images", pictures, "--clip", clip


def refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("this must not be reached")


def test_rivals_learn_once_for_all_prompts_and_tell_their_name(
    sources: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("compare", "koala", "swimming", "--methods", "full,direct,dreamvideo", "--seeds", 1, *sources)
    done = run(*command, "-o", tmp_path / "one")
    assert done.exit_code == 0, done.output
    assert "Method 3 of 3, 'dreamvideo': DreamVideo, simplified." in done.stderr
    assert done.stdout.splitlines()[0].split() == ["method", "motion", "fidelity"], "the one that needs no hub"
    assert [line.split()[0] for line in done.stdout.splitlines()[1:4]] == ["full", "direct", "dreamvideo"]
    assert "(" not in done.stdout, "one video has no interval"
    assert "dreamvideo: simplified: LoRAs for its adapters" in done.stderr
    made = {name: tmp_path / "one" / f"{name}-seed0.mp4" for name in ("full", "direct", "dreamvideo")}
    named = {name: VideoRecipe.from_dict(media.read_recipe(path)).rival for name, path in made.items()}
    assert {name: one and one.name for name, one in named.items()} == {
        "full": "full", "direct": None, "dreamvideo": "dreamvideo",
    }  # fmt: skip
    assert "dreamvideo, learned anew" in run("show", made["dreamvideo"]).stdout
    assert "learned anew" not in run("show", made["direct"]).stdout
    monkeypatch.setattr(rivals, "teach", refuse)
    again = run(*command, "on Mars", "-o", tmp_path / "two")
    assert again.exit_code == 0, again.output
    assert again.stderr.count("learned from these before") == 2


def test_another_method_s_video_is_never_taken_for_a_rival_s(sources: tuple[str | Path, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("compare", "koala", "swimming", "--methods", "full,direct", "--seeds", 1, *sources, "-o", out)
    assert run(*command).exit_code == 0
    right = media.read_frames(out / "full-seed0.mp4")[0]
    (out / "full-seed0.mp4").write_bytes((out / "direct-seed0.mp4").read_bytes())
    assert run(*command).exit_code == 0
    assert np.array_equal(media.read_frames(out / "full-seed0.mp4")[0], right)


def test_a_rival_s_video_is_rendered_again_as_long_as_the_library_holds_what_it_learned(
    learned: Path, sources: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video, again = tmp_path / "out" / "dreamvideo-seed0.mp4", tmp_path / "again.mp4"
    command = ("compare", "koala", "swimming", "--methods", "dreamvideo", "--seeds", 1, *sources)
    assert run(*command, "-o", tmp_path / "out").exit_code == 0
    done = run("compose", "--recipe", video, "-o", again)
    assert done.exit_code == 0, done.output
    assert np.array_equal(media.read_frames(video)[0], media.read_frames(again)[0])
    assert_one_sentence(
        run("compose", "--recipe", video, "--ttt-steps", 2), 2, "'dreamvideo', which knows no test-time"
    )
    shutil.rmtree(learned / "adapted")
    monkeypatch.setattr(opening, "open_accelerated", refuse)
    gone = run("compose", "--recipe", video, "-o", tmp_path / "third.mp4")
    assert_one_sentence(gone, 2, "what that learned is not in this library", "customttt compare --methods dreamvideo")


def test_a_killed_comparison_goes_on_in_the_middle_of_a_rival(
    learned: Path, sources: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("compare", "koala", "swimming", "--methods", "motiondirector", "--seeds", 1, *sources)
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(rivals, "_two_paths", lambda *_: os.kill(os.getpid(), 2))  # Ctrl-C when the subject is learned
        assert run(*command, "-o", tmp_path / "out").exit_code == 130
    assert len(list((learned / "unfinished").iterdir())) == 1
    done = run(*command, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "step 1 of 3" not in done.stderr.partition("two paths")[0], "the subject goes on after its second step"
    assert list((learned / "unfinished").iterdir()) == []
    assert len(list((learned / "adapted").iterdir())) == 1


@pytest.mark.usefixtures("learned")
def test_rivals_are_left_out_without_what_they_learn_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = {name: method for name, method in METHODS.items() if name in ("base", "full")}
    monkeypatch.setattr("customttt_cli.compare.METHODS", rest)
    done = run("compare", "koala", "swimming", "--seeds", 1, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "Left out without --images and --clip, as they learn anew from both: full." in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*-seed*")) == ["base-seed0.mp4"]


def test_other_material_is_refused_before_a_model_is_loaded(
    learned: Path, pictures: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "open_accelerated", refuse)
    before = snapshot(learned)
    other_pictures, other_clip = make_pictures(tmp_path / "other", 4), make_clip(tmp_path / "other.mp4", 11)
    captioned = Path(shutil.copytree(pictures, tmp_path / "captioned"))
    (captioned / "0.txt").write_text("A koala in the snow.")

    def compare(*options: str | Path) -> Result:
        return run("compare", "koala", "swimming", "-o", tmp_path / "out", *options)

    with_clip, with_pictures = ("--clip", clip), ("--images", pictures)
    assert_one_sentence(
        compare("--images", other_pictures, *with_clip), 2, "not those that 'koala' was learned from (0.jpg, 1.jpg"
    )
    assert_one_sentence(compare("--images", captioned, *with_clip), 2, "their captions or their order")
    assert_one_sentence(
        compare(*with_pictures, "--clip", other_clip), 2, "not the clip that 'swimming' was learned from"
    )
    assert_one_sentence(compare(*with_pictures), 2, "give --clip with --images")
    assert_one_sentence(compare(*with_clip), 2, "give --images with --clip")
    assert_one_sentence(compare("--methods", "direct,full"), 2, "'full' learns anew", "--images and --clip")
    assert_one_sentence(compare("--images", tmp_path / "nowhere", *with_clip), 3, "nowhere")
    assert_one_sentence(compare(*with_pictures, "--clip", pictures / "0.jpg"), 9)
    assert snapshot(learned) == before
    assert not (tmp_path / "out").exists()


def test_a_part_of_a_clip_cannot_be_compared(
    tiny_random_base: Path, sources: tuple[str | Path, ...], clip: Path, tmp_path: Path
) -> None:
    assert run("learn-motion", "cut", clip, "--start", 0.5, "--base", tiny_random_base).exit_code == 0
    done = run("compare", "koala", "cut", *sources, "-o", tmp_path / "out")
    assert_one_sentence(done, 2, "'cut' was learned from a part of", "save that part")


def test_pictures_that_were_fitted_are_fitted_again(
    tiny_random_base: Path, sources: tuple[str | Path, ...], pictures: Path, tmp_path: Path
) -> None:
    assert run("learn-appearance", "whole", pictures, "--fit", "--base", tiny_random_base).exit_code == 0
    done = run("compare", "whole", "swimming", "--methods", "direct", "--seeds", 1, *sources, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
