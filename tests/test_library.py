"""The library: nothing half-written is ever found, damage is told, and errors say what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest
from platformdirs import user_data_path

from customttt import library as library_module
from customttt.concept import Concept, Kind
from customttt.errors import (
    AlreadyExistsError,
    DamagedError,
    LockedError,
    NotFoundError,
    StoreError,
    UsageError,
)
from customttt.library import Library

KEY = "0123456789abcdef"


def concept(name: str = "koala", kind: Kind = "appearance", **changes: Any) -> Concept:
    fields: dict[str, Any] = {
        "phrase": name,
        "prompt": f"A {name}.",
        "base": "tiny",
        "base_fingerprint": "f00d",
        "layers": (2, 6),
        "rank": 4,
        "steps": 500,
        "learning_rate": 1e-5,
        "seed": 0,
        "sources": (),
        "inputs": "c" * 64,
        "losses": (0.5,) * 500,
        "versions": {},
        "created": datetime(2025, 1, 1, tzinfo=UTC),
        "seconds": 1.0,
    }
    return Concept(name=name, kind=kind, **{**fields, **changes})


def writer(content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "lora.safetensors").write_bytes(content)
        (folder / "preview.png").write_bytes(content[::-1])

    return write


def contents(root: Path) -> dict[str, bytes]:
    """Every file that is not the lock."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def names(library: Library) -> list[str]:
    return [name for name, _ in library.entries()]


