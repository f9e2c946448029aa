"""Places to write to: found good or bad before any work, and filled whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from customttt.errors import AlreadyExistsError, StoreError, UsageError, is_full
from customttt.library import check_length, sync, too_long

RECIPE = "recipe.json"
YOUNG_SECONDS = 600.0
_ASIDE, _INSIDE = ".customttt-", "new"
_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD of Linux; RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS."""
SUFFIXES = (".mp4", ".gif", ".webp")
_ONLY_SUFFIX = re.compile(r"\.(mp4|gif|webp|mov|avi|mkv|webm|m4v|apng|png|jpe?g)", re.IGNORECASE)


def check_output(path: Path) -> None:
    """Find out before any work whether `write_video` could write there; leaves nothing behind.

    Raises UsageError for a suffix other than .mp4, .gif, .webp or none (a folder of png frames), or for a name that
    is none or too long, AlreadyExistsError for a folder that holds other files, and StoreError where nothing can be
    written.
    """
    with store_errors(path):
        _nearest(path)  # raises for what is too long
        _check_name(path)
        _put_back(path)
        if kind_of_output(path) == "":
            check_length(path.absolute() / RECIPE)
    check_place(path)


def check_place(path: Path) -> None:
    """Find out whether a file could be written there.

    Raises UsageError for a name that is too long, or for what is no file, such as a device or a pipe; or StoreError.
    """
    with store_errors(path):
        check_length(path.absolute().with_name(f"{_ASIDE}{2**22}-{'0' * 8}") / _INSIDE / RECIPE)
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
    check_length(path.absolute())
    existing, *parts = (Path(part) for part in path.absolute().parts)
    there = True
    for part in parts:
        check_length(existing / part)
        there = there and (existing / part).exists()
        existing = existing / part if there else existing
    return existing.parent if there else existing


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
        way_out = "make room or go elsewhere" if is_full(error) else "go elsewhere"
        raise StoreError(f"'{path}' cannot be written ({reason}); {way_out}.") from error


@contextmanager
def placed(path: Path, anew: bool = False) -> Iterator[Path]:
    """A place to write to, in a folder beside `path`; what was written there replaces `path` if all went well.

    With `anew` it replaces nothing: AlreadyExistsError is raised where something is there by then. Its name is short:
    whatever name a file system takes for `path`, it takes this. What a writer leaves beside it, as safetensors does
    where it is killed, is in the folder, too. What killed processes left beside `path` is cleared.
    """
    with store_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_back(path)
        folder = passing(path.parent)
        aside = folder / _INSIDE
        try:
            yield aside
            _flush(aside)
            if anew:
                _claim(path)
            _put(aside, path)
            sync(path.parent)
        finally:
            _remove(folder)


def passing(folder: Path) -> Path:
    """A new folder in another for as long as this process lives; what killed processes left there is cleared."""
    _clear(folder)
    made = folder / f"{_ASIDE}{os.getpid()}-{secrets.token_hex(4)}"
    made.mkdir()
    return made


def temporary() -> Path:
    """The same among the system's temporary files, for this user alone."""
    made = passing(Path(tempfile.gettempdir()))
    made.chmod(0o700)
    return made


def _claim(path: Path) -> None:
    """Take a name by an empty file. Raises AlreadyExistsError where it is taken."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError as error:
        raise AlreadyExistsError(f"'{path}' is there already; name another.") from error


def _put(aside: Path, path: Path) -> None:
    """Let what is at `aside` be at `path`; a folder that is there is exchanged, or else moved to where it is found."""
    if not path.is_dir():
        aside.replace(path)
    elif not _exchanged(aside, path):
        older = _older(path)
        _remove(older)
        path.rename(older)
        aside.replace(path)
        _remove(older)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two names change places in one step, where the system has such a step."""
    if os.name != "posix":
        return False
    library, first, second = ctypes.CDLL(None), os.fsencode(one), os.fsencode(other)
    if hasattr(library, "renameat2"):  # Linux
        return bool(library.renameat2(_HERE, first, _HERE, second, _EXCHANGE) == 0)
    if hasattr(library, "renamex_np"):  # macOS
        return bool(library.renamex_np(first, second, _EXCHANGE) == 0)
    return False


def _older(path: Path) -> Path:
    """Where a folder is while another takes its place in two steps."""
    return path.with_name(f"{_ASIDE}old-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}")


def _put_back(path: Path) -> None:
    """Undo what a process left that was killed between the two steps."""
    older = _older(path)
    if older.is_dir() and not path.exists():
        older.rename(path)
    _remove(older)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    for file in path.iterdir() if path.is_dir() else ():
        sync(file)
    sync(path)


def _clear(folder: Path) -> None:
    """Remove what processes that are gone were writing there; what is young may be that of another machine."""
    for left in folder.glob(f"{_ASIDE}*"):
        known = re.fullmatch(r"\.customttt-(\d+)-[0-9a-f]{8}", left.name)
        with suppress(OSError):  # another user's, or just cleared by another process
            if known and not psutil.pid_exists(int(known[1])) and time.time() - left.lstat().st_mtime > YOUNG_SECONDS:
                _remove(left)
