"""`compose`: the same recipe gives the same frames, adapted LoRAs are not trained twice, and bad input stops early."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from material import assert_one_sentence, copy, make_pictures, run, snapshot

from customttt import backbones, media
from customttt.errors import StoreError
from customttt.library import Library
from customttt.recipe import VideoRecipe
from customttt_cli import completion

pytestmark = pytest.mark.usefixtures("learned")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def fail(*_: object, **__: object) -> NoReturn:
    raise AssertionError("this must not be reached")


def test_two_names_and_a_scene_become_a_video(here: Path, tiny_random_base: Path) -> None:
    done = run("compose", "koala", "swimming", "on Mars")
    assert done.exit_code == 0, done.output
    assert done.stdout == "koala-swimming.mp4\n"
    frames, fps = media.read_frames(here / "koala-swimming.mp4")
    assert (frames.shape, fps) == ((4, 64, 64, 3), 8)
    made = media.read_recipe(here / "koala-swimming.mp4")
    assert "torch" in made["versions"]
    recipe = VideoRecipe.from_dict(made)
    assert (recipe.target_prompt, recipe.seed, recipe.ttt.steps) == ("A koala is swimming on Mars.", 0, 2)
    assert recipe.base == str(tiny_random_base)
    assert f"Base: {tiny_random_base} ('koala' was learned on it)" in done.stderr
    assert "Test-time training: step 2 of 2, loss" in done.stderr
    assert "Denoising: step 2 of 2" in done.stderr
    assert "customttt show koala-swimming.mp4" in done.stderr


def test_several_subjects_become_one_video_which_renders_again(here: Path) -> None:
    copy("koala", "dog", phrase="dog")
    copy("swimming", "jumping", phrase="jumping")
    subjects = ("compose", "koala", "swimming", "on Mars", "--with", "dog:jumping")
    plan = run(*subjects, "--dry-run")
    assert "2 steps of 4 teachers each at learning rate" in plan.stdout
    done = run(*subjects)
    assert done.exit_code == 0, done.output
    assert done.stdout == "koala-swimming-dog-jumping.mp4\n"
    recipe = VideoRecipe.from_dict(media.read_recipe(here / done.stdout.strip()))
    assert recipe.target_prompt == "A koala is swimming and a dog is jumping on Mars."
    assert [one.place for one in recipe.subjects] == ["left", "right"]
    shown = run("show", done.stdout.strip()).stdout
    assert [line.split()[:2] for line in shown.splitlines() if line.startswith(("appearance", "motion"))] == [
        ["appearance", "koala"], ["motion", "swimming"], ["appearance2", "dog"], ["motion2", "jumping"]
    ]  # fmt: skip
    again = run("compose", "--recipe", done.stdout.strip(), "-o", "again.mp4")
    assert "used again" in again.stderr
    first, second = (media.read_frames(here / name)[0] for name in (done.stdout.strip(), "again.mp4"))
    np.testing.assert_array_equal(first, second)


def test_one_motion_after_another_is_one_video_adapted_as_videos_of_each(here: Path) -> None:
    copy("swimming", "jumping", phrase="jumping")
    asked = ("compose", "koala", "swimming", "on Mars", "--frames", 8)
    assert run(*asked).exit_code == 0
    assert "2 steps for each motion at learning rate" in run(*asked, "--then", "jumping", "--dry-run").stdout
    done = run(*asked, "--then", "jumping")
    assert done.exit_code == 0, done.output
    assert done.stdout == "koala-swimming-jumping.mp4\n"
    assert done.stderr.count("used again") == 1
    recipe = VideoRecipe.from_dict(media.read_recipe(here / done.stdout.strip()))
    assert recipe.target_prompt == "A koala is swimming and then jumping on Mars."
    shown = run("show", done.stdout.strip()).stdout
    kinds = ("appearance", "motion", "then")
    assert [line.split()[:2] for line in shown.splitlines() if line.startswith(kinds)] == [
        ["appearance", "koala"], ["motion", "swimming"], ["then", "jumping"]
    ]  # fmt: skip
    again = run("compose", "--recipe", done.stdout.strip(), "-o", "again.mp4")
    assert again.stderr.count("used again") == 2
    videos = [media.read_frames(here / name)[0] for name in (done.stdout.strip(), "again.mp4", "koala-swimming.mp4")]
    np.testing.assert_array_equal(videos[0], videos[1])
    assert (videos[0] != videos[2]).any()


def test_a_bystander_does_what_the_prompt_says_and_a_movement_may_be_shared(here: Path) -> None:
    copy("koala", "dog", phrase="dog")
    copy("koala", "my-cat", phrase="my cat")
    sentence = "{koala} and {dog} are {swimming} and {my-cat} looks on"
    shared = ("--with", "dog:swimming", "--with", "my-cat")
    done = run("compose", "koala", "swimming", sentence, *shared, "--no-ttt", "--motion-scale", 0.5, "-o", "out.mp4")
    assert done.exit_code == 0, done.output
    recipe = VideoRecipe.from_dict(media.read_recipe(here / "out.mp4"))
    assert recipe.target_prompt == "A koala and a dog are swimming and my cat looks on"
    assert {slot: one.scale for slot, one in recipe.ingredients.items()} == {
        "appearance": 1, "motion": 0.5, "appearance2": 1, "appearance3": 1,
    }  # fmt: skip
    again = run("compose", "--recipe", "out.mp4", "-o", "again.mp4")
    assert again.exit_code == 0, again.output
    assert media.read_recipe(here / "again.mp4") == media.read_recipe(here / "out.mp4")


def test_the_shell_offers_a_further_subject_and_then_its_movement() -> None:
    assert list(completion.subjects("")) == ["koala"]
    assert list(completion.subjects("koala:sw")) == ["koala:swimming"]


@pytest.mark.parametrize("option", ["--output=~/mars.mp4", "-o~/mars.mp4"])
def test_the_output_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = run("compose", "koala", "swimming", option, "--dry-run", "--json")
    assert json.loads(done.stdout)["paths"] == [str(tmp_path / "mars.mp4")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "x" * 252 + ".mp4"], "of 256 bytes"),
        (["-o", "x" * 249 + ".mp4", "--num", "2"], "of 259 bytes"),
        (["-o", ".mp4"], "'.mp4' is a suffix without a name; give one such as video.mp4."),
        (["-o", "."], "'.' has no name of its own"),
    ],
)
def test_an_output_that_is_no_good_is_found_before_any_work(
    monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.setattr("customttt_cli.render.settle", fail)
    assert_one_sentence(run("compose", "koala", "swimming", *options), 2, words)


@pytest.mark.parametrize("forget", [False, True], ids=["adapted LoRAs from the library", "adapted anew"])
def test_a_video_s_recipe_renders_the_same_frames(learned: Path, here: Path, forget: bool) -> None:
    assert run("compose", "koala", "swimming", "on Mars", "--seed", 5, "-o", "first.webp").exit_code == 0
    Library().rename("koala", "bear")  # is found by its weights
    if forget:
        shutil.rmtree(learned / "adapted")
    done = run("compose", "--recipe", "first.webp", "-o", "second.webp")
    assert done.exit_code == 0, done.output
    assert ("used again" in done.stderr) != forget
    first, second = media.read_frames(here / "first.webp")[0], media.read_frames(here / "second.webp")[0]
    np.testing.assert_array_equal(first, second)
    assert media.read_recipe(here / "first.webp") == media.read_recipe(here / "second.webp")


def test_a_dry_run_says_what_it_would_take_and_makes_nothing(here: Path, learned: Path) -> None:
    before = snapshot(learned)
    done = run("compose", "koala", "swimming", "on Mars", "--dry-run")
    assert done.exit_code == 0, done.output
    for words in ("A koala is swimming on Mars.", "Memory: 0.", "time: about"):
        assert words in done.stdout
    plan = json.loads(run("compose", "koala", "swimming", "--num", 2, "--dry-run", "--json").stdout)
    assert plan["paths"] == ["koala-swimming-seed0.mp4", "koala-swimming-seed1.mp4"]
    assert plan["recipe"]["ttt"]["steps"] == 2
    assert plan["fits"]
    assert list(here.iterdir()) == []
    assert snapshot(learned) == before


def test_a_recipe_with_another_seed_is_another_video(here: Path) -> None:
    run("compose", "koala", "swimming", "-o", "first")
    run("compose", "--recipe", "first", "--seed", 1, "--steps", 3, "-o", "second")
    first, second = media.read_recipe(here / "first"), media.read_recipe(here / "second")
    assert (second["seed"], second["sample"]["num_inference_steps"]) == (1, 3)
    assert first["ttt"] == second["ttt"]
    assert (media.read_frames(here / "first")[0] != media.read_frames(here / "second")[0]).any()


def test_a_recipe_names_the_base_that_it_is_rendered_on(tiny_random_base: Path, tmp_path: Path) -> None:
    run("compose", "koala", "swimming", "--no-ttt", "-o", "first.mp4")
    changed = shutil.copytree(tiny_random_base, tmp_path / "changed")
    (changed / "unet" / "config.json").write_text((changed / "unet" / "config.json").read_text() + "\n")
    fingerprint = backbones.identify(str(changed))
    for name in ("koala", "swimming"):
        copy(name, f"my-{name}", base=str(changed), base_fingerprint=fingerprint)
        Library().remove(name)
    recipe = json.loads(run("compose", "--recipe", "first.mp4", "--dry-run", "--json").stdout)["recipe"]
    assert (recipe["base"], recipe["base_fingerprint"]) == (str(changed), fingerprint)


def test_another_seed_does_not_train_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("compose", "koala", "swimming").exit_code == 0
    monkeypatch.setattr("customttt.compose.adapt", fail)
    assert run("compose", "koala", "swimming", "--seed", 1, "--appearance-scale", 0.5).exit_code == 0


def test_several_videos_have_consecutive_seeds(here: Path) -> None:
    done = run("compose", "koala", "swimming", "--num", 2, "--seed", 3, "--no-ttt", "-o", "out.gif", "--json")
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["path"], line["seed"]) for line in lines] == [("out-seed3.gif", 3), ("out-seed4.gif", 4)]
    for line in lines:
        assert media.read_recipe(here / line["path"]) == line["recipe"]
        assert line["recipe"]["seed"] == line["seed"]


def test_nothing_is_overwritten_unless_named(here: Path) -> None:
    (here / "koala-swimming.mp4").write_text("mine")
    (here / "koala-swimming-2.mp4").symlink_to("nowhere.mp4")
    names = [run("compose", "koala", "swimming", "--no-ttt").stdout for _ in range(2)]
    assert names == ["koala-swimming-3.mp4\n", "koala-swimming-4.mp4\n"]
    assert (here / "koala-swimming.mp4").read_text() == "mine"
    assert run("compose", "koala", "swimming", "--no-ttt", "-o", "koala-swimming.mp4").exit_code == 0
    assert media.read_recipe(here / "koala-swimming.mp4")


def test_a_name_that_another_took_meanwhile_gives_way_to_the_next(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from customttt import compose

    def render_late(*arguments: object) -> object:
        (here / "koala-swimming-seed1.mp4").write_text("mine")
        return render(*arguments)

    render = compose.render
    monkeypatch.setattr(compose, "render", render_late)
    done = run("compose", "koala", "swimming", "--no-ttt", "--num", 2)
    assert done.stdout == "koala-swimming-seed0.mp4\nkoala-swimming-2-seed1.mp4\n"
    assert (here / "koala-swimming-seed1.mp4").read_text() == "mine"
    assert media.read_recipe(here / "koala-swimming-2-seed1.mp4")["seed"] == 1
    assert len([*here.iterdir()]) == 3


def test_without_test_time_training_nothing_is_adapted(learned: Path, here: Path) -> None:
    assert run("compose", "koala", "swimming", "--no-ttt").exit_code == 0
    assert media.read_recipe(here / "koala-swimming.mp4")["ttt"]["steps"] == 0
    assert not list((learned / "adapted").glob("*"))


def test_settings_reach_the_recipe(here: Path) -> None:
    settings = ("--frames", 3, "--steps", 1, "--guidance", 1.5, "--ttt-steps", 1)
    scales = ("--appearance-scale", 0.8, "--motion-scale", 1.2)
    done = run("compose", "koala", "swimming", "{motion}! says {appearance}", *settings, *scales, "-o", "out.mp4")
    assert done.exit_code == 0, done.output
    recipe = VideoRecipe.from_dict(media.read_recipe(here / "out.mp4"))
    assert (recipe.sample.num_frames, recipe.sample.num_inference_steps, recipe.sample.guidance_scale) == (3, 1, 1.5)
    assert (recipe.ttt.steps, recipe.appearance.scale, recipe.motion.scale) == (1, 0.8, 1.2)
    assert recipe.target_prompt == "Swimming! says a koala"


def test_a_prompt_longer_than_the_encoder_reads_is_said() -> None:
    done = run("compose", "koala", "swimming", "on Mars " * 20, "--no-ttt")
    assert done.exit_code == 0, done.output
    assert "warning: The prompt has" in done.stderr


def test_a_library_that_cannot_be_written_still_composes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise StoreError("The library cannot be written.")

    monkeypatch.setattr(Library, "add_adapted", refuse)
    done = run("compose", "koala", "swimming")
    assert done.exit_code == 0, done.output
    assert "warning: The adapted LoRAs are not kept" in done.stderr


def test_a_base_that_moved_is_the_same_base(tiny_random_base: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_random_base, tmp_path / "moved")
    assert run("compose", "koala", "swimming", "--no-ttt", "--base", moved).exit_code == 0
    (moved / "unet" / "config.json").write_text((moved / "unet" / "config.json").read_text() + "\n")
    done = run("compose", "koala", "swimming", "--no-ttt", "--base", moved)
    assert_one_sentence(done, 10, "'koala' was learned on", str(tiny_random_base), f"not on '{moved}'")


def _other_base() -> list[str]:
    copy("swimming", "diving", base="animatediff", base_fingerprint="f00d")
    return ["koala", "diving"]


def _changed_base() -> list[str]:
    copy("swimming", "diving", base_fingerprint="f00d")
    copy("koala", "bear", base_fingerprint="f00d")
    return ["bear", "diving"]


def _missing_base() -> list[str]:
    copy("swimming", "diving", base="/nowhere")
    copy("koala", "bear", base="/nowhere")
    return ["bear", "diving"]


def _damaged_weights() -> list[str]:
    weights = Library().path("koala") / "lora.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return ["koala", "swimming"]


def _another_motion() -> list[str]:
    copy("swimming", "jumping", phrase="jumping")
    return ["koala", "swimming", "--then", "jumping"]


def _damaged_manifest() -> list[str]:
    (Library().path("koala") / "manifest.json").write_text("{}")
    return ["koala", "swimming"]


def _with_another(prompt: str, other: str) -> list[str]:
    copy("koala", "dog", phrase="dog")
    return ["koala", "swimming", prompt, "--with", other]


def _another_subject_of_another_base() -> list[str]:
    copy("koala", "dog", base="animatediff", base_fingerprint="f00d")
    return ["koala", "swimming", "--with", "dog:swimming"]


def test_more_subjects_than_a_base_draws_are_told_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = backbones.identify("tiny")
    for name in ("koala", "dog", "cat"):
        copy("koala", f"tiny-{name}", phrase=name, base="tiny", base_fingerprint=fingerprint)
    copy("swimming", "diving", base="tiny", base_fingerprint=fingerprint)
    monkeypatch.setattr("customttt.planner.composing", fail)
    done = run("compose", "tiny-koala", "diving", "--with", "tiny-dog:diving", "--with", "tiny-cat:diving")
    assert_one_sentence(done, 2, "has 3 subjects, and tiny has learned to draw 2")


@pytest.mark.parametrize(
    ("prepare", "code", "words"),
    [
        (_other_base, 10, ("'diving' was learned on 'animatediff'", "'koala' on another base")),
        (_changed_base, 10, ("'bear' was learned on", "learn it again")),
        (_missing_base, 10, ("/nowhere",)),
        (_damaged_weights, 6, ("'koala' is damaged", "Learn or import it again")),
        (_damaged_manifest, 6, ("'koala'",)),
        (lambda: ["koala", "koala"], 2, ("'koala' is an appearance, but a motion is needed",)),
        (lambda: ["swimming", "koala"], 2, ("'swimming' is a motion, but an appearance is needed",)),
        (lambda: ["koalla", "swimming"], 3, ("'koalla'", "did you mean 'koala'?")),
        (lambda: ["koala", "../x"], 3, ("'../x'",)),
        (lambda: ["koala"], 2, ("an appearance and a motion",)),
        (lambda: ["koala", "swimming", "x" * 10_000], 2, ("10,000 characters",)),
        (lambda: ["koala", "swimming", "two\nlines"], 2, ("one line",)),
        (lambda: ["koala", "swimming", "--steps", "0"], 2, ("'steps' is 0",)),
        (lambda: ["koala", "swimming", "--frames", "0"], 2, ("'frames' is 0",)),
        (lambda: ["koala", "swimming", "--frames", "33"], 2, ("33", "at most 32")),
        (lambda: ["koala", "swimming", "--guidance", "nan"], 2, ("'guidance' is nan",)),
        (lambda: ["koala", "swimming", "--ttt-steps", "-1"], 2, ("'ttt steps' is -1",)),
        (lambda: ["koala", "swimming", "--no-ttt", "--ttt-steps", "3"], 2, ("exclude each other",)),
        (lambda: ["koala", "swimming", "{kaola} runs"], 2, ("{kaola}, which is nothing", "{koala} and {swimming}")),
        (lambda: ["koala", "swimming", "--steps", "1001"], 2, ("1,001 steps of denoising are too many",)),
        (lambda: ["koala", "swimming", "--num", "0"], 2, ("--num is 0",)),
        (lambda: ["koala", "swimming", "--seed", "-1"], 2, ("--seed is -1",)),
        (lambda: ["koala", "swimming", "--motion-scale", "5"], 2, ("scale 5",)),
        (lambda: ["koala", "swimming", "-o", "video.avi"], 2, ("video.avi", ".mp4")),
        (lambda: ["koala", "swimming", "-o", "/proc/x/video.mp4"], 11, ("/proc/x",)),
        (lambda: ["koala", "swimming", "-o", ".", "--num", "2"], 2, ("need a name",)),
        (lambda: ["koala", "swimming", "--recipe", "x.mp4"], 2, ("leave APPEARANCE",)),
        (lambda: ["in the snow", "--recipe", "x.mp4"], 2, ("leave APPEARANCE",)),
        (lambda: ["--with", "koala", "--recipe", "x.mp4"], 2, ("leave APPEARANCE",)),
        (lambda: ["--then", "swimming", "--recipe", "x.mp4"], 2, ("leave APPEARANCE",)),
        (lambda: ["koala", "swimming", "--then", "swimming"], 2, ("'swimming' is a motion twice",)),
        (_another_motion, 2, ("4 frames are too few for 2 motions",)),
        (lambda: ["koala", "swimming", "--then", "koala"], 2, ("'koala' is an appearance",)),
        (lambda: ["koala", "swimming", "--then", "diving"], 3, ("'diving'",)),
        (lambda: ["koala", "swimming", "--with", "koala:swimming"], 2, ("'koala' is a subject twice",)),
        (lambda: ["koala", "swimming", "--with", "dog:"], 2, ("cannot be 'dog:'", "dog:jumping")),
        (lambda: ["koala", "swimming", "--with", ":swimming"], 2, ("cannot be ':swimming'",)),
        (lambda: ["koala", "swimming", "--with", "a:b:c"], 2, ("cannot be 'a:b:c'",)),
        (lambda: ["koala", "swimming", "--with", "dog:swimming"], 3, ("'dog'",)),
        (lambda: ["koala", "swimming", "--with", "swimming"], 2, ("'swimming' is a motion",)),
        (_another_subject_of_another_base, 10, ("'dog' was learned on 'animatediff'", "'koala' on another base")),
        (lambda: ["koala", "swimming", "--place", "koala"], 2, ("A place cannot be 'koala'", "koala:left")),
        (lambda: ["koala", "swimming", "--place", "koala:nowhere"], 2, ("left, right, top",)),
        (lambda: ["koala", "swimming", "--place", "koala:left", "--place", "koala:top"], 2, ("two places",)),
        (lambda: ["koala", "swimming", "--place", "dog:left"], 2, ("'dog' is no subject", "given to koala")),
        (lambda: [*_with_another("on Mars", "dog:swimming"), "--place", "koala:left", "--place", "dog:bottom"], 2,
         ("'koala' (left) and 'dog' (bottom) overlap",)),
        (lambda: ["koala", "swimming", "--apart"], 2, ("one subject in the video",)),
        (lambda: [*_with_another("", "dog:swimming"), "--apart", "--place", "koala:left"], 2,
         ("places or by their words",)),
        (lambda: _with_another("on Mars", "dog"), 2, ("What 'dog' does is not said", "{koala} is {swimming}")),
        (lambda: _with_another("{koala} {cat}", "dog"), 2, ("The prompt has {cat}",)),
        (lambda: _with_another("{koala} alone", "dog"), 2, ("does not speak of 'dog'",)),
        (lambda: ["--recipe", "nowhere.mp4"], 3, ("nowhere.mp4",)),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_before_anything_is_made(
    learned: Path, here: Path, monkeypatch: pytest.MonkeyPatch, prepare: object, code: int, words: tuple[str, ...]
) -> None:
    assert callable(prepare)
    arguments = prepare()
    before = snapshot(learned)
    monkeypatch.setattr("customttt.compose.adapt", fail)
    assert_one_sentence(run("compose", *arguments), code, *words)
    assert snapshot(learned) == before
    assert list(here.iterdir()) == []


def test_what_is_no_video_of_ours_has_no_recipe(
    here: Path,
) -> None:
    (here / "text.mp4").write_text("no video")
    assert_one_sentence(run("compose", "--recipe", "text.mp4"), 9, "carries no recipe")


def test_a_recipe_whose_concept_was_learned_again_or_removed_is_told(tiny_random_base: Path, tmp_path: Path) -> None:
    run("compose", "koala", "swimming", "--no-ttt", "-o", "first.mp4")
    others = make_pictures(tmp_path / "others", 2)
    run("learn-appearance", "koala", others, "--base", tiny_random_base, "--force")
    assert_one_sentence(run("compose", "--recipe", "first.mp4"), 3, "'koala'", "learned again since")
    Library().remove("koala")
    assert_one_sentence(run("compose", "--recipe", "first.mp4"), 3, "'koala'", "not in the library")


def test_ctrl_c_between_two_videos_keeps_the_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from customttt import compose

    def render_first(*arguments: object) -> object:
        if (here / "koala-swimming-seed0.mp4").exists():
            raise KeyboardInterrupt
        return render(*arguments)

    render = compose.render
    monkeypatch.setattr(compose, "render", render_first)
    done = run("compose", "koala", "swimming", "--no-ttt", "--num", 3)
    assert done.exit_code == 130
    assert done.stdout == "koala-swimming-seed0.mp4\n"
    assert done.stderr.endswith("Interrupted; only what is printed above was done.\n")
    assert [path.name for path in here.iterdir()] == ["koala-swimming-seed0.mp4"]


def test_ctrl_c_in_test_time_training_saves_nothing(learned: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = snapshot(learned)
    monkeypatch.setattr("customttt.train._finite", interrupt)
    done = run("compose", "koala", "swimming")
    assert done.exit_code == 130
    assert done.stderr.endswith("Interrupted; nothing was saved.\n")
    assert snapshot(learned) == before
    assert list(here.iterdir()) == []


def test_ctrl_c_after_test_time_training_leaves_what_was_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("customttt.compose.render", interrupt)
    done = run("compose", "koala", "swimming")
    assert done.exit_code == 130
    assert done.stderr.endswith("Interrupted; the same command goes on.\n")


@pytest.fixture
def broken_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write of pixels meets a full disk."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", refuse)


@pytest.mark.usefixtures("broken_disk")
def test_a_full_disk_leaves_no_half_a_video(here: Path) -> None:
    done = run("compose", "koala", "swimming", "--no-ttt", "-o", "out.gif")
    assert_one_sentence(done, 11, "out.gif", "No space left")
    assert list(here.iterdir()) == []
