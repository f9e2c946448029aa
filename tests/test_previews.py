"""What an entry shows of itself: there after learning, never in the way of the weights, and harmless in an import."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from material import assert_one_sentence, run, snapshot
from test_library import concept, kills

from customttt import media, previews
from customttt.concept import Concept
from customttt.errors import DamagedError, NotFoundError
from customttt.interchange import exchange, parcel
from customttt.interchange.exchange import Home
from customttt.library import WEIGHTS, Library

FRAMES = np.full((4, 32, 48, 3), 90, np.uint8)


def write(folder: Path) -> None:
    previews.write(folder, FRAMES, 8, [3.0, 2.0, 1.0], FRAMES)


@pytest.mark.usefixtures("learned")
def test_what_is_learned_is_shown_by_list_show_and_a_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    koala, swimming = Library().get("koala"), Library().get("swimming")
    assert koala.previews == ["preview.png", "losses.png", "inputs.png"]
    assert swimming.previews == ["preview.mp4", "losses.png", "inputs.png"]
    folder = Library().path("swimming")
    assert len(media.read_frames(folder / "preview.mp4")[0]) == 4
    assert media.read_png(folder / "inputs.png").shape == (64, 4 * 68 - 4, 3)
    rows = {line.split()[0]: line.split()[-1] for line in run("list").stdout.splitlines()}
    assert rows == {"name": "preview", "koala": "preview.png", "swimming": "preview.mp4"}
    assert "preview.mp4, losses.png, inputs.png" in run("show", "swimming").stdout
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", lambda path: opened.append(path) or 0)
    assert run("show", "swimming", "--open").exit_code == 0
    assert opened == [str(folder / "preview.mp4")]
    assert run("verify").exit_code == 0


@pytest.mark.usefixtures("learned")
def test_what_cannot_be_opened_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> NoReturn:
        raise FileNotFoundError("xdg-open")

    monkeypatch.setattr("typer.launch", nothing)
    assert_one_sentence(run("show", "koala", "--open"), 2, "no viewer", "preview.png")
    koala, library = Library().get("koala"), Library()
    content = library.weights("koala").read_bytes()
    library.add(koala, lambda folder: (folder / WEIGHTS).write_bytes(content), force=True)
    assert_one_sentence(run("show", "koala", "--open"), 3, "'koala' has no preview")


@pytest.fixture
def bare(home: Path) -> Callable[[], Concept]:
    """Puts a koala without previews into the library."""
    return lambda: Library(home).add(concept(), lambda folder: (folder / WEIGHTS).write_bytes(b"weights"), force=True)


def test_a_killed_attach_leaves_the_entry_with_all_of_it_or_as_it_was(bare: Callable[[], Concept]) -> None:
    library, koala = Library(), bare()
    states = set()
    for _ in kills(lambda: library.attach(koala, lambda folder: (folder / "preview.png").write_bytes(b"x")), bare):
        assert library.weights("koala").read_bytes() == b"weights"
        assert library.verify() == []
        states.add(len(library.get("koala").previews))
    assert states == {0, 1}


def test_nothing_is_put_beside_another_concept(bare: Callable[[], Concept]) -> None:
    library, koala = Library(), bare()
    library.add(koala.model_copy(update={"steps": 7}), lambda folder: (folder / WEIGHTS).write_bytes(b"x"), force=True)
    before = snapshot(library.root)
    with pytest.raises(NotFoundError, match="learned again meanwhile"):
        library.attach(koala, write)
    assert snapshot(library.root) == before


@pytest.mark.usefixtures("learned")
def test_an_export_takes_the_preview_along_and_leaves_the_inputs(tmp_path: Path, travel_home: Home) -> None:
    library, koala = Library(), Library().get("koala")
    exchange.export(library, koala, "customttt", tmp_path / "koala.customttt")
    found = parcel.read(tmp_path / "koala.customttt")
    assert set(found.members) == {WEIGHTS, "preview.png", "losses.png"}
    added = exchange.admit(found, travel_home, "again").add_to(library)
    assert added.previews == ["preview.png", "losses.png"]
    assert added.files.items() < koala.files.items()


@pytest.mark.usefixtures("learned")
@pytest.mark.parametrize("name", ["preview.png", "preview.mp4"])
def test_a_strangers_preview_that_is_none_is_refused(name: str, tmp_path: Path, travel_home: Home) -> None:
    library, koala = Library(), Library().get("koala")
    exchange.export(library, koala, "customttt", tmp_path / "koala.customttt")
    found = parcel.read(tmp_path / "koala.customttt")
    bad = dataclasses.replace(found, members={**found.members, name: b"<script>alert(1)</script>"})
    before = snapshot(library.root)
    with pytest.raises(DamagedError, match="preview cannot be shown"):
        exchange.admit(bad, travel_home, "again").add_to(library)
    assert snapshot(library.root) == before


@pytest.mark.usefixtures("no_memory_to_try_out")
def test_no_memory_for_a_preview_costs_the_preview_alone(tiny_random_base: Path, pictures: Path) -> None:
    done = run("learn-appearance", "koala", pictures, "--base", tiny_random_base)
    assert done.exit_code == 0, done.output
    assert "The preview was left out" in done.stderr
    assert Library().get("koala").previews == ["losses.png", "inputs.png"]


def test_a_strip_has_eight_small_pictures_at_most_and_a_chart_its_numbers() -> None:
    many = np.zeros((30, 300, 200, 3), np.uint8)
    assert previews.strip(many).shape == (128, 8 * (85 + 4) - 4, 3)
    assert previews.strip(FRAMES[:1]).shape == (32, 48, 3)
    assert previews.chart([3.0, 2.0, 1.0]).shape == (200, 480, 3)
    assert (previews.chart([1.0] * 500) != 255).any()
