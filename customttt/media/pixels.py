"""One image file to pixels: opened by its header, upright, in sRGB on white, of one size. No tensors.

What a file says of itself beside its pixels never stops them: text of any length in a PNG, a broken profile or EXIF.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from customttt.errors import CustomTTTError, MediaError, NotFoundError
from customttt.limits import MAX_PIXELS, MAX_PROFILE, MIN_SIDE
from customttt.media import colours

Pixels = NDArray[np.uint8]  # (h w 3)
Size = tuple[int, int]  # (height, width) in pixels

STILLS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "GIF")
"""What a picture may be; Pillow knows HEIF where pillow-heif is there."""
GAMMA = 2.2
"""Of screens, about: what sRGB undoes."""
BAND = 1 << 24
"""Pixels of a picture that are converted at once."""
_PNG = b"\x89PNG\r\n\x1a\n"
_HEIC = re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL)
_COLOURS = "colours"
"""Under which an image's `info` has those that its file tells without a profile."""
_WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # modes of 16 bits a pixel


def load_still(path: Path, smallest: int = MIN_SIDE) -> Image.Image:
    """A picture with all its pixels, which are at least `smallest` high and wide, upright. Raises MediaError."""
    try:
        return _load(path, path, smallest)
    except ValueError:  # also of Pillow's limits on the text in a PNG
        content = path.read_bytes()
        if not content.startswith(_PNG):
            raise
    image = _load(path, BytesIO(_without_text(content)), smallest)
    if profile := _profile(content):
        image.info["icc_profile"] = profile
    return image


def _load(path: Path, file: Path | BytesIO, smallest: int) -> Image.Image:
    with _unwarned(), open_image(path, *STILLS, file=file) as image:
        if min(image.size) < smallest:
            sides = f"{image.width}x{image.height}"
            raise MediaError(f"'{path.name}' is {sides} pixels; use one of at least {smallest}x{smallest}.")
        if image.mode == "F":  # whose white may be anything
            raise MediaError(f"'{path.name}' has floating-point pixels; save it with 8 or 16 bits a channel.")
        image.load()
        with suppress(Exception):  # of broken EXIF
            if not image.info.keys() & {"icc_profile", _COLOURS} and colours.is_adobe(image):
                image.info[_COLOURS] = colours.ADOBE_RGB
        return _upright(image)


def open_image(path: Path, *formats: str, file: Path | BytesIO | None = None) -> Image.Image:
    """Open by the header alone: nothing is decoded before its size is known."""
    try:
        with _unwarned():
            image = Image.open(file or path, formats=[name for name in formats if name in _known()])
    except UnidentifiedImageError as error:
        raise MediaError(f"'{path.name}' is {what_it_is(path)}; convert it to JPEG or PNG.") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Image.DecompressionBombError
    if own := _told(file or path, image):
        image.info[_COLOURS] = own
    return image


def _told(file: Path | BytesIO, image: Image.Image) -> colours.Colours | None:
    """The colours that a file tells in code points, which a PNG's profile does not outweigh, and any other does."""
    if image.format not in ("PNG", "AVIF", "HEIF") or (image.format != "PNG" and image.info.get("icc_profile")):
        return None
    if isinstance(file, BytesIO):
        return colours.told(BytesIO(file.getbuffer()))
    with file.open("rb") as opened:
        return colours.told(opened)


@contextmanager
def _unwarned() -> Iterator[None]:
    """Keep Pillow's remarks on EXIF and sizes to itself: what matters is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def what_it_is(path: Path) -> str:
    """Why Pillow cannot open a file."""
    try:
        head = _head(path)
    except OSError as error:
        return f"a file that cannot be opened ({error.strerror})"
    if _HEIC.match(head):
        return "a HEIC picture, which takes the package pillow-heif to read"
    return "no picture that can be read"


def is_still(path: Path) -> bool:
    """Whether a file begins as a picture does."""
    try:
        open_image(path, *STILLS).close()
    except (MediaError, OSError):
        return False
    except Exception:  # it is one, and something is wrong with it
        return True
    return True


def has_several(path: Path) -> bool:
    """Whether a file holds more pictures than the one that is read: an animation or pages, not a camera's preview."""
    with suppress(Exception), open_image(path, *STILLS) as image:
        return image.format not in ("MPO", "HEIF") and bool(getattr(image, "is_animated", False))
    return False


@cache
def _known() -> frozenset[str]:
    """The formats that Pillow can open here."""
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    Image.init()
    return frozenset(Image.OPEN)


def _without_text(png: bytes) -> bytes:
    """The chunks that make the pixels."""
    text = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
    return _PNG + b"".join(chunk for chunk in _chunks(png) if chunk[4:8] not in text)


