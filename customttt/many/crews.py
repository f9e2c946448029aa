"""Worker processes on this machine, each with a share of it, and crews in a process of their own. Knows no tensors."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from customttt import machine
from customttt.errors import CustomTTTError, IncompleteError
from customttt.many.engine import Crew, Job, Result, done, sentence

Opened = Callable[[], Callable[[Any], Any]]
"""Opens, in a worker, what does its orders; it can be pickled."""
STARTS = 3
"""How often a worker may end before it has begun, until that is no chance any more."""
END_SECONDS = 5.0
LEAVE_SECONDS = 20.0
"""For a crew in a process of its own to end all that it had started."""
READY = "ready"


@dataclass
class Apart:
    """A crew in a process of its own, for a library that may end its process: it ends not this one. Use it in a `with`.

    `crew` can be pickled, and is entered there; `ended` is what to say when that process is gone.
    """

    crew: AbstractContextManager[Crew]
    ended: str

    def __enter__(self) -> Apart:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(
            target=_attend, args=(theirs, self.crew), daemon=True, name="customttt-crew"
        )
        self.process.start()
        theirs.close()
        try:
            self._heard()  # it is entered, or why it cannot be
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self.process.join(LEAVE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def room(self) -> int:
        return int(self._asked("room"))

    def give(self, job: Job, order: Any) -> None:
        self._asked("give", job, order)

    def returned(self) -> list[Result]:
        results: list[Result] = self._asked("returned")
        return results

    def _asked(self, what: str, *given: Any) -> Any:
        with suppress(OSError):  # it is gone, which is found by waiting for its answer
            self.pipe.send((what, given))
        return self._heard()

    def _heard(self) -> Any:
        try:
            said = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise IncompleteError(self.ended) from error
        if isinstance(said, CustomTTTError):
            raise said
        return said


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    began: bool = False
    job: Job | None = None
    since: float = 0.0


@dataclass
class Processes:
    """A crew of `count` processes; use it in a `with`, which ends them."""

    opened: Opened
    count: int
    workers: list[_Worker | None] = field(default_factory=list)
    failed_starts: int = 0

    def __enter__(self) -> Processes:
        self.workers = [None] * self.count
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            if worker:
                worker.process.terminate()
        for worker in self.workers:
            if worker:
                worker.process.join(END_SECONDS)
                if worker.process.is_alive():
                    worker.process.kill()
                worker.pipe.close()

    def room(self) -> int:
        return sum(worker is None or worker.job is None for worker in self.workers)

    def give(self, job: Job, order: Any) -> None:
        idle = [index for index, worker in enumerate(self.workers) if worker and not worker.job]
        index = idle[0] if idle else self.workers.index(None)
        worker = self.workers[index] or self._start(index)
        self.workers[index] = worker
        worker.job, worker.since = job, time.monotonic()
        with suppress(OSError):  # it is gone, which is found by waiting for it
            worker.pipe.send((job, order))

    def returned(self) -> list[Result]:
        results: list[Result] = []
        while not results:
            there = {worker.pipe: index for index, worker in enumerate(self.workers) if worker}
            for pipe in wait(list(there)):
                index = there[pipe]  # type: ignore[index]
                results += self._heard(index)
        return results

    def _heard(self, index: int) -> list[Result]:
        """What a worker says, or that it is gone."""
        worker = self.workers[index]
        assert worker is not None
        try:
            said = worker.pipe.recv()
        except (EOFError, OSError):
            return self._gone(index, worker)
        if isinstance(said, CustomTTTError):  # what all would meet: the base cannot be opened
            raise said
        if said == READY:
            worker.began, self.failed_starts = True, 0
            return []
        worker.job = None
        return [said]

    def _gone(self, index: int, worker: _Worker) -> list[Result]:
        worker.process.join()
        worker.pipe.close()
        self.workers[index] = None
        self.failed_starts += not worker.began
        if self.failed_starts >= STARTS:
            raise IncompleteError(
                f"Workers end before they have begun (exit code {worker.process.exitcode}), as where memory is short; "
                "use fewer --workers."
            )
        seconds = time.monotonic() - worker.since
        return [Result(worker.job, seconds, lost=True)] if worker.job else []

    def _start(self, index: int) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs, self.opened), daemon=True, name=f"customttt-{index}"
        )
        with _surroundings(share(index, self.count)):
            process.start()
        theirs.close()
        return _Worker(process, ours)


def share(index: int, count: int) -> Mapping[str, str]:
    """What a worker's environment says of its part of the machine: one GPU, or a share of the cores."""
    if gpus := len(machine.gpus()):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        return {"CUDA_VISIBLE_DEVICES": visible.split(",")[index % gpus]}
    return {"OMP_NUM_THREADS": str(max(machine.cores() // count, 1))}


@contextmanager
def _surroundings(values: Mapping[str, str]) -> Iterator[None]:
    """Let a process be started with these in its environment: some are read when torch is imported."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: Connection, opened: Opened) -> None:
    """A worker's life: it ends with the process that started it, which alone hears of Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        do = opened()
    except CustomTTTError as error:
        pipe.send(error)
        return
    pipe.send(READY)
    while True:
        try:
            job, order = pipe.recv()
        except EOFError:
            return
        pipe.send(done(job, order, do))


def _attend(pipe: Connection, crew: AbstractContextManager[Crew]) -> None:
    """The life of a process that has a crew: it does what it is asked until nobody is there any more to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(BrokenPipeError), ExitStack() as stack:
        said: Any = None
        try:
            there = stack.enter_context(crew)
            while True:
                pipe.send(said)
                try:
                    what, given = pipe.recv()
                except (EOFError, OSError):
                    return
                said = getattr(there, what)(*given)
        except CustomTTTError as error:  # told before the crew is left, which may take long
            pipe.send(error)
        except Exception as error:
            pipe.send(CustomTTTError(sentence(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
