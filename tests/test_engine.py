"""The engine of many jobs: done once, what fails stops nothing else, and its own cost is small."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crew import Plain, Simulated, There, obedient, stillborn

from customttt.errors import BaseUnavailableError, CustomTTTError, DamagedError, IncompleteError
from customttt.many import engine
from customttt.many.crews import Apart, Processes
from customttt.many.engine import Alone, Job, Outcome, Result


def job(key: str, *needs: str, what: Any = None) -> Job:
    return Job(key, "job", f"job {key}", needs, what)


def pairs(number: int, videos: int) -> Iterator[Job]:
    """As a grid has them: something that is done once, and what needs it."""
    for pair in range(number):
        yield job(f"{pair}")
        yield from (job(f"{pair}-{video}", f"{pair}") for video in range(videos))


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {one.job.key: one.state for one in outcomes}


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("seed", range(5))
def test_every_job_is_done_once_and_after_what_it_needs(workers: int, seed: int) -> None:
    chance = random.Random(seed)
    keys = [str(number) for number in range(200)]
    jobs = [job(key, *{chance.choice(keys[:place]) for _ in range(chance.randrange(3)) if place}) for place, key in
            enumerate(keys)]  # fmt: skip
    work = Plain()
    outcomes = list(engine.run(jobs, work, Simulated(workers, lambda _: chance.random())))
    assert len(outcomes) == 200
    assert set(states(outcomes).values()) == {"done"}
    assert sorted(work.orders) == sorted(keys)


def test_all_workers_have_something_to_do_as_long_as_there_is() -> None:
    crew = Simulated(4, lambda _: 1.0)
    list(engine.run(pairs(100, 3), Plain(), crew))
    assert crew.now == pytest.approx(100, abs=4)


def test_what_was_begun_is_ended_before_more_is_begun() -> None:
    work = Plain()
    list(engine.run(pairs(3, 2), work, Simulated(1)))
    assert work.orders == ["0", "0-0", "0-1", "1", "1-0", "1-1", "2", "2-0", "2-1"]


def test_what_is_known_is_not_done_again() -> None:
    work = Plain({"0": True, "1-0": True})
    outcomes = list(engine.run(pairs(2, 2), work, Simulated(2)))
    assert {key for key, state in states(outcomes).items() if state == "known"} == {"0", "1-0"}
    assert not {"0", "1-0"} & set(work.orders)


def test_a_failed_job_says_why_and_stops_only_what_needs_it() -> None:
    def how(one: Job) -> Result:
        return Result(one, why="It is odd.") if one.key == "1" else Result(one)

    jobs = [*pairs(3, 2), job("late", "1-0"), job("other", "0-0")]
    outcomes = list(engine.run(jobs, Plain(), Simulated(2, how=how)))
    found = states(outcomes)
    assert {key for key, state in found.items() if state == "skipped"} == {"1-0", "1-1", "late"}
    assert {one.job.key: one.why for one in outcomes if one.why} == {
        "1": "It is odd.", **dict.fromkeys(("1-0", "1-1", "late"), "It needs what failed: job 1.")
    }  # fmt: skip
    assert len(outcomes) == len(jobs)


def test_what_cannot_be_ordered_or_kept_fails_alone() -> None:
    class Picky(Plain):
        def order(self, one: Job) -> Any:
            if one.key == "0":
                raise DamagedError("It is damaged.")
            return super().order(one)

        def keep(self, one: Job, value: Any) -> Any:
            if one.key == "1-0":
                raise CustomTTTError("There is no room.")
            return super().keep(one, value)

    found = states(list(engine.run(pairs(2, 2), Picky(), Simulated(2))))
    assert {key for key, state in found.items() if state == "failed"} == {"0", "1-0"}
    assert {key for key, state in found.items() if state == "done"} == {"1", "1-1"}


def test_a_job_whose_worker_is_lost_is_given_to_another_and_not_for_ever() -> None:
    times: dict[str, int] = {}

    def how(one: Job) -> Result:
        times[one.key] = times.get(one.key, 0) + 1
        return Result(one, lost=one.key == "0-0" or (one.key == "1" and times["1"] < engine.TRIES))

    outcomes = list(engine.run(pairs(2, 2), Plain(), Simulated(2, how=how)))
    assert states(outcomes) == {**dict.fromkeys(("0", "0-1", "1", "1-0", "1-1"), "done"), "0-0": "failed"}
    assert (times["0-0"], times["1"]) == (engine.TRIES, engine.TRIES)


def test_the_same_job_twice_is_one() -> None:
    work = Plain()
    outcomes = list(engine.run([job("a"), job("a"), job("b", "a")], work, Simulated(2)))
    assert work.orders == ["a", "b"]
    assert len(outcomes) == 3


def test_jobs_are_looked_at_as_they_are_wanted_and_waiting_ones_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WINDOW", 10)
    looked = 0

    def jobs() -> Iterator[Job]:
        nonlocal looked
        for one in pairs(3, 100):
            looked += 1
            yield one

    ended = 0
    for _ in engine.run(jobs(), Plain(), Simulated(2)):
        ended += 1
        assert looked - ended <= 10
    assert ended == 303


def test_the_cost_of_the_engine_itself_is_small() -> None:
    """0.3 ms a job is allowed, and much less is needed; what it costs on a clock is in `bench_engine.py`."""
    began = time.process_time()
    assert sum(1 for _ in engine.run(pairs(1000, 9), Plain(), Simulated(16))) == 10_000
    assert (time.process_time() - began) / 10_000 < 0.3e-3


def test_alone_opens_nothing_for_nothing() -> None:
    def opened() -> Any:
        raise AssertionError("this must not be reached")

    work = Plain({key.key: True for key in pairs(2, 2)})
    assert set(states(list(engine.run(pairs(2, 2), work, Alone(opened)))).values()) == {"known"}


# -- worker processes


def test_processes_do_jobs_lose_workers_and_go_on(tmp_path: Path) -> None:
    jobs = [
        job("a", what=("threads", 4)), job("b", what=("die once", str(tmp_path / "died"))),
        job("c", what=("fail", "It cannot be.")), job("d", what=("die", "")), job("e", "a", what=("square", 5)),
    ]  # fmt: skip
    with Processes(obedient, 2) as crew:
        outcomes = {one.job.key: one for one in engine.run(jobs, Plain(), crew)}
    assert {key: one.state for key, one in outcomes.items()} == {
        "a": "done", "b": "done", "c": "failed", "d": "failed", "e": "done"
    }  # fmt: skip
    assert outcomes["a"].value[0] == 4
    assert int(outcomes["a"].value[1]) >= 1, "a share of the cores"
    assert outcomes["c"].why == "Unexpected ValueError (It cannot be.)."
    assert "lost 3 times" in outcomes["d"].why


def test_workers_that_never_begin_are_no_endless_story() -> None:
    with (
        Processes(stillborn, 2) as crew,
        pytest.raises(CustomTTTError, match=r"before they have begun \(exit code 3\)"),
    ):
        list(engine.run(pairs(2, 2), Plain(), crew))


# -- a crew in a process of its own


def test_a_crew_works_in_a_process_of_its_own_and_is_left_in_order(tmp_path: Path) -> None:
    with Apart(There(tmp_path / "left"), "It has ended.") as crew:
        outcomes = list(engine.run([job("a"), job("b", "a", what="wait")], Plain(), crew))
    assert {one.value for one in outcomes} == {crew.process.pid}
    assert (tmp_path / "left").exists()


@pytest.mark.parametrize(
    ("order", "error", "words"),
    [
        ("end", IncompleteError, "It has ended"),
        ("odd", CustomTTTError, r"Unexpected ValueError \(It is odd\.\)"),
        ("refuse", BaseUnavailableError, "Nobody is there"),
    ],
)
def test_what_ends_a_crew_in_a_process_of_its_own_is_one_sentence(
    tmp_path: Path, order: str, error: type[CustomTTTError], words: str
) -> None:
    with pytest.raises(error, match=words), Apart(There(tmp_path / "left", order), "It has ended.") as crew:
        list(engine.run([job("a", what=order)], Plain(), crew))
    assert not multiprocessing.active_children()
