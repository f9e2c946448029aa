"""Everything that can go wrong, as one tree; each class carries the exit code of the command line.

    CustomTTTError             1   unexpected
    ├── UsageError             2   a value that cannot be used
    ├── NotFoundError          3   no such concept or file
    ├── AlreadyExistsError     4   the name is taken
    ├── LockedError            5   another process is writing to the library
    ├── DamagedError           6   files that differ from what was saved
    ├── OutOfMemoryError       7   the model does not fit
    ├── DivergedError          8   the loss is not a number
    ├── MediaError             9   a picture or clip that cannot be used
    ├── BaseUnavailableError  10   the base model cannot run here
    ├── StoreError            11   the library or output cannot be read or written (no permission, disk full)
    └── IncompleteError       12   some of many jobs are not done

130 is Ctrl-C. A message says what is wrong, which value, what was expected and what to type next, in one sentence.
"""

from __future__ import annotations

import errno
import re


class CustomTTTError(Exception):
    """Base of all errors that a user can meet; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(CustomTTTError):
    """A value that cannot be used: a bad name, zero steps, a prompt that is too long, a concept of the wrong kind."""

    exit_code = 2


class NotFoundError(CustomTTTError):
    """No such concept, file or folder."""

    exit_code = 3


class AlreadyExistsError(CustomTTTError):
    """The name is taken and `--force` was not given."""

    exit_code = 4


class LockedError(CustomTTTError):
    """Another process is writing to the library."""

    exit_code = 5


class DamagedError(CustomTTTError):
    """Files that are not what was saved: a changed byte, a missing file, an unreadable manifest."""

    exit_code = 6


class OutOfMemoryError(CustomTTTError):
    """The model does not fit into memory."""

    exit_code = 7


_NO_MEMORY = ("DefaultCPUAllocator", "out of memory")


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, a GPU or torch's CPU allocator ran out of memory; torch is not imported to find out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


class DivergedError(CustomTTTError):
    """The loss is not a finite number."""

    exit_code = 8


class MediaError(CustomTTTError):
    """A picture or a clip that cannot be used."""

    exit_code = 9


class BaseUnavailableError(CustomTTTError):
    """The base model cannot run here, or a concept belongs to another base."""

    exit_code = 10


class StoreError(CustomTTTError):
    """The library or the output cannot be read or written: no permission, read-only, or the disk is full."""

    exit_code = 11


class IncompleteError(CustomTTTError):
    """Some jobs of a grid are not done; the others are, and the same command goes on."""

    exit_code = 12


_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quota of that name


def is_full(error: Exception) -> bool:
    """Whether a disk or a quota is full, so that room has to be made; safetensors tells the code in words alone."""
    code = re.search(r"\(os error (\d+)\)", str(error))
    return (int(code[1]) if code else getattr(error, "errno", None)) in _FULL
