"""A grid by every way, killed and gone on: `python tests/grid_ways.py --out FOLDER --kills 10`.

4 appearances x 4 motions x 2 prompts x 2 seeds, one concept of which cannot be learned, by one process, by two of them
and by two workers on Ray. Each but the first is killed at random moments (its driver, a worker, Ray itself) and begun
again; then all have the same bytes, and nothing that was told to be done was done again. Beside the suite: it takes
long. It runs on a base with random weights and few steps, or with `--base tiny --full` on that as people use it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from bases import build_tiny_random
from material import make_clip, make_pictures

NAMES = {"appearance": ["koala", "dog", "cat", "fox"], "motion": ["swimming", "diving", "flying", "running"]}
WAYS: dict[str, list[str]] = {
    "one process": [],
    "two processes": ["--workers", "2"],
    "two on Ray": ["--ray", "local", "--workers", "2"],
}


def grid_file(folder: Path, base: str, size: int, full: bool) -> Path:
    """A grid of so many appearances and motions, the last of which cannot be learned."""
    make_pictures(folder / "imgs", 4)
    make_clip(folder / "clip.mp4", 24)
    learn: dict[str, dict[str, dict[str, object]]] = {"appearance": {}, "motion": {}}
    steps, settings = ({}, {}) if full else ({"steps": 2}, {"steps": 2, "ttt_steps": 1})
    for index, name in enumerate(NAMES["appearance"][:size]):
        learn["appearance"][name] = {"images": [f"imgs/{one}.jpg" for one in range(index + 1)], **steps}
    for index, name in enumerate(NAMES["motion"][-size:]):
        learn["motion"][name] = {"clip": "clip.mp4", "start": 0.1 * index, **steps}
    learn["motion"]["running"]["learning_rate"] = 1e30  # its loss is not a number
    learn["motion"]["running"]["steps"] = 4
    given = {"base": base, "prompts": ["on Mars", "under water"], "seeds": 2, "learn": learn, "settings": settings}
    (folder / "grid.json").write_text(json.dumps(given))
    return folder / "grid.json"


def start(file: Path, home: Path, out: Path, way: Sequence[str], said: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "CUSTOMTTT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "customttt_cli", "grid", str(file), "-o", str(out), "--json", *way]
    with said.open("ab") as stdout, said.with_suffix(".err").open("ab") as stderr:
        stdout.write(b"\n")  # a killed driver may have left half a line
        stdout.flush()
        return subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)


def kill(driver: subprocess.Popen[bytes], what: str, family: Sequence[psutil.Process]) -> str:
    """Kill the driver, a worker or Ray's own process, the driver where there is none yet; what was killed."""
    names = {one: name for one in family if (name := name_of(one))}
    on_ray = any("raylet" in name for name in names.values())
    worker = "ray::Hand" if on_ray else "spawn_main"
    wanted = {"worker": (worker,), "ray": ("raylet/raylet", "gcs_server", "spawn_main")}.get(what, ())
    found = [one for one, name in names.items() if any(mark in name for mark in wanted)]
    victim = random.choice(found) if found else psutil.Process(driver.pid)
    with suppress(psutil.NoSuchProcess):  # it ended meanwhile
        victim.kill()
    return names[victim].rsplit("/site-packages/")[-1][:60] if found else "the driver"


def name_of(process: psutil.Process) -> str:
    """Its command; empty where it has ended."""
    try:
        ended = process.status() == psutil.STATUS_ZOMBIE
        return "" if ended else " ".join(process.cmdline()) or process.name()
    except psutil.NoSuchProcess:
        return ""


def run(file: Path, folder: Path, way: Sequence[str], kills: int, seconds: float) -> tuple[dict[str, str], float]:
    """Killed so often, then to its end: the sha256 of every video, and the seconds of the last try."""
    folder.mkdir()
    home, out, said = folder / "home", folder / "out", folder / "said.jsonl"
    left, families = kills, list[psutil.Process]()
    while left or not is_whole(said):
        began, driver, killed = time.monotonic(), start(file, home, out, way, said), False
        early, before = random.random() < 0.3, done(said).total()
        while driver.poll() is None and left:
            if not early and done(said).total() == before:  # most kills come when jobs are done
                time.sleep(0.2)
                continue
            try:
                driver.wait(random.uniform(0.2, 1.8) * seconds)
            except subprocess.TimeoutExpired:
                what = random.choice(["driver", "worker", *(["ray"] if "--ray" in way else [])])
                family = psutil.Process(driver.pid).children(recursive=True)
                families += family
                print(f"  after {time.monotonic() - began:.0f} s killed: {kill(driver, what, family)}", flush=True)
                left, killed = left - 1, True
        code = driver.wait()
        last = (said.with_suffix(".err").read_text().splitlines() or [""])[-1]
        print(f"  ended with {code} after {time.monotonic() - began:.0f} s: {last[:150]}", flush=True)
        assert code == 12 or (killed and code == -9), "neither complete, nor killed, nor told"
        if is_whole(said):
            print(f"  {kills - left} kills", flush=True)
            left = 0
    check_told(said)
    check_ended(families)
    made = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("*.mp4")}
    return made, time.monotonic() - began


def check_ended(families: Sequence[psutil.Process]) -> None:
    """Whatever was killed, all that was started ends by itself."""
    for _ in range(60):
        names = [name for one in families if (name := name_of(one))]
        if not names:
            return
        time.sleep(1)
    raise AssertionError(names)


def told(said: Path) -> list[dict[str, Any]]:
    """Every job that was told; the last line of a killed driver may be half."""
    return [json.loads(line) for line in said.read_text().splitlines() if line.endswith("}")] if said.exists() else []


def is_whole(said: Path) -> bool:
    """Whether the last try came to its end."""
    last = told(said)[-1:]
    return bool(last) and last[0]["done"] == last[0]["of"]


def done(said: Path) -> Counter[str]:
    """How often each job was told to be done."""
    return Counter(one["title"] for one in told(said) if one["state"] == "done")


def check_told(said: Path) -> None:
    twice = [job for job, times in done(said).items() if times > 1]
    last = {one["title"]: one for one in told(said)}
    states = Counter((one["kind"], one["state"]) for one in last.values())
    print(f"  done {done(said).total()} jobs, {len(twice)} of them twice; at last {dict(states)}", flush=True)
    assert not twice, twice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base")
    parser.add_argument("--full", action="store_true", help="as many steps as the base takes by itself")
    parser.add_argument("--size", type=int, default=4, help="appearances, and motions")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--every", type=float, default=15.0, help="seconds of work until a kill, on average")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    base = given.base or str(build_tiny_random(given.out / "base"))
    file = grid_file(given.out, base, given.size, given.full)
    first: dict[str, str] = {}
    for way in given.ways:
        print(way, flush=True)
        kills = given.kills if first else 0
        found, took = run(file, given.out / way.replace(" ", "-"), WAYS[way], kills, given.every)
        first = first or found
        assert len(found) == given.size * (given.size - 1) * 2 * 2, len(found)
        assert found == first, "other bytes"
        print(f"  {len(found)} videos, the bytes of {given.ways[0]}; the last try took {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
