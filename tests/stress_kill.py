"""Kill learning and composing with SIGKILL at random moments: `python tests/stress_kill.py [KILLS]` (no pytest).

After every kill the library must list without damage and verify clean. Prints one line a kill, and exits 1 at a fault.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bases import build_tiny_random

from customttt.concept import Concept
from customttt.library import Library
from customttt.tiny.demo import INPUTS


def commands(base: Path) -> list[list[str]]:
    """Replace an appearance, replace a motion, adapt and render: all that writes."""
    return [
        ["learn-appearance", "koala", str(INPUTS / "koala"), "--base", str(base), "--force"],
        ["learn-motion", "swimming", str(INPUTS / "swimming.mp4"), "--base", str(base), "--force"],
        ["compose", "koala", "swimming", "on Mars", "-o", "out.mp4", "--ttt-steps", "3"],
    ]


def start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "CUSTOMTTT_HOME": str(folder / "home")}
    return subprocess.Popen(
        [sys.executable, "-m", "customttt_cli", *command], cwd=folder, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def faults(library: Library) -> list[str]:
    damaged = [name for name, entry in library.entries() if not isinstance(entry, Concept)]
    missing = {"koala", "swimming"} - {name for name, _ in library.entries()}
    return [*damaged, *(f"{name} is lost" for name in missing), *(str(problem) for problem in library.verify())]


def main(kills: int) -> int:
    random.seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        todo = commands(build_tiny_random(folder / "base"))
        durations = []
        for command in todo:
            began = time.monotonic()
            if start(command, folder).wait():
                print(f"{command[0]} failed before any kill")
                return 1
            durations.append(time.monotonic() - began)
        for number in range(kills):
            which = number % len(todo)
            moment = random.uniform(0.3, 1.05) * durations[which]  # the first third only imports
            process = start(todo[which], folder)
            time.sleep(moment)
            process.kill()
            process.wait()
            found = faults(Library(folder / "home"))
            print(f"{number + 1:3} {todo[which][0]:17} killed after {moment:5.2f} s: {found or 'clean'}", flush=True)
            if found:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
