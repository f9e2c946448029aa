"""Pictures, clips and videos: what is written comes back, what is broken is refused in one sentence."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from customttt import media
from customttt.errors import AlreadyExistsError, MediaError, NotFoundError, StoreError, UsageError
from customttt.media import (
    Clip,
    Frames,
    Pixels,
    check_output,
    read_clip,
    read_frames,
    read_pictures,
    read_recipe,
    write_png,
    write_video,
)

RECIPE = {
    "prompt": "A \"koala\" swims;\n# on = Mars\\ at 100%, 狐 \u2028 \x00 \t 'x' \\n [é]",
    "seed": 7,
    "scale": 1.5,
    "nothing": None,
    "nested": {"layers": [2, 6], "=": "=;#\\", "": ""},
}
OUTPUTS = ["a.mp4", "a.gif", "a.webp", "frames"]


def halves(height: int = 64, width: int = 96) -> Pixels:
    """The left half red, the right half blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return pixels


def ramp(count: int, height: int = 48, width: int = 64) -> Frames:
    """Frames of one grey each, 10, 14, 18 ...: which frame was taken can be told from its brightness."""
    greys = 10 + 4 * np.arange(count)
    return np.broadcast_to(greys[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def moving(count: int, height: int = 48, width: int = 64) -> Frames:
    """A white square that moves to the right over a gradient."""
    across = np.linspace(0, 200, width)[None, :, None] * np.ones((height, 1, 3))
    frames = np.stack([across] * count).astype(np.uint8)
    for index in range(count):
        frames[index, 10:20, 2 * index : 2 * index + 10] = 255
    return frames


def which(clip: Clip) -> list[int]:
    """The numbers of the `ramp` frames in a clip."""
    return [round((float(frame.mean()) - 10) / 4) for frame in clip.frames]


def ffmpeg(*arguments: str, stdin: bytes = b"") -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments]
    subprocess.run(command, input=stdin, check=True, capture_output=True)


def encode(path: Path, frames: Frames, fps: float, *options: str) -> Path:
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-framerate", str(fps), "-i", "-")
    ffmpeg(*source, "-pix_fmt", "yuv420p", "-threads", "1", *options, str(path), stdin=frames.tobytes())
    return path


def animate(path: Path, frames: Frames, durations: Sequence[int]) -> Path:
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=list(durations), lossless=True)
    return path


# -- pictures


def test_a_folder_of_pictures_is_read_in_order_with_its_captions(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.webp", "d.jpeg"):
        Image.fromarray(halves()).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("\ufeff a red koala 狐\n\nit sits", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n")
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "._a.png").write_bytes(b"left by a Mac")
    pictures = read_pictures([tmp_path], 32)
    assert [picture.name for picture in pictures] == ["a.png", "b.JPG", "c.webp", "d.jpeg"]
    assert [picture.captions for picture in pictures] == [("a red koala 狐", "it sits"), (), (), ()]
    assert {picture.pixels.shape for picture in pictures} == {(32, 32, 3)}
    assert {picture.pixels.dtype for picture in pictures} == {np.dtype(np.uint8)}
    assert len({picture.sha256 for picture in pictures}) == 3  # b and d are the same file


def test_files_and_folders_can_be_mixed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "z.png", tmp_path / "folder" / "a.png"):
        Image.fromarray(halves()).save(path)
    pictures = read_pictures([tmp_path / "z.png", tmp_path / "folder"], (40, 60))
    assert [picture.name for picture in pictures] == ["z.png", "a.png"]
    assert pictures[0].pixels.shape == (40, 60, 3)


def test_the_centre_is_cropped_and_fit_keeps_all(tmp_path: Path) -> None:
    pixels = np.full((64, 192, 3), 200, np.uint8)
    pixels[:, 64:128] = 10
    write_png(tmp_path / "a.png", pixels)
    cropped = read_pictures([tmp_path], 64)[0].pixels
    assert (cropped == 10).all()
    fitted = read_pictures([tmp_path], 96, fit=True)[0].pixels
    assert fitted[48, 48, 0] < 20
    assert fitted[48, 5, 0] > 190
    edge = (2 * (128 * 200 + 64 * 10) + 2 * 64 * 200) / (2 * 192 + 2 * 64)
    assert abs(float(fitted[2, 48, 0]) - edge) <= 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.rot90(halves(64, 64), turns)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = read_pictures([tmp_path], 64)[0].pixels.astype(int)
    assert np.abs(pixels[:, [4, 60]] - halves(64, 64)[:, [4, 60]]).max() < 20


