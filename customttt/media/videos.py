"""Videos written and read back, each with its recipe inside.

What is written carries a note, the JSON text `{"customttt": recipe, "fps": ..., "shape": [f, h, w, 3], "sha256": ...}`
with the checksum of its other fields: the comment of an mp4 or gif, the EXIF description of a webp, `recipe.json` and a
text chunk in each png of a folder.
"""

from __future__ import annotations

import json
import re
import tempfile
from fractions import Fraction
from itertools import islice, takewhile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from customttt.config import digest
from customttt.errors import DamagedError, MediaError
from customttt.limits import MAX_FPS, MAX_NOTE, MAX_VIDEO
from customttt.media import ffmpeg
from customttt.media.clips import Animation, Frames, kind_of
from customttt.media.outputs import RECIPE, kind_of_output, placed
from customttt.media.pixels import Pixels, decoding, open_image, to_rgb
from customttt.text import parsed

_IMAGE_DESCRIPTION = 0x010E  # EXIF


def write_video(path: Path, frames: Frames, fps: float, recipe: dict[str, Any], anew: bool = False) -> None:
    """Write frames (f h w 3) as .mp4 (H.264), .gif, .webp or a folder of png, the recipe inside.

    Written beside its place and then renamed, so that it is there whole or not at all; a video that is there
    already is replaced, or with `anew` an AlreadyExistsError. Raises UsageError, AlreadyExistsError or StoreError, as
    `check_output` does.
    """
    kind = kind_of_output(path)
    bare = {"customttt": recipe, "fps": fps, "shape": frames.shape}
    note = json.dumps({**bare, "sha256": _seal(bare)})
    with placed(path, anew) as aside:
        if kind == "":
            _write_folder(aside, frames, note)
        else:
            writer = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp}[kind]
            writer(aside, frames, fps, note)


def read_png(path: Path) -> Pixels:
    """A picture that `write_png` wrote. Raises MediaError."""
    with decoding(path), open_image(path, "PNG") as image:
        return np.asarray(to_rgb(image))


def write_png(path: Path, pixels: Pixels) -> None:
    """Write one picture (h w 3), whole or not at all. Raises StoreError."""
    with placed(path) as aside:
        Image.fromarray(pixels).save(aside, "PNG")


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
        metadata.write_text(";FFMETADATA1\ncomment=" + re.sub(r"([=;#\\])", r"\\\1", note) + "\n", encoding="utf-8")
        comment = ("-f", "ffmetadata", "-i", str(metadata), "-map", "0:v", "-map_metadata", "1")
        done = ffmpeg.run(*source, *comment, *colour, *codec, f"file:{path}", stdin=even.tobytes())
    if done.returncode:
        raise OSError(ffmpeg.reason(done.stderr.decode(errors="replace")))


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
    (path / RECIPE).write_text(note + "\n", encoding="utf-8")


def _durations(count: int, ticks: float) -> list[int]:
    """Whole ticks a frame that add up to `ticks` a frame."""
    return [round((index + 1) * ticks) - round(index * ticks) for index in range(count)]


# -- videos back in


def read_recipe(path: Path, altered: bool = False) -> dict[str, Any]:
    """The recipe in what `write_video` wrote, or in one png of it.

    Raises NotFoundError, MediaError, or DamagedError for one that is not as it was written, unless `altered` takes it.
    """
    note = _note(path)
    seal = note.pop("sha256", None)  # which videos of earlier versions lack
    if not altered and seal is not None and seal != _seal(note):
        raise DamagedError(f"The recipe in '{path}' is not as it was written: the file was altered or damaged.")
    recipe: dict[str, Any] = note["customttt"]
    return recipe


def _seal(note: dict[str, Any]) -> str:
    """The checksum of a note, whatever the order of its fields."""
    return digest(json.dumps(note, sort_keys=True))


