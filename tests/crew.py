"""Crews for tests: simulated workers, and what real worker processes do there."""

from __future__ import annotations

import heapq
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from customttt.errors import BaseUnavailableError
from customttt.many.engine import Job, Result


@dataclass
class Plain:
    """Work whose orders are the jobs themselves; what was done is known by its key."""

    done: dict[str, Any] = field(default_factory=dict)
    orders: list[str] = field(default_factory=list)

    def known(self, job: Job) -> Any:
        return self.done.get(job.key)

    def order(self, job: Job) -> Any:
        self.orders.append(job.key)
        return job.what

    def keep(self, job: Job, value: Any) -> Any:
        assert job.key not in self.done, "nothing is done twice"
        assert all(key in self.done for key in job.needs), "what it needs comes first"
        self.done[job.key] = value or True
        return value


@dataclass
class Simulated:
    """Workers on a clock of their own: every job takes `seconds`, and ends as `how` says."""

    count: int
    seconds: Callable[[Job], float] = lambda _: 0.001
    how: Callable[[Job], Result] = lambda job: Result(job)
    now: float = 0.0
    busy: list[tuple[float, int, Job]] = field(default_factory=list)
    given: int = 0

    def room(self) -> int:
        return self.count - len(self.busy)

    def give(self, job: Job, order: Any) -> None:  # noqa: ARG002
        assert self.room() > 0
        self.given += 1
        heapq.heappush(self.busy, (self.now + self.seconds(job), self.given, job))

    def returned(self) -> list[Result]:
        self.now, _, job = heapq.heappop(self.busy)
        return [self.how(job)]


def obedient() -> Callable[[Any], Any]:
    """Opens a worker that does what it is told: ends itself once where a file is not there yet, fails, or squares."""

    def do(order: Any) -> Any:
        what, value = order
        if what == "die" or (what == "die once" and not Path(value).exists()):
            if what == "die once":
                Path(value).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fail":
            raise ValueError(value)
        return (value, os.environ.get("OMP_NUM_THREADS")) if what == "threads" else value

    return do


def stillborn() -> Callable[[Any], Any]:
    """A worker that ends before it has begun."""
    os._exit(3)


@dataclass
class There:
    """A crew for a process of its own: it tells where it is, raises, or ends its process, as it is ordered."""

    left: Path
    """Is there when it was left."""
    order: Any = None
    job: Job | None = None

    def __enter__(self) -> There:
        if self.order == "refuse":
            raise BaseUnavailableError("Nobody is there.")
        return self

    def __exit__(self, *_: object) -> None:
        self.left.touch()

    def room(self) -> int:
        return int(self.job is None)

    def give(self, job: Job, order: Any) -> None:
        self.job, self.order = job, order

    def returned(self) -> list[Result]:
        assert self.job
        if self.order == "wait":
            self.order = "go on"
            return []
        if self.order == "end":
            os._exit(1)
        if self.order == "odd":
            raise ValueError("It is odd.")
        job, self.job = self.job, None
        return [Result(job, value=os.getpid())]
