"""Videos: what is written comes back with its recipe, and a place that is no good is found before any work."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import imageio_ffmpeg
import numpy as np
import pytest
from footage import OUTPUTS, RECIPE, animate, encode, moving, ramp, which
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from customttt import media
from customttt.errors import AlreadyExistsError, MediaError, NotFoundError, StoreError, UsageError
from customttt.media import check_output, ffmpeg, outputs, read_clip, read_frames, read_recipe, write_video


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("shape", [(8, 48, 64), (5, 33, 47)])
def test_a_video_comes_back(tmp_path: Path, name: str, shape: tuple[int, int, int]) -> None:
    path, frames = tmp_path / "new" / name, moving(*shape)
    check_output(path)
    write_video(path, frames, 8, RECIPE)
    back, fps = read_frames(path)
    assert back.shape == frames.shape
    assert back.dtype == np.uint8
    assert fps == 8
    difference = np.abs(back.astype(int) - frames)
    assert difference.mean() < {"a.mp4": 2, "a.gif": 3, "a.webp": 2, "frames": 1e-9}[name]
    assert [file.name for file in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_recipe_comes_back(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, ramp(2), 8, RECIPE)
    assert read_recipe(tmp_path / name) == RECIPE


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_long_recipe_comes_back(tmp_path: Path, name: str) -> None:
    long = {"losses": "0.5=;#\\" * 50_000}
    write_video(tmp_path / name, ramp(2), 8, long)
    assert read_recipe(tmp_path / name) == long


def test_one_png_of_a_folder_carries_the_recipe_too(tmp_path: Path) -> None:
    write_video(tmp_path / "frames", ramp(2), 8, RECIPE)
    assert sorted(file.name for file in (tmp_path / "frames").iterdir()) == [
        "0000.png",
        "0001.png",
        "recipe.json",
    ]
    assert read_recipe(tmp_path / "frames" / "0001.png") == RECIPE


@pytest.mark.parametrize("name", OUTPUTS)
def test_frames_that_stand_still_are_all_there(tmp_path: Path, name: str) -> None:
    frames = ramp(24)[[0] * 5 + [12] + [20] * 17 + [3]]
    write_video(tmp_path / name, frames, 8, {})
    back, _ = read_frames(tmp_path / name)
    assert np.abs(back.astype(int) - frames).max() <= 4


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp"])
def test_a_video_plays_at_its_rate(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, ramp(24), 12, {})
    clip = read_clip(tmp_path / name, 24, 12, 32)
    assert clip.fps == pytest.approx(12, rel=0.02)
    assert which(clip) == pytest.approx(list(range(24)), abs=1)


def test_an_mp4_is_one_that_browsers_play(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, ramp(4), 8, RECIPE)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)]
    told = subprocess.run(command, capture_output=True, check=False).stderr.decode()
    assert "Video: h264" in told
    assert "yuv420p(tv, bt709" in told
    assert "8 fps" in told
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_same_frames_make_the_same_file(tmp_path: Path, name: str) -> None:
    for folder in ("one", "two"):
        write_video(tmp_path / folder / name, moving(4), 8, RECIPE)
    first, second = (sorted((tmp_path / folder).rglob("*.*")) for folder in ("one", "two"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_failed_write_leaves_the_older_video(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / name, moving(4), 8, {"number": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        patch.setattr(os, "rename", refuse)
        patch.setattr(outputs, "_exchanged", lambda *_: False)
        with pytest.raises(StoreError, match="No space left on device"):
            write_video(tmp_path / name, ramp(4), 8, {"number": 2})
    assert [file.name for file in tmp_path.iterdir() if file.name != "home"] == [name]
    assert read_recipe(tmp_path / name) == {"number": 1}
    write_video(tmp_path / name, ramp(2), 8, {"number": 3})
    assert read_recipe(tmp_path / name) == {"number": 3}
    assert [file.name for file in tmp_path.iterdir() if file.name != "home"] == [name]


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_ffmpeg_could_not_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = subprocess.CompletedProcess([], 1, b"", b"[out#0/mp4 @ 0x1] [x @ 2] No space left on device\n")
    monkeypatch.setattr(ffmpeg, "run", lambda *_, **__: broken)
    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\)"):
        write_video(tmp_path / "a.mp4", ramp(2), 8, {})
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize("name", ["x" * 251 + ".mp4", "ä" * 125 + ".webp", "x" * 255])
def test_the_longest_name_that_the_system_takes_is_written(tmp_path: Path, name: str) -> None:
    for _ in range(2):  # the second replaces the first
        check_output(tmp_path / name)
        write_video(tmp_path / name, ramp(2), 8, RECIPE)
        assert read_recipe(tmp_path / name) == RECIPE
    assert [file.name for file in tmp_path.iterdir() if file.name != "home"] == [name]


@pytest.mark.parametrize(
    "name", ["x" * 252 + ".mp4", "ä" * 126 + ".mp4", "x" * 256, "new/" + "x" * 256 + "/a.mp4", "a/" * 2100 + "b.mp4"]
)
def test_a_name_that_is_too_long_is_found_before_any_work(tmp_path: Path, name: str) -> None:
    for write in (check_output, lambda path: write_video(path, ramp(2), 8, {})):
        with pytest.raises(
            UsageError, match=r"^The name '.*bytes, is longer than the file system takes; give a shorter one\.$"
        ):
            write(tmp_path / name)


@pytest.mark.parametrize("name", [".mp4", ".GIF", "new/.webp", ".mov", ".png"])
def test_a_suffix_alone_is_no_name(tmp_path: Path, name: str) -> None:
    for write in (check_output, lambda path: write_video(path, ramp(2), 8, {})):
        with pytest.raises(
            UsageError, match=rf"is a suffix without a name; give one such as video\{Path(name).name}\.$"
        ):
            write(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["", ".", "..", "/", "new/.."])
def test_a_place_without_a_name_of_its_own_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (check_output, lambda path: write_video(path, ramp(2), 8, {})):
        with pytest.raises(
            UsageError, match=r"has no name of its own; name a file such as video\.mp4, or a new folder"
        ):
            write(Path(name))


def test_a_hidden_folder_is_a_folder(tmp_path: Path) -> None:
    write_video(tmp_path / ".frames", ramp(2), 8, RECIPE)
    assert read_recipe(tmp_path / ".frames") == RECIPE


@pytest.mark.parametrize("name", ["a.avi", "a.MOV", "a.png", "a.mp4.txt"])
def test_an_unknown_suffix_is_refused(tmp_path: Path, name: str) -> None:
    for write in (check_output, lambda path: write_video(path, ramp(2), 8, {})):
        with pytest.raises(UsageError, match=r"must end in \.mp4, \.gif or \.webp, or be a folder"):
            write(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    check_output(tmp_path / "frames")
    (tmp_path / "frames" / "thesis.tex").touch()
    for write in (check_output, lambda path: write_video(path, ramp(2), 8, {})):
        with pytest.raises(AlreadyExistsError, match="holds other files"):
            write(tmp_path / "frames")


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "frames").touch()
    with pytest.raises(UsageError):
        check_output(tmp_path / "frames")


def test_checking_an_output_leaves_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "deeper" / "a.mp4")
    check_output(tmp_path / "NEW.MP4")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        check_output(tmp_path / "file" / "a.mp4")
    with pytest.raises(StoreError):
        write_video(tmp_path / "file" / "a.mp4", ramp(2), 8, {})
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(StoreError, match=r"'.*a\.mp4' cannot be written \(No space left on device\)"):
        check_output(tmp_path / "a.mp4")


def test_a_video_of_others_carries_no_recipe(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", ramp(3), 8, "-metadata", "comment=hello")
    encode(tmp_path / "b.mp4", ramp(3), 8, "-metadata", 'comment={"a": 1}')
    animate(tmp_path / "c.gif", ramp(3), [100] * 3)
    animate(tmp_path / "d.webp", ramp(3), [100] * 3)
    encode(tmp_path / "e.webm", ramp(3), 8, "-c:v", "libvpx")
    (tmp_path / "f.txt").write_text("hello")
    (tmp_path / "g").mkdir()
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "recipe.json").write_bytes("Crème brûlée".encode("latin-1"))
    images = [Image.fromarray(frame) for frame in ramp(3)]
    images[0].save(tmp_path / "i.gif", save_all=True, append_images=images[1:], comment="Köln".encode("latin-1"))
    chunk = PngInfo()
    chunk.add_text("comment", "Created with a program")
    images[0].save(tmp_path / "j.png", pnginfo=chunk)
    encode(tmp_path / "k.avi", ramp(3), 8, "-c:v", "mpeg4", "-metadata", "comment=Koeln!")
    (tmp_path / "k.avi").write_bytes((tmp_path / "k.avi").read_bytes().replace(b"Koeln!", b"K\xf6ln!!"))
    for path in tmp_path.iterdir():
        for read in (read_recipe, read_frames):
            with pytest.raises(MediaError, match="carries no recipe"):
                read(path)
    with pytest.raises(NotFoundError):
        read_recipe(tmp_path / "none.mp4")


def test_a_comment_of_another_program_hides_no_recipe(tmp_path: Path) -> None:
    write_video(tmp_path / "frames", ramp(2), 8, RECIPE)
    with Image.open(tmp_path / "frames" / "0001.png") as image:
        chunk = PngInfo()
        chunk.add_text("comment", "Cropped")
        chunk.add_text("customttt", image.info["customttt"])
        image.save(tmp_path / "a.png", pnginfo=chunk)
    assert read_recipe(tmp_path / "a.png") == RECIPE


def test_a_note_that_lies_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "frames", ramp(2), 8, {})
    for note in (
        {"shape": [3, 48, 64, 3], "fps": 8},
        {"shape": "x", "fps": 8},
        {"fps": 8},
        {"shape": [2, 48, 64, 3]},
    ):
        (tmp_path / "frames" / "recipe.json").write_text(json.dumps({"customttt": {}, **note}))
        with pytest.raises(MediaError):
            read_frames(tmp_path / "frames")


def test_a_picture_comes_back_as_it_was_written(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    media.write_png(tmp_path / "one.png", pixels)
    assert np.array_equal(media.read_png(tmp_path / "one.png"), pixels)
