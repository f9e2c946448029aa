"""A grid on Ray, of which a stand-in does what it promises at once: bytes go there and come back, and one writer keeps
them. Two workers of the real one are in `grid_ways.py`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest
from material import assert_one_sentence, copy, run, snapshot

from customttt.errors import AlreadyExistsError, BaseUnavailableError
from customttt.library import Library
from customttt.many import rays
from customttt.planner import Forecast
from customttt.thrift import Rung


class RayError(Exception):
    """As Ray's own."""


class Ref:
    """A reference to a value."""

    def __init__(self, value: Any) -> None:
        self.value = value


class StandIn(ModuleType):
    """Ray on one machine, whose actors work as they are asked; `deaths` of them die over their job, or sooner."""

    def __init__(self, deaths: int = 0, sooner: bool = False) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.exceptions = SimpleNamespace(RayError=RayError)
        self.deaths, self.sooner, self.made, self.told = deaths, sooner, 0, dict[str, Any]()
        self.listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.head, self.node = (one.getsockname()[1] for one in self.listening)

    def init(self, **told: Any) -> None:
        if told["address"] == "nowhere":
            raise ConnectionError("Nobody answers.")
        self.told = told
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(1))  # as Ray does

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address=f"127.0.0.1:{self.head}", get_node_id=lambda: "here")

    def nodes(self) -> list[dict[str, Any]]:
        found = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": self.node}
        return [{"NodeID": "here", **found}, {"NodeID": "elsewhere", **found, "NodeManagerPort": 1}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, kind: type) -> Any:
        def made(*arguments: Any) -> Any:
            self.made += 1
            there = kind(*arguments)
            work = SimpleNamespace(remote=lambda *given: self._asked(there.work, *given))
            end = SimpleNamespace(remote=there.end)
            dead = Ref(RayError("It never was."))
            opened = SimpleNamespace(remote=lambda: dead if self.sooner else Ref(None))
            return SimpleNamespace(
                work=work, open=opened, end=end, __ray_terminate__=SimpleNamespace(remote=lambda: None)
            )

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=made))

    def _asked(self, work: Callable[..., Any], *given: Any) -> Ref:
        if self.deaths:
            self.deaths -= 1
            return Ref(RayError("The actor died."))
        return Ref(work(*(one.value if isinstance(one, Ref) else one for one in given)))

    def put(self, value: Any) -> Ref:
        return Ref(value)

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:  # noqa: ARG002
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref: Ref) -> Any:
        if isinstance(ref.value, RayError):
            raise ref.value
        return ref.value

    def kill(self, actor: Any) -> None:
        pass

    def shutdown(self) -> None:
        self.told = {}