def as_mode(mode: str) -> Image.Image:
    image = Image.fromarray(halves())
    if mode == "I;16":
        return Image.fromarray(np.full((64, 96), 0x4080, np.uint16))
    if mode in ("RGBA", "LA", "PA"):
        image.putalpha(0)
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("RGB", "png", (255, 0, 0)),
        ("CMYK", "jpg", (255, 0, 0)),
        ("L", "png", (76, 76, 76)),
        ("1", "png", None),
        ("P", "png", (255, 0, 0)),
        ("RGBA", "png", (255, 255, 255)),
        ("LA", "png", (255, 255, 255)),
        ("RGBA", "webp", (255, 255, 255)),
        ("I;16", "png", (64, 64, 64)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str, expected: tuple[int, ...]) -> None:
    as_mode(mode).save(tmp_path / f"a.{suffix}")
    pixels = read_pictures([tmp_path], 64)[0].pixels
    assert pixels.shape == (64, 64, 3)
    if expected:
        assert np.abs(pixels[32, 4].astype(int) - expected).max() < 6


def test_a_transparent_palette_becomes_white(tmp_path: Path) -> None:
    image = Image.fromarray(halves()).quantize(4)
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    assert (read_pictures([tmp_path], 64)[0].pixels[32, 4] == 255).all()


def png_header(width: int, height: int) -> bytes:
    """A png that claims a size and holds no pixel."""
    file = io.BytesIO()
    PngImagePlugin.putchunk(file, b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big"), b"\x08\x02\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + file.getvalue() + b"\0\0\0\0IDAT"


def saved(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


NOISE = Image.effect_noise((64, 64), 80)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'a.png' is no JPEG or PNG or WEBP picture"),
        (b"#EXTM3U\n", "is no JPEG or PNG or WEBP picture"),
        (saved(Image.new("RGB", (64, 64)), "BMP"), "is no JPEG or PNG or WEBP picture"),
        (saved(NOISE)[:-200], "'a.png' cannot be read, it is cut off or damaged"),
        (saved(NOISE, "JPEG")[:-200], "cut off or damaged"),
        (saved(NOISE, "WEBP")[:-200], "cut off or damaged"),
        (saved(NOISE)[:60] + b"xxxx" + saved(NOISE)[64:], "cut off or damaged"),
        (saved(Image.new("RGB", (1, 1))), "'a.png' is 1x1 pixels; use one of at least 32x32"),
        (saved(Image.new("RGB", (500, 31))), "is 500x31 pixels; use one of at least 32x32"),
        (png_header(10_001, 10_000), "'a.png' has over 100 megapixels; make it smaller"),
        (png_header(2**30, 2**30), "over 100 megapixels"),
    ],
)
def test_what_is_no_usable_picture_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MediaError, match=message):
            read_pictures([tmp_path], 64)


def test_missing_pictures_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="There is no picture"):
        read_pictures([tmp_path / "none"], 64)
    with pytest.raises(MediaError, match=r"has no \.jpg, \.jpeg, \.png or \.webp picture"):
        read_pictures([tmp_path], 64)
    with pytest.raises(MediaError, match="There are 0 pictures"):
        read_pictures([], 64)
    with pytest.raises(MediaError, match="is a URL; download it first"):
        read_pictures([Path("https://example.org/a.png")], 64)


def test_too_many_pictures_are_refused_before_they_are_read(tmp_path: Path) -> None:
    for number in range(201):
        (tmp_path / f"{number}.png").touch()
    with pytest.raises(MediaError, match="There are 201 pictures; give 1 to 200"):
        read_pictures([tmp_path], 64)


def test_a_caption_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", halves())
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(MediaError, match=r"Caption 'a\.txt' is not UTF-8"):
        read_pictures([tmp_path], 64)


# -- clips


