"""The commands on the library: quick, without torch, exact on damage, and careful before they remove."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from material import assert_one_sentence, run, snapshot

from customttt import media
from customttt.concept import Concept, Kind
from customttt.library import Library
from customttt_cli import output, showing


def add(name: str, kind: Kind = "appearance", weights: bytes = b"weights") -> Concept:
    concept = Concept(
        name=name, kind=kind, phrase=name.replace("-", " "), prompt=f"A {name}.", base="tiny", base_fingerprint="f00d",
        layers=(2, 6), rank=4, steps=500, learning_rate=1e-5, seed=0, sources=(), inputs="c" * 64, losses=(0.5,) * 500,
        versions={"torch": "2.6"}, created=datetime.now(UTC), seconds=75.0,
    )  # fmt: skip
    return Library().add(concept, lambda folder: (folder / "lora.safetensors").write_bytes(weights))


@pytest.fixture
def three(home: Path) -> Path:
    add("koala")
    add("teddy-bear")
    add("swimming", "motion")
    return home


def damage(name: str, file: str = "lora.safetensors") -> None:
    (Library().path(name) / file).write_bytes(b"something else")


@pytest.mark.usefixtures("three")
def test_list_shows_name_kind_phrase_base_steps_and_age() -> None:
    done = run("list")
    assert done.exit_code == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["name", "kind", "phrase", "base", "steps", "learned", "preview"]
    assert rows[1] == ["koala", "appearance", "koala", "tiny", "500", "just", "now"]
    assert [row[0] for row in rows[1:]] == ["koala", "swimming", "teddy-bear"]
    assert done.stderr == ""
    assert run("ls").stdout == done.stdout


@pytest.mark.usefixtures("three")
def test_list_can_be_of_one_kind_and_json() -> None:
    found = json.loads(run("list", "--kind", "motion", "--json").stdout)
    assert [(one["name"], one["kind"], one["steps"]) for one in found] == [("swimming", "motion", 500)]
    assert run("list", "--kind", "colour").exit_code == 2


def test_an_empty_library_says_how_to_begin(home: Path) -> None:
    done = run("list")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "customttt learn-appearance" in done.stderr
    assert run("list", "--json").stdout == "[]\n"
    assert not home.exists()


@pytest.mark.usefixtures("three")
def test_damaged_entries_are_listed_as_damaged() -> None:
    damage("koala", "manifest.json")
    done = run("list")
    assert done.exit_code == 0
    assert "koala       damaged" in done.stdout
    assert "swimming" in done.stdout
    assert "koala" in json.loads(run("list", "--json").stdout)[0]["damaged"]


def test_show_tells_how_a_concept_was_learned(three: Path) -> None:
    done = run("show", "teddy-bear")
    assert done.exit_code == 0
    lines = ("teddy-bear", "tiny (fingerprint f00d)", "2, 6", "0.5 at first, 0.5 at last", "1 min 15 s", "torch 2.6")
    for words in (*lines, str(three / "concepts" / "teddy-bear")):
        assert words in done.stdout
    assert json.loads(run("show", "teddy-bear", "--json").stdout)["learning_rate"] == 1e-5


@pytest.mark.usefixtures("learned")
def test_show_tells_how_a_video_was_made(tmp_path: Path) -> None:
    video = tmp_path / "out.mp4"
    assert run("compose", "koala", "swimming", "on Mars", "--no-ttt", "-o", video).exit_code == 0
    done = run("show", video)
    assert done.exit_code == 0
    for words in ("A koala is swimming on Mars.", "none", "2 steps, guidance 2, seed 0", "4 of 64 x 64"):
        assert words in done.stdout
    assert f"customttt compose --recipe {video}" in done.stderr
    assert json.loads(run("show", video, "--json").stdout) == media.read_recipe(video)


@pytest.mark.parametrize(
    ("thing", "code", "words"),
    [
        ("koalla", 3, "did you mean 'koala'?"),
        ("nowhere.mp4", 3, "nowhere.mp4"),
        (__file__, 9, "carries no recipe"),
        ("damaged", 6, "damaged"),
    ],
)
@pytest.mark.usefixtures("three")
def test_show_refuses_what_is_neither(thing: str, code: int, words: str) -> None:
    add("damaged")
    damage("damaged", "manifest.json")
    assert_one_sentence(run("show", thing), code, words)


def test_rename(three: Path) -> None:
    done = run("rename", "koala", "bear")
    assert done.stdout == f"{three / 'concepts' / 'bear'}\n"
    assert [name for name, _ in Library().entries()] == ["bear", "swimming", "teddy-bear"]


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [("koala", "../x", 2), ("koala", "swimming", 4), ("nobody", "x", 3), ("koala", "Swimming", 4)],
)
def test_a_bad_rename_changes_nothing(three: Path, old: str, new: str, code: int) -> None:
    before = snapshot(three)
    assert_one_sentence(run("rename", old, new), code)
    assert snapshot(three) == before


def test_rm_says_what_goes_and_asks(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "interactive", lambda: True)
    before = snapshot(three)
    done = run("rm", "koala", "swimming", stdin="n\n")
    assert (done.exit_code, done.stdout) == (0, "")
    assert str(three / "concepts" / "koala") in done.stderr
    assert done.stderr.endswith("Remove 2 concepts for good? [y/N] Nothing was removed.\n")
    assert snapshot(three) == before
    assert run("rm", "koala", "swimming", stdin="y\n").stdout == "koala\nswimming\n"
    assert [name for name, _ in Library().entries()] == ["teddy-bear"]


def test_rm_does_not_ask_where_nobody_answers(three: Path) -> None:
    before = snapshot(three)
    assert_one_sentence(run("rm", "koala"), 2, "--yes")
    assert_one_sentence(run("rm", "koala", "nobody", "--yes"), 3, "nobody")
    assert run("rm", "koala", "--dry-run").exit_code == 0
    assert snapshot(three) == before
    assert run("rm", "koala", "koala", "--yes").stdout == "koala\n"


@pytest.mark.usefixtures("three")
def test_a_damaged_concept_can_be_removed() -> None:
    damage("koala", "manifest.json")
    assert run("rm", "koala", "--yes").exit_code == 0
    assert run("verify").exit_code == 0


def test_path(three: Path) -> None:
    assert run("path").stdout == f"{three}\n"
    assert run("path", "koala").stdout == f"{three / 'concepts' / 'koala'}\n"
    assert_one_sentence(run("path", "nobody"), 3, "nobody")


@pytest.mark.usefixtures("three")
def test_verify_finds_damage() -> None:
    assert run("verify").stdout == "All 3 concepts are intact.\n"
    damage("koala")
    done = run("verify")
    assert_one_sentence(done, 6, "1 problem found")
    assert "koala: " in done.stdout
    assert "lora.safetensors differs" in done.stdout
    assert run("verify", "koala").exit_code == 6
    assert run("verify", "swimming").stdout == "'swimming' is intact.\n"


LIST = "import sys; sys.argv[1:] = ['list']; from customttt_cli.__main__ import main; main()"


@pytest.mark.usefixtures("three")
def test_list_imports_neither_torch_nor_numpy_nor_another_command() -> None:
    heavy = "torch diffusers transformers peft accelerate numpy PIL imageio_ffmpeg customttt_cli.compose customttt.wish"
    code = f"import atexit, sys; atexit.register(lambda: print(set('{heavy}'.split()) & set(sys.modules)));\n{LIST}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.usefixtures("home")
def test_a_hundred_concepts_are_listed_in_three_times_what_the_libraries_take(tmp_path: Path) -> None:
    """At most: how fast or busy this machine is says nothing about the program."""
    for number in range(100):
        add(f"concept-{number}")
    kept = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    """An installed program is compiled once, not at every start."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def seconds(code: str, lines: int) -> float:
        """Of the processor; it waits for nothing but the disk."""
        before = spent()
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | kept, capture_output=True, text=True, check=True
        )
        assert len(done.stdout.splitlines()) == lines
        return spent() - before

    libraries = "import typer; from pydantic import BaseModel"
    listing, importing = zip(*[(seconds(LIST, 101), seconds(libraries, 0)) for _ in range(7)], strict=True)
    assert min(listing) < 3 * min(importing)


@pytest.mark.parametrize(
    ("seconds", "words"), [(20, "just now"), (61, "1 minute ago"), (7200, "2 hours ago"), (200_000, "2 days ago")]
)
def test_ages_are_in_words(seconds: int, words: str) -> None:
    then = datetime(2025, 1, 1, tzinfo=UTC)
    assert showing.ago(then, datetime.fromtimestamp(then.timestamp() + seconds, UTC)) == words


@pytest.mark.parametrize("asked", [{"NO_COLOR": "1"}, {}])
@pytest.mark.usefixtures("home")
def test_colour_is_for_terminals_that_want_it(asked: dict[str, str]) -> None:
    """On a pseudo-terminal an error is red, unless NO_COLOR is set; in a pipe it never is."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    command = [sys.executable, "-m", "customttt_cli", "show", "nobody"]
    subprocess.run(command, stderr=theirs, env={**environment, "TERM": "xterm", **asked}, check=False)
    shown = os.read(ours, 4096)
    assert (b"\x1b[31m" in shown) != bool(asked)
    assert b"\x1b" not in run("show", "nobody").stderr_bytes
