"""The library of concepts on disk: the only file that touches the store. It knows files, not tensors.

    <root>/concepts/<name>/manifest.json             the Concept, written last
    <root>/concepts/<name>/lora.safetensors          and other files, each with its sha256 in the manifest
    <root>/adapted/<key>.<sha256>.safetensors        cache of LoRAs after test-time training, the last 32
    <root>/unfinished/<key>.<sha256>.safetensors     where a run of learning stands that has not ended
    <root>/made.jsonl                                which recipe's video grids wrote where
    <root>/.staging/                                 what is being written, replaced or removed
    <root>/.lock                                     held by the one writer; readers take no lock

Everything is written in `.staging`, flushed to the disk and renamed into place. Replacing an entry takes two
renames: `concepts/<name>` to `.staging/<name>.old`, then the new folder to `concepts/<name>`. A process that
is killed between them leaves an `.old` without its entry, and whoever reads or writes next renames it back.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from customttt.concept import Concept, Kind, check_name
from customttt.errors import (
    AlreadyExistsError,
    DamagedError,
    LockedError,
    NotFoundError,
    StoreError,
    UsageError,
    is_full,
)
from customttt.limits import MAX_MANIFEST, MAX_NAME

MANIFEST = "manifest.json"
WEIGHTS = "lora.safetensors"
LOCK_SECONDS = 10.0
ADAPTED = 32
"""Results of test-time training that are kept, 48 MB each on the paper's base; the oldest can be made again."""
Found = TypeVar("Found")
_DIFFERS = "differs from what was saved"
_OLD = ".old"
_ARTICLE = {"appearance": "an appearance", "motion": "a motion"}


@dataclass(frozen=True)
class Problem:
    """One thing that `verify` found: the entry's name, and a sentence about it."""

    name: str
    sentence: str


