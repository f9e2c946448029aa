"""Pictures and clips to `frames`, uint8 (f h w c), and back: the only file that knows codecs. No tensors.

Clips are known by their first bytes. ffmpeg gets nothing but mp4, mov, webm and mkv, with the demuxer named
and only local files allowed: no playlist and no address reaches it. What is written carries a note, the JSON
text `{"customttt": recipe, "fps": ..., "shape": [f, h, w, 3]}`: the comment of an mp4 or gif, the EXIF
description of a webp, `recipe.json` and a text chunk in each png of a folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from customttt.errors import (
    AlreadyExistsError,
    CustomTTTError,
    MediaError,
    NotFoundError,
    StoreError,
    UsageError,
)

Pixels = NDArray[np.uint8]  # (h w 3)
Frames = NDArray[np.uint8]  # (f h w 3)
Size = tuple[int, int]  # (height, width) in pixels

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PICTURES = 200
MIN_SIDE = 32  # pixels
MAX_PIXELS = 100_000_000  # of one picture or frame
MAX_SECONDS = 60.0  # of a clip that are decoded
MAX_FRAMES = 60 * 240  # of a clip that are counted
RECIPE = "recipe.json"
_IMAGE_DESCRIPTION = 0x010E  # EXIF
_MAGIC = {b"GIF8": "gif", b"\x1a\x45\xdf\xa3": "matroska", b"\x89PNG": "png"}


@dataclass(frozen=True)
class Picture:
    """One picture to learn from."""

    name: str  # the file's
    pixels: Pixels
    captions: tuple[str, ...]  # the lines of the `.txt` beside the picture
    sha256: str  # of the file


@dataclass(frozen=True)
class Clip:
    """The frames sampled from one clip."""

    name: str  # the file's
    frames: Frames
    fps: float  # mean rate of the frames taken, in the clip's own time
    sha256: str  # of the file


# -- pictures


def read_pictures(paths: Sequence[Path], size: int | Size, fit: bool = False) -> list[Picture]:
    """The pictures at `paths`, files or folders: upright, in RGB, transparency turned white, all of one size.

    `size` is in pixels: the side, or (height, width). The centre is cropped to that shape; with `fit` the
    whole picture is kept, with bars in the mean colour of its edge. Raises NotFoundError or MediaError.
    """
    files = [file for path in paths for file in _picture_files(path)]
    if not 1 <= len(files) <= MAX_PICTURES:
        raise MediaError(f"There are {len(files)} pictures; give 1 to {MAX_PICTURES}, best 3 to 8.")
    return [_read_picture(file, _pair(size), fit) for file in files]


def _picture_files(path: Path) -> list[Path]:
    if not path.is_dir():
        _check_local(path, "picture")
        return [path]
    found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in PICTURE_SUFFIXES]
    shown = [file for file in found if file.is_file() and not file.name.startswith(".")]
    if not shown:
        raise MediaError(f"Folder '{path}' has no .jpg, .jpeg, .png or .webp picture; put 3 to 8 into it.")
    return shown


def _read_picture(path: Path, size: Size, fit: bool) -> Picture:
    captions = _captions(path)
    with _decoding(path), _open(path, "JPEG", "PNG", "WEBP") as image:
        if min(image.size) < MIN_SIDE:
            size_found = f"{image.width}x{image.height}"
            raise MediaError(f"'{path.name}' is {size_found} pixels; use one of at least {MIN_SIDE}x{MIN_SIDE}.")
        pixels = _resize(_to_rgb(ImageOps.exif_transpose(image)), size, fit)
        return Picture(path.name, pixels, captions, _digest(path))


def _captions(path: Path) -> tuple[str, ...]:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return ()
    try:
        lines = beside.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise MediaError(f"Caption '{beside.name}' is not UTF-8 text; save it as UTF-8.") from error
    return tuple(line.strip() for line in lines if line.strip())


def _open(path: Path, *formats: str) -> Image.Image:
    """Open by the header alone: nothing is decoded before its size is known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
        try:
            image = Image.open(path, formats=formats)
        except UnidentifiedImageError as error:
            raise MediaError(f"'{path.name}' is no {' or '.join(formats)} picture; convert it.") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Image.DecompressionBombError
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a channel, which `convert` would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _resize(image: Image.Image, size: Size, fit: bool = False) -> Pixels:
    if not fit:
        return np.array(ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS))
    pixels = np.asarray(image)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean(axis=0)
    colour = (round(edge[0]), round(edge[1]), round(edge[2]))
    return np.array(ImageOps.pad(image, size[::-1], Image.Resampling.LANCZOS, color=colour))


