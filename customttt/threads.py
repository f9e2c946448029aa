"""How many threads torch computes with on a CPU: as many as there are idle cores, none of which spins for long (ours).

OpenMP's threads wait for one another by spinning. Where another program keeps a core busy, one of them has to wait for
it, and the others spin meanwhile: learning took nine times as long beside one busy process on two cores (LOG.md). The
number of threads decides in which order numbers are added up, and so the last bits: checkpoints and recipes keep it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from customttt import machine

SPINS = 5000
"""Turns that a thread waits before it sleeps: for programs that get busy later on. On idle cores it costs nothing that
could be seen (LOG.md)."""
FIXED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which a user says how many threads there are."""
WORK = ("user", "nice", "system", "irq", "softirq", "steal")
"""What a core does while it is not idle, as psutil calls it; waiting for the disk is idle."""


def bound_spinning() -> None:
    """Let the threads of this process and of those that it starts sleep soon; call it before torch is imported."""
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


@dataclass(frozen=True)
class Watch:
    """A moment from which on the other programs of this machine are watched."""

    at: float
    busy: float
    """Seconds that the cores of this process had worked by then."""
    own: float
    """Seconds of them for this process and for those that it had started."""

    @classmethod
    def start(cls) -> Watch:
        return cls(time.monotonic(), _busy_seconds(), _own_seconds())

    def idle_cores(self) -> float:
        """Cores that other programs have left idle since then, on average."""
        passed = max(time.monotonic() - self.at, 1e-3)
        others = (_busy_seconds() - self.busy) - (_own_seconds() - self.own)
        return machine.cores() - max(others, 0.0) / passed


def _busy_seconds() -> float:
    """Seconds that the cores of this process have worked since the machine was started."""
    every = psutil.cpu_times(percpu=True)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(every))
    return sum(float(getattr(every[core], name, 0.0)) for core in cores if core < len(every) for name in WORK)


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


_torch_own: list[int] = []
"""What torch would take by itself, once `choose` has taken less."""


def choose(idle: float) -> None:
    """Let torch compute with as many threads as there are idle cores, at least one and never more than it would take.

    A user's own number (FIXED) stays.
    """
    import torch

    if os.environ.keys() & set(FIXED):
        return
    most = _torch_own[0] if _torch_own else torch.get_num_threads()
    _torch_own[:] = [most]
    torch.set_num_threads(min(max(round(idle), 1), most))


def number() -> int:
    """Threads that torch computes with now; 0 on a GPU, where they change nothing."""
    import torch

    return torch.get_num_threads() if machine.device().type == "cpu" else 0


def use(number: int) -> None:
    """Compute with so many threads from now on; 0: with as many as torch takes by itself."""
    import torch

    if wanted := number or sum(_torch_own):
        torch.set_num_threads(wanted)


@contextmanager
def using(number: int) -> Iterator[None]:
    """The same while this lasts."""
    import torch

    before = torch.get_num_threads()
    use(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
