"""`grid`: what is done is done, one failure stops nothing else, and bad input stops before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest
from material import assert_one_sentence, copy, run, snapshot

from customttt import compose, media
from customttt.errors import DivergedError, UsageError
from customttt.library import Library
from customttt.many import spec
from customttt.many.engine import Job, Outcome
from customttt.many.grid import Foretold, Pace
from customttt.planner import Forecast
from customttt.recipe import VideoRecipe
from customttt.thrift import Rung

pytestmark = pytest.mark.usefixtures("learned")
TWO = ("--prompt", "on Mars", "--prompt", "", "--seeds", "2")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def forecasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forecasts that take no time; the planner's own are tested elsewhere."""
    some = Forecast(1, 2, 1.0, 0, Rung())
    monkeypatch.setattr("customttt.planner.composing", lambda *_: some)
    monkeypatch.setattr("customttt.planner.learning", lambda *_: some)


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("this must not be reached")


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("forecasts")
def test_a_grid_makes_what_compose_makes_once_and_shares_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("grid", *TWO, "--json", "-o", "one")
    assert done.exit_code == 0, done.output
    told = lines(done.stdout)
    assert [one["kind"] for one in told] == ["adapt", "video", "video", "video", "video"]
    assert {one["state"] for one in told} == {"done"}
    assert (told[-1]["done"], told[-1]["of"], told[-1]["seconds_left"]) == (5, 5, 0)
    paths = [Path(one["path"]) for one in told[1:]]
    recipes = [VideoRecipe.from_dict(media.read_recipe(path)) for path in paths]
    assert [(one.prompt, one.seed) for one in recipes] == [("on Mars", 0), ("on Mars", 1), ("", 0), ("", 1)]
    run("compose", "koala", "swimming", "on Mars", "--seed", "1", "-o", "alone.mp4")
    assert (here / "alone.mp4").read_bytes() == paths[1].read_bytes(), "the bytes of a serial run"

    paths[0].write_bytes(paths[0].read_bytes()[:-1] + b"x")  # damaged
    Library().made.unlink()  # as after a kill before it was noted
    assert json.loads(run("grid", *TWO, "--json", "-o", "one", "--dry-run").stdout)["missing"]["video"] == 0
    assert not Library().made.exists()
    again = lines(run("grid", *TWO, "--json", "-o", "one").stdout)
    assert [one["state"] for one in again][-3:] == ["known"] * 3

    monkeypatch.setattr("customttt.opening.open_accelerated", never)
    before = snapshot(here.parent)
    plan = json.loads(run("grid", *TWO, "-o", "two", "--dry-run", "--json").stdout)
    assert plan["missing"] == {"learn": 0, "adapt": 0, "video": 0}
    assert snapshot(here.parent) == before
    assert not (here / "two").exists()
    other = run("grid", *TWO, "-o", "two")
    assert other.exit_code == 0, other.output
    assert [Path(line).read_bytes() for line in other.stdout.splitlines()] == [path.read_bytes() for path in paths]
    assert "0 of them missing" in other.stderr
    shutil.rmtree(Library().root / "adapted")  # as when others came since: nothing needs it
    assert run("grid", *TWO, "-o", "one").exit_code == 0


@pytest.mark.usefixtures("forecasts")
@pytest.mark.parametrize("named", [("--motions", "swimming"), ("--appearances", "all", "--then", "swimming")])
def test_the_concepts_that_are_named_choose_the_base(tiny_random_base: Path, named: tuple[str, ...]) -> None:
    copy("swimming", "jumping", phrase="jumping")
    copy("koala", "bear", base="animatediff", base_fingerprint="f00d")
    done = run("grid", *named, "--frames", "8", "--dry-run")
    assert done.exit_code == 0, done.output
    assert f"Base: {tiny_random_base}" in done.stderr
    assert "1 appearance x 1 motion" in done.stdout


