"""`evaluate`: a row a metric with its model, and what cannot be measured says why before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from material import assert_one_sentence, cut, make_clip, one_frame_clip, run, sound_only, text_file
from standin import Hub
from vision import save_clip, save_dino

from customttt import media
from customttt.config import SampleConfig, TTTConfig
from customttt.measure import extractors
from customttt.recipe import Ingredient, Subject, VideoRecipe
from customttt.tiny import known
from customttt_cli import exhibits


def recipe(base: str, seed: int = 0, scene: str = "on Mars") -> dict[str, Any]:
    ingredients = Ingredient("koala", "koala", "a" * 64), Ingredient("jumping", "jumping", "b" * 64)
    return VideoRecipe(*ingredients, scene, base, "f", TTTConfig(), SampleConfig(), seed).to_dict()


def made(path: Path, base: str, seed: int = 0, scene: str = "on Mars") -> Path:
    """A video as `compose` writes it, of a square that goes to the right."""
    frames, _ = media.read_frames(make_clip(path, 8))
    media.write_video(path, frames, 8, recipe(base, seed, scene))
    return path


@pytest.fixture
def hub_with_models(standin: Hub, tmp_path: Path) -> Hub:
    """A model hub on the loopback device that has CLIP and DINO in small."""
    standin.repositories[extractors.CLIP.id] = save_clip(tmp_path / "clip-model")
    standin.repositories[extractors.DINO.id] = save_dino(tmp_path / "dino-model")
    return standin


def rows(*command: str | Path) -> dict[str, dict[str, Any]]:
    done = run("evaluate", *command, "--json")
    assert done.exit_code == 0, done.output
    return {row["what"]: row for row in json.loads(done.stdout)}


@pytest.mark.usefixtures("hub_with_models")
def test_every_row_has_its_model_its_value_and_its_interval(pictures: Path, tmp_path: Path) -> None:
    videos = [made(tmp_path / f"{seed}.mp4", "owner/gone", seed) for seed in range(2)]
    found = rows(*videos, "--images", pictures, "--clip", videos[0])
    assert list(found) == ["CLIP-T", "CLIP-I", "temporal consistency", "DINO-I", "motion fidelity"]
    assert found["CLIP-T"]["by"] == "openai/clip-vit-base-patch32@c237dc4"
    assert found["DINO-I"]["by"] == "facebook/dino-vits16@refs/pr/1"
    assert "OpenCV" in found["motion fidelity"]["by"]
    for row in found.values():
        assert row["missing"] is None
        assert set(row["videos"]) == set(map(str, videos))
        assert row["scores"]["all"]["n"] == 2
        assert (
            -1 <= row["scores"]["all"]["low"] <= row["scores"]["all"]["value"] <= row["scores"]["all"]["high"] <= 1.001
        )
    assert found["motion fidelity"]["scores"]["all"]["value"] == pytest.approx(1, abs=0.05)


@pytest.mark.usefixtures("hub_with_models")
def test_videos_of_other_programs_need_no_more_than_a_prompt(tmp_path: Path) -> None:
    gif = tmp_path / "other.gif"
    from PIL import Image

    images = [Image.fromarray(np.full((48, 64, 3), 40 * k, np.uint8)) for k in range(5)]
    images[0].save(gif, save_all=True, append_images=images[1:], duration=100)
    found = rows(gif, "--prompt", "A man is running.")
    assert found["CLIP-T"]["scores"]["all"]["n"] == 1
    assert "--images" in found["DINO-I"]["missing"]
    without = rows(gif)
    assert "--prompt" in without["CLIP-T"]["missing"]
    assert without["temporal consistency"]["missing"] is None


@pytest.mark.usefixtures("nobody")
def test_a_model_that_cannot_be_reached_costs_its_rows_alone(tmp_path: Path) -> None:
    video = made(tmp_path / "a.mp4", "/nowhere")
    done = run("evaluate", video, "--clip", video)
    assert done.exit_code == 0, done.output
    lines = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert "not measured: 'openai/clip-vit-base-patch32' is not downloaded, and the model hub" in lines["CLIP-T"]
    assert "not measured: there are no pictures of the subject; give --images" in lines["DINO-I"]
    assert "1.000" in lines["motion fidelity"]
    assert "one video" in lines["motion fidelity"]
    assert_one_sentence(run("evaluate", video), 10, "Nothing could be measured", "give --clip", "is not downloaded")


@pytest.mark.usefixtures("nobody")
def test_on_tinys_world_the_judge_stands_in_and_no_model_is_asked_for(pictures: Path, tmp_path: Path) -> None:
    video = made(tmp_path / "a.mp4", "tiny")
    found = rows(video, "--images", pictures, "--clip", video)
    assert {row["by"] for row in found.values()} == {"the judge of tiny's world"}
    assert list(found)[:3] == ["shows the subject", "shows the movement", "shows the scene"]
    assert found["moves like the clip"]["scores"]["all"]["value"] == pytest.approx(1, abs=0.01)
    plain = run("evaluate", video).stdout
    assert "CLIP" not in plain
    assert "DINO" not in plain


def test_the_recipe_says_how_many_subjects_and_motions_there_are(pictures: Path, tmp_path: Path) -> None:
    frames, _ = media.read_frames(make_clip(tmp_path / "clip.mp4", 8))
    bobo, running = Ingredient("bobo", "bobo", "c" * 64), Ingredient("running", "running", "d" * 64)
    one = VideoRecipe.from_dict(recipe("tiny"))
    for name, changes, untold in [
        ("one", {}, []),
        ("two", {"others": (Subject(bobo, running),)}, [*known.OF_A_SUBJECT]),
        ("turns", {"then": (running,)}, ["shows the movement", known.MOVES_LIKE]),
    ]:
        media.write_video(tmp_path / f"{name}.mp4", frames, 8, replace(one, **changes).to_dict())
        found = rows(tmp_path / f"{name}.mp4", "--images", pictures, "--clip", tmp_path / "clip.mp4")
        assert [what for what, row in found.items() if row["missing"]] == untold


def test_a_comparison_has_a_column_a_method(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for method in ("direct", "base"):
        for seed in (0, 1):
            made(folder / f"{method}-seed{seed}.mp4", "tiny", seed)
    shutil.copy(folder / "base-seed0.mp4", folder / "side-by-side.mp4")
    (folder / "compare.json").write_text("{}")
    found = rows(folder)
    assert list(found["shows the scene"]["scores"]) == ["base", "direct"]
    assert [one["n"] for one in found["shows the scene"]["scores"].values()] == [2, 2]
    header = run("evaluate", folder).stdout.splitlines()[0].split()
    assert header == ["what", "base", "direct", "by"]
    assert_one_sentence(run("evaluate", folder, folder / "base-seed0.mp4"), 2, "evaluate it alone")
    for path in folder.glob("*-seed*.mp4"):
        path.unlink()
    assert_one_sentence(run("evaluate", folder), 3, "has no videos of a comparison")


def test_videos_that_an_earlier_comparison_left_are_not_of_the_new_one(tmp_path: Path) -> None:
    for name in ("base-seed0", "base-seed1", "direct-seed0"):
        made(tmp_path / f"{name}.mp4", "tiny", int(name[-1]))
    (tmp_path / "compare.json").write_text(json.dumps({"videos": {"base": ["base-seed0.mp4"], "direct": 1}}))
    scores = rows(tmp_path)["shows the scene"]["scores"]
    assert {method: one["n"] for method, one in scores.items()} == {"base": 1}


def test_compare_and_evaluate_score_alike(tmp_path: Path) -> None:
    from customttt_cli.compare import _scores

    cells = {seed: made(tmp_path / f"base-seed{seed}.mp4", "tiny", seed) for seed in (0, 1)}
    (tmp_path / "compare.json").write_text("{}")
    shown = {"base": [exhibits.read(path, None, "base") for path in cells.values()]}
    scores = _scores(shown, [], cells[0])["base"]
    found = rows(tmp_path, "--clip", cells[0])
    assert set(scores) == {*known.SHOWS.values(), known.MOVES_LIKE}
    assert all(scores[what] == pytest.approx(found[what]["scores"]["base"], abs=1e-5) for what in scores)


def test_seeds_of_one_prompt_count_as_one_where_there_are_several_prompts(tmp_path: Path) -> None:
    videos = [
        made(tmp_path / f"{scene[-4:]}{seed}.mp4", "tiny", seed, scene)
        for scene in ("on Mars", "at night")
        for seed in (0, 1)
    ]
    score = rows(*videos)["shows the scene"]
    by_scene = [np.mean([score["videos"][str(path)] for path in some]) for some in (videos[:2], videos[2:])]
    assert score["scores"]["all"]["low"] == pytest.approx(min(by_scene))
    assert score["scores"]["all"]["high"] == pytest.approx(max(by_scene))


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda path: path, 3, ("There is no video",)),
        (text_file, 9, ("is no clip that can be read",)),
        (cut(make_clip), 9, ("cut off or damaged",)),
        (sound_only, 9, ("has no video in it",)),
        (lambda path: path.parent, 9, ("neither a video's frames nor a comparison", "*.mp4")),
    ],
)
def test_what_is_no_video_is_refused(
    make: Callable[[Path], Path], code: int, words: tuple[str, ...], tmp_path: Path
) -> None:
    assert_one_sentence(run("evaluate", make(tmp_path / "bad.mp4")), code, *words)


def test_bad_references_are_refused_before_anything_is_loaded(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extractors.hub, "fetch", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("customttt.tiny.judge.load", lambda: pytest.fail("loaded"))
    video = made(tmp_path / "a.mp4", "tiny")
    for command, code, words in [
        ((video, "--images", tmp_path / "none"), 3, ("There is no picture",)),
        ((video, "--images", clip), 9, ("picture",)),
        ((video, "--clip", tmp_path / "none.mp4"), 3, ("There is no clip",)),
        ((video, "--clip", one_frame_clip(tmp_path / "one.mp4")), 9, ("has 1 frame and", "8", "at least 8")),
        ((video, "--prompt", "two\nlines"), 2, ("one line",)),
        ((video, made(tmp_path / "b.mp4", "/nowhere")), 2, ("evaluate them apart",)),
    ]:
        assert_one_sentence(run("evaluate", *command), code, *words)
    assert run("evaluate").exit_code == 2