class Library:
    """Concepts and adapted weights below `root`: by default `$CUSTOMTTT_HOME`, or the user data folder.

    Unless it `forgets`, adapted weights are kept for ever, as research needs them.
    """

    def __init__(self, root: Path | None = None, forgets: bool = True) -> None:
        self.forgets = forgets
        self.root = root.absolute() if root else _default_root().absolute()
        check_length(self.root / "concepts" / ("x" * MAX_NAME) / WEIGHTS)
        self._told = self.root  # what errors name
        self._concepts = self.root / "concepts"
        self._adapted = self.root / "adapted"
        self._unfinished = self.root / "unfinished"
        self._measured = self.root / "measured"
        self._staging = self.root / ".staging"

    # -- reading: no lock

    def entries(self) -> list[tuple[str, Concept | DamagedError]]:
        """Every entry by name, a damaged one as the error that reading it raises. Only manifests are read."""
        entries = [(name, self._read(name)) for name in self._names()]
        if any(isinstance(entry, DamagedError) for _, entry in entries):
            return self._undisturbed(lambda: [(name, self._read(name)) for name in self._names()])
        return entries

    def concepts(self, kind: Kind | None = None) -> list[Concept]:
        """The undamaged concepts, sorted by name; of one kind, if given."""
        concepts = [concept for _, concept in self.entries() if isinstance(concept, Concept)]
        return [concept for concept in concepts if kind in (None, concept.kind)]

    def get(self, name: str, kind: Kind | None = None) -> Concept:
        """The concept of that name.

        Raises NotFoundError, DamagedError, or UsageError if it is not of the kind that is needed.
        """
        concept = self._read(self._find(name).name)
        if isinstance(concept, DamagedError):  # or replaced between finding and reading
            concept = self._undisturbed(lambda: self._read(self._find(name).name))
        if isinstance(concept, DamagedError):
            raise concept
        if kind not in (None, concept.kind):
            raise UsageError(
                f"'{name}' is {_ARTICLE[concept.kind]}, but {_ARTICLE[kind]} is needed here; "
                f"'customttt list --kind {kind}' shows what fits."
            )
        return concept

    def path(self, name: str | None = None) -> Path:
        """The library's root, or the folder of one concept. Raises NotFoundError."""
        return self.root if name is None else self._find(name)

    def weights(self, name: str) -> Path:
        """The concept's `lora.safetensors`, all its files verified. Raises NotFoundError or DamagedError."""
        folder, concept = self._concepts / name, self.get(name)
        if changed := _changed(folder, concept):
            if self.get(name) != concept:  # replaced while it was read
                return self.weights(name)
            raise DamagedError(f"Concept '{name}' is damaged: {'; '.join(changed)}. Learn or import it again.")
        return folder / WEIGHTS

    def adapted(self, key: str) -> Path | None:
        """The cached weights under `key` (hex digits); None where there are none, or only damaged ones."""
        return next(filter(_is_intact, _under(self._adapted, key)), None)

    def unfinished(self, key: str) -> Path | None:
        """The run of learning kept under `key` (hex digits); None where there is none, or only a damaged one."""
        return next(filter(_is_intact, _under(self._unfinished, key)), None)

    def carrying(self, fingerprint: str, kind: Kind) -> tuple[int, ...] | None:
        """The blocks of a base that `influence` found to carry a kind; None where that is not known."""
        try:
            layers = json.loads((self._measured / f"{fingerprint}-{kind}.json").read_text(encoding="utf-8"))
            return tuple(map(int, layers))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def made(self) -> Path:
        """Where grids note which recipe's video lies where, so that another grid finds it."""
        return self.root / "made.jsonl"

    def verify(self, name: str | None = None) -> list[Problem]:
        """Read every byte of one concept, or of the whole library, and return what is wrong."""
        problems = self._look(name)
        return self._undisturbed(lambda: self._look(name)) if problems else problems

    def _look(self, name: str | None) -> list[Problem]:
        if name is not None:
            return self._problems(self._find(name).name)
        problems = [problem for entry in self._names() for problem in self._problems(entry)]
        kept = [path for folder in (self._adapted, self._unfinished) for path in sorted(folder.glob("*"))]
        damaged = [path for path in kept if not _is_intact(path)]
        return problems + [Problem(f"{path.parent.name}/{path.name}", f"{path} {_DIFFERS}.") for path in damaged]

    # -- checks before a long training

    def check_free(self, name: str, force: bool = False) -> None:
        """Raise UsageError for a bad name, AlreadyExistsError for one that is taken and not to be replaced.

        A name that differs from a taken one in case only is never free: some systems keep both in one folder.
        """
        check_name(name)
        for taken in self._names():
            if taken == name and not force:
                raise AlreadyExistsError(
                    f"'{name}' is in the library already; use --force to replace it or pick another name."
                )
            if taken != name and taken.lower() == name.lower():
                raise AlreadyExistsError(f"'{name}' differs from '{taken}' in case only; pick another name.")

    def check_writable(self, size: int = 1 << 16) -> None:
        """Do all that a save does, with `size` bytes, in a passing library inside this one.

        Raises StoreError where that cannot be done: read-only, a full disk, a file system without locks.
        """
        with self._store_errors():
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in (self._concepts, self._adapted, self._unfinished, self._staging):
                if folder.exists():
                    tempfile.TemporaryFile(dir=folder).close()
            with tempfile.TemporaryDirectory(dir=self.root) as inside:
                passing = Library(Path(inside))
                passing._told = self.root
                passing.add_unfinished("0" * 8, lambda path: path.write_bytes(bytes(size)))

    # -- writing: one process at a time

    def add(self, concept: Concept, write: Callable[[Path], object], force: bool = False) -> Concept:
        """Store a concept; `write` places `lora.safetensors`, and files beside it, in the folder it is given.

        Returns the concept with the sha256 of every file. Interrupted, it leaves the library as it was.
        Raises UsageError, AlreadyExistsError, LockedError or StoreError.
        """
        with self._writing():
            self.check_free(concept.name, force)
            with self._staged() as folder:
                write(folder)
                return self._sealed(folder, concept)

    def attach(self, concept: Concept, write: Callable[[Path], object]) -> Concept:
        """Put the files that `write` places in the folder it is given beside those of a concept that is there.

        Returns the concept with them; interrupted, it leaves the entry as it was. Raises NotFoundError where the name
        is another concept's by now, DamagedError, LockedError or StoreError.
        """
        with self._writing():
            source = self.weights(concept.name).parent
            if self.get(concept.name) != concept:
                raise NotFoundError(f"'{concept.name}' was learned again meanwhile; nothing was put beside it.")
            with self._staged() as folder:
                for name in concept.files:
                    shutil.copy2(source / name, folder)
                write(folder)
                return self._sealed(folder, concept)

    def rename(self, old: str, new: str) -> Concept:
        """Give a concept another name; killed half way, it leaves one of the two names or both.

        Raises NotFoundError, DamagedError, UsageError, AlreadyExistsError, LockedError or StoreError.
        """
        with self._writing():
            source = self.weights(old).parent
            concept = self.get(old).model_copy(update={"name": new})
            if new in self._names():
                raise AlreadyExistsError(
                    f"'{new}' is in the library already; pick another name or 'customttt rm {new}' first."
                )
            self.check_free(new)
            with self._staged() as folder:
                for name in concept.files:
                    shutil.copy2(source / name, folder)
                self._publish(folder, concept)
                self._discard(source)
        return concept

    def remove(self, name: str) -> None:
        """Delete a concept, damaged or not. Raises NotFoundError, LockedError or StoreError."""
        with self._writing():
            self._discard(self._find(name))

    def add_adapted(self, key: str, write: Callable[[Path], object]) -> Path:
        """Cache the file that `write` places at the path it is given, under `key` (8 to 64 hex digits).

        The oldest beyond ADAPTED is deleted, if the library `forgets`. Returns where the file is now. Raises UsageError
        for another kind of key, LockedError or StoreError.
        """
        return self._keep(self._adapted, key, write, ADAPTED if self.forgets else None)

    def add_unfinished(self, key: str, write: Callable[[Path], object]) -> Path:
        """Keep where a run of learning stands, in place of what was kept under `key`; as `add_adapted`."""
        return self._keep(self._unfinished, key, write)

    def add_carrying(self, fingerprint: str, kind: Kind, layers: Sequence[int]) -> None:
        """Remember which blocks of a base carry a kind. Raises LockedError or StoreError."""
        with self._writing(), self._staged() as staging:
            self._measured.mkdir(exist_ok=True)
            (staging / "layers.json").write_text(json.dumps(list(layers)), encoding="utf-8")
            (staging / "layers.json").replace(self._measured / f"{fingerprint}-{kind}.json")

    def remove_unfinished(self, key: str) -> None:
        """Forget a run of learning. Raises UsageError, LockedError or StoreError."""
        if left := _under(self._unfinished, key):
            with self._writing():
                for path in left:
                    path.unlink(missing_ok=True)

    # -- below: how it is done

    def _keep(self, folder: Path, key: str, write: Callable[[Path], object], most: int | None = None) -> Path:
        older = _under(folder, key)
        with self._writing(), self._staged() as staging:
            staged = staging / WEIGHTS
            write(staged)
            sync(staged)
            place = folder / f"{key}.{_digest(staged)}.safetensors"
            staged.replace(place)
            sync(folder)
            by_age = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
            for path in {*older, *(by_age[:-most] if most else ())} - {place}:
                path.unlink(missing_ok=True)
        return place

    def _undisturbed(self, look: Callable[[], Found]) -> Found:
        """What a look that has found damage finds while nobody writes; where nobody can write, nobody does."""
        try:
            with self._writing():
                return look()
        except (StoreError, LockedError):
            return look()

    def _names(self) -> list[str]:
        def there() -> list[str]:
            try:
                with os.scandir(self._concepts) as folders:
                    return sorted(entry.name for entry in folders if entry.is_dir())
            except FileNotFoundError:
                return []
            except OSError as error:  # not to be read is not to be empty
                raise self._unable("read", error.strerror or str(error)) from error

        names = there()
        if any(self._staging.glob("*" + _OLD)):
            try:
                with self._writing():  # a writer is between its two renames: await it, or put back what it left
                    return there()
            except StoreError:  # read-only: what is there can be read
                return names
        return names if there() == names else self._names()  # it was, and has ended since

    def _find(self, name: str) -> Path:
        names = self._names()
        if name in names:  # and not `folder.exists()`, which finds 'koala' by 'Koala' on some systems
            return self._concepts / name
        close = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise NotFoundError(f"There is no concept '{name}'; {hint}'customttt list' shows what there is.")

    def _read(self, name: str) -> Concept | DamagedError:
        try:
            manifest = self._concepts.joinpath(name, MANIFEST)
            if _plain(manifest).st_size > MAX_MANIFEST:
                raise DamagedError(f"{MANIFEST} has more than {MAX_MANIFEST:,} bytes.")
            concept = Concept.from_json(manifest.read_text(encoding="utf-8"))
            if concept.name != name:
                raise DamagedError(f"The manifest is that of '{concept.name}'.")
        except (OSError, UnicodeDecodeError) as error:
            return DamagedError(f"Concept '{name}' is damaged: {MANIFEST} cannot be read ({error}).")
        except DamagedError as error:
            return DamagedError(f"Concept '{name}' cannot be used: {error}")
        return concept

    def _problems(self, name: str) -> list[Problem]:
        concept, folder = self._read(name), self._concepts / name
        if isinstance(concept, DamagedError):
            return [Problem(name, str(concept))]
        try:
            there = {path.name for path in folder.iterdir()}
        except OSError as error:  # it may have gone meanwhile
            return [Problem(name, f"{folder} cannot be read ({error.strerror}).")]
        extra = sorted(there - {MANIFEST, *concept.files})
        strangers = [f"{folder / name} does not belong to the concept" for name in extra]
        return [Problem(name, f"{sentence}.") for sentence in _changed(folder, concept) + strangers]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock: what lies in `.staging` then is a dead process's, and is put back or deleted."""
        from filelock import FileLock, Timeout  # 40 ms that reading does not pay

        with self._store_errors():
            for folder in (self._concepts, self._adapted, self._unfinished, self._staging):
                folder.mkdir(parents=True, exist_ok=True)
                if folder.is_symlink() and folder != self._concepts:  # old files in these are deleted
                    raise OSError(errno.ENOTDIR, f"'{folder}' is a link; remove it")
            try:
                with FileLock(self.root / ".lock", timeout=LOCK_SECONDS):
                    self._recover()
                    yield
            except Timeout as error:
                raise LockedError(
                    f"Another customttt has been writing to {self.root} for {LOCK_SECONDS:.0f} s; "
                    "wait for it to end and try again."
                ) from error

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except NotImplementedError as error:  # of the lock, where the file system has none
            raise self._unable("written", "its file system knows no locks") from error
        except OSError as error:
            raise self._unable("written", error.strerror or str(error), is_full(error)) from error

    def _unable(self, what: str, reason: str, full: bool = False) -> StoreError:
        way_out = "make room or set" if full else "set"
        return StoreError(
            f"The library at {_shortened(self._told)} cannot be {what} ({reason}); {way_out} CUSTOMTTT_HOME to another "
            "folder."
        )

    def _recover(self) -> None:
        for left in sorted(self._staging.iterdir()):
            home = self._concepts / left.name.removesuffix(_OLD)
            if left.name.endswith(_OLD) and not home.exists():
                left.rename(home)
            else:
                self._discard(left)

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        folder = self._staging / secrets.token_hex(8)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _sealed(self, folder: Path, concept: Concept) -> Concept:
        """Publish a staged folder with the sha256 of every file in it; returns the concept with these."""
        digests = {path.name: _digest(path) for path in sorted(folder.iterdir())}
        if WEIGHTS not in digests:
            raise StoreError(f"Concept '{concept.name}' cannot be stored without {WEIGHTS}.")
        saved = Concept(**{**dict(concept), "files": digests})
        self._publish(folder, saved)
        return saved

    def _publish(self, folder: Path, concept: Concept) -> None:
        (folder / MANIFEST).write_text(concept.to_json(), encoding="utf-8", newline="\n")
        for path in (*folder.iterdir(), folder):
            sync(path)
        home = self._concepts / concept.name
        old = self._staging / (concept.name + _OLD)
        if home.exists():
            home.rename(old)
        folder.rename(home)
        sync(self._concepts)
        if old.exists():
            self._discard(old)

    def _discard(self, path: Path) -> None:
        """Move away, then delete: a process killed while deleting leaves no half an entry behind."""
        doomed = path.rename(self._staging / secrets.token_hex(8))
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            doomed.unlink(missing_ok=True)