@pytest.fixture(autouse=True)
def flushed(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The inodes that were flushed; nothing really is, for what SIGKILL leaves the kernel still holds."""
    inodes: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: inodes.add(os.fstat(descriptor).st_ino))
    return inodes


@pytest.fixture
def empty(home: Path) -> Library:
    return Library(home)


@pytest.fixture
def library(empty: Library) -> Library:
    """A library that holds a koala."""
    empty.add(concept(), writer(b"koala"))
    return empty


# -- finding


def test_the_library_lives_where_the_environment_says(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Library().path() == home
    monkeypatch.chdir(tmp_path)
    assert Library(Path("here")).path() == tmp_path / "here"
    monkeypatch.setenv("CUSTOMTTT_HOME", "~/concepts")
    assert Library().path() == Path.home() / "concepts"
    for unset in ("", None):
        monkeypatch.setenv("CUSTOMTTT_HOME", "") if unset == "" else monkeypatch.delenv("CUSTOMTTT_HOME")
        assert Library().path() == user_data_path("customttt", appauthor=False)


def test_a_library_without_a_home_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOMTTT_HOME", "~nosuchuser/x")
    with pytest.raises(UsageError, match=r"^CUSTOMTTT_HOME is '~nosuchuser/x', and there is no such user; set"):
        Library()

    def homeless(*_: object, **__: object) -> NoReturn:
        raise RuntimeError

    monkeypatch.delenv("CUSTOMTTT_HOME")
    monkeypatch.setattr("platformdirs.user_data_path", homeless)
    with pytest.raises(UsageError, match=r"^There is no home folder here; set CUSTOMTTT_HOME to a folder for your"):
        Library()


def test_an_empty_library_lists_nothing_and_creates_nothing(empty: Library) -> None:
    assert empty.concepts() == []
    assert empty.verify() == []
    assert empty.adapted(KEY) is None
    assert not empty.root.exists()


def test_what_is_added_is_found_again(library: Library) -> None:
    assert library.get("koala").model_copy(update={"files": {}}) == concept()
    assert set(library.get("koala").files) == {"lora.safetensors", "preview.png"}
    assert library.weights("koala").read_bytes() == b"koala"
    assert library.weights("koala").parent == library.path("koala")
    assert library.verify() == []


def test_concepts_are_sorted_and_filtered_by_kind(empty: Library) -> None:
    for name, kind in (("b", "motion"), ("c", "appearance"), ("a", "motion")):
        empty.add(concept(name, kind), writer(b"x"))  # type: ignore[arg-type]
    assert [found.name for found in empty.concepts()] == ["a", "b", "c"]
    assert [found.name for found in empty.concepts("motion")] == ["a", "b"]


def test_a_misspelt_name_is_told_the_right_one(library: Library) -> None:
    with pytest.raises(NotFoundError, match=r"'kaola'; did you mean 'koala'\? 'customttt list'"):
        library.get("kaola")
    with pytest.raises(NotFoundError, match=r"'KAOLA'; did you mean 'koala'\? 'customttt list' shows what there is"):
        library.get("KAOLA")
    with pytest.raises(NotFoundError, match=r"^There is no concept 'lion'; 'customttt list' shows"):
        library.get("lion")


@pytest.mark.parametrize("name", ["Koala", "", ".", "..", "../concepts/koala", "/etc"])
def test_only_an_exact_name_is_found(library: Library, name: str) -> None:
    for look_up in (library.get, library.path, library.weights, library.verify, library.remove):
        with pytest.raises(NotFoundError):
            look_up(name)


def test_a_concept_of_the_wrong_kind_is_refused_naming_both(library: Library) -> None:
    with pytest.raises(
        UsageError, match=r"^'koala' is an appearance, but a motion is .*'customttt list --kind motion'"
    ):
        library.get("koala", "motion")
    library.add(concept("running", "motion"), writer(b"running"))
    with pytest.raises(UsageError, match=r"^'running' is a motion, but an appearance is needed here"):
        library.get("running", "appearance")
    assert library.get("koala", "appearance").kind == "appearance"


def test_a_hundred_concepts_list_at_once(library: Library) -> None:
    koala = library.get("koala")
    for i in range(100):
        folder = shutil.copytree(library.path("koala"), library.path() / "concepts" / f"koala{i}")
        copy = koala.model_copy(update={"name": f"koala{i}"})
        (folder / "manifest.json").write_text(copy.to_json(), encoding="utf-8")
    start = time.perf_counter()
    assert len(library.concepts()) == 101
    assert time.perf_counter() - start < 0.3


def test_importing_the_library_brings_no_tensors() -> None:
    code = "import sys, customttt.library; print({'torch', 'diffusers', 'numpy', 'PIL'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "set()"


# -- adding


def test_a_taken_name_is_refused_and_force_replaces_it(library: Library) -> None:
    with pytest.raises(AlreadyExistsError, match="use --force to replace it or pick another name"):
        library.check_free("koala")
    with pytest.raises(AlreadyExistsError):
        library.add(concept(), writer(b"other"))
    assert library.weights("koala").read_bytes() == b"koala"
    library.add(concept(rank=8), writer(b"other"), force=True)
    assert library.weights("koala").read_bytes() == b"other"
    assert library.get("koala").rank == 8


def test_force_replaces_a_damaged_entry(library: Library) -> None:
    (library.path("koala") / "manifest.json").unlink()
    library.add(concept(), writer(b"new"), force=True)
    assert library.weights("koala").read_bytes() == b"new"


@pytest.mark.parametrize("force", [False, True])
def test_names_that_differ_in_case_only_are_refused(library: Library, force: bool) -> None:
    with pytest.raises(AlreadyExistsError, match="differs from 'koala' in case only"):
        library.add(concept("Koala"), writer(b"x"), force=force)


@pytest.mark.parametrize("name", ["../koala", "con", "a b", "x" * 65])
def test_a_bad_name_reaches_no_disk(empty: Library, name: str) -> None:
    with pytest.raises(UsageError):
        empty.add(concept(name), writer(b"x"))
    assert contents(empty.root) == {}


@pytest.mark.parametrize("force", [False, True])
def test_an_interrupted_add_leaves_the_library_as_it_was(library: Library, force: bool) -> None:
    def write(folder: Path) -> NoReturn:
        (folder / "lora.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    before = contents(library.root)
    with pytest.raises(KeyboardInterrupt):
        library.add(concept("koala" if force else "tiger"), write, force=force)
    assert contents(library.root) == before


def test_all_that_is_added_is_flushed_to_the_disk(library: Library, flushed: set[int]) -> None:
    folder = library.path("koala")
    assert {path.stat().st_ino for path in (folder.parent, folder, *folder.iterdir())} <= flushed


def test_a_concept_without_weights_is_refused(empty: Library) -> None:
    with pytest.raises(StoreError, match=r"without lora\.safetensors"):
        empty.add(concept(), lambda _: None)
    assert empty.concepts() == []


# -- killed processes, at every single operation on the disk

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
EVENTS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "shutil.rmtree",
    "os.listdir",
    "os.scandir",
}


def in_child(action: Callable[[], object]) -> int:
    """Run the action in a forked process; returns its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid


def killed_before_operation(number: int, action: Callable[[], object]) -> bool:
    """Run the action in a process that SIGKILLs itself before its n-th file operation, if it gets there."""

    def doomed() -> None:
        left = iter(range(number))

        def hook(event: str, _: tuple[Any, ...]) -> None:
            if event in EVENTS and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        action()

    _, status = os.waitpid(in_child(doomed), 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def kills(action: Callable[[], object], restore: Callable[[], object]) -> Iterator[int]:
    """Kill the action before its first, second, ... operation; after each, the caller checks what is left."""
    number = 0
    while killed_before_operation(number, action):
        yield number
        restore()
        number += 1
    assert number > 10


@needs_fork
def test_a_killed_add_leaves_the_new_entry_whole_or_none(library: Library) -> None:
    def add() -> None:
        library.add(concept("tiger"), writer(b"tiger"))

    seen = set()
    for _ in kills(add, restore=lambda: library.remove("tiger") if "tiger" in names(library) else None):
        assert library.verify() == []
        assert library.weights("koala").read_bytes() == b"koala"
        seen.add("tiger" in names(library))
    assert seen == {False, True}


@needs_fork
def test_a_killed_replacement_leaves_the_old_entry_or_the_new(library: Library) -> None:
    def replace() -> None:
        library.add(concept(rank=8), writer(b"new"), force=True)

    seen = set()
    for _ in kills(replace, restore=lambda: library.add(concept(), writer(b"koala"), force=True)):
        assert library.verify() == []
        found = (library.get("koala").rank, library.weights("koala").read_bytes())
        assert found in {(4, b"koala"), (8, b"new")}
        seen.add(found)
    assert len(seen) == 2


@needs_fork
def test_a_killed_rename_loses_nothing(library: Library) -> None:
    def restore() -> None:
        for name in names(library):
            library.remove(name)
        library.add(concept(), writer(b"koala"))

    for _ in kills(lambda: library.rename("koala", "bear"), restore):
        assert library.verify() == []
        assert {library.weights(name).read_bytes() for name in names(library)} == {b"koala"}


@needs_fork
def test_a_killed_removal_leaves_all_or_nothing(library: Library) -> None:
    for _ in kills(lambda: library.remove("koala"), restore=lambda: library.add(concept(), writer(b"k"), force=True)):
        assert library.verify() == []
        assert names(library) in ([], ["koala"])


@needs_fork
def test_the_next_writer_clears_what_the_dead_left(library: Library) -> None:
    def die(folder: Path) -> None:
        (folder / "lora.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(in_child(lambda: library.add(concept("tiger"), die)), 0)
    assert any((library.root / ".staging").iterdir())
    library.add(concept("bear"), writer(b"bear"))
    assert not any((library.root / ".staging").iterdir())
    assert names(library) == ["bear", "koala"]


@needs_fork
def test_two_processes_add_at_the_same_time(empty: Library) -> None:
    def write(folder: Path) -> None:
        writer(b"x")(folder)
        time.sleep(0.01)

    def add(prefix: str) -> None:
        for i in range(5):
            empty.add(concept(f"{prefix}{i}"), write)

    for pid in [in_child(lambda: add("a")), in_child(lambda: add("b"))]:
        assert os.waitpid(pid, 0)[1] == 0
    assert len(names(empty)) == 10
    assert empty.verify() == []


@needs_fork
def test_a_reader_never_meets_a_half_replaced_concept(library: Library) -> None:
    def replace() -> None:
        for rank in range(1, 21):
            library.add(concept(rank=rank), writer(bytes([rank])), force=True)
            time.sleep(0.005)

    writing = in_child(replace)
    while os.waitpid(writing, os.WNOHANG)[0] == 0:
        library.weights("koala")
    assert library.get("koala").rank == 20


def test_a_replacement_that_ends_between_two_looks_hides_nothing(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, aside, glob = library.path("koala"), library.root / "aside", Path.glob
    place.rename(aside)

    def ends(folder: Path, pattern: str) -> Iterator[Path]:
        if folder.name == ".staging" and aside.exists():
            aside.rename(place)
        return glob(folder, pattern)

    monkeypatch.setattr(Path, "glob", ends)
    assert library.get("koala").name == "koala"


def test_a_second_writer_does_not_wait_for_ever(empty: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    empty.check_writable()
    monkeypatch.setattr(library_module, "LOCK_SECONDS", 0.05)
    with FileLock(empty.root / ".lock"), pytest.raises(LockedError, match="Another customttt"):
        empty.add(concept(), writer(b"x"))
    empty.add(concept(), writer(b"x"))


def test_a_writer_that_waited_says_for_whom_and_how_long(empty: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock, Timeout

    waited: list[float] = []

    def busy(lock: FileLock, *_: object, **__: object) -> NoReturn:
        waited.append(lock.timeout)
        raise Timeout(".lock")

    monkeypatch.setattr(FileLock, "acquire", busy)
    with pytest.raises(LockedError, match=f"^Another customttt has been writing to {empty.root} for 10 s; wait for it"):
        empty.add(concept(), writer(b"x"))
    assert waited == [10.0]


# -- damage


def damages(folder: Path) -> Iterator[Callable[[], object]]:
    weights, manifest = folder / "lora.safetensors", folder / "manifest.json"
    yield lambda: weights.write_bytes(b"kOala")
    yield weights.unlink
    yield lambda: weights.rename(folder / "moved")
    yield lambda: (folder / "preview.png").write_bytes(b"")
    yield manifest.unlink
    yield lambda: manifest.write_bytes(b"\xff\xfe")
    yield lambda: manifest.write_bytes(manifest.read_bytes().replace(b"A koala", b"A koalb"))


@pytest.mark.parametrize("which", range(7))
def test_any_damage_is_told_and_no_damaged_weights_are_given(library: Library, which: int) -> None:
    library.add(concept("tiger"), writer(b"tiger"))
    list(damages(library.path("koala")))[which]()
    assert {problem.name for problem in library.verify()} == {"koala"}
    assert library.verify("tiger") == []
    with pytest.raises(DamagedError, match="koala"):
        library.weights("koala")
    assert names(library) == ["koala", "tiger"]
    library.remove("koala")
    assert library.verify() == []


def test_every_damage_has_a_sentence_that_names_the_file(library: Library) -> None:
    folder = library.path("koala")
    (folder / "preview.png").unlink()
    (folder / "lora.safetensors").write_bytes(b"kOala")
    assert [problem.sentence for problem in library.verify("koala")] == [
        f"{folder / 'lora.safetensors'} differs from what was saved.",
        f"{folder / 'preview.png'} is missing or cannot be read.",
    ]
    with pytest.raises(DamagedError, match=r"^Concept 'koala' is damaged: .*saved; .*read\. Learn or import it again"):
        library.weights("koala")
    (folder / "manifest.json").write_bytes(b"\xff\xfe")
    assert library.verify()[0].sentence.startswith("Concept 'koala' is damaged: manifest.json cannot be read (")
    (folder / "manifest.json").write_text("{}")
    assert library.verify()[0].sentence.startswith("Concept 'koala' cannot be used: ")


def test_a_concept_that_is_replaced_while_it_is_read_is_read_again(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, looks = Library.get, []

    def replaced(self: Library, name: str, kind: Kind | None = None) -> Concept:
        found = get(self, name, kind)
        looks.append(name)
        if len(looks) == 1:
            library.add(concept(rank=8), writer(b"new"), force=True)
        return found

    monkeypatch.setattr(Library, "get", replaced)
    assert library.weights("koala").read_bytes() == b"new"


def test_a_damaged_entry_does_not_hide_the_others(library: Library) -> None:
    library.add(concept("tiger"), writer(b"tiger"))
    (library.path("koala") / "manifest.json").write_text("{}")
    assert [found.name for found in library.concepts()] == ["tiger"]
    assert isinstance(dict(library.entries())["koala"], DamagedError)
    with pytest.raises(DamagedError, match="koala"):
        library.get("koala")


def test_a_folder_that_was_renamed_by_hand_is_told(library: Library) -> None:
    library.path("koala").rename(library.path() / "concepts" / "bear")
    assert "is that of 'koala'" in library.verify("bear")[0].sentence


def test_a_file_that_does_not_belong_is_told(library: Library) -> None:
    (library.path("koala") / "notes.txt").write_text("mine")
    [problem] = library.verify()
    assert "notes.txt does not belong to the concept" in problem.sentence
    assert library.weights("koala").is_file()


# -- renaming and removing


def test_a_renamed_concept_is_the_same_under_its_new_name(library: Library) -> None:
    renamed = library.get("koala").model_copy(update={"name": "bear"})
    assert library.rename("koala", "bear") == renamed
    assert names(library) == ["bear"]
    assert library.weights("bear").read_bytes() == b"koala"


def test_renaming_overwrites_nothing(library: Library) -> None:
    library.add(concept("tiger"), writer(b"tiger"))
    for old, new in (("koala", "tiger"), ("koala", "koala")):
        with pytest.raises(AlreadyExistsError, match=f"^'{new}' is in the .*name or 'customttt rm {new}' first"):
            library.rename(old, new)
    with pytest.raises(AlreadyExistsError, match="'Tiger' differs from 'tiger' in case only; pick another name"):
        library.rename("koala", "Tiger")
    with pytest.raises(NotFoundError):
        library.rename("lion", "cat")
    with pytest.raises(UsageError):
        library.rename("koala", "../bear")
    assert names(library) == ["koala", "tiger"]


def test_a_damaged_concept_is_not_renamed(library: Library) -> None:
    library.weights("koala").write_bytes(b"x")
    with pytest.raises(DamagedError):
        library.rename("koala", "bear")


def test_a_removed_concept_leaves_nothing_behind(library: Library) -> None:
    library.remove("koala")
    assert contents(library.root) == {}


# -- the cache of adapted weights


def test_adapted_weights_are_found_by_their_key(empty: Library) -> None:
    path = empty.add_adapted(KEY, lambda place: place.write_bytes(b"one"))
    assert empty.adapted(KEY) == path
    assert path.read_bytes() == b"one"
    again = empty.add_adapted(KEY, lambda place: place.write_bytes(b"two"))
    assert empty.adapted(KEY) == again
    assert list(path.parent.iterdir()) == [again]
    assert empty.adapted(KEY[::-1]) is None


def test_a_run_of_learning_is_kept_in_place_of_its_older_self_until_it_is_forgotten(empty: Library) -> None:
    for content in (b"one", b"two"):
        empty.add_unfinished(KEY, lambda place, content=content: place.write_bytes(content))  # type: ignore[misc]
    other = empty.add_unfinished(KEY[::-1], lambda place: place.write_bytes(b"other"))
    kept = empty.unfinished(KEY)
    assert kept is not None
    assert kept.read_bytes() == b"two"
    assert empty.adapted(KEY) is None
    assert sorted(kept.parent.iterdir()) == sorted([kept, other])
    kept.write_bytes(b"tvo")
    assert empty.unfinished(KEY) is None
    assert [problem.name for problem in empty.verify()] == [f"unfinished/{kept.name}"]
    assert empty.verify()[0].sentence == f"{kept} differs from what was saved."
    empty.remove_unfinished(KEY)
    empty.remove_unfinished(KEY)
    assert list(other.parent.iterdir()) == [other]


def test_kept_weights_are_flushed_to_the_disk(empty: Library, flushed: set[int]) -> None:
    path = empty.add_adapted(KEY, lambda place: place.write_bytes(b"one"))
    assert {path.stat().st_ino, path.parent.stat().st_ino} <= flushed


def test_a_library_that_forgets_nothing_keeps_all_adapted_weights(
    empty: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "ADAPTED", 1)
    for forgets, left in ((False, 3), (True, 1)):
        for index in range(3):
            Library(empty.root, forgets).add_adapted(f"{index:08x}", lambda place: place.write_bytes(b"one"))
        assert len(list((empty.root / "adapted").iterdir())) == left


def test_the_oldest_adapted_weights_give_way(empty: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "ADAPTED", 2)
    names = [f"{index:08x}" for index in range(4)]
    for age, key in enumerate(names):
        path = empty.add_adapted(key, lambda place: place.write_bytes(b"one"))
        os.utime(path, (age, age))
    assert [bool(empty.adapted(key)) for key in names] == [False, False, True, True]
    runs = [empty.add_unfinished(key, lambda place: place.write_bytes(b"one")) for key in names]
    assert all(path.exists() for path in runs), "what cannot be made again at once is never given up"


def test_damaged_adapted_weights_are_never_given(empty: Library) -> None:
    path = empty.add_adapted(KEY, lambda place: place.write_bytes(b"one"))
    path.write_bytes(b"0ne")
    assert empty.adapted(KEY) is None
    assert [problem.name for problem in empty.verify()] == [f"adapted/{path.name}"]


@pytest.mark.parametrize("key", ["", "koala", "../../etc", "*", KEY.upper(), 7 * "f", 65 * "f", f"{KEY}\n"])
def test_a_key_is_hex_digits(empty: Library, key: str) -> None:
    for use in (empty.adapted, empty.unfinished, empty.remove_unfinished):
        with pytest.raises(UsageError, match=r"^The key .* of weights must be 8 to 64 hex digits"):
            use(key)
    with pytest.raises(UsageError):
        empty.add_adapted(key, lambda place: place.touch())


@pytest.mark.parametrize("length", [8, 64])
def test_a_key_is_as_long_as_a_digest_or_its_beginning(empty: Library, length: int) -> None:
    assert empty.adapted(length * "f") is None


# -- disks that do not take it


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["fsync", "mkdir", "rename"])
def test_a_disk_that_refuses_leaves_the_library_as_it_was(
    library: Library, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError(code, os.strerror(code))

    before = contents(library.root)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StoreError, match=os.strerror(code)):
            library.add(concept(), writer(b"new"), force=True)
    assert contents(library.root) == before


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.ENOSPC, "No space left"), "No space left); make room or set"),
        (OSError(getattr(errno, "EDQUOT", errno.ENOSPC), "Quota exceeded"), "Quota exceeded); make room or set"),
        (OSError(errno.EROFS, "Read-only"), "Read-only); set"),
        (OSError("odd"), "odd); set"),
        (NotImplementedError(), "its file system knows no locks); set"),
    ],
    ids=["full", "quota", "read-only", "odd", "no locks"],
)
def test_what_the_disk_refuses_is_told_with_a_way_out(
    library: Library, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    sentence = f"The library at {library.root} cannot be written ({why} CUSTOMTTT_HOME to another folder."
    for write in (library.check_writable, lambda: library.remove("koala")):
        with pytest.raises(StoreError, match=f"^{re.escape(sentence)}$"):
            write()


@pytest.mark.parametrize("folder", [".staging", "adapted", "unfinished"])
def test_nothing_is_deleted_behind_a_link(library: Library, tmp_path: Path, folder: str) -> None:
    (tmp_path / "treasure").mkdir()
    (tmp_path / "treasure" / "photo.jpg").write_text("mine")
    (library.root / folder).rmdir()
    (library.root / folder).symlink_to(tmp_path / "treasure")
    with pytest.raises(StoreError, match=f"'{library.root / folder}' is a link; remove it"):
        library.remove("koala")
    assert (tmp_path / "treasure" / "photo.jpg").read_text() == "mine"


def test_concepts_may_lie_behind_a_link(library: Library, tmp_path: Path) -> None:
    (library.root / "concepts").rename(tmp_path / "elsewhere")
    (library.root / "concepts").symlink_to(tmp_path / "elsewhere")
    library.add(concept("tiger"), writer(b"tiger"))
    assert names(library) == ["koala", "tiger"]


def test_a_root_that_is_no_folder_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="cannot be written"):
            Library(root).check_writable()
        with pytest.raises(StoreError, match="cannot be read"):
            Library(root).concepts()


def test_checking_the_library_leaves_nothing_in_it(empty: Library) -> None:
    empty.check_writable()
    assert list(empty.root.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_what_was_there(small_disk: Path) -> None:
    library = Library(small_disk)
    library.add(concept(), writer(bytes(1000)))
    before = contents(small_disk)
    with pytest.raises(StoreError, match="No space left"):
        library.check_writable(1 << 20)
    with pytest.raises(StoreError, match="No space left"):
        library.add(concept(), writer(bytes(1 << 20)), force=True)
    assert contents(small_disk) == before
    assert library.verify() == []


def test_a_read_only_library_can_be_read(small_disk: Path) -> None:
    library = Library(small_disk)
    library.add(concept(), writer(b"koala"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert library.weights("koala").read_bytes() == b"koala"
    assert library.verify() == []
    with pytest.raises(StoreError, match="Read-only"):
        library.check_writable()
    with pytest.raises(StoreError, match="Read-only"):
        library.remove("koala")


def test_what_carries_a_kind_is_remembered_for_its_base(tmp_path: Path) -> None:
    library = Library(tmp_path)
    assert library.carrying("f00d", "motion") is None
    library.add_carrying("f00d", "motion", (2, 4))
    assert library.carrying("f00d", "motion") == (2, 4)
    assert library.carrying("f00d", "appearance") is None
    assert library.carrying("beef", "motion") is None
    library.add_carrying("f00d", "motion", [7])
    assert library.carrying("f00d", "motion") == (7,)
    assert library.verify() == []
    for odd in ("", "[2, 4", "7", '["two"]'):
        (tmp_path / "measured" / "f00d-motion.json").write_text(odd)
        assert library.carrying("f00d", "motion") is None