# -- clips


def read_clip(
    path: Path | str,
    num_frames: int,
    fps: float,
    size: int | Size,
    start: float = 0.0,
    end: float | None = None,
) -> Clip:
    """`num_frames` frames of an mp4, mov, webm, mkv, gif or webp, `fps` a second from `start` (seconds) on.

    Each is the frame nearest in time, and none is taken twice: where the clip up to `end` is shorter than
    `num_frames / fps`, the frames are spread over it; where it is slower than `fps`, they are consecutive.
    The centre is cropped to `size` in pixels: the side, or (height, width).
    Raises NotFoundError, UsageError for impossible numbers, or MediaError.
    """
    _check_sampling(num_frames, fps, start, end)
    path, limit = Path(path), min(MAX_SECONDS, MAX_SECONDS if end is None else end - start)
    with _decoding(path):
        list_times, decode = _reader(path)
        times = list_times(path, start, min(num_frames / fps, limit), MAX_FRAMES)
        if len(times) < num_frames:  # slower than `fps`, or too short
            times = list_times(path, start, limit, num_frames)
        if len(times) < num_frames:
            raise MediaError(_too_short(path.name, len(times), num_frames, start, end))
        picks = _pick(np.array(times), num_frames, fps)
        seconds = times[picks[-1]] - times[picks[0]]
        frames = decode(path, start, limit, picks, _pair(size))
        return Clip(path.name, frames, (num_frames - 1) / seconds if seconds > 0 else fps, _digest(path))


def count_frames(path: Path, at_most: int) -> int:
    """How many frames a clip has, counted by decoding, up to `at_most`. Raises NotFoundError or MediaError."""
    with _decoding(path):
        list_times, _ = _reader(path)
        return len(list_times(path, 0.0, MAX_SECONDS, at_most))


def _check_sampling(num_frames: int, fps: float, start: float, end: float | None) -> None:
    if num_frames < 1 or not fps > 0:
        raise UsageError(f"{num_frames} frames at {fps:g} a second cannot be read; both must be above 0.")
    if not num_frames / fps <= MAX_SECONDS:
        raise UsageError(f"{num_frames} frames at {fps:g} a second exceed {MAX_SECONDS:g} s; use fewer.")
    if not start >= 0 or (end is not None and not end > start):
        raise UsageError(f"There is nothing between {start:g} s and {end} s; the end must be after the start.")


def _reader(path: Path) -> tuple[Callable[..., list[float]], Callable[..., Frames]]:
    container = _container(path)
    if container in ("gif", "webp"):
        return _animation_times, _animation_frames
    if container in ("mov", "matroska"):
        return _video_times, _video_frames
    raise MediaError(f"'{path.name}' is not an mp4, mov, webm, mkv, gif or webp clip; convert it to mp4.")


def _container(path: Path) -> str | None:
    _check_local(path, "clip")
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return "mov"
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "webp"
    return _MAGIC.get(head[:4])


def _check_local(path: Path, what: str) -> None:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise MediaError(f"'{path}' is a URL; download it first.")
    if not path.exists():
        raise NotFoundError(f"There is no {what} '{path}'.")
    if not path.is_file():
        raise MediaError(f"'{path}' is not a file; give a {what}.")


def _too_short(name: str, found: int, num_frames: int, start: float, end: float | None) -> str:
    where = f" from {start:g} s on" if end is None else f" between {start:g} s and {end:g} s"
    count = f"{found} frame" + "s" * (found != 1) + where * (start > 0 or end is not None)
    advice = f" or --frames {found}" * (found > 1)
    return f"Clip '{name}' has {count}; motion needs {num_frames}. Use a longer clip{advice}."


