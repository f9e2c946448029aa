"""The colours of a picture that carries no profile but tells them: code points (ITU-T H.273) in a PNG's cICP or an
AVIF's and HEIF's nclx, or a camera's EXIF that says Adobe RGB; and their way to sRGB. No tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Curve = NDArray[np.float32]  # light of each of 256 levels, white being 1

PQ, HLG, LINEAR, ADOBE = 16, 18, 8, -1
"""Transfers, by their code points; Adobe RGB has none."""
PRIMARIES = {
    1: (0.64, 0.33, 0.30, 0.60, 0.15, 0.06),
    9: (0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    ADOBE: (0.64, 0.33, 0.21, 0.71, 0.15, 0.06),
}
"""x and y of red, green and blue: BT.709, BT.2020, P3 twice, Adobe RGB. White stays white, whichever it was."""
WHITE, D65 = 203.0, (0.3127, 0.3290)
"""cd/m2 of white paper in HDR (ITU-R BT.2408); x and y of white."""
PEAKS = {PQ: 10_000 / WHITE, HLG: 1000 / WHITE}
KNEE = 0.5
"""Of white, above which HDR is rolled off, as in clips."""
BAND = 1 << 20
"""Pixels that are converted at once."""
_PNG, _HEAD = b"\x89PNG\r\n\x1a\n", 1 << 16
_NCLX = re.compile(rb"colrnclx(..)(..)", re.DOTALL)


@dataclass(frozen=True)
class Colours:
    """Code points of primaries and transfer."""

    primaries: int
    transfer: int

    @property
    def is_usual(self) -> bool:
        """Whether they are those of sRGB, or none that are known here."""
        return self.primaries not in PRIMARIES.keys() - {1} and self.transfer not in (PQ, HLG, LINEAR)


ADOBE_RGB = Colours(ADOBE, ADOBE)


def told(file: BufferedReader | BytesIO) -> Colours | None:
    """What a PNG, AVIF or HEIF says of its colours, if that is anything but sRGB; the file is read from its start."""
    file.seek(0)
    head = file.read(_HEAD)
    if head.startswith(_PNG):
        chunk = next((content for name, content in _chunks(file) if name == b"cICP"), b"")
        colours = Colours(chunk[0], chunk[1]) if len(chunk) == 4 else None
    else:
        box = _NCLX.search(head) if head[4:8] == b"ftyp" else None
        colours = Colours(int.from_bytes(box[1]), int.from_bytes(box[2])) if box else None
    file.seek(0)
    return None if colours is None or colours.is_usual else colours


def _chunks(png: BufferedReader | BytesIO) -> Iterator[tuple[bytes, bytes]]:
    """Those before the pixels, but for the content of long ones."""
    at = len(_PNG)
    while True:
        png.seek(at)
        header = png.read(8)
        length, name = int.from_bytes(header[:4]), header[4:]
        if len(header) < 8 or name == b"IDAT":
            return
        yield name, png.read(length) if length < 64 else b""
        at += 12 + length


def is_adobe(image: Image.Image) -> bool:
    """Whether a camera says so in its EXIF, as most do that embed no profile (DCF's optional colour space)."""
    exif = image.getexif()
    space, index = exif.get_ifd(0x8769).get(0xA001), exif.get_ifd(0xA005).get(1)
    return space == 2 or (space == 0xFFFF and index == "R03")


def to_srgb(image: Image.Image, colours: Colours) -> Image.Image:
    """An RGB picture of those colours in sRGB: HDR is rolled off, what lies outside the gamut is cut off."""
    pixels, curve, turn = np.asarray(image), _curve(colours.transfer), _matrix(colours.primaries)
    converted, rows = np.empty_like(pixels), max(BAND // image.width, 1)
    levels = _levels()
    for top in range(0, image.height, rows):
        light = curve[pixels[top : top + rows]]
        if colours.transfer == HLG:  # of the scene; the display's has a gamma of 1.2
            light *= (light @ np.array([0.2627, 0.678, 0.0593], np.float32))[..., None] ** 0.2 * PEAKS[HLG]
        light = light @ turn.T
        if peak := PEAKS.get(colours.transfer):
            light *= _rolled_off(light.max(axis=-1, keepdims=True), peak)
        converted[top : top + rows] = levels[(light.clip(0, 1) * 65535 + 0.5).astype(np.uint16)]
    return Image.fromarray(converted)


def _curve(transfer: int) -> Curve:
    level = np.arange(256) / 255
    if transfer == PQ:  # SMPTE ST 2084
        power = level ** (1 / 78.84375)
        light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        light *= 10_000 / WHITE
    elif transfer == HLG:  # ARIB STD-B67
        bright = (np.exp((level - 0.55991073) / 0.17883277) + 0.28466892) / 12
        light = np.where(level <= 0.5, level**2 / 3, bright)
    elif transfer == LINEAR:
        light = level
    elif transfer == ADOBE:
        light = level ** (563 / 256)
    else:  # whatever else there is looks as sRGB does
        light = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


def _levels() -> NDArray[np.uint8]:
    """sRGB's of 65,536 steps of light."""
    light = np.arange(65536) / 65535
    level = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return (level * 255).round().astype(np.uint8)


def _matrix(primaries: int) -> NDArray[np.float32]:
    """From light of those primaries to that of sRGB's."""
    own, srgb = _to_xyz(PRIMARIES.get(primaries, PRIMARIES[1])), _to_xyz(PRIMARIES[1])
    return (np.linalg.inv(srgb) @ own).astype(np.float32)


def _to_xyz(primaries: tuple[float, ...]) -> NDArray[np.float64]:
    x, y = np.array(primaries[::2]), np.array(primaries[1::2])
    colours = np.stack([x / y, np.ones(3), (1 - x - y) / y])
    white = np.array([D65[0] / D65[1], 1, (1 - D65[0] - D65[1]) / D65[1]])
    return colours * np.linalg.solve(colours, white)


def _rolled_off(brightest: Curve, peak: float) -> Curve:
    """What pixels are multiplied by: nothing changes below the knee, and the peak becomes white (ffmpeg's mobius)."""
    spread = KNEE**2 - 2 * KNEE + peak
    low, high = -(KNEE**2) * (peak - 1) / spread, (KNEE**2 - 2 * KNEE * peak + peak) / (peak - 1)
    rolled = (high**2 + 2 * high * KNEE + KNEE**2) / (high - low) * (brightest + low) / (brightest + high)
    return np.where(brightest > KNEE, rolled / np.maximum(brightest, KNEE), 1).astype(np.float32)
