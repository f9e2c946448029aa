"""The main job on the embedded base, as a library: learn, keep, adapt, render."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from material import run

from customttt import compose, learn, lora, media, opening
from customttt.backbones import Backbone
from customttt.concept import Concept
from customttt.library import Library
from customttt.recipe import Ingredient, VideoRecipe
from customttt.tiny.demo import INPUTS

Story = tuple[Backbone, Accelerator, Library, Concept, Concept]


SMALL = {"num_frames": 4, "size": 64}
"""A quarter of the pixels and half of the frames that `tiny` makes."""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A koala and swimming, learned for a few steps and kept."""
    backbone, accelerator = opening.open_accelerated("tiny")
    settings, library = backbone.defaults, Library(tmp_path_factory.mktemp("library"))
    pictures = media.read_pictures([INPUTS / "koala"], SMALL["size"])
    clip = media.read_clip(INPUTS / "swimming.mp4", SMALL["num_frames"], 8, SMALL["size"])
    words = learn.Wording("koala", "koala", "A koala.")
    looks = learn.appearance(backbone, pictures, words, settings.appearance.but(steps=4), accelerator)
    words = learn.Wording("swimming", "swimming", "Something is swimming.")
    moves = learn.motion(backbone, clip, words, settings.motion.but(steps=4), accelerator)
    return backbone, accelerator, library, looks.add_to(library), moves.add_to(library)


def recipe_of(story: Story, **changes: object) -> VideoRecipe:
    backbone, _, _, koala, swimming = story
    settings = backbone.defaults
    made = VideoRecipe(
        Ingredient.of(koala), Ingredient.of(swimming), "on Mars", backbone.name, backbone.fingerprint,
        settings.ttt.but(steps=2, reference_steps=2), settings.sample.but(num_inference_steps=3, **SMALL), seed=3,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def pair_of(story: Story) -> lora.Loras:
    library = story[2]
    named = ("appearance", "koala"), ("motion", "swimming")
    return {kind: lora.load(library.weights(name)) for kind, name in named}


def render(story: Story, recipe: VideoRecipe) -> media.Frames:
    backbone, accelerator = story[:2]
    pair = compose.adapt(backbone, pair_of(story), recipe, accelerator)
    return compose.render(backbone, pair, recipe)


@pytest.fixture(scope="module")
def usual(story: Story) -> media.Frames:
    """What the story's recipe renders."""
    return render(story, recipe_of(story))


def test_the_manifest_tells_how_a_concept_was_learned(story: Story) -> None:
    backbone, _, library, koala, _ = story
    assert library.get("koala") == koala
    layers = backbone.defaults.appearance.layers
    assert (koala.base, koala.base_fingerprint, koala.layers) == ("tiny", backbone.fingerprint, layers)
    assert len(koala.sources) == 5
    assert len(koala.losses) == koala.steps == 4
    assert library.verify() == []


def test_the_same_recipe_renders_the_same_frames_bit_for_bit(story: Story, usual: media.Frames) -> None:
    assert np.array_equal(render(story, recipe_of(story)), usual)


@pytest.mark.parametrize("change", [{"seed": 1}, {"prompt": "in the snow"}], ids=str)
def test_another_seed_or_scene_is_another_video(story: Story, usual: media.Frames, change: dict[str, object]) -> None:
    assert not np.array_equal(render(story, recipe_of(story, **change)), usual)


def test_the_frames_have_the_size_that_the_recipe_says(story: Story, usual: media.Frames) -> None:
    settings = story[0].defaults
    whole = recipe_of(story, ttt=settings.ttt.but(steps=0), sample=settings.sample.but(num_inference_steps=1))
    for frames, sample in ((usual, recipe_of(story).sample), (render(story, whole), whole.sample)):
        side = sample.size * sample.magnify
        assert frames.shape == (sample.num_frames, side, side, 3)


def test_the_recipe_in_the_video_gives_the_same_frames_again(story: Story, usual: media.Frames, tmp_path: Path) -> None:
    recipe = recipe_of(story)
    media.write_video(tmp_path / "out", usual, recipe.sample.fps, recipe.to_dict())
    again = VideoRecipe.from_dict(media.read_recipe(tmp_path / "out"))
    assert np.array_equal(media.read_frames(tmp_path / "out")[0], usual)
    assert np.array_equal(render(story, again), usual)


def test_at_scale_zero_the_loras_do_not_act(story: Story) -> None:
    backbone = story[0]
    plain = recipe_of(story, ttt=backbone.defaults.ttt.but(steps=0))
    alone = replace(plain, appearance=replace(plain.appearance, scale=0.0), motion=replace(plain.motion, scale=0.0))
    assert not np.array_equal(render(story, plain), render(story, alone))


def test_the_whole_story_runs_on_a_base_of_the_other_family(
    tiny_random_3d_base: Path, pictures: Path, clip: Path, tmp_path: Path
) -> None:
    """From the command line: learn both, adapt them to each other, render; concepts of two families do not mix."""
    for command in (("learn-appearance", "koala", pictures), ("learn-motion", "swimming", clip)):
        done = run(*command, "--base", tiny_random_3d_base)
        assert done.exit_code == 0, done.output
    done = run("compose", "koala", "swimming", "on Mars", "-o", tmp_path / "out.mp4")
    assert done.exit_code == 0, done.output
    assert "Test-time training: step 2 of 2" in done.stderr
    frames, _ = media.read_frames(tmp_path / "out.mp4")
    assert frames.shape == (4, 64, 64, 3)
    done = run("compose", "koala", "swimming", "--base", "tiny", "-o", tmp_path / "no.mp4")
    assert done.exit_code == 10, done.output