def _pick(times: NDArray[np.float64], num_frames: int, fps: float) -> list[int]:
    """Which of the frames that begin at `times` (seconds) to take: the nearest, each once, in order."""
    order = np.arange(num_frames)
    duration = (times[-1] - times[0]) * len(times) / max(len(times) - 1, 1)  # the last frame lasts, too
    ideal = times[0] + order * min(1 / fps, duration / num_frames)
    nearest = np.abs(times - ideal[:, None]).argmin(axis=1)
    once = np.maximum.accumulate(nearest - order) + order
    return [int(pick) for pick in np.minimum(once, len(times) - num_frames + order)]


def _video_times(path: Path, start: float, seconds: float, at_most: int) -> list[float]:
    """When each frame begins, in seconds after `start`; frames are counted by decoding them."""
    output = ("-frames:v", str(at_most), "-vf", "scale=16:16", "-f", "framecrc")
    lines = _decode(path, start, seconds, output).decode().splitlines()
    ticks = [int(line.split(",")[2]) for line in lines if not line.startswith("#")]
    base = next((Fraction(line.split()[-1]) for line in lines if line.startswith("#tb")), Fraction(1))
    return sorted(float(tick * base) for tick in ticks)


def _video_frames(path: Path, start: float, seconds: float, picks: list[int], size: Size) -> Frames:
    height, width = size
    scale = f"scale={width}:{height}:force_original_aspect_ratio=increase:flags=lanczos"
    filters = f"select='{_any_of(picks)}',{scale},crop={width}:{height}"
    output = ("-frames:v", str(len(picks)), "-vf", filters, "-pix_fmt", "rgb24", "-f", "rawvideo")
    raw = _decode(path, start, seconds, output)
    return np.frombuffer(raw, np.uint8).reshape(len(picks), height, width, 3).copy()


def _any_of(numbers: list[int]) -> str:
    """The expression that is true for these frame numbers; balanced, as ffmpeg nests at most 100 deep."""
    if len(numbers) == 1:
        return f"eq(n,{numbers[0]})"
    half = len(numbers) // 2
    return f"({_any_of(numbers[:half])}+{_any_of(numbers[half:])})"


def _decode(path: Path, start: float, seconds: float, output: Sequence[str]) -> bytes:
    interval = ("-ss", f"{start:.6f}", "-t", f"{seconds:.6f}")
    return _ffmpeg_read(path, interval, ("-map", "0:V:0", "-fps_mode", "passthrough", *output))


def _ffmpeg_read(path: Path, interval: Sequence[str], output: Sequence[str]) -> bytes:
    safe = ("-xerror", "-max_pixels", str(MAX_PIXELS), "-protocol_whitelist", "file")
    source = ("-f", str(_container(path)), *interval, "-i", f"file:{path}")
    done = _ffmpeg(*safe, *source, *output, "-")
    if b"matches no streams" in done.stderr:
        raise MediaError(f"'{path.name}' has no video in it; give a clip with pictures.")
    if done.returncode:
        raise MediaError(f"'{path.name}' cannot be read, it is cut off or damaged ({_reason(done)}).")
    return done.stdout


