"""A grid's jobs on Ray: actors that hold the base, each with a passing library, and one writer, the grid's process.

What a job needs goes to its actor as bytes through Ray's object store, and what it made comes back the same way. Each
actor has one job at a time; one that is lost is replaced, and its job is given to another.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from customttt import media, pairs
from customttt.concept import Concept
from customttt.errors import BaseUnavailableError, CustomTTTError, IncompleteError, NotFoundError, UsageError
from customttt.library import Library
from customttt.many import bench
from customttt.many.bench import Learn, Order, Render
from customttt.many.crews import STARTS
from customttt.many.engine import Job, Result, done
from customttt.recipe import VideoRecipe

LOOK_SECONDS = 2.0
"""Between two looks at whether Ray itself is still there."""
ENDED = "Ray itself has ended, as where its processes were killed; the same command goes on."
KEPT = 64
"""Of the goods that jobs need, how many stay in the object store; others are put there again."""


@dataclass(frozen=True)
class Entry:
    """A concept and its files."""

    concept: Concept
    files: Mapping[str, bytes]

    def add_to(self, library: Library, force: bool = False) -> None:
        """Put it there, with `force` in place of another of its name; nothing is done where it is there.

        Raises AlreadyExistsError where the name is taken, LockedError or StoreError.
        """
        name = self.concept.name
        try:
            known = library.get(name).files == self.concept.files
        except CustomTTTError:
            known = False
        if not known:
            library.add(self.concept, self._write, force)

    def _write(self, folder: Path) -> None:
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


@dataclass(frozen=True)
class Adapted:
    """The LoRAs of a recipe after test-time training, as a file holds them."""

    key: str
    content: bytes

    def add_to(self, library: Library, force: bool = False) -> None:  # noqa: ARG002 no other has its key
        """Keep them there; nothing is done where they are."""
        if not library.adapted(self.key):
            library.add_adapted(self.key, lambda path: path.write_bytes(self.content))


@dataclass(frozen=True)
class Broken:
    """What every job would meet: the base cannot be opened there."""

    error: CustomTTTError


class Hand:
    """An actor: a base, and a library of its own that ends with it."""

    def __init__(self, base: str, threads: int) -> None:
        self.root = media.temporary()
        self.base, self.threads = base, threads
        self.do: Callable[[Order], None] | None = None

    def open(self) -> Broken | None:
        """Open the base, once."""
        if self.do is None:
            try:
                self.do = bench.opened(self.base, self.root, self.threads)
            except CustomTTTError as error:
                return Broken(error)
        return None

    def work(self, job: Job, order: Order, *goods: Entry | Adapted) -> Result | Broken:
        """Do a job with what it needs; its value is what was made."""
        if broken := self.open():
            return broken
        library = Library(self.root)

        def whole(order: Order) -> Entry | Adapted | bytes:
            for one in goods:
                one.add_to(library, force=True)
            return self._made(library, order)

        return done(job, order, whole)

    def _made(self, library: Library, order: Order) -> Entry | Adapted | bytes:
        assert self.do is not None
        if isinstance(order, Render):
            passing = self.root / f"video{order.path.suffix}"
            self.do(Render(order.recipe, passing))
            return passing.read_bytes()
        self.do(order)
        if isinstance(order, Learn):
            return entry(library, order.plan.words.name)
        return adapted(library, order.recipe)

    def end(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.root, ignore_errors=True)


def entry(library: Library, name: str) -> Entry:
    """A concept as it is in a library, verified. Raises NotFoundError or DamagedError."""
    folder, concept = library.weights(name).parent, library.get(name)
    return Entry(concept, {file: (folder / file).read_bytes() for file in concept.files})


def adapted(library: Library, recipe: VideoRecipe) -> Adapted:
    """What test-time training of a recipe left there. Raises NotFoundError."""
    key = recipe.adaptation_key()
    if (path := library.adapted(key)) is None:
        raise NotFoundError("The adapted LoRAs were made and could not be kept.")
    return Adapted(key, path.read_bytes())


@dataclass
class _Seat:
    """One place for an actor."""

    actor: Any = None
    opened: Any = None
    """A reference to what became of opening its base."""
    job: Job | None = None
    order: Order | None = None
    ref: Any = None
    since: float = 0.0


@dataclass
class OnRay:
    """A crew of actors; use it in a `with`, which ends them. `address` is Ray's own: local, auto, or a head's.

    Ray's library ends the process that it is in when Ray itself has ended, and where it would wait instead, this does.
    So use it in `crews.Apart`, which says ENDED then.
    """

    library: Library
    base: str
    address: str
    count: int | None = None
    """How many at most; None: one a GPU of the cluster, or where there is none, as many as its cores allow."""
    threads: int = 1
    seats: list[_Seat] = field(default_factory=list)
    goods: OrderedDict[str, Any] = field(default_factory=OrderedDict)
    """References to what was put into the object store, by name."""
    failed_starts: int = 0
    doors: list[tuple[str, int]] = field(default_factory=list)
    """Where Ray's own processes answer: its head's, and that of the node that this process is on."""

    def __enter__(self) -> OnRay:
        self.ray, self.left = imported(), threading.Event()
        try:
            here = {"include_dashboard": False} if self.address == "local" else {}
            with _own_signals():
                self.ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", **here)
            gpus, cores = (int(self.ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU"))
            self.doors = [] if self.address.startswith("ray://") else _doors(self.ray)  # a client hears of it itself
        except Exception as error:  # a plain Exception, too: Ray's own word for a node that does not come up
            raise BaseUnavailableError(
                f"Ray cannot be reached at '{self.address}' ({' '.join(str(error).split())[:200]}); give --ray local, "
                "auto, or the address of a head."
            ) from error
        threading.Thread(target=_end_with, args=(self.doors, self.left), daemon=True).start()
        most = gpus or cores // max(self.threads, 1)
        if not most:
            raise UsageError(f"Ray at '{self.address}' has neither a GPU nor {self.threads} cores.")
        self.share = {"num_gpus": 1} if gpus else {"num_cpus": max(self.threads, 1)}
        self.seats = [_Seat() for _ in range(min(self.count or most, most))]
        for seat in self.seats:  # bases are opened while jobs are still being looked at
            self._start(seat)
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()
        for seat in self.seats:
            if seat.actor and not seat.job:
                seat.actor.end.remote()
                seat.actor.__ray_terminate__.remote()
            elif seat.actor:
                self.ray.kill(seat.actor)
        self.ray.shutdown()

    def room(self) -> int:
        return sum(seat.job is None for seat in self.seats)

    def give(self, job: Job, order: Order) -> None:
        with _asking(self.doors):
            self._give(job, order)

    def _give(self, job: Job, order: Order) -> None:
        seat = next(seat for seat in self.seats if seat.job is None)
        if seat.actor is None:
            self._start(seat)
        seat.job, seat.order, seat.since = job, order, time.monotonic()
        seat.ref = seat.actor.work.remote(job, order, *self._needed(order))

    def _start(self, seat: _Seat) -> None:
        seat.actor = self.ray.remote(Hand).options(**self.share).remote(self.base, self.threads)
        seat.opened = seat.actor.open.remote()

    def returned(self) -> list[Result]:
        busy = {seat.ref: seat for seat in self.seats if seat.job}
        with _asking(self.doors):
            ready, _ = self.ray.wait(list(busy), num_returns=1, timeout=LOOK_SECONDS)
            return [one for ref in ready if (one := self._heard(busy[ref]))]

    def _heard(self, seat: _Seat) -> Result | None:
        """What became of a job; None where it was given out again."""
        job, order = seat.job, seat.order
        assert job is not None
        assert order is not None
        try:
            said = self.ray.get(seat.ref)
        except self.ray.exceptions.RayError:
            return self._lost(seat, job, order)
        seat.job = seat.order = seat.ref = None
        if isinstance(said, Broken):
            raise said.error
        self.failed_starts = 0
        if said.why:
            return Result(job, said.seconds, why=said.why)
        return replace(done(job, said.value, partial(self._keep, order)), seconds=said.seconds)

    def _lost(self, seat: _Seat, job: Job, order: Order) -> Result | None:
        """A job is to blame for the loss of an actor only where that had opened its base, and Ray is still there."""
        _check(self.doors)
        began, seconds = self._began(seat), time.monotonic() - seat.since
        self.ray.kill(seat.actor)
        seat.actor = seat.opened = seat.job = seat.order = seat.ref = None
        if began:
            return Result(job, seconds, lost=True)
        self.failed_starts += 1
        if self.failed_starts >= STARTS:
            raise IncompleteError(
                "Ray's workers end before they have done anything, as where Ray itself has ended or memory is short; "
                "the same command goes on."
            )
        self._give(job, order)
        return None

    def _began(self, seat: _Seat) -> bool:
        try:
            self.ray.get(seat.opened)
        except self.ray.exceptions.RayError:
            return False
        return True

    def _keep(self, order: Order, made: Entry | Adapted | bytes) -> None:
        """The one writer: put what was made into the library, or where a video goes."""
        if isinstance(made, bytes):
            assert isinstance(order, Render)
            with media.placed(order.path) as aside:
                aside.write_bytes(made)
        else:
            made.add_to(self.library)

    def _needed(self, order: Order) -> list[Any]:
        """References to what an actor's own library must hold for a job."""
        if isinstance(order, Learn):
            return []
        recipe = order.recipe
        turns = {turn.adaptation_key(): turn for turn in recipe.turns} if recipe.ttt.steps else {}
        if isinstance(order, Render) and turns and all(map(self.library.adapted, turns)):
            return [self._put(key, partial(adapted, self.library, turn)) for key, turn in turns.items()]
        pair = pairs.of_recipe(self.library, recipe)
        concepts = pair.concepts.values()
        return [self._put(f"{one.name} {one.files}", partial(entry, self.library, one.name)) for one in concepts]

    def _put(self, name: str, make: Callable[[], Entry | Adapted]) -> Any:
        if name not in self.goods:
            self.goods[name] = self.ray.put(make())
        self.goods.move_to_end(name)
        while len(self.goods) > KEPT:
            self.goods.popitem(last=False)
        return self.goods[name]


