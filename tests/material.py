"""Pictures and clips, good ones and bad ones, and running the command line on them inside this process."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image
from typer.testing import CliRunner, Result

from customttt import media
from customttt.concept import Concept
from customttt.library import Library
from customttt_cli.app import app


def run(*arguments: str | Path, env: Mapping[str, str] | None = None, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin, env=env)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; the lock's presence says nothing."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def assert_one_sentence(done: Result, code: int, *words: str) -> None:
    """The exit code, and on stderr one line that says what is wrong."""
    assert done.exit_code == code, done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.output
    assert done.stderr.rstrip().endswith(errors[0]), "nothing follows the sentence"
    for word in words:
        assert word in errors[0]
    assert errors[0].endswith((".", "?")), "a sentence"
    assert "Traceback" not in done.output


def copy(name: str, new: str, **changes: object) -> Concept:
    """Another concept of this test's library with the same weights, and with some of the manifest changed."""
    library = Library()
    weights = library.weights(name)
    concept = library.get(name).model_copy(update={"name": new, **changes})
    return library.add(concept, lambda folder: shutil.copy(weights, folder / weights.name))


def make_pictures(folder: Path, number: int = 3) -> Path:
    folder.mkdir(parents=True)
    for index in range(number):
        pixels = np.full((48, 64, 3), 200, np.uint8)
        pixels[10:40, 10 + 4 * index : 40 + 4 * index] = (90, 60, 40)
        Image.fromarray(pixels).save(folder / f"{index}.jpg", quality=95)
    return folder


def make_clip(path: Path, number: int = 12) -> Path:
    frames = np.full((number, 64, 64, 3), 220, np.uint8)
    for index in range(number):
        frames[index, 20:40, 3 * index : 3 * index + 20] = (200, 40, 40)
    media.write_video(path, frames, 8, {})
    return path


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def text_file(path: Path) -> Path:
    path.write_text("This is no picture and no clip.\n")
    return path


def cut(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """The first half of what `make` makes."""

    def made(path: Path) -> Path:
        whole = make(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        return path

    return made


def picture(width: int, height: int) -> Callable[[Path], Path]:
    def made(path: Path) -> Path:
        noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(path)
        return path

    return made


def huge_png(path: Path) -> Path:
    """A PNG whose header says 30,000 x 30,000 and which holds next to nothing."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    return path


def one_frame_clip(path: Path) -> Path:
    return make_clip(path, 1)


def sound_only(path: Path) -> Path:
    """An mp4 with a tone and no picture."""
    tone = ("-f", "lavfi", "-i", "sine=frequency=440:duration=1", "-c:a", "aac")
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *tone, str(path)], check=True)
    return path


def playlist(path: Path) -> Path:
    path.write_text("#EXTM3U\n#EXTINF:10,\nhttp://localhost/secret.ts\n")
    return path
