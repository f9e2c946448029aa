"""After a movement is learned, two videos say whether it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from material import run

from customttt.library import Library
from customttt_cli import trial


def test_a_movement_is_tried_out_once_it_is_stored(tiny_random_base: Path, clip: Path) -> None:
    done = run("learn-motion", "swimming", clip, "--base", tiny_random_base)
    assert done.exit_code == 0, done.output
    assert "Tried out in 2 videos: they move like the clip by " in done.stderr
    assert done.stderr.index("Learned 'swimming'") < done.stderr.index("Tried out") < done.stderr.index("Next:")


@pytest.mark.parametrize("said", [(), ("--prompt", "Something is running and then jumping.")])
def test_the_judge_of_a_judged_base_says_how_the_videos_move(
    tiny_random_base: Path, clip: Path, tmp_path: Path, said: tuple[str, ...]
) -> None:
    import shutil

    base = shutil.copytree(tiny_random_base, tmp_path / "judged")
    settings = json.loads((base / "customttt.json").read_text())
    (base / "customttt.json").write_text(json.dumps({**settings, "judged": True}))
    done = run("learn-motion", "swimming", clip, "--base", base, *said)
    assert done.exit_code == 0, done.output
    assert "Tried out in 2 videos: they move like the clip by " in done.stderr


def test_a_movement_that_was_not_learned_is_said_to_be_so(capsys: pytest.CaptureFixture[str]) -> None:
    trial._tell(0.93)
    assert "not learned" not in capsys.readouterr().err
    trial._tell(0.31)
    told = capsys.readouterr().err
    assert "0.31 of 1" in told
    assert "The movement was not learned." in told


def test_a_movement_that_is_stored_is_not_called_unfinished(
    tiny_random_base: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("customttt.checkpoint.EVERY_SECONDS", 0.0)
    monkeypatch.setattr("customttt.compose.try_out", interrupted)
    done = run("learn-motion", "swimming", clip, "--base", tiny_random_base)
    assert done.exit_code == 130
    assert "Interrupted; only what is printed above was done." in done.stderr
    assert Library().get("swimming", "motion")


@pytest.mark.usefixtures("no_memory_to_try_out")
def test_a_concept_is_kept_where_there_is_no_memory_to_try_it_out(tiny_random_base: Path, clip: Path) -> None:
    done = run("learn-motion", "swimming", clip, "--base", tiny_random_base)
    assert done.exit_code == 0, done.output
    assert "not enough memory" in done.stderr
    assert Library().get("swimming", "motion")
