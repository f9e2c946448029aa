"""A library that others use, too: readers beside writers, links and pipes, full and read-only disks, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from material import assert_one_sentence, run
from safetensors import SafetensorError

from customttt import checkpoint, lora, train
from customttt.errors import DamagedError, StoreError
from customttt.library import Library
from customttt_cli import guard


def stale_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first look at the names see a concept that is gone when it is read."""
    names, looks = Library._names, []

    def stale(self: Library) -> list[str]:
        looks.append(1)
        return [*names(self), *(["gone"] if len(looks) == 1 else [])]

    monkeypatch.setattr(Library, "_names", stale)


def test_a_concept_that_goes_while_the_library_is_listed_is_not_damaged(
    learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale_once(monkeypatch)
    assert [name for name, _ in Library(learned).entries()] == ["koala", "swimming"]


def test_a_concept_that_goes_while_it_is_verified_is_no_problem(learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale_once(monkeypatch)
    assert Library(learned).verify() == []


@pytest.mark.parametrize("lister", ["scandir", "listdir"])
def test_a_concept_that_goes_while_its_files_are_listed_is_no_problem(
    learned: Path, monkeypatch: pytest.MonkeyPatch, lister: str
) -> None:
    """Between looking whether its folder is there and reading it, as six processes and one library showed."""
    listed, looks = getattr(os, lister), []

    def gone_once(path: Path = Path()) -> object:
        if Path(path).name == "koala" and not looks:
            looks.append(1)
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return listed(path)

    monkeypatch.setattr(os, lister, gone_once)
    assert Library(learned).verify() == []


def test_what_is_damaged_is_still_said_to_be(learned: Path) -> None:
    (learned / "concepts" / "koala" / "manifest.json").write_text("{}")
    library = Library(learned)
    assert isinstance(dict(library.entries())["koala"], DamagedError)
    assert [problem.name for problem in library.verify()] == ["koala"]
    assert [problem.name for problem in library.verify("koala")] == ["koala"]


def test_a_read_only_library_with_what_a_killed_writer_left_can_be_read(
    learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (learned / "concepts" / "swimming").rename(learned / ".staging" / "swimming.old")

    def refused(self: Library) -> None:
        raise StoreError(f"{self.root} is read-only.")

    monkeypatch.setattr(Library, "_writing", refused)
    assert [name for name, _ in Library(learned).entries()] == ["koala"]
    assert Library(learned).weights("koala").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_nobody_waits_for_a_pipe(learned: Path) -> None:
    manifest = learned / "concepts" / "koala" / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)
    os.mkfifo(learned / "adapted" / f"{'0' * 8}.{'0' * 64}.safetensors")
    for command in ("list", "verify"):
        done = subprocess.run(
            [sys.executable, "-m", "customttt_cli", command], capture_output=True, text=True, timeout=60, check=False
        )
        assert "no plain file" in done.stdout + done.stderr or "damaged" in done.stdout + done.stderr


@pytest.mark.parametrize("folder", [".staging", "adapted", "unfinished"])
def test_a_link_in_the_library_is_not_followed_by_what_deletes(learned: Path, tmp_path: Path, folder: str) -> None:
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "photo.jpg").write_text("mine")
    for left in (learned / folder).glob("*"):
        left.unlink()
    (learned / folder).rmdir()
    (learned / folder).symlink_to(treasure)
    with pytest.raises(StoreError, match="is a link; remove it"):
        Library(learned).remove("koala")
    assert (treasure / "photo.jpg").read_text() == "mine"
    assert [name for name, _ in Library(learned).entries()] == ["koala", "swimming"]


def test_weights_behind_a_link_are_damaged(learned: Path, tmp_path: Path) -> None:
    weights = learned / "concepts" / "koala" / "lora.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedError):
        Library(learned).weights("koala")


def test_a_full_disk_costs_the_checkpoint_and_not_what_is_learned(
    tiny_random_base: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    whole = lora.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        if any(name.startswith("optimizer.") for name in tensors):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        whole(tensors, path, metadata)

    monkeypatch.setattr(lora, "save_file", full)
    done = run("learn-motion", "swimming", clip, "--base", tiny_random_base)
    assert done.exit_code == 0, done.output
    assert done.stderr.count("No checkpoint was kept, and learning goes on without") == 1
    assert Library().get("swimming")


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_as_ctrl_c_does(
    tiny_random_base: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    state, before = lora.state, signal.getsignal(number)

    def interrupting(unet: torch.nn.Module, adapter: str) -> lora.Weights:
        return state(unet, adapter) if next(unet.parameters()).is_meta else os.kill(os.getpid(), number) or {}

    with monkeypatch.context() as patch:
        patch.setattr(train.lora, "state", interrupting)
        done = run("learn-appearance", "bear", pictures, "--base", tiny_random_base)
    assert done.exit_code == code, done.output
    assert "Interrupted; the same command goes on from the last checkpoint." in done.stderr
    assert signal.getsignal(number) == before
    assert len(list((Library().root / "unfinished").iterdir())) == 1


def test_a_library_that_may_not_be_read_is_not_said_to_be_empty(learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.scandir

    def refused(path: Path) -> object:
        if Path(path).name == "concepts":
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(os, "scandir", refused)
    for command in ("list", "show koala", "verify", "rm koala --yes"):
        assert_one_sentence(run(*command.split()), 11, f"The library at {learned} cannot be read (Permission denied)")


def test_a_file_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("list", env={"CUSTOMTTT_HOME": str(tmp_path / "file")})
    assert_one_sentence(done, 11, "cannot be read (Not a directory)")


@pytest.mark.parametrize(("reason", "advice"), [("No space left (os error 28)", "make room"), ("No", "write")])
def test_weights_ask_for_room_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, advice: str
) -> None:
    def failing(*_: object) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: {reason}")

    monkeypatch.setattr(lora, "save_file", failing)
    with pytest.raises(StoreError, match=f"; {advice}"):
        lora.write({}, tmp_path / "a.safetensors", {})


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_comes_while_an_object_is_finalized_is_not_lost(number: int) -> None:
    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0.001)

    def swallowed() -> None:
        Finalized()
        time.sleep(10)

    received: list[int] = []
    with pytest.raises(KeyboardInterrupt), guard._ending(received):
        swallowed()
    assert set(received) == {number} - {signal.SIGINT}
