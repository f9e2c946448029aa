"""Tasks that one thread does one after the other, and that can be stopped and gone on with. Knows no tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from customttt.errors import NotFoundError, UsageError
from customttt.many.engine import sentence
from customttt.progress import Meter, Progress, StoppedError

State = Literal["waiting", "running", "stopping", "done", "stopped", "failed"]
MAX_TASKS = 200
"""That wait or have ended and are still shown."""
END_SECONDS = 30.0
"""A task has to keep its last step when the page ends."""


@dataclass
class DeskTask:
    """Something that takes long, and where it stands."""

    number: int
    title: str
    work: Callable[[DeskTask], str]
    """Does it, and returns a sentence about what came of it."""
    state: State = "waiting"
    said: str = ""
    """What came of it, or why it failed."""
    progress: Progress | None = None
    speed: str = ""
    losses: list[float] = field(default_factory=list)
    files: list[tuple[Path, str]] = field(default_factory=list)
    """Pictures and videos that it has made, each with what is written under it."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _meter: Meter = field(default_factory=Meter)

    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def note(self, progress: Progress) -> None:
        """A report: a step was done."""
        if progress.note:
            self.said = progress.note
            return
        if self.progress is None or progress.phase != self.progress.phase:
            self.losses = self.losses if progress.step > 1 else []
        if progress.loss is not None:
            self.losses[max(progress.step - 1, 0) :] = [progress.loss]
        self.speed, self.progress = self._meter.note(progress), progress

    def note_or_stop(self, progress: Progress) -> None:
        """The same where nothing is kept of a step. Raises StoppedError."""
        if self.stopping():
            raise StoppedError
        self.note(progress)


class Desk:
    """The tasks of one page; every tab sees the same. Use it in a `with`, which ends them."""

    def __init__(self) -> None:
        self.tasks: list[DeskTask] = []
        self._turn = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, daemon=True, name="customttt-desk")

    def __enter__(self) -> Desk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What is being learned keeps its last step, and goes on when it is asked for again."""
        with self._turn:
            self._closed = True
            for task in self.tasks:
                task._stop.set()
            self._turn.notify_all()
        self._thread.join(END_SECONDS)

    def add(self, title: str, work: Callable[[DeskTask], str]) -> DeskTask:
        """Let something be done when its turn comes. Raises UsageError where too much waits already."""
        with self._turn:
            if len(self.tasks) >= MAX_TASKS:
                raise UsageError(f"There are {MAX_TASKS} tasks on the page already; clear those that have ended.")
            number = max((task.number for task in self.tasks), default=0) + 1
            self.tasks.append(DeskTask(number, title, work))
            self._turn.notify_all()
            return self.tasks[-1]

    def stop(self, number: int) -> None:
        """Stop a task at its next step, or before its first. Raises NotFoundError."""
        with self._turn:
            task = self._find(number)
            if task.state == "waiting":
                task.state = "stopped"
            elif task.state == "running":
                task.state = "stopping"
                task._stop.set()

    def go_on(self, number: int) -> None:
        """Let a task that was stopped, or failed, wait for its turn again. Raises NotFoundError."""
        with self._turn:
            task = self._find(number)
            if task.state in ("stopped", "failed"):
                task.state, task.said = "waiting", ""
                task._stop.clear()
                self._turn.notify_all()

    def clear(self) -> None:
        """Show no more of what has ended; what was made stays."""
        with self._turn:
            self.tasks[:] = [task for task in self.tasks if task.state in ("waiting", "running", "stopping")]

    def _find(self, number: int) -> DeskTask:
        for task in self.tasks:
            if task.number == number:
                return task
        raise NotFoundError(f"There is no task {number} on the page any more.")

    def _serve(self) -> None:
        while True:
            with self._turn:
                while not (waiting := [task for task in self.tasks if task.state == "waiting"]) and not self._closed:
                    self._turn.wait()
                if self._closed:
                    return
                task = waiting[0]
                task.state, task.said, task.speed = "running", "", ""
            said, state = _done(task)
            with self._turn:
                task.said, task.state = said, state


def _done(task: DeskTask) -> tuple[str, State]:
    """Do a task: what came of it."""
    task._meter = Meter()
    try:
        return task.work(task), "done"
    except StoppedError:
        return "", "stopped"
    except Exception as error:  # whatever one raises stops no other
        return sentence(error), "failed"
