"""Pictures and clips whose every pixel is known, and the files they are written to."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

from customttt.media import Clip, Frames, Pixels

FIELD = Path(__file__).parent / "field"
"""Files as people hand them over."""
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


def saved(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def disc(height: int = 64, width: int = 64, count: int = 3) -> Frames:
    """A white disc, as wide as `width` and as high as `height` say, on black."""
    down, across = np.mgrid[: 8 * height, : 8 * width]
    inside = np.hypot(down / height - 4, across / width - 4) < 2
    image = Image.fromarray((255 * inside).astype(np.uint8)).resize((width, height), Image.Resampling.BOX)
    return np.stack([np.asarray(image.convert("RGB"))] * count)


def extent(pixels: Pixels) -> tuple[int, int]:
    """How high and how wide what is bright is."""
    bright = np.argwhere(pixels[..., 0] > 128)
    height, width = bright.max(axis=0) - bright.min(axis=0) + 1
    return int(height), int(width)


def with_box(path: Path, inside: Sequence[bytes], box: bytes) -> Path:
    """Put a box at the end of another one in an mp4 or mov whose index comes last; `inside` is the way to that."""
    content = bytearray(path.read_bytes())
    at, end = 0, 0
    for kind in inside:
        at = content.index(kind, at) - 4
        size = int.from_bytes(content[at : at + 4]) + len(box)
        content[at : at + 4] = size.to_bytes(4)
        end, at = at + size - len(box), at + 8
    path.write_bytes(bytes(content[:end]) + box + bytes(content[end:]))
    return path