@pytest.mark.usefixtures("forecasts")
def test_one_failed_job_says_why_stops_no_other_and_is_tried_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy("swimming", "diving", phrase="diving")
    adapt = compose.adapt

    def diverging(backbone: object, pair: object, recipe: VideoRecipe, *rest: Any) -> Any:
        if recipe.motion.name == "diving":
            raise DivergedError("The loss is nan at step 2.")
        return adapt(backbone, pair, recipe, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(compose, "adapt", diverging)
    done = run("grid", "--prompt", "on Mars", "-o", "out")
    assert_one_sentence(
        done, 12, "1 job failed, and 1 job that needed one of them skipped", "The loss is nan at step 2"
    )
    assert [Path(line).name[:14] for line in done.stdout.splitlines()] == ["koala-swimming"]
    assert "warning: test-time training of koala diving failed: The loss is nan" in done.stderr
    summary = json.loads((here / "out" / "grid.json").read_text())
    assert [one["state"] for one in summary["not done"]] == ["failed", "skipped"]
    monkeypatch.setattr(compose, "adapt", adapt)
    assert run("grid", "--prompt", "on Mars", "-o", "out").exit_code == 0
    assert json.loads((here / "out" / "grid.json").read_text())["not done"] == []


@pytest.mark.usefixtures("forecasts")
def test_ctrl_c_says_that_the_same_command_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(compose, "render", interrupt)
    done = run("grid", "--json")
    assert done.exit_code == 130
    assert [one["state"] for one in lines(done.stdout)] == ["done"], "of test-time training"
    assert done.stderr.endswith("Interrupted; the same command goes on.\n")


def grid_file(here: Path, pictures: Path, clip: Path, **more: object) -> Path:
    shutil.copytree(pictures, here / "imgs", dirs_exist_ok=True)
    shutil.copy(clip, here / "clip.mp4")
    learn = {"appearance": {"bear": {"images": "imgs", "noun": "brown bear", "steps": 1}},
             "motion": {"running": {"clip": "clip.mp4", "steps": 1, "start": 0.5}}}  # fmt: skip
    given = {"learn": learn, "prompts": ["on Mars"], "settings": {"steps": 1, "ttt_steps": 1}, **more}
    (here / "grid.json").write_text(json.dumps(given))
    return here / "grid.json"


def test_concepts_are_learned_first_from_folders_and_clips(
    here: Path, pictures: Path, clip: Path, tiny_random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = grid_file(here, pictures, clip, seeds=[7])
    monkeypatch.setenv("CUSTOMTTT_BASE", str(tiny_random_base))  # for what is learned, as of the learn commands
    plan = json.loads(run("grid", file, "--dry-run", "--json").stdout)
    assert plan["jobs"] == plan["missing"] == {"learn": 2, "adapt": 1, "video": 1}
    assert plan["seconds"] > 0
    assert plan["disk_bytes"] > 10_000
    assert not (here / "customttt-grid").exists()
    assert [one.name for one in Library().concepts()] == ["koala", "swimming"]
    done = run("grid", file, "--seeds", "1", "--json")
    assert done.exit_code == 0, done.output
    told = lines(done.stdout)
    recipe = VideoRecipe.from_dict(media.read_recipe(here / told[-1]["path"]))
    assert (recipe.target_prompt, recipe.seed) == ("A brown bear is running on Mars.", 0)
    assert recipe.appearance.sha256 == Library().get("bear").files["lora.safetensors"]
    monkeypatch.setattr("customttt.opening.open_accelerated", never)
    again = lines(run("grid", file, "--seeds", "1", "--json").stdout)
    assert [one["job"] for one in again] == [one["job"] for one in told], "jobs keep their names"
    assert {one["state"] for one in again} == {"known"}


def test_a_toml_file_says_the_same(here: Path) -> None:
    (here / "grid.toml").write_text('motions = "all"\nseeds = 3\n[settings]\nno = 1\n')
    with pytest.raises(UsageError, match=r"its 'settings\.no' cannot be used"):
        spec.read(here / "grid.toml")
    (here / "grid.toml").write_text(
        'appearances = ["koala", "koala"]\nseeds = 3\n[settings]\nttt_steps = 0\n'
        '[learn.motion.running]\nclip = "a.mp4"\n'
    )
    found = spec.read(here / "grid.toml")
    assert (found.names("appearance"), found.names("motion")) == (["koala"], ["running"])
    assert found.all_seeds() == [0, 1, 2]
    assert found.paths("a.mp4") == [here / "a.mp4"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_may_begin_with_the_mark_of_their_encoding(here: Path, mark: str) -> None:
    (here / "prompts.txt").write_text(f"{mark}on Mars\n", encoding="utf-8")
    assert spec.read_prompts(here / "prompts.txt") == ["on Mars"]
    (here / "grid.toml").write_text(f"{mark}seeds = 3\n", encoding="utf-8")
    assert spec.read(here / "grid.toml").seeds == 3


def _of_another_base() -> list[str]:
    copy("koala", "bear", base="animatediff", base_fingerprint="f00d")
    return ["--appearances", "koala,bear"]


def _of_two_bases() -> list[str]:
    copy("koala", "bear", base="animatediff", base_fingerprint="f00d")
    return []


def _lessons_of_two_bases() -> list[str]:
    copy("swimming", "diving", base="animatediff", base_fingerprint="f00d")
    return _lesson()


def _lesson(**changes: object) -> list[str]:
    Path("grid.json").write_text(json.dumps({"learn": {"appearance": {"bear": {"images": "nowhere", **changes}}}}))
    return ["grid.json"]


def _taken(name: str) -> list[str]:
    media.write_png(Path("a.png"), media.read_frames(_clip())[0][0])
    Path("grid.json").write_text(json.dumps({"learn": {"appearance": {name: {"images": "a.png"}}}}))
    return ["grid.json"]


def _clip() -> Path:
    from material import make_clip

    return make_clip(Path("clip.mp4"))


def _file(name: str, text: str) -> list[str]:
    Path(name).write_text(text)
    return [name]


@pytest.mark.parametrize(
    ("prepare", "code", "words"),
    [
        (lambda: ["--appearances", "koala,koalla"], 3, ("'koalla'", "did you mean 'koala'?")),
        (lambda: ["--appearances", "swimming"], 2, ("'swimming' is a motion",)),
        (_of_another_base, 10, ("'bear' was learned on 'animatediff'", "not on")),
        (_of_two_bases, 2, ("of 2 bases", "give --base")),
        (_lessons_of_two_bases, 2, ("of 2 bases", "give --base")),
        (lambda: ["--seeds", "10000000"], 2, ("1 x 1 x 1 x 10,000,000 = 10,000,000 videos", "at most 1,000,000")),
        (lambda: ["--seeds", "0"], 2, ("--seeds is 0",)),
        (lambda: ["--workers", "0"], 2, ("--workers is 0",)),
        (lambda: ["--prompt", "x" * 10_000], 2, ("10,000 characters",)),
        (lambda: ["--prompts", "nowhere.txt"], 3, ("nowhere.txt", "a prompt a line")),
        (lambda: ["--prompts", *_file("empty.txt", "\n")], 2, ("has no prompts",)),
        (lambda: ["--steps", "0"], 2, ("'steps' is 0",)),
        (lambda: ["nowhere.toml"], 3, ("nowhere.toml",)),
        (lambda: _file("grid.toml", "appearances = "), 2, ("'grid.toml' is no grid",)),
        (lambda: _file("grid.json", "[1]"), 2, ("'grid.json' is no grid",)),
        (lambda: _file("grid.json", '{"seeds": []}'), 2, ("no seeds",)),
        (lambda: _file("grid.json", '{"seeds": "many"}'), 2, ("its 'seeds",)),
        (lambda: _file("grid.json", '{"learn": {"motion": {"../x": {"clip": "a.mp4"}}}}'), 2, ("'../x'",)),
        (lambda: _lesson(), 3, ("nowhere",)),
        (lambda: _lesson(steps=0), 2, ("'steps' is 0",)),
        (lambda: _taken("koala"), 4, ("'koala' is in the library already",)),
        (lambda: ["-o", "/proc/x"], 11, ("/proc/x",)),
        (lambda: [*_file("grid.json", '{"seeds": 2}'), "-o", "."], 2, ("'grid.json' is no summary of a grid",)),
        (lambda: _file("grid.json", "mine") and ["-o", "."], 2, ("'grid.json' is no summary of a grid",)),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, prepare: Any, code: int, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr("customttt.opening.open_accelerated", never)
    monkeypatch.setattr("customttt.planner.composing", never)
    assert_one_sentence(run("grid", *prepare()), code, *words)


def test_the_time_left_is_as_foretold_at_first_and_as_measured_then() -> None:
    pace = Pace(Foretold({"adapt": 2, "video": 10}, {"adapt": 5.0, "video": 1.0}, 0, 0, 0), workers=2)
    assert pace.left == pytest.approx((2 * 5 + 10 * 1) / 2)
    pace.note(Outcome(Job("a", "adapt", ""), "done", seconds=10.0))
    assert pace.left == pytest.approx((10 + 10 * 2) / 2), "all are twice as slow as foretold"
    pace.note(Outcome(Job("v", "video", ""), "done", seconds=1.0))
    assert pace.left == pytest.approx((10 + 9 * 1) / 2)
    pace.note(Outcome(Job("w", "video", ""), "known"))
    pace.note(Outcome(Job("x", "video", ""), "skipped"))
    assert pace.left == pytest.approx((10 + 8 * 1) / 2)


# -- several subjects in each video


@pytest.mark.usefixtures("forecasts")
def test_a_further_subject_is_in_every_video_and_is_as_compose_has_it(here: Path) -> None:
    copy("koala", "dog", phrase="dog")
    copy("swimming", "jumping", phrase="jumping")
    (here / "grid.json").write_text(json.dumps({
        "motions": ["swimming"], "prompts": ["on Mars"], "with": ["dog:jumping"],
        "settings": {"places": {"dog": "left"}},
    }))  # fmt: skip
    done = run("grid", "grid.json", "--place", "koala:right", "--place", "dog:left")
    assert done.exit_code == 0, done.output
    assert "1 appearance x 1 motion x 1 prompt x 1 seed, each with dog:jumping: 1 video" in done.stderr
    video = here / done.stdout.strip()
    recipe = VideoRecipe.from_dict(media.read_recipe(video))
    assert recipe.target_prompt == "A koala is swimming and a dog is jumping on Mars."
    places = ("--place", "dog:left", "--place", "koala:right")
    run("compose", "koala", "swimming", "on Mars", "--with", "dog:jumping", *places, "-o", "alone.mp4")
    assert (here / "alone.mp4").read_bytes() == video.read_bytes()
    shown = run("show", video).stdout
    assert all(word in shown for word in ("koala", "swimming", "dog", "jumping", "koala right, dog left"))


@pytest.mark.usefixtures("forecasts")
def test_a_further_subject_can_be_learned_first_and_what_fails_says_what_needed_it(
    here: Path, pictures: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = grid_file(here, pictures, clip, **{"with": ["bear"], "motions": ["swimming"],
                     "prompts": ["{appearance} is {motion} and {bear} is standing"]})  # fmt: skip
    plan = json.loads(run("grid", file, "--dry-run", "--json").stdout)
    assert plan["jobs"] == {"learn": 1, "adapt": 1, "video": 1}, "all that there is, but for who is in each already"

    def diverging(*_: object, **__: object) -> NoReturn:
        raise DivergedError("The loss is nan at step 2.")

    monkeypatch.setattr("customttt.workshop.Workshop.learn", diverging)
    told = lines(run("grid", file, "--json").stdout)
    assert [(one["kind"], one["state"]) for one in told][-2:] == [("adapt", "skipped"), ("video", "skipped")]


@pytest.mark.usefixtures("forecasts")
def test_a_motion_that_comes_after_every_other_is_adapted_to_each_subject_once(here: Path) -> None:
    for name in ("jumping", "diving"):
        copy("swimming", name, phrase=name)
    asked = ("--prompt", "on Mars", "--then", "jumping", "--frames", "8")
    done = run("grid", *asked, "--json")
    assert done.exit_code == 0, done.output
    assert "1 appearance x 2 motions x 1 prompt x 1 seed, each followed by jumping: 2 videos" in done.stderr
    told = lines(done.stdout)
    assert [one["title"] for one in told if one["kind"] == "adapt"] == [
        f"test-time training of koala {motion}" for motion in ("diving", "jumping", "swimming")
    ]
    videos = [here / one["path"] for one in told if one["kind"] == "video"]
    recipes = [VideoRecipe.from_dict(media.read_recipe(video)) for video in videos]
    assert [one.target_prompt for one in recipes] == [
        f"A koala is {motion} and then jumping on Mars." for motion in ("diving", "swimming")
    ]
    run("compose", "koala", "swimming", "on Mars", *asked[2:], "-o", "alone.mp4")
    assert (here / "alone.mp4").read_bytes() == videos[1].read_bytes()
    assert {one["state"] for one in lines(run("grid", *asked, "--json").stdout)} == {"known"}
    videos[0].unlink()
    again = json.loads(run("grid", *asked, "--dry-run", "--json").stdout)
    assert (again["jobs"]["adapt"], again["missing"]) == (3, {"learn": 0, "adapt": 0, "video": 1})


@pytest.mark.usefixtures("forecasts")
def test_a_motion_that_is_not_learned_stops_only_what_it_comes_after(
    here: Path, pictures: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 1, "ttt_steps": 1, "frames": 8}
    file = grid_file(here, pictures, clip, appearances=["koala"], motions=["swimming"], then=["running"],
                     settings=settings)  # fmt: skip

    def diverging(*_: object, **__: object) -> NoReturn:
        raise DivergedError("The loss is nan at step 2.")

    monkeypatch.setattr("customttt.workshop.Workshop.learn", diverging)
    told = {one["title"]: one["state"] for one in lines(run("grid", file, "--json").stdout)}
    assert told == {
        "motion 'running'": "failed",
        "test-time training of koala swimming": "done",
        "test-time training of koala running": "skipped",
        'koala swimming "on Mars", seed 0': "skipped",
    }


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--then", "swimming", "--motions", "swimming"), 2, ("'swimming' comes after every motion",)),
        (("--then", "swimming"), 3, ("The grid has no motion",)),
        (("--then", "koala"), 2, ("'koala' is an appearance",)),
        (("--with", "dog:"), 2, ("A further subject cannot be 'dog:'",)),
        (("--with", "doggg:swimming"), 3, ("no concept 'doggg'",)),
        (("--with", "swimming"), 2, ("'swimming' is a motion",)),
        (("--appearances", "koala", "--with", "koala"), 2, ("'koala' is a subject twice",)),
        (("--with", "koala"), 3, ("The grid has no appearance",)),
        (("--with", "dog"), 2, ("What 'dog' does is not said",)),
        (("--with", "dog:swimming", "--place", "cat:left"), 2, ("'cat' is no subject of this grid",)),
        (("--with", "dog:swimming", "--place", "dog:nowhere"), 2, ("dog:nowhere",)),
        (("--with", "dog:swimming", "--place", "dog:left", "--place", "koala:left"), 2, ("overlap",)),
        (("--apart",), 2, ("nothing to keep it apart from",)),
    ],
)
def test_further_subjects_that_cannot_be_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    copy("koala", "dog", phrase="dog")
    monkeypatch.setattr("customttt.opening.open_accelerated", never)
    monkeypatch.setattr("customttt.planner.composing", never)
    asked = () if "--appearances" in options or options == ("--with", "koala") else ("--appearances", "koala")
    if options == ("--with", "koala"):
        Library().remove("dog")
    assert_one_sentence(run("grid", *asked, *options), code, *words)
