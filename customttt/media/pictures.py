"""Pictures to learn from: which files of a folder they are, what is passed over and why, and their captions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from customttt.errors import MediaError, UsageError
from customttt.limits import MAX_CAPTIONS, MAX_PICTURES
from customttt.media.pixels import (
    Pixels,
    Size,
    check_local,
    decoding,
    digest,
    has_several,
    is_still,
    load_still,
    pair,
    resize,
    to_rgb,
    what_it_is,
)
from customttt.recipe import check_characters

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".heic", ".heif", ".tif", ".tiff", ".bmp", ".gif",
)  # fmt: skip
CAPTION_SUFFIXES = (".txt", ".TXT")
NAMED = 5
"""Files that are named of those passed over for one reason; the others are counted."""
_SYSTEM = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Picture:
    """One picture to learn from."""

    name: str  # the file's
    pixels: Pixels
    captions: tuple[str, ...]  # the lines of the `.txt` beside the picture
    sha256: str  # of the file


def read_pictures(paths: Sequence[Path], size: int | Size, fit: bool = False) -> list[Picture]:
    """The pictures at `paths`, files or folders: upright, in sRGB, transparency turned white, all of one size.

    `size` is in pixels: the side, or (height, width). The centre is cropped to that shape; with `fit` the
    whole picture is kept, with bars in the mean colour of its edge. Raises NotFoundError or MediaError.
    """
    files = [file for path in paths for file in _picture_files(path)]
    if not 1 <= len(files) <= MAX_PICTURES:
        raise MediaError(f"There are {len(files)} pictures; give 1 to {MAX_PICTURES}, best 3 to 8.")
    return [_read_picture(file, pair(size), fit) for file in files]


def passed_over(paths: Sequence[Path]) -> list[str]:
    """What `read_pictures` does not read of `paths`, in sentences: files in folders, all but a file's first picture."""
    sorts = {path: _sort(path) for path in paths if path.is_dir()}
    said = [f"Passed over in '{path}': {_told(others)}." for path, (_, others) in sorts.items() if others]
    files = [file for path in paths for file in (sorts[path][0] if path in sorts else [path])]
    if several := [file.name for file in files if has_several(file)]:
        said.append(f"Only the first picture is read of what holds several: {_listed(several)}.")
    return said


def _told(reasons: dict[str, list[str]]) -> str:
    return "; ".join(f"{_listed(names)} ({reason})" for reason, names in reasons.items())


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + f" and {rest} more" * (rest > 0)


def _picture_files(path: Path) -> list[Path]:
    with decoding(path):
        if not path.is_dir():
            check_local(path, "picture")
            return [path]
        files, others = _sort(path)
    if not files:
        passed = f" (passed over: {_told(others)})" * bool(others)
        raise MediaError(f"Folder '{path}' has no picture that can be read{passed}; put 3 to 8 into it.")
    return files


def _sort(folder: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """The pictures of a folder, and by reason the names of what else it holds, but for what systems leave behind."""
    files = [one for one in sorted(folder.iterdir()) if one.name[0] != "." and one.name.lower() not in _SYSTEM]
    pictures = [file for file in files if file.suffix not in CAPTION_SUFFIXES and _is_picture(file)]
    stems, others = {file.stem for file in pictures}, defaultdict(list)
    for file in files:
        if file not in pictures and (reason := _reason(file, stems)):
            others[reason].append(file.name)
    return pictures, dict(others)


def _is_picture(file: Path) -> bool:
    """By its name, or by its first bytes where the name does not tell or a package is missing."""
    named = file.suffix.lower() in PICTURE_SUFFIXES and file.suffix.lower() not in (".heic", ".heif")
    return file.is_file() and (named or is_still(file))


def _reason(file: Path, stems: Collection[str]) -> str:
    """Why a file is passed over; empty for a caption."""
    if file.is_dir():
        return "a folder"
    if not file.is_file():
        return "no file"
    if file.suffix in CAPTION_SUFFIXES:
        return "" if file.stem in stems else "a caption without its picture"
    return what_it_is(file)


def _read_picture(path: Path, size: Size, fit: bool) -> Picture:
    captions = _captions(path)
    with decoding(path):
        pixels = resize(to_rgb(load_still(path)), size, fit)
        return Picture(path.name, pixels, captions, digest(path))


def _captions(path: Path) -> tuple[str, ...]:
    file = next((one for one in map(path.with_suffix, CAPTION_SUFFIXES) if one.is_file()), None)
    if file is None:
        return ()
    if file.stat().st_size > MAX_CAPTIONS:
        raise MediaError(f"Caption '{file.name}' has more than {MAX_CAPTIONS:,} bytes; write one line or a few.")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        for line in lines:
            check_characters(line, f"Caption '{file.name}'")
    except UnicodeDecodeError as error:
        raise MediaError(f"Caption '{file.name}' is not UTF-8 text; save it as UTF-8.") from error
    except UsageError as error:
        raise MediaError(str(error)) from error
    return tuple(line.strip() for line in lines if line.strip())
