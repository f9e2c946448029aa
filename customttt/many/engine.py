"""Many jobs, some of which need others: done once, in a bounded memory, whoever does them. Knows no tensors.

A job is a pure function of its order and has a name; what is done stays done. One that fails stops no other but those
that need it, and a job whose worker was lost is given to another.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from customttt.errors import CustomTTTError, is_out_of_memory

WINDOW = 10_000
"""Jobs that are looked at before those before them have ended: what bounds the memory."""
TRIES = 3
"""How often a job is given to a worker that is lost over it."""
State = Literal["known", "done", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to do."""

    key: str
    """Its name: no other job has it."""
    kind: str
    title: str
    """For people."""
    needs: tuple[str, ...] = ()
    """The keys of jobs that come before this one."""
    what: Any = None
    """What `Foreman` makes an order of."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    job: Job
    state: State
    why: str = ""
    """Of a job that failed, or was skipped, in one sentence."""
    seconds: float = 0.0
    value: Any = None
    """What `Foreman.keep` made of the result, or `Foreman.known` found."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a worker gives back."""

    job: Job
    seconds: float = 0.0
    value: Any = None
    why: str = ""
    """Why it failed; empty if it did not."""
    lost: bool = False
    """Whether the worker is gone, and the job was not done."""


@runtime_checkable
class Foreman(Protocol):
    """What jobs mean; all of it is done in the one process that runs the engine."""

    def known(self, job: Job) -> Any:
        """The result of a job that was done before; None where it was not."""

    def order(self, job: Job) -> Any:
        """What a worker is to do; all that the job needs is done."""

    def keep(self, job: Job, value: Any) -> Any:
        """Keep what a worker gave back."""


@runtime_checkable
class Crew(Protocol):
    """Whoever does the jobs."""

    def room(self) -> int:
        """How many more jobs it takes now."""

    def give(self, job: Job, order: Any) -> None:
        """Let a job be done; there is room."""

    def returned(self) -> list[Result]:
        """What has ended; waits until there is something, or for a while. Jobs have been given."""


def run(jobs: Iterable[Job], work: Foreman, crew: Crew) -> Iterator[Outcome]:
    """Do every job, each after those that it needs, and tell how each ended as it ends.

    Jobs come after those that they need, and are looked at as they are wanted. A CustomTTTError of `work` is the
    failure of that job alone; anything that the crew raises ends the run.
    """
    return _Run(iter(jobs), work, crew).outcomes()