def _ffmpeg(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode(errors="replace").splitlines() or [f"ffmpeg ended with {done.returncode}"]
    return re.sub(r"^(\[[^]]*\] *)+", "", lines[0])


def _animation(path: Path, start: float, seconds: float) -> Iterator[tuple[float, Image.Image]]:
    """The frames of a gif or webp that begin in the interval, each with its time after `start`."""
    begins = 0  # milliseconds, which add up exactly
    with _open(path, "GIF", "WEBP") as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()  # a webp knows its durations only then
            if begins / 1000 >= start + seconds:
                return
            if begins / 1000 >= start:
                yield begins / 1000 - start, frame
            begins += round(frame.info.get("duration") or 100)  # browsers show 0 as 100 ms


def _animation_times(path: Path, start: float, seconds: float, at_most: int) -> list[float]:
    return [time for time, _ in islice(_animation(path, start, seconds), at_most)]


def _animation_frames(path: Path, start: float, seconds: float, picks: list[int], size: Size) -> Frames:
    found = islice(enumerate(_animation(path, start, seconds)), picks[-1] + 1)
    return np.stack([_resize(_to_rgb(frame), size) for index, (_, frame) in found if index in picks])


# -- videos out


def check_output(path: Path) -> None:
    """Find out before any work whether `write_video` could write there; leaves nothing behind.

    Raises UsageError for a suffix other than .mp4, .gif, .webp or none (a folder of png frames),
    AlreadyExistsError for a folder that holds other files, and StoreError where nothing can be written.
    """
    _output_kind(path)
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    with _store_errors(path), tempfile.TemporaryFile(dir=parent) as file:
        file.write(bytes(1 << 16))


def write_video(path: Path, frames: Frames, fps: float, recipe: dict[str, Any]) -> None:
    """Write frames (f h w 3) as .mp4 (H.264), .gif, .webp or a folder of png, the recipe inside.

    Written beside its place and then renamed, so that it is there whole or not at all; a video that is there
    already is replaced. Raises UsageError, AlreadyExistsError or StoreError, as `check_output` does.
    """
    kind = _output_kind(path)
    note = json.dumps({"customttt": recipe, "fps": fps, "shape": frames.shape})
    with placed(path) as aside:
        if kind == "":
            _write_folder(aside, frames, note)
        else:
            writer = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp}[kind]
            writer(aside, frames, fps, note)


def read_png(path: Path) -> Pixels:
    """A picture that `write_png` wrote. Raises MediaError."""
    with _decoding(path), _open(path, "PNG") as image:
        return np.asarray(_to_rgb(image))


def write_png(path: Path, pixels: Pixels) -> None:
    """Write one picture (h w 3), whole or not at all. Raises StoreError."""
    with placed(path) as aside:
        Image.fromarray(pixels).save(aside, "PNG")


def _output_kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (".mp4", ".gif", ".webp") and not path.is_dir():
        return suffix
    if (suffix and not path.is_dir()) or path.is_file():
        raise UsageError(f"Output '{path}' must end in .mp4, .gif or .webp, or be a folder for png frames.")
    if path.is_dir() and not all(re.fullmatch(rf"\d+\.png|{RECIPE}", file.name) for file in path.iterdir()):
        raise AlreadyExistsError(f"Folder '{path}' holds other files; name a new one for the png frames.")
    return ""


