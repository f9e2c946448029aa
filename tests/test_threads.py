"""As many CPU threads as there are idle cores, and the same ones where the bits must be the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from material import run
from test_recipe import recipe

from customttt import checkpoint, machine, media, threads
from customttt.recipe import VideoRecipe


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_torch_own", [])
    yield
    torch.set_num_threads(before)


def test_what_others_work_is_what_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four cores in ten seconds: this process worked 9 seconds of the 24 that all together did."""
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(threads, "_busy_seconds", iter([100.0, 124.0]).__next__)
    monkeypatch.setattr(threads, "_own_seconds", iter([1.0, 10.0]).__next__)
    monkeypatch.setattr(time, "monotonic", iter([50.0, 60.0]).__next__)
    assert threads.Watch.start().idle_cores() == pytest.approx(2.5)


def test_time_of_waiting_for_the_disk_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    times = SimpleNamespace(user=3.0, system=1.0, idle=100.0, iowait=7.0)
    monkeypatch.setattr(threads.psutil, "cpu_times", lambda percpu: [times] * 2 if percpu else times)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1}, raising=False)
    assert threads._busy_seconds() == 4.0


@pytest.mark.parametrize(
    ("idle", "own", "number"), [(1.9, 2, 2), (1.2, 2, 1), (0.1, 2, 1), (-0.3, 2, 1), (15.0, 8, 8), (5.6, 8, 6)]
)
def test_as_many_threads_as_idle_cores(monkeypatch: pytest.MonkeyPatch, idle: float, own: int, number: int) -> None:
    for name in threads.FIXED:
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(own)
    threads.choose(idle)
    assert threads.number() == number
    threads.choose(99)  # a second command in this process
    assert threads.number() == own


def test_a_users_own_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    threads.choose(1.0)
    assert threads.number() == 3


@pytest.mark.parametrize(
    ("given", "found"), [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_spinning_is_bounded_unless_the_user_said_otherwise(given: dict[str, str], found: str | None) -> None:
    code = "import os; from customttt import threads; threads.bound_spinning(); print(os.environ.get('GOMP_SPINCOUNT'))"
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **given}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(found)


def test_a_run_goes_on_with_the_threads_that_it_began_with(tmp_path: Path) -> None:
    kept, parameter = tmp_path / "kept.safetensors", torch.nn.Parameter(torch.zeros(1))
    keeper = checkpoint.Keeper(keep=lambda write: write(kept))
    optimizer, generator = torch.optim.SGD([parameter]), torch.Generator()
    torch.set_num_threads(2)
    keeper.save([parameter], optimizer, checkpoint.randomness(generator), [0.5])
    torch.set_num_threads(1)
    assert checkpoint.Keeper(kept).restore([parameter], optimizer, generator) == [0.5]
    assert torch.get_num_threads() == 2


def test_a_run_kept_by_an_earlier_version_says_nothing_of_threads(tmp_path: Path) -> None:
    known = json.dumps({"losses": [0.5], "settings": {}})
    checkpoint.lora.write({"x": torch.zeros(1)}, tmp_path / "kept.safetensors", {"customttt": known})
    assert checkpoint.read_header(tmp_path / "kept.safetensors").threads == 0


@pytest.mark.usefixtures("learned")
def test_a_video_is_rendered_again_with_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in threads.FIXED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads.Watch, "start", lambda: SimpleNamespace(idle_cores=lambda: 0.9))
    torch.set_num_threads(2)
    done = run("compose", "koala", "swimming", "on Mars")
    assert ", 1 CPU thread\n" in done.stderr
    first = media.read_recipe(tmp_path / "koala-swimming.mp4")
    assert VideoRecipe.from_dict(first).threads == 1

    monkeypatch.setattr(threads.Watch, "start", lambda: SimpleNamespace(idle_cores=lambda: 2.0))
    used: list[int] = []
    monkeypatch.setattr(threads, "use", used.append)
    done = run("compose", "--recipe", "koala-swimming.mp4", "-o", "again.mp4")
    assert ", 2 CPU threads\n" in done.stderr
    assert set(used) == {1}
    assert media.read_recipe(tmp_path / "again.mp4") == first


def test_recipes_that_differ_in_threads_alone_are_of_the_same_video() -> None:
    known = recipe()
    assert VideoRecipe.from_dict(known.to_dict() | {"threads": 5}) == known
    older = {name: value for name, value in known.to_dict().items() if name != "threads"}
    assert VideoRecipe.from_dict(older).threads == 0