@pytest.fixture(autouse=True)
def _together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in ends no process, and so works in this one, which does not end with it. Forecasts take no time."""
    monkeypatch.setattr("customttt.many.crews.Apart", lambda crew, _: crew)
    monkeypatch.setattr(os, "_exit", lambda _: None)
    for name in ("composing", "learning"):
        monkeypatch.setattr(f"customttt.planner.{name}", lambda *_: Forecast(1, 2, 1.0, 0, Rung()))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.usefixtures("learned")
def test_on_ray_a_lost_worker_costs_nothing_and_the_bytes_are_those_of_one_process(
    here: Path, clip: Path, tiny_random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "grid.json").write_text(json.dumps({
        "base": str(tiny_random_base), "appearances": ["koala"], "prompts": ["on Mars"], "seeds": 2,
        "learn": {"motion": {"running": {"clip": str(clip), "steps": 1}}}, "settings": {"steps": 1, "ttt_steps": 1},
    }))  # fmt: skip
    standin = StandIn(deaths=2)
    monkeypatch.setitem(sys.modules, "ray", standin)
    done = run("grid", "grid.json", "-o", "ray", "--ray", "local")
    assert done.exit_code == 0, done.output
    assert standin.made == 4, "two workers, and two in place of those that died"
    assert run("grid", "grid.json", "-o", "ray", "--ray", "local").exit_code == 0
    assert standin.made == 4, "none where nothing is missing"
    learned = Library().get("running").files
    weights = sorted(path.name for path in (Library().root / "adapted").iterdir())
    Library().remove("running")
    for path in (Library().root / "adapted").iterdir():
        path.unlink()
    Library().made.unlink()
    assert run("grid", "grid.json", "-o", "here").exit_code == 0
    assert Library().get("running").files == learned
    assert sorted(path.name for path in (Library().root / "adapted").iterdir()) == weights
    assert snapshot(here / "ray") == snapshot(here / "here")


@pytest.mark.usefixtures("learned")
def test_where_every_worker_ends_at_once_the_grid_ends_in_a_sentence(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", StandIn(deaths=99, sooner=True))
    assert_one_sentence(run("grid", "--ray", "local"), 12, "as where Ray itself has ended", "the same command goes on")
    assert not list(here.rglob("*.mp4"))
    monkeypatch.setitem(sys.modules, "ray", StandIn(deaths=3))
    done = run("grid", "--ray", "local")
    assert_one_sentence(done, 12, "test-time training of koala swimming: Its worker was lost 3 times")


@pytest.mark.usefixtures("learned")
def test_a_concept_that_took_the_name_meanwhile_is_kept(tmp_path: Path) -> None:
    made, passing = rays.entry(Library(), "koala"), Library(tmp_path / "passing")
    made.add_to(Library())
    Library().remove("koala")
    other = copy("swimming", "koala")
    with pytest.raises(AlreadyExistsError, match="'koala' is in the library already"):
        made.add_to(Library())
    assert Library().get("koala") == other
    rays.entry(Library(), "koala").add_to(passing)
    made.add_to(passing, force=True)
    assert passing.get("koala").files == made.concept.files


def crew(**given: Any) -> rays.OnRay:
    return rays.OnRay(Library(), "tiny", **{"address": "local", **given})


def test_there_are_as_many_workers_as_the_cluster_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, number in (({}, 2), ({"count": 1}, 1), ({"count": 9}, 2), ({"threads": 2}, 1)):
        standin = StandIn()
        monkeypatch.setitem(sys.modules, "ray", standin)
        with crew(**given) as one:
            assert one.room() == number
            assert standin.made == number, "they open their base before there is a job"


def test_a_ray_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", StandIn())
    with pytest.raises(BaseUnavailableError, match="Ray cannot be reached at 'nowhere'"), crew(address="nowhere"):
        pass


@pytest.mark.usefixtures("learned")
def test_without_ray_one_sentence_says_how_to_get_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert_one_sentence(run("grid", "--ray", "local"), 2, "pip install 'customttt[ray]'")
    assert list(here.iterdir()) == []


def test_a_signal_means_what_it_meant_before_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", StandIn())
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with crew():
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.usefixtures("learned", "here")
@pytest.mark.parametrize("which", [0, 1])
def test_that_ray_itself_has_ended_is_one_sentence(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    """Its head or its node; whatever its library says then."""
    ray = StandIn()

    def killed(*_: object, **__: object) -> NoReturn:
        ray.listening[which].close()
        raise RayError("Broken pipe.")

    monkeypatch.setattr(ray, "wait", killed)
    monkeypatch.setitem(sys.modules, "ray", ray)
    done = run("grid", "--prompt", "on Mars", "--ray", "local")
    assert_one_sentence(done, 12, "Ray itself has ended", "the same command goes on")


def test_where_ray_would_be_waited_for_in_vain_its_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda _: ended.set())
    ray = StandIn()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(rays, "LOOK_SECONDS", 0.01)
    with crew():
        assert not ended.wait(0.2)
        ray.listening[0].close()
        assert ended.wait(5)


def test_actors_leave_their_folder_to_the_next_where_they_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one = rays.Hand("tiny", 1)
    (tmp_path / one.root.name.replace(str(os.getpid()), "4194999")).mkdir()
    os.utime(tmp_path / one.root.name.replace(str(os.getpid()), "4194999"), (0, 0))
    rays.Hand("tiny", 1).end()
    assert list(tmp_path.iterdir()) == [one.root]