def _write_mp4(path: Path, frames: Frames, fps: float, note: str) -> None:
    _, height, width, _ = frames.shape
    even = np.pad(frames, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")  # as yuv420p must be
    rate = Fraction(fps).limit_denominator(100_000)
    source = f"-f rawvideo -pix_fmt rgb24 -s {even.shape[2]}x{even.shape[1]} -framerate {rate} -i -".split()
    codec = ["-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4"]
    colour = ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-color_range", "tv"]
    colour += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
    with tempfile.TemporaryDirectory() as folder:
        metadata = Path(folder) / "metadata"  # a file, as a command line holds no more than 32 to 128 KiB
        metadata.write_text(";FFMETADATA1\ncomment=" + re.sub(r"([=;#\\])", r"\\\1", note) + "\n")
        comment = ("-f", "ffmetadata", "-i", str(metadata), "-map", "0:v", "-map_metadata", "1")
        done = _ffmpeg(*source, *comment, *colour, *codec, f"file:{path}", stdin=even.tobytes())
    if done.returncode:
        raise OSError(_reason(done))


def _write_gif(path: Path, frames: Frames, fps: float, note: str) -> None:
    palette = Image.fromarray(frames.reshape(-1, *frames.shape[2:])).quantize(256)  # one for all: no flicker
    images = [Image.fromarray(frame).quantize(palette=palette) for frame in frames]
    durations = [10 * tick for tick in _durations(len(frames), 100 / fps)]  # a gif counts in 10 ms
    moving = {"save_all": True, "append_images": images[1:], "duration": durations, "loop": 0}
    images[0].save(path, "GIF", comment=note.encode(), **moving)


def _write_webp(path: Path, frames: Frames, fps: float, note: str) -> None:
    images = [Image.fromarray(frame) for frame in frames]
    exif = Image.Exif()
    exif[_IMAGE_DESCRIPTION] = note
    durations = _durations(len(frames), 1000 / fps)
    moving = {"save_all": True, "append_images": images[1:], "duration": durations, "loop": 0}
    images[0].save(path, "WEBP", quality=90, exif=exif, **moving)


def _write_folder(path: Path, frames: Frames, note: str) -> None:
    path.mkdir()
    chunk = PngInfo()
    chunk.add_text("customttt", note)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{number:04}.png", pnginfo=chunk)
    (path / RECIPE).write_text(note + "\n")


def _durations(count: int, ticks: float) -> list[int]:
    """Whole ticks a frame that add up to `ticks` a frame."""
    return [round((index + 1) * ticks) - round(index * ticks) for index in range(count)]


# -- videos back in


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe in what `write_video` wrote, or in one png of it. Raises NotFoundError or MediaError."""
    recipe: dict[str, Any] = _note(path)["customttt"]
    return recipe


def read_frames(path: Path) -> tuple[Frames, float]:
    """The frames (f h w 3) of what `write_video` wrote, and the fps. Raises NotFoundError or MediaError."""
    note = _note(path)
    with _decoding(path):
        (count, height, width, _), fps = note["shape"], float(note["fps"])
        if path.is_dir():
            stored = [_open(path / f"{number:04}.png", "PNG") for number in range(count)]
            return np.stack([np.array(image) for image in stored]), fps
        if _container(path) == "mov":
            output = ("-frames:v", str(count), "-pix_fmt", "rgb24", "-f", "rawvideo")
            raw = np.frombuffer(_decode(path, 0, count / fps + 1, output), np.uint8)
            even = raw.reshape(count, height + height % 2, width + width % 2, 3)
            return even[:, :height, :width].copy(), fps
        shown = [(time, np.array(_to_rgb(image))) for time, image in _animation(path, 0, count / fps)]
        begins = [time for time, _ in shown]  # fewer than `count` where frames that are alike became one
        which = np.searchsorted(begins, (np.arange(count) + 0.5) / fps) - 1
        return np.stack([shown[index][1] for index in which]), fps


def _note(path: Path) -> dict[str, Any]:
    with _decoding(path):
        text = _note_text(path)
    try:
        note = json.loads(text)
    except ValueError:
        note = None
    if not isinstance(note, dict) or not isinstance(note.get("customttt"), dict):
        raise MediaError(f"'{path}' carries no recipe; it was not made by customttt, or was converted since.")
    return note


def _note_text(path: Path) -> str:
    if path.is_dir():
        return (path / RECIPE).read_text() if (path / RECIPE).is_file() else ""
    container = _container(path)
    if container == "mov":
        metadata = _ffmpeg_read(path, (), ("-f", "ffmetadata")).decode()
        comment = re.search(r"^comment=(.*)$", metadata, re.MULTILINE)
        return re.sub(r"\\(.)", r"\1", comment[1]) if comment else ""
    if container not in ("gif", "webp", "png"):
        return ""
    with _open(path, "GIF", "WEBP", "PNG") as image:
        comment, chunk = image.info.get("comment", b"").decode(), image.info.get("customttt", "")
        return str(comment or chunk or image.getexif().get(_IMAGE_DESCRIPTION, ""))


# -- contact sheets


# -- what all of it shares


def _pair(size: int | Size) -> Size:
    return (size, size) if isinstance(size, int) else size


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises over a broken file into one sentence."""
    try:
        yield
    except (CustomTTTError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        limit = MAX_PIXELS // 10**6
        raise MediaError(f"'{path.name}' has over {limit} megapixels; make it smaller.") from error
    except Exception as error:
        raise MediaError(f"'{path.name}' cannot be read, it is cut off or damaged ({error}).") from error


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"'{path}' cannot be written ({reason}); make room or go elsewhere.") from error


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; what was written there replaces `path` if all went well."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    older = aside.with_name(f"{aside.name}.old")
    with _store_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            if path.is_dir():  # a folder is not replaced in one step
                path.rename(older)
            aside.replace(path)
            shutil.rmtree(older, ignore_errors=True)
        finally:
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)