CLIPS: dict[str, Callable[[Path], Path]] = {
    "mp4": lambda folder: encode(folder / "a.mp4", ramp(50), 25),
    "mov": lambda folder: encode(folder / "a.mov", ramp(50), 25, "-c:v", "mpeg4", "-q:v", "1"),
    "webm": lambda folder: encode(folder / "a.webm", ramp(50), 25, "-c:v", "libvpx", "-b:v", "4M"),
    "mkv": lambda folder: encode(folder / "a.mkv", ramp(50), 25, "-c:v", "ffv1"),
    "gif": lambda folder: animate(folder / "a.gif", ramp(50), [40] * 50),
    "webp": lambda folder: animate(folder / "a.webp", ramp(50), [40] * 50),
}


@pytest.mark.parametrize("kind", CLIPS)
def test_frames_are_those_nearest_in_time(tmp_path: Path, kind: str) -> None:
    path = CLIPS[kind](tmp_path)
    clip = read_clip(path, 8, 5, (32, 40))
    assert which(clip) == pytest.approx([0, 5, 10, 15, 20, 25, 30, 35], abs=1 if kind == "webm" else 0)
    assert clip.frames.shape == (8, 32, 40, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.fps == pytest.approx(5)
    assert (clip.name, len(clip.sha256)) == (path.name, 64)
    assert which(read_clip(path, 4, 5, 32, start=0.4, end=1.6))[0] in (9, 10, 11)


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_short_interval_is_spread_over(tmp_path: Path, kind: str) -> None:
    clip = read_clip(CLIPS[kind](tmp_path), 5, 1, 32, start=0.4, end=0.8)
    assert which(clip) == [10, 12, 14, 16, 18]
    assert clip.fps == pytest.approx(12.5)


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_slow_clip_gives_consecutive_frames_and_none_twice(tmp_path: Path, kind: str) -> None:
    clip = read_clip(CLIPS[kind](tmp_path), 16, 60, 32)
    assert which(clip) == list(range(16))
    assert clip.fps == pytest.approx(25)


def test_a_clip_of_just_enough_frames_gives_them_all(tmp_path: Path) -> None:
    path = animate(tmp_path / "a.gif", ramp(4), [30, 500, 30, 1000])
    assert which(read_clip(path, 4, 8, 32)) == [0, 1, 2, 3]


def test_uneven_frames_are_sampled_by_their_time(tmp_path: Path) -> None:
    path = animate(tmp_path / "a.gif", ramp(6), [100, 100, 100, 700, 500, 500])
    assert which(read_clip(path, 3, 2, 32)) == [0, 3, 4]


def test_many_frames_can_be_asked_for(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", np.zeros((400, 32, 32, 3), np.uint8), 50)
    assert len(read_clip(path, 390, 50, 32).frames) == 390


def test_the_centre_of_a_clip_is_cropped(tmp_path: Path) -> None:
    frames = np.stack([np.hstack([halves(64, 64), halves(64, 64)])] * 3)  # red blue red blue
    clip = read_clip(encode(tmp_path / "a.mp4", frames, 8, "-crf", "1"), 3, 8, 64)
    assert np.abs(clip.frames[0, 32, [8, 56]].astype(int) - [[0, 0, 255], [255, 0, 0]]).max() < 12


def test_a_clip_from_a_phone_is_turned_upright(tmp_path: Path) -> None:
    flat = encode(tmp_path / "flat.mp4", np.stack([halves(64, 64)] * 3), 8)
    turned = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", "90", "-i", str(flat), "-c", "copy", str(turned))
    top, bottom = read_clip(turned, 3, 8, 64).frames[0, [8, 56], 32]
    assert {int(top.argmax()), int(bottom.argmax())} == {0, 2}


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_clip_that_is_too_short_tells_how_many_frames_it_has(tmp_path: Path, kind: str) -> None:
    nine = tmp_path / f"run.{kind}"
    if kind == "mp4":
        encode(nine, ramp(9), 25)
    else:
        animate(nine, ramp(9), [40] * 9)
    message = f"Clip 'run.{kind}' has 9 frames; motion needs 16. Use a longer clip or --frames 9."
    with pytest.raises(MediaError, match=re.escape(message)):
        read_clip(nine, 16, 8, 32)
    with pytest.raises(MediaError, match=r"has [23] frames between 0\.1 s and 0\.2 s; motion needs 16"):
        read_clip(nine, 16, 8, 32, start=0.1, end=0.2)
    with pytest.raises(MediaError, match=r"has 0 frames from 9 s on; motion needs 16\. Use a longer clip\.$"):
        read_clip(nine, 16, 8, 32, start=9)


@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp"])
def test_a_still_is_no_clip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "mp4":
        encode(path, ramp(1), 25)
    else:
        Image.fromarray(ramp(1)[0]).save(path)
    with pytest.raises(MediaError, match=r"has 1 frame; motion needs 16\. Use a longer clip\.$"):
        read_clip(path, 16, 8, 32)


def test_a_clip_without_pictures_is_refused(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", str(tmp_path / "a.mp4"))
    with pytest.raises(MediaError, match=r"'a\.mp4' has no video in it"):
        read_clip(tmp_path / "a.mp4", 16, 8, 32)


@pytest.mark.parametrize("flags", [(), ("-movflags", "+faststart")])
def test_a_clip_that_is_cut_off_is_refused(tmp_path: Path, flags: Sequence[str]) -> None:
    path = encode(tmp_path / "a.mp4", moving(50, 128, 128), 25, *flags)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(MediaError, match=r"'a\.mp4' cannot be read, it is cut off or damaged"):
        read_clip(path, 16, 8, 32)


def test_a_damaged_animation_is_refused(tmp_path: Path) -> None:
    for suffix in ("gif", "webp"):
        path = animate(tmp_path / f"a.{suffix}", moving(20), [40] * 20)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(MediaError):
            read_clip(path, 16, 8, 32)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#EXTM3U\nhttp://example.org/a.ts\n",
        b"file '/etc/passwd'\n",
        b"<?xml?><MPD/>",
        saved(NOISE),
        b"RIFF1234WAVE",
    ],
)
def test_only_clips_reach_a_decoder(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("ffmpeg was called"))
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=r"'a\.mp4' is not an mp4, mov, webm, mkv, gif or webp clip"):
        read_clip(tmp_path / "a.mp4", 16, 8, 32)


