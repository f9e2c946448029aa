"""Where files are written: never over what is not a file of the user's, and nothing is left beside them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from material import assert_one_sentence, run, snapshot

from customttt.errors import UsageError
from customttt.library import Library
from customttt.media import outputs

GONE = 2**22 + 1  # above the largest process number of Linux


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="there is no such device")
def test_a_device_is_no_output(learned: Path) -> None:  # noqa: ARG001
    assert_one_sentence(run("compose", "koala", "swimming", "-o", "/dev/null"), 2, "a device or a pipe")
    assert_one_sentence(run("export", "koala", "-o", "/dev/null"), 2, "a device or a pipe")
    assert Path("/dev/null").is_char_device()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_is_no_output(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "video.mp4")
    with pytest.raises(UsageError, match="a device or a pipe"):
        outputs.check_output(tmp_path / "video.mp4")


def test_an_export_never_writes_into_the_library(learned: Path) -> None:
    before = snapshot(learned)
    own = Library(learned).path("koala") / "lora.safetensors"
    assert_one_sentence(run("export", "koala", "--format", "diffusers", "-o", own), 2, "inside the library")
    assert snapshot(learned) == before


@pytest.mark.usefixtures("learned")
def test_a_video_is_not_rendered_over_its_own_recipe(tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    assert run("compose", "koala", "swimming", "-o", video).exit_code == 0
    before = video.read_bytes()
    assert_one_sentence(run("compose", "--recipe", video, "-o", video), 2, "--recipe names")
    assert video.read_bytes() == before


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    kept = {f".customttt-{os.getpid()}-00000000": 0, f".customttt-{GONE}-11111111": 0, ".customttt-notes": 10**4}
    cleared = {f".customttt-{GONE}-22222222": 10**4, f".customttt-{GONE}-33333333": 10**4}
    for name, age in {**kept, **cleared}.items():
        path = tmp_path / name
        path.mkdir() if name.endswith("3") else path.write_text("half")
        written = path.stat().st_mtime - age
        os.utime(path, (written, written))
    with outputs.placed(tmp_path / "file") as aside:
        aside.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file", *kept}
