"""Where files are written: never over what is not a file of the user's, and nothing is left beside them."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from material import assert_one_sentence, run, snapshot

from customttt import lora
from customttt.errors import StoreError, UsageError
from customttt.library import Library
from customttt.media import outputs
from customttt.ui.desk import Desk
from customttt.ui.studio import Studio

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


def test_temporary_files_are_of_one_user_and_cleared_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f".customttt-{GONE}-22222222" / "uploads"
    left.mkdir(parents=True)
    os.utime(left.parent, (0, 0))
    studio = Studio(Library(), Desk(), tmp_path / "videos")
    assert [studio.passing] == [*tmp_path.glob(".customttt-*")]
    assert stat.S_IMODE(studio.passing.stat().st_mode) == 0o700


@pytest.mark.usefixtures("learned")
def test_what_safetensors_leaves_where_it_is_killed_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes to a file of its own beside the one that it is given."""

    def killed(_: object, path: Path, *__: object) -> None:
        (path.parent / ".tmpXXXXXX").write_text("half")
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(lora, "save_file", killed)
    assert run("export", "koala", "--format", "diffusers", "-o", tmp_path / "out" / "koala").exit_code == 130
    assert not any((tmp_path / "out").iterdir())


# -- folders, which are replaced as one


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "recipe.json").write_text(text)
    return path


def write(path: Path, text: str) -> None:
    with outputs.placed(path) as aside:
        folder(aside, text)


class Killed(BaseException):
    """In place of a signal that ends the process at once: nothing is tidied up."""


def kill(*_: object) -> None:
    raise Killed


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="there is no such step")
def test_a_folder_changes_places_with_the_new_one_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "video", "old")
    monkeypatch.setattr(Path, "rename", kill)
    monkeypatch.setattr(Path, "replace", kill)
    write(path, "new")
    assert snapshot(tmp_path) == {"video/recipe.json": b"new"}


@pytest.mark.parametrize("begin", [outputs.check_output, lambda path: write(path, "newer")], ids=["checked", "written"])
def test_a_folder_is_put_back_where_a_process_was_killed_between_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable[[Path], object]
) -> None:
    path = folder(tmp_path / "video", "old")
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "_exchanged", lambda *_: False)
        patch.setattr(outputs, "_remove", lambda path: kill() if path.exists() else None)
        patch.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            write(path, "new")
    assert not path.exists()
    begin(path)
    assert (path / "recipe.json").read_text() in ("old", "newer")
    assert not outputs._older(path).exists()


def test_a_folder_is_replaced_where_there_is_no_such_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_exchanged", lambda *_: False)
    write(folder(tmp_path / "video", "old"), "new")
    assert snapshot(tmp_path) == {"video/recipe.json": b"new"}


# -- names and messages


LONG = "x" * 300
DEEP = "/tmp/" + "/".join(["y" * 200] * 25)


@pytest.mark.parametrize("name", [LONG, f"{LONG}.mp4", DEEP, f"{DEEP}/a.mp4"], ids=["name", "file", "path", "in path"])
@pytest.mark.parametrize(
    "command",
    [
        "show", "evaluate", "import", "learn-appearance k", "learn-motion k", "compose --recipe",
        "evaluate a.mp4 --prompt x --clip", "evaluate a.mp4 --prompt x --images", "learn-motion k a.mp4 --base",
        "compose koala swimming -o", "compare koala swimming on -o", "export koala -o",
    ],
)  # fmt: skip
def test_a_name_that_is_too_long_is_found_at_the_start(command: str, name: str) -> None:
    assert_one_sentence(run(*command.split(), name), 2, "is longer than the file system takes")


@pytest.mark.parametrize("command", ["list", "verify", "doctor", "path", "show koala"])
def test_a_library_whose_path_is_too_long_is_found_at_the_start(command: str) -> None:
    for home in (LONG, DEEP):
        done = run(*command.split(), env={"CUSTOMTTT_HOME": home})
        assert_one_sentence(done, 2, "is longer than the file system takes")


def test_what_is_written_beside_a_long_path_is_no_longer_than_it_can_be(tmp_path: Path) -> None:
    path = tmp_path
    while len(str(path)) < 4096 - 210:
        path /= "y" * 200
    path /= "z" * (4096 - len(str(path)) - 4)
    with pytest.raises(UsageError, match="is longer than the file system takes"):
        outputs.check_output(path)


@pytest.mark.parametrize(
    ("code", "advice"),
    [(errno.ENOSPC, "make room or go elsewhere"), (errno.EACCES, "go elsewhere"), (None, "go")],
)
def test_room_is_asked_for_where_it_is_missing(tmp_path: Path, code: int | None, advice: str) -> None:
    with pytest.raises(StoreError, match=rf"; {advice}"), outputs.placed(tmp_path / "a"):
        raise OSError(code, os.strerror(code)) if code else OSError("ffmpeg gives no reason")