def _profile(png: bytes) -> bytes:
    """The colour profile, if there is one."""
    packed = next((chunk[8:-4] for chunk in _chunks(png) if chunk[4:8] == b"iCCP"), b"")
    return zlib.decompressobj().decompress(packed.partition(b"\0")[2][1:], MAX_PROFILE)


def _chunks(png: bytes) -> Iterator[bytes]:
    at = len(_PNG)
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4])
        yield png[at:end]
        at = end


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says."""
    with suppress(Exception):  # the pixels are there already: it is the EXIF that is broken
        ImageOps.exif_transpose(image, in_place=True)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """In sRGB, transparency turned white; a large one band by band, as every step between takes a copy."""
    rows = max(BAND // image.width, 1)
    if image.height <= rows:
        return _to_rgb(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        whole.paste(_to_rgb(image.crop((0, top, image.width, min(top + rows, image.height)))), (0, top))
    return whole


def _to_rgb(image: Image.Image) -> Image.Image:
    brighter = _exponent(image)
    if image.mode in _WIDE:  # which `convert` would clip
        pixels = np.asarray(image)
        levels = (255 * (pixels / 65535) ** brighter).round() if brighter else pixels >> 8
        image = Image.fromarray(levels.astype(np.uint8))
    elif brighter:
        image = _brightened(image, brighter)
    if not image.has_transparency_data:
        return _to_srgb(image)
    image = image.convert("RGBA") if image.mode != "LA" else image
    opaque = _to_srgb(image.convert(image.mode.removesuffix("A")))
    opaque.putalpha(image.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque).convert("RGB")


def _exponent(image: Image.Image) -> float | None:
    """What makes sRGB of the levels that a PNG's gAMA tells of; None where that is nothing or a profile counts."""
    gamma, better = image.info.get("gamma"), ("srgb", "icc_profile", _COLOURS)
    if not isinstance(gamma, float) or not 0.1 <= gamma <= 10 or any(name in image.info for name in better):
        return None
    return None if abs(gamma * GAMMA - 1) < 0.05 else 1 / (gamma * GAMMA)


def _brightened(image: Image.Image, exponent: float) -> Image.Image:
    if image.mode in ("1", "P"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    table = [round(255 * (level / 255) ** exponent) for level in range(256)]
    colours = len(image.getbands()) - image.has_transparency_data * (image.mode in ("LA", "RGBA"))
    return image.point(table * colours + list(range(256)) * (len(image.getbands()) - colours))


def _to_srgb(image: Image.Image) -> Image.Image:
    """In RGB by the colours or the profile that the file tells; a profile that is broken or does not fit is none."""
    profile, description = image.info.get("icc_profile"), image.info.get(_COLOURS)
    if description and image.mode not in ("CMYK", "LAB"):
        return colours.to_srgb(image.convert("RGB"), description)
    if image.mode not in ("L", "CMYK", "LAB"):
        image = image.convert("RGB")
    if not profile and image.mode != "LAB":
        return image.convert("RGB")
    source = BytesIO(profile) if profile else ImageCms.createProfile("LAB")
    try:
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        converted = None
    return converted or image.convert("RGB")


def resize(image: Image.Image, size: Size, fit: bool = False) -> Pixels:
    """The centre of that shape, or with `fit` all of it, with bars in the mean colour of its edge."""
    if not fit:
        return np.array(ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS))
    width, height = image.size
    sides = (0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height)
    edge = np.concatenate([np.asarray(image.crop(side)).reshape(-1, 3) for side in sides]).mean(axis=0)
    colour = (round(edge[0]), round(edge[1]), round(edge[2]))
    return np.array(ImageOps.pad(image, size[::-1], Image.Resampling.LANCZOS, color=colour))


# -- what pictures and clips share


def pair(size: int | Size) -> Size:
    """`size` as (height, width); a number is the side of a square."""
    return (size, size) if isinstance(size, int) else size


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_local(path: Path, what: str) -> None:
    """Raise NotFoundError or MediaError unless there is a file at `path`."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise MediaError(f"'{path}' is a URL; download it first.")
    with decoding(path):
        if not path.exists():
            raise NotFoundError(f"There is no {what} '{path}'.")
        if not path.is_file():
            raise MediaError(f"'{path}' is not a file; give a {what}.")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises over a file into one sentence, which says "damaged" of damage alone."""
    try:
        yield
    except (CustomTTTError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        limit = MAX_PIXELS // 10**6
        raise MediaError(f"'{path.name}' has over {limit} megapixels; make it smaller.") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # of the system, not of Pillow
            raise MediaError(f"'{path}' cannot be opened ({error.strerror}); give a file that can.") from error
        raise MediaError(f"'{path.name}' cannot be read, it is cut off or damaged ({error}).") from error
