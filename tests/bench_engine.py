"""What the engine itself costs: `python tests/bench_engine.py`. 100,000 jobs of 1 ms on 1, 4, 16 simulated workers."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

from crew import Simulated

from customttt.many import engine
from customttt.many.engine import Job


class Forgetful:
    """A foreman of whose jobs nothing is kept."""

    def known(self, job: Job) -> None:  # noqa: ARG002
        return None

    def order(self, job: Job) -> Job:
        return job

    def keep(self, job: Job, value: object) -> object:  # noqa: ARG002
        return value


def jobs(number: int) -> Iterator[Job]:
    """Ten jobs of which nine need the first, as test-time training and its videos."""
    for pair in range(number // 10):
        yield Job(f"{pair:064}", "adapt", "test-time training")
        yield from (Job(f"{pair:060}{video:04}", "video", "a video", (f"{pair:064}",)) for video in range(9))


def memory() -> float:
    """The most that this process has taken, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    list(engine.run(jobs(20_000), Forgetful(), Simulated(16)))
    for workers in (1, 4, 16):
        for number in (100_000, 1_000_000) if workers == 16 else (100_000,):
            crew, before, began = Simulated(workers), memory(), time.process_time()
            ended = sum(1 for _ in engine.run(jobs(number), Forgetful(), crew))
            cost = (time.process_time() - began) / ended
            print(
                f"{ended:,} jobs on {workers} workers: {1e3 * cost:.4f} ms a job, of which making it is a part; the "
                f"clock of the workers says {crew.now:.1f} s, at best {ended / 1e3 / workers:.1f}; memory {before:.0f} "
                f"MB before, {memory():.0f} after",
                flush=True,
            )


if __name__ == "__main__":
    main()
