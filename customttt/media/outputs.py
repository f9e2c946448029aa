"""Places to write to: found good or bad before any work, and filled whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from customttt.errors import AlreadyExistsError, StoreError, UsageError

RECIPE = "recipe.json"
YOUNG_SECONDS = 600.0
SUFFIXES = (".mp4", ".gif", ".webp")
_ONLY_SUFFIX = re.compile(r"\.(mp4|gif|webp|mov|avi|mkv|webm|m4v|apng|png|jpe?g)", re.IGNORECASE)


def check_output(path: Path) -> None:
    """Find out before any work whether `write_video` could write there; leaves nothing behind.

    Raises UsageError for a suffix other than .mp4, .gif, .webp or none (a folder of png frames), or for a name that
    is none or too long, AlreadyExistsError for a folder that holds other files, and StoreError where nothing can be
    written.
    """
    with store_errors(path):
        kind_of_output(path)
    check_place(path)


def check_place(path: Path) -> None:
    """Find out whether a file could be written there.

    Raises UsageError for a name that is too long, or for what is no file, such as a device or a pipe; or StoreError.
    """
    with store_errors(path):
        _check_plain(path)
        with tempfile.TemporaryFile(dir=_nearest(path)) as file:
            file.write(bytes(1 << 16))


def _check_plain(path: Path) -> None:
    """Raise UsageError for a device, a pipe or a socket, which a file would take the place of."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(f"Output '{path}' is no file but a device or a pipe; name a file.")


def _check_name(path: Path) -> None:
    if path.name in ("", ".."):
        raise UsageError(f"Output '{path}' has no name of its own; name a file such as video.mp4, or a new folder.")
    if _ONLY_SUFFIX.fullmatch(path.name) and not path.is_dir():
        raise UsageError(f"Output '{path}' is a suffix without a name; give one such as video{path.name}.")


def _nearest(path: Path) -> Path:
    """The last folder on the way to `path` that is there. Raises UsageError for a name that is too long to be."""
    _check_length(path.absolute())
    found, *parts = (Path(part) for part in path.absolute().parts)
    there = True
    for part in parts:
        _check_length(found / part)
        there = there and (found / part).exists()
        found = found / part if there else found
    return found.parent if there else found


def _check_length(path: Path) -> None:
    """Ask the file system, as each has its own limit. Raises UsageError."""
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise too_long(path) from error


def too_long(path: Path) -> UsageError:
    name, whole = len(os.fsencode(path.name)), len(os.fsencode(path))
    return UsageError(
        f"The name '{path.name[:20]}...' of {name} bytes, or the path to it of {whole} bytes, is longer than the file "
        "system takes; give a shorter one."
    )


def kind_of_output(path: Path) -> str:
    """The suffix, or nothing for a folder of png frames. Raises UsageError or AlreadyExistsError."""
    _nearest(path)  # raises for what is too long
    _check_name(path)
    _check_plain(path)
    suffix = path.suffix.lower()
    if suffix in SUFFIXES and not path.is_dir():
        return suffix
    if (suffix and not path.is_dir()) or path.is_file():
        raise UsageError(f"Output '{path}' must end in .mp4, .gif or .webp, or be a folder for png frames.")
    if path.is_dir() and not all(re.fullmatch(rf"\d+\.png|{RECIPE}", file.name) for file in path.iterdir()):
        raise AlreadyExistsError(f"Folder '{path}' holds other files; name a new one for the png frames.")
    return ""


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turn what the system raises over a place into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise too_long(path) from error
        reason = error.strerror or error
        raise StoreError(f"'{path}' cannot be written ({reason}); make room or go elsewhere.") from error


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; what was written there replaces `path` if all went well.

    Its name is short: whatever name a file system takes for `path`, it takes this. What killed processes left beside
    `path` is cleared away.
    """
    aside = path.with_name(f".customttt-{os.getpid()}-{secrets.token_hex(4)}")
    older = aside.with_name(f"{aside.name}.old")
    with store_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path.parent)
        try:
            yield aside
            if path.is_dir():  # a folder is not replaced in one step
                path.rename(older)
            aside.replace(path)
            shutil.rmtree(older, ignore_errors=True)
        finally:
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove what processes that are gone were writing there; what is young may be that of another machine."""
    for left in folder.glob(".customttt-*"):
        known = re.fullmatch(r"\.customttt-(\d+)-[0-9a-f]{8}", left.name)
        if known and not psutil.pid_exists(int(known[1])) and time.time() - left.lstat().st_mtime > YOUNG_SECONDS:
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)
