"""Signals at random moments of learning and composing: `python tests/campaign/signals.py`.

Each must end as Ctrl-C does: a sentence, no traceback, the exit code of the signal, a whole library, and a run of
learning that goes on from its last checkpoint and ends as one that was never interrupted.
"""

from __future__ import annotations

import random
import signal
import sys

from trials import Child, Count, Task, command, ground, import_everything, options

import_everything()

from bases import build_tiny_random  # noqa: E402

from customttt import checkpoint  # noqa: E402
from customttt.library import Library  # noqa: E402
from customttt.tiny.demo import INPUTS  # noqa: E402

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
BEGUN = 0.1
"""Seconds after which a fork has come to the command."""


def main() -> int:
    number, count = options(300, __doc__).trials, Count()
    checkpoint.EVERY_SECONDS = 0.0
    with ground() as folder:
        base, home = build_tiny_random(folder / "base"), folder / "home"
        learning = ("learn-motion", "swimming", INPUTS / "swimming.mp4", "--base", base, "--steps", 6, "--force")
        lines: dict[str, Task] = {
            "learning": command(*map(str, learning), home=home, folder=folder),
            "composing": command(
                "compose", "koala", "swimming", "on Mars", "-o", "out.mp4", "--ttt-steps", "2", "--steps", "2",
                home=home, folder=folder,
            ),
        }  # fmt: skip
        first = ("learn-appearance", "koala", str(INPUTS / "koala"), "--base", str(base), "--steps", "2")
        Child(command(*first, home=home, folder=folder), folder / "said").wait()
        lasted = {}
        for name, task in lines.items():
            ended = Child(task, folder / "said").wait()
            assert ended
            lasted[name] = ended.seconds
            count.trial(f"{name} alone", *([] if ended.code == 0 else [ended.said]))
        weights = Library(home).weights("swimming").read_bytes()
        for turn in range(number):
            name = list(lines)[turn % 2]
            kind = random.choice(list(CODES))
            child = Child(lines[name], folder / "said")
            child.wait(random.uniform(BEGUN, max(lasted[name], BEGUN)))
            child.kill(kind)
            ended = child.wait()
            assert ended
            found = [str(one) for one in Library(home).verify()]
            if ended.code != CODES[kind] and ended.code != 0:
                found.append(f"{kind.name} ended with {ended.code}")
            if ended.code and ended.said.count("Interrupted; ") != 1:
                found.append("nothing was said of it")
            if "Traceback" in ended.said:
                found.append("a traceback")
            count.noted["had ended before"] += ended.code == 0
            count.trial(f"{kind.name} while {name}", *[f"{fault}: {ended.said[-1500:]}" for fault in found])
        ended = Child(lines["learning"], folder / "said").wait()
        same = Library(home).weights("swimming").read_bytes() == weights
        count.trial("learning afterwards", *([] if same else ["it ends elsewhere than one that nobody interrupted"]))
    return count.told()


if __name__ == "__main__":
    sys.exit(main())
