"""`gallery`: a page of one file, in which nothing that comes from files is more than text. The page itself is used in
`browser.py`, in a real browser.
"""

from __future__ import annotations

import html.parser
import json
import re
import shlex
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from material import assert_one_sentence, run

from customttt import limits, media, previews
from customttt.config import SampleConfig, TTTConfig
from customttt.library import Library
from customttt.many import gallery
from customttt.recipe import Ingredient, Subject, VideoRecipe

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


class Reader(html.parser.HTMLParser):
    """The tags of a page, its visible text and what is in its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.raw = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self.raw = False

    def handle_data(self, data: str) -> None:
        if self.raw:
            self.scripts.append(data)
        else:
            self.text += data


def video(
    path: Path, appearance: str = "koala", prompt: str = "on Mars", seed: int = 0, others: tuple[Subject, ...] = ()
) -> Path:
    recipe = VideoRecipe(
        Ingredient(appearance, appearance, "a" * 64), Ingredient("../x", "swimming", "b" * 64), prompt, "tiny", "f00d",
        TTTConfig(), SampleConfig(), seed, others=others,
    )  # fmt: skip
    media.write_video(path, np.zeros((2, 32, 32, 3), np.uint8), 8, recipe.to_dict())
    return path


def data_of(page: Reader) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.scripts[-2])
    return found


def test_the_page_is_one_file_in_which_names_are_text(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "")
    (folder / "below").mkdir(parents=True)
    video(folder / "below" / "a ' \" # %41.gif", HOSTILE, HOSTILE, 3)
    video(folder / "b.mp4")
    media.write_video(folder / "stranger.mp4", np.zeros((2, 32, 32, 3), np.uint8), 8, {"made by": "another"})
    (folder / "grid.json").write_text(json.dumps({"not done": [{"job": HOSTILE, "state": "failed", "why": HOSTILE}]}))
    done = run("gallery", folder)
    assert done.exit_code == 0, done.output
    assert "1 video without a recipe" in done.stderr
    text = (folder / "gallery.html").read_text()
    page = Reader(text)
    assert not {"img", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name in ("onerror", "src", "href")]
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 2
    assert page.text.count(HOSTILE) == 2, "what a grid did not make is told, as text"
    assert not re.search(r"https?://", text), "nothing comes from a network"
    by_seed = {one["seed"]: one for one in data_of(page)["videos"]}
    assert (by_seed[3]["appearance"], by_seed[3]["prompt"], by_seed[3]["motion"]) == (HOSTILE, HOSTILE, "../x")
    assert by_seed[3]["src"] == "./below/a%20%27%20%22%20%23%20%2541.gif"
    assert by_seed[3]["still"]
    assert by_seed[0]["command"] == "customttt compose --recipe ./b.mp4 --output again.mp4"
    assert ["prompt", "A koala is swimming on Mars."] in by_seed[0]["recipe"]


def test_further_subjects_are_shown_and_can_be_chosen_by(tmp_path: Path) -> None:
    dog, cat = (Ingredient(name, name, "c" * 64) for name in ("dog", "cat"))
    jumping = Ingredient("jumping", "jumping", "d" * 64)
    video(tmp_path / "a.gif")
    video(tmp_path / "b.gif", others=(Subject(dog, jumping, "left"), Subject(cat, jumping)))
    assert run("gallery", tmp_path).exit_code == 0
    one, other = data_of(Reader((tmp_path / "gallery.html").read_text()))["videos"]
    assert (one["with"], other["with"]) == ("", "dog:jumping, cat:jumping")
    told = dict(other["recipe"])
    assert [told[name].split()[0] for name in ("appearance2", "motion2", "appearance3")] == ["dog", "jumping", "cat"]
    assert told["places"] == "koala wherever nobody else is, dog left, cat wherever nobody else is"


def test_a_page_on_another_drive_names_its_videos_from_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(*_: object) -> NoReturn:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    path = video(tmp_path / "a b.gif")
    monkeypatch.setattr("os.path.relpath", apart)
    assert run("gallery", tmp_path).exit_code == 0
    (one,) = data_of(Reader((tmp_path / "gallery.html").read_text()))["videos"]
    assert one["src"] == path.as_uri()
    assert ["file", path.as_posix()] in one["recipe"]
    assert one["command"] == f"customttt compose --recipe {shlex.quote(path.as_posix())} --output again.mp4"


def test_only_the_page_s_own_script_may_run(tmp_path: Path) -> None:
    video(tmp_path / "b.mp4")
    run("gallery", tmp_path)
    page = Reader((tmp_path / "gallery.html").read_text())
    policy = next(str(attributes["content"]) for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")
    assert f"script-src '{gallery._hash(page.scripts[-1])}'" in policy
    assert f"style-src '{gallery._hash(page.scripts[0])}'" in policy
    assert "unsafe" not in policy


def test_scores_come_from_evaluate_and_compare(tmp_path: Path) -> None:
    for name, seed in (("direct-seed0", 0), ("customttt-seed0", 0), ("customttt-seed1", 1)):
        video(tmp_path / f"{name}.mp4", seed=seed)
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 2}
    (tmp_path / "compare.json").write_text(json.dumps({"scores": {"direct": {"CLIP-T": estimate}}}))
    rows = [{"what": "CLIP-I", "videos": {"/elsewhere/customttt-seed1.mp4": 0.7, "direct-seed0.mp4": None}}]
    (tmp_path / "scores.json").write_text(json.dumps(rows))
    run("gallery", tmp_path, "-o", tmp_path / "below" / "page.html")
    data = data_of(Reader((tmp_path / "below" / "page.html").read_text()))
    assert (data["rows"], data["columns"], data["scores"]) == ("method", "seed", ["CLIP-T", "CLIP-I"])
    found = {(one["method"], one["seed"]): one for one in data["videos"]}
    assert list(found) == [("direct", 0), ("customttt", 0), ("customttt", 1)], "as compare knows them"
    assert found["direct", 0]["scores"] == {"CLIP-T": 0.5}
    assert found["customttt", 1]["scores"] == {"CLIP-I": 0.7}
    assert found["direct", 0]["src"] == "./../direct-seed0.mp4"


def test_videos_that_an_earlier_comparison_left_get_neither_its_method_nor_its_scores(tmp_path: Path) -> None:
    video(tmp_path / "direct-seed0.mp4", seed=0)
    video(tmp_path / "direct-seed1.mp4", seed=1)
    video(tmp_path / "below" / "direct-seed0.mp4", seed=2)
    (tmp_path / "below" / "compare.json").write_text("{}")
    told = {"scores": {"direct": {"CLIP-T": {"value": 0.5}}}, "videos": {"direct": ["direct-seed0.mp4"]}}
    (tmp_path / "compare.json").write_text(json.dumps(told))
    assert run("gallery", tmp_path).exit_code == 0
    found = {one["seed"]: one for one in data_of(Reader((tmp_path / "gallery.html").read_text()))["videos"]}
    assert [found[seed]["method"] for seed in range(3)] == ["direct", "", "direct"]
    assert [found[seed]["scores"] for seed in range(3)] == [{"CLIP-T": 0.5}, {}, {}]


@pytest.mark.parametrize(
    "text", ["[", '{"scores": 3}', '{"scores": {"direct": [1]}, "not done": 7}', '[{"videos": 1}, 2]']
)
def test_what_is_beside_the_videos_and_is_none_of_ours_is_passed_over(tmp_path: Path, text: str) -> None:
    video(tmp_path / "b.mp4")
    for name in (gallery.RUN, gallery.SCORES, gallery.SUMMARY):
        (tmp_path / name).write_text(text)
    assert run("gallery", tmp_path).exit_code == 0


@pytest.mark.usefixtures("learned")
def test_the_library_is_a_page_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (Library().path("swimming") / "manifest.json").write_text("{}")
    done = run("gallery", "--json")
    assert json.loads(done.stdout) == {"path": "gallery.html", "concepts": 2}
    page = Reader(Path("gallery.html").read_text())
    assert "koala" in page.text
    assert "A koala." in page.text
    assert "'swimming' cannot be used" in page.text
    assert [attributes["points"] for tag, attributes in page.tags if tag == "polyline"]
    shown = [tmp_path / attributes["src"] for tag, attributes in page.tags if tag in ("img", "video")]
    assert [path.name for path in shown] == ["preview.png", "inputs.png"]
    assert all(path.is_file() for path in shown)


def test_a_curve_begins_and_ends_at_the_edges() -> None:
    assert previews.curve([3.0, 2.0, 1.0]) == "0.00,2.00 50.00,15.00 100.00,28.00"
    assert len(previews.curve([1.0] * 5000).split()) == previews.CURVE_POINTS
    assert previews.curve([1.0]) == ""


def _many(folder: Path) -> Path:
    for number in range(3):
        video(folder / f"{number}.gif", seed=number)
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 3, ("There is no folder 'nowhere'",)),
        (["empty"], 3, ("'empty' is no gallery", "customttt grid")),
        (["strangers"], 3, ("'strangers' is no gallery",)),
        (["many"], 2, ("more than 2 videos",)),
        (["many", "-o", "page.txt"], 2, ("must end in .html",)),
        (["-o", "/proc/x/page.html"], 11, ("/proc/x",)),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "strangers", "many"):
        (tmp_path / name).mkdir()
    (tmp_path / "strangers" / "a.mp4").write_text("no video")
    _many(tmp_path / "many")
    monkeypatch.setattr(gallery, "MAX_GALLERY", 2)
    assert limits.MAX_GALLERY == 10_000
    assert_one_sentence(run("gallery", *arguments), code, *words)
    assert not list(tmp_path.rglob("*.html"))
