"""What the campaign's scripts share: a command in a process that can be killed, what it took, and a count of failures.

A trial runs in a fork of a process that has imported what it needs, so that thousands are cheap: what is tried is the
code of the command line, without the seconds that its imports take.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")

CODES = {0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
"""Exit codes that the documents tell, but for 1, which is the unexpected."""
MAX_MEMORY, MAX_SECONDS = 2e9, 30.0
"""Bytes of one process, and seconds of a core, that a stranger's file may take."""
Task = Callable[[], object]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or minus the signal; what it said; what it took."""

    code: int
    said: str
    seconds: float
    core_seconds: float
    memory: int
    """Bytes of the largest of it and the processes that it ran."""

    @property
    def is_sound(self) -> bool:
        """Whether it ended as the documents tell, with at most one sentence about an error and no traceback."""
        errors = sum(line.startswith("error: ") for line in self.said.splitlines())
        return self.code in CODES and errors == (self.code != 0) and "Traceback" not in self.said

    @property
    def is_cheap(self) -> bool:
        return self.memory < MAX_MEMORY and self.core_seconds < MAX_SECONDS


class Child:
    """A task in a process of its own, which leads a group, so that what it runs can be ended with it."""

    def __init__(self, task: Task, said: Path) -> None:
        self.began, self.said = time.monotonic(), said
        gc.freeze()  # else the first collection in the fork copies every object
        self.pid = os.fork()
        if not self.pid:
            _run(task, said)
        gc.unfreeze()
        self.ended: Ended | None = None

    def kill(self, number: int = signal.SIGKILL) -> None:
        if not self.wait(0):
            os.kill(self.pid, number)

    def wait(self, seconds: float | None = None) -> Ended | None:
        """How it ended; None if it has not within so many seconds."""
        while self.ended is None:
            found, status, usage = os.wait4(self.pid, 0 if seconds is None else os.WNOHANG)
            if found:
                took = time.monotonic() - self.began
                code = os.waitstatus_to_exitcode(status)
                text = self.said.read_text(errors="replace") if self.said.exists() else ""
                self.ended = Ended(code, text, took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
            elif time.monotonic() - self.began >= (seconds or 0):
                return None
            else:
                time.sleep(0.0005)
        return self.ended


def _run(task: Task, said: Path) -> None:
    code = 70
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(out, stream)
        sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
        result = task()
        code = result if isinstance(result, int) else 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def command(*words: str | Path, home: Path, folder: Path) -> Task:
    """A line of the command line, with a library and in a folder."""

    def task() -> None:
        from customttt_cli.__main__ import main

        os.environ["CUSTOMTTT_HOME"] = str(home)
        os.chdir(folder)
        sys.argv = ["customttt", *map(str, words)]
        main()

    return task


def foretell(*words: str | Path, home: Path, folder: Path) -> None:
    """Forecast in this process what a line will take, so that forks need not: it is most of a short run's time."""
    with suppress(SystemExit):
        command(*words, "--dry-run", home=home, folder=folder)()


def at_event(task: Task, number: int) -> Task:
    """The task, whose process kills itself right before the file system is changed for the `number`th time."""

    def killed() -> object:
        left = number

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        return task()

    return killed


def import_everything() -> None:
    """What a command imports while it runs, once for all forks. Nothing is computed: threads would not be forked."""
    import torch

    torch.set_num_threads(1)
    modules = sorted(path for room in ("customttt", "customttt_cli") for path in (TESTS.parent / room).rglob("*.py"))
    for path in modules:
        name = ".".join(path.relative_to(TESTS.parent).with_suffix("").parts).removesuffix(".__init__")
        if not {"lab", "ui", "__main__"} & set(name.split(".")):  # the page needs Gradio, and no trial opens it
            import_module(name)
    for name in ("PIL.Image", "zipfile", "platformdirs", "filelock", "rich.console", "rich.table", "rich.text"):
        import_module(name)


@dataclass
class Count:
    """Trials of each sort, and what failed."""

    trials: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    noted: Counter[str] = field(default_factory=Counter)
    """What is told beside them, such as in how many trials the process had ended before the kill."""
    most: dict[str, float] = field(default_factory=dict)

    def trial(self, sort: str, *faults: str) -> None:
        self.trials[sort] += 1
        for fault in faults:
            self.failures.append(f"{sort}: {fault}")
            print(f"FAILED {sort}: {fault}", flush=True)
        if not (number := sum(self.trials.values())) % 500:
            print(f"... {number:,} trials, {len(self.failures):,} failures", flush=True)

    def took(self, ended: Ended) -> None:
        """Remember the largest and the slowest."""
        for what, value in (("GB", ended.memory / 1e9), ("s of a core", ended.core_seconds), ("s", ended.seconds)):
            self.most[what] = max(self.most.get(what, 0), value)

    def told(self) -> int:
        """Print it all; returns an exit code."""
        for sort, number in self.trials.items():
            print(f"{number:7,} {sort}")
        for what, number in self.noted.items():
            print(f"        ({number:,} {what})")
        if self.most:
            print("        (at most " + ", ".join(f"{value:.2f} {what}" for what, value in self.most.items()) + ")")
        print(f"{sum(self.trials.values()):,} trials, {len(self.failures):,} failures", flush=True)
        return int(bool(self.failures))


@contextmanager
def ground() -> Iterator[Path]:
    """A folder to play in, in memory where there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def options(number: int, about: str | None) -> argparse.Namespace:
    """The script's own options: how many trials, and from which seed."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("trials", nargs="?", type=int, default=number)
    parser.add_argument("--seed", type=int, default=0)
    found = parser.parse_args()
    random.seed(found.seed)
    return found