@pytest.mark.parametrize("url", ["http://example.org/a.mp4", "HTTPS://x/a", "rtsp://x", "concat:/a", "file:///a"])
def test_a_url_is_refused(url: str) -> None:
    for path in (url, Path(url)):
        with pytest.raises(MediaError, match="is a URL; download it first"):
            read_clip(path, 16, 8, 32)


def test_a_clip_has_to_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="There is no clip"):
        read_clip(tmp_path / "none.mp4", 16, 8, 32)
    with pytest.raises(MediaError, match="is not a file"):
        read_clip(tmp_path, 16, 8, 32)


@pytest.mark.parametrize(
    "numbers",
    [
        {"start": 1.0, "end": 1.0},
        {"start": 2.0, "end": 1.0},
        {"start": -1.0},
        {"start": float("nan")},
        {"num_frames": 0},
        {"fps": 0.0},
        {"fps": float("nan")},
        {"fps": 0.1},
    ],
)
def test_impossible_numbers_are_refused_before_anything_is_read(numbers: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        read_clip("none.mp4", **{"num_frames": 16, "fps": 8.0, "size": 32, **numbers})


def test_strange_file_names_are_just_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-y.mp4", "a:b.mp4", "%d 'x' [狐].mp4"):
        write_video(Path(name), ramp(4), 8, RECIPE)
        assert len(read_clip(name, 4, 8, 32).frames) == 4
        assert read_recipe(Path(name)) == RECIPE


# -- videos out and back in


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
    monkeypatch.setattr(media, "_ffmpeg", lambda *_, **__: broken)
    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\)"):
        write_video(tmp_path / "a.mp4", ramp(2), 8, {})
    assert not (tmp_path / "a.mp4").exists()


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
    for path in tmp_path.iterdir():
        for read in (read_recipe, read_frames):
            with pytest.raises(MediaError, match="carries no recipe"):
                read(path)
    with pytest.raises(NotFoundError):
        read_recipe(tmp_path / "none.mp4")


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


# -- contact sheets


def test_a_picture_comes_back_as_it_was_written(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    media.write_png(tmp_path / "one.png", pixels)
    assert np.array_equal(media.read_png(tmp_path / "one.png"), pixels)