def _default_root() -> Path:
    from platformdirs import user_data_path

    home = os.environ.get("CUSTOMTTT_HOME")
    try:
        return Path(home).expanduser() if home else user_data_path("customttt", appauthor=False).expanduser()
    except RuntimeError as error:  # of Python, which finds no home
        why = f"CUSTOMTTT_HOME is {home!r}, and there is no such user" if home else "There is no home folder here"
        raise UsageError(f"{why}; set CUSTOMTTT_HOME to a folder for your concepts.") from error


def check_length(path: Path) -> None:
    """Raise UsageError for a name that the file system does not take; each has its own limit, and is asked."""
    try:
        path.lstat()
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            raise too_long(path) from error


def too_long(path: Path) -> UsageError:
    name, whole = len(os.fsencode(path.name)), len(os.fsencode(path))
    return UsageError(
        f"The name '{path.name[:20]}...' of {name} bytes, or the path to it of {whole:,} bytes, is longer than the "
        "file system takes; give a shorter one."
    )


def _shortened(path: Path) -> str:
    """A path as a sentence can hold it."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:60]}... of {len(text):,} characters"


def _under(folder: Path, key: str) -> list[Path]:
    if not re.fullmatch(r"[0-9a-f]{8,64}", key):
        raise UsageError(f"The key {key!r} of weights must be 8 to 64 hex digits.")
    return list(folder.glob(f"{key}.*.safetensors"))


def _plain(path: Path) -> os.stat_result:
    """Of a file. Raises OSError for a link, which may lead anywhere, and for a pipe, on which one would wait."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no plain file")
    return status


def _digest(path: Path) -> str:
    _plain(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _changed(folder: Path, concept: Concept) -> list[str]:
    problems = []
    for name, digest in concept.files.items():
        try:
            if _digest(folder / name) != digest:
                problems.append(f"{folder / name} {_DIFFERS}")
        except OSError:
            problems.append(f"{folder / name} is missing or cannot be read")
    return problems


def _is_intact(path: Path) -> bool:
    """Whether a kept file has the sha256 that its name tells."""
    try:
        return path.name.split(".")[1:2] == [_digest(path)]
    except OSError:
        return False


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk (Windows has no such call for folders)."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
