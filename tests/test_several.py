"""Pairs on `tiny`: what is counted of two subjects in one video, and that nothing is made twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_recipe import DOG, JUMPING, recipe

from customttt.lab import several
from customttt.lab.lessons import Content, render
from customttt.lab.several import ALONE, MEASURES, WAYS, Case
from customttt.media import Frames
from customttt.recipe import Subject, VideoRecipe
from customttt.tiny.world import Look
from customttt.video import to_frames
from customttt.workshop import Workshop

CELL = Case(0, "on Mars", 0)


def clip(first: Look, second: Look) -> Frames:
    """The truth of the first combination, in these looks."""
    (noun, _, movement), (other, _, how) = CELL.actors
    both = Content(noun, movement, CELL.scene, first, Content(other, how, "", second))
    return to_frames(render([both], 3, vary=0.0).video)


def test_the_judge_tells_who_is_there_and_in_whose_look() -> None:
    (_, look, _), (_, other, _) = CELL.actors
    right, wrong = several.judged(clip(look, other), CELL), several.judged(clip(other, look), CELL)
    assert (right["all"], right["swapped"], wrong["all"], wrong["swapped"]) == (1, 0, 1, 1)
    assert right["identity"] > wrong["identity"] + 0.2
    assert right["scene"] == right["movement"] == 1
    assert right["track"] > 0.8
    assert right.keys() == MEASURES.keys()


def test_of_three_the_judge_sees_a_third_of_the_frame_at_a_time() -> None:
    cell = Case(5, "on Mars", 0, 3)
    shown = several.truth(cell)
    scores, mirrored = several.judged(shown, cell), several.judged(np.ascontiguousarray(shown[:, :, ::-1]), cell)
    assert (scores["all"], scores["sides"], scores["scene"], scores["swapped"]) == (1, 1, 1, 0)
    assert min(scores["identity"], scores["track"]) > 0.85
    assert mirrored["sides"] == 0


def test_ten_combinations_each_have_two_subjects_with_movements_of_their_own() -> None:
    pairs = [Case(number, "", 0).actors for number in range(10)]
    assert len({*pairs}) == 10
    assert all(first[0] != second[0] and first[2] != second[2] for first, second in pairs)


def test_a_table_has_a_row_each_way_with_intervals_over_combinations() -> None:
    scores = {"direct": {Case(number, "", 0): dict.fromkeys(MEASURES, float(number)) for number in range(2)}, "x": {}}
    scores[ALONE] = {CELL: {"identity": 0.5}}
    lines = list(several.table(scores))
    assert len(lines) == 4
    assert lines[2].startswith("| direct | 2 | 0.50 (0.00 to 1.00) |")
    assert lines[3].count("|  ") == len(MEASURES) - 1


def test_what_is_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a workshop that renders the truth, and learns nothing."""
    (_, look, _), (_, other, _) = CELL.actors
    truth, composed = clip(look, other), []

    def compose(_: Workshop, recipe: VideoRecipe) -> Frames:
        composed.append(recipe.place)
        return truth

    monkeypatch.setattr(Workshop, "compose", compose)
    run = several.Trials(object.__new__(Workshop), tmp_path)
    monkeypatch.setattr(several.Trials, "_recipe", lambda *_: recipe(others=(Subject(DOG, JUMPING),)))
    made = [run.measured(CELL, way) for way in WAYS]
    assert composed == ["", "left", "", "", "left", ""]
    assert [run.measured(CELL, way) for way in WAYS] == made
    alone = run.measured(CELL, ALONE)
    assert len(composed) == 8
    assert "swapped" not in alone
    assert len(list((tmp_path / "seen").iterdir())) == 7