@dataclass
class _Run:
    """One run: what it holds is bounded by WINDOW and by the number of failures."""

    jobs: Iterator[Job]
    work: Foreman
    crew: Crew
    ready: deque[Job] = field(default_factory=deque)
    open: dict[str, list[Job]] = field(default_factory=dict)
    """By the key of each job that has not ended: those that wait for it."""
    lacking: dict[str, int] = field(default_factory=dict)
    """How many jobs each waiting one still needs."""
    bad: dict[str, str] = field(default_factory=dict)
    """By the key of what failed or was skipped: what failed at first, for people."""
    lost: dict[str, int] = field(default_factory=dict)
    running: int = 0
    ended: deque[Outcome] = field(default_factory=deque)

    def outcomes(self) -> Iterator[Outcome]:
        more = True
        while more or self.open:
            more = more and self._look()
            while self.ready and self.crew.room():
                self._give(self.ready.popleft())
            yield from self._told()
            if self.running:
                for one in self.crew.returned():
                    self.running -= 1
                    self._returned(one)
                    yield from self._told()

    def _told(self) -> Iterator[Outcome]:
        while self.ended:
            yield self.ended.popleft()

    def _look(self) -> bool:
        """Take jobs in until there are enough for the crew. Whether there may be more."""
        while len(self.ready) < self.crew.room() and len(self.open) < WINDOW:
            job = next(self.jobs, None)
            if job is None:
                return False
            self._enter(job)
            if self.ended:  # told before the next one is looked at
                return True
        return True

    def _enter(self, job: Job) -> None:
        if job.key in self.open:  # the same once more: whoever needs it waits for the first
            self.ended.append(Outcome(job, "known"))
            return
        awaited = {key for key in job.needs if key in self.open}
        self.open[job.key] = []
        if cause := next((self.bad[key] for key in job.needs if key in self.bad), None):
            self._skip(job, cause)
        elif awaited:
            self.lacking[job.key] = len(awaited)
            for key in awaited:
                self.open[key].append(job)
        else:
            self._ready(job)

    def _ready(self, job: Job, first: bool = False) -> None:
        """All that it needs is done. What others wait for comes first, so that little is begun and not ended."""
        try:
            value = self.work.known(job)
        except CustomTTTError as error:
            self._end(Outcome(job, "failed", str(error)))
            return
        if value is not None:
            self._end(Outcome(job, "known", value=value))
        elif first:
            self.ready.appendleft(job)
        else:
            self.ready.append(job)

    def _give(self, job: Job) -> None:
        try:
            order = self.work.order(job)
        except CustomTTTError as error:
            self._end(Outcome(job, "failed", str(error)))
            return
        self.running += 1
        self.crew.give(job, order)

    def _returned(self, one: Result) -> None:
        job = one.job
        if one.lost:
            self.lost[job.key] = self.lost.get(job.key, 0) + 1
            if self.lost[job.key] < TRIES:
                self.ready.appendleft(job)
            else:
                self._end(Outcome(job, "failed", f"Its worker was lost {TRIES} times.", one.seconds))
            return
        if one.why:
            self._end(Outcome(job, "failed", one.why, one.seconds))
            return
        try:
            self._end(Outcome(job, "done", "", one.seconds, self.work.keep(job, one.value)))
        except CustomTTTError as error:
            self._end(Outcome(job, "failed", str(error), one.seconds))

    def _end(self, outcome: Outcome) -> None:
        self.ended.append(outcome)
        waiting = self.open.pop(outcome.job.key)
        if outcome.state == "failed":
            self.bad[outcome.job.key] = outcome.job.title
        for job in reversed(waiting):  # so that the first of them is the first that is ready
            if outcome.state in ("failed", "skipped"):
                if self.lacking.pop(job.key, None) is not None:
                    self._skip(job, self.bad[outcome.job.key])
                continue
            if job.key not in self.lacking:  # skipped since
                continue
            self.lacking[job.key] -= 1
            if not self.lacking[job.key]:
                del self.lacking[job.key]
                self._ready(job, first=True)

    def _skip(self, job: Job, cause: str) -> None:
        self.bad[job.key] = cause
        self._end(Outcome(job, "skipped", f"It needs what failed: {cause}."))


@dataclass
class Alone:
    """A crew of one: this process. `do` is opened with the first order, so that nothing is loaded for nothing."""

    opened: Callable[[], Callable[[Any], Any]]
    do: Callable[[Any], Any] | None = None
    held: list[tuple[Job, Any]] = field(default_factory=list)

    def room(self) -> int:
        return 1 - len(self.held)

    def give(self, job: Job, order: Any) -> None:
        self.held.append((job, order))

    def returned(self) -> list[Result]:
        self.do = self.do or self.opened()
        job, order = self.held.pop()
        return [done(job, order, self.do)]


def done(job: Job, order: Any, do: Callable[[Any], Any]) -> Result:
    """Do a job here; what it raises is why it failed."""
    began = time.monotonic()
    try:
        value = do(order)
    except Exception as error:  # whatever one job raises stops no other
        return Result(job, time.monotonic() - began, why=sentence(error))
    return Result(job, time.monotonic() - began, value)


def sentence(error: Exception) -> str:
    """Why a job failed, in one."""
    if isinstance(error, CustomTTTError):
        return str(error)
    if is_out_of_memory(error):
        return "There was not enough memory for it."
    return f"Unexpected {type(error).__name__} ({' '.join(str(error).split())[:300] or 'no reason given'})."