def imported() -> Any:
    """Ray, which tells nobody that it is used."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # else it tells of lost workers on stdout, among results
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what is to come
    import ray

    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C mean afterwards what they meant before: Ray puts handlers of its own in their place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that Python did not set
                signal.signal(number, handler)


def _doors(ray: Any) -> list[tuple[str, int]]:
    """Where the head's process and this node's answer."""
    here = ray.get_runtime_context()
    host, _, port = here.gcs_address.rpartition(":")
    nodes = [node for node in ray.nodes() if node["NodeID"] == here.get_node_id()]
    return [(host, int(port)), *((node["NodeManagerAddress"], int(node["NodeManagerPort"])) for node in nodes)]


@contextmanager
def _asking(doors: Sequence[tuple[str, int]]) -> Iterator[None]:
    """Something is asked of Ray. What is raised is told as it is only where Ray is still there."""
    try:
        yield
    except CustomTTTError:
        raise
    except ConnectionError as error:
        raise IncompleteError(ENDED) from error
    except Exception:
        _check(doors)
        raise


def _check(doors: Sequence[tuple[str, int]]) -> None:
    """Raise IncompleteError where Ray itself has ended."""
    if not all(map(_answers, doors)):
        raise IncompleteError(ENDED)


def _end_with(doors: Sequence[tuple[str, int]], left: threading.Event) -> None:
    """End this process soon after Ray: what is asked of Ray then waits for minutes, or for ever."""
    while all(map(_answers, doors)):
        if left.wait(LOOK_SECONDS):
            return
    if not left.is_set():
        os._exit(1)


def _answers(door: tuple[str, int]) -> bool:
    """Whether someone listens there; one that is busy is asked again."""
    for pause in (0.2, 1.0, 0.0):
        try:
            socket.create_connection(door, LOOK_SECONDS).close()
        except OSError:
            time.sleep(pause)
        else:
            return True
    return False