def read_frames(path: Path) -> tuple[Frames, float]:
    """The frames (f h w 3) of what `write_video` wrote, and the fps. Raises NotFoundError or MediaError."""
    note = _note(path)
    with decoding(path):
        count, height, width, fps = _measures(note)
        if path.is_dir():
            stored = (open_image(path / f"{number:04}.png", "PNG") for number in range(count))
            return np.stack([np.array(_sized(image, width, height)) for image in stored]), fps
        if kind_of(path) in ("gif", "webp"):
            return _shown_at(path, (np.arange(count) + 0.5) / fps, width, height), fps
        even = count, height + height % 2, width + width % 2, 3
        output = ("-frames:v", str(count), "-fs", str(prod(even)), "-pix_fmt", "rgb24", "-f", "rawvideo")
        raw = np.frombuffer(ffmpeg.decode(path, ffmpeg.PLAIN, output, count, most=prod(even)), np.uint8)
        return raw.reshape(even)[:, :height, :width].copy(), fps


def _measures(note: dict[str, Any]) -> tuple[int, int, int, float]:
    """(frames, height, width, fps) as a note tells them. Raises ValueError for what no video of ours has."""
    (count, height, width, _), fps = map(int, note["shape"]), float(note["fps"])
    if min(count, height, width) < 1 or count * height * width * 3 > MAX_VIDEO or not 0 < fps <= MAX_FPS:
        raise ValueError(f"it tells of {count} frames of {width} x {height}, {fps:g} a second")
    return count, height, width, fps


def _sized(image: Image.Image, width: int, height: int) -> Image.Image:
    """An image before it is decoded. Raises ValueError if it is of another size than is told."""
    if image.size != (width, height):
        raise ValueError(f"a frame is {image.width} x {image.height}, not {width} x {height}")
    return image


def _shown_at(path: Path, times: NDArray[np.floating[Any]], width: int, height: int) -> Frames:
    """The frames that an animation shows at these times; there are fewer where frames that are alike became one."""
    animation = islice(Animation(path).all(as_shown=False), len(times))
    until = takewhile(lambda shown: shown[0] < times[-1], animation)
    begins, frames = zip(*((time, np.array(to_rgb(_sized(one, width, height)))) for time, one in until), strict=True)
    return np.stack([frames[index] for index in np.searchsorted(begins, times) - 1])


def _note(path: Path) -> dict[str, Any]:
    with decoding(path):
        text = _note_text(path)
    try:
        note = parsed(text, MAX_NOTE)
    except ValueError:
        note = None
    if not isinstance(note, dict) or not isinstance(note.get("customttt"), dict):
        raise MediaError(f"'{path}' carries no recipe; it was not made by customttt, or was converted since.")
    return note


def _note_text(path: Path) -> str:
    if path.is_dir():
        return _start_of(path / RECIPE) if (path / RECIPE).is_file() else ""
    if not kind_of(path):
        return _comment(path)
    with open_image(path, "GIF", "WEBP", "PNG", "AVIF") as image:
        comment, chunk = image.info.get("comment", b""), image.info.get("customttt", "")  # a PNG's comment is text
        told = comment.decode(errors="replace") if isinstance(comment, bytes) else comment
        return str(chunk or told or image.getexif().get(_IMAGE_DESCRIPTION, ""))


def _start_of(file: Path) -> str:
    """As much of a text as a note may have, and one character more."""
    with file.open(encoding="utf-8", errors="replace") as text:
        return text.read(MAX_NOTE + 1)


def _comment(path: Path) -> str:
    """What a video says of itself; nothing if it is none."""
    try:
        metadata = ffmpeg.read(path, (), ("-f", "ffmetadata"), most=4 * MAX_NOTE).decode(errors="replace")
    except MediaError:
        return ""
    comment = re.search(r"^comment=(.*)$", metadata, re.MULTILINE | re.IGNORECASE)
    return re.sub(r"\\(.)", r"\1", comment[1]) if comment else ""
