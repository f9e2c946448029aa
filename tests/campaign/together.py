"""Six processes and one library: `python tests/campaign/together.py [SECONDS]`.

Three write (replace, add and remove, rename there and back, keep), two read all that there is through Python, and one
types `list`, `show` and `verify`. A reader must see each concept before or after a change, never between: nothing is
said to be damaged, nothing is lost.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from trials import Child, Count, command, ground, import_everything, options

import_everything()

from places import faults, put  # noqa: E402

from customttt.concept import Concept  # noqa: E402
from customttt.errors import LockedError, NotFoundError  # noqa: E402
from customttt.library import Library  # noqa: E402

Act = Callable[[Path], list[str]]


def replaces(root: Path) -> list[str]:
    put(root, "koala", random.randrange(10**6))
    return []


def comes_and_goes(root: Path) -> list[str]:
    put(root, "extra", random.randrange(10**6))
    Library(root).add_adapted(f"{random.randrange(40):08x}", lambda path: path.write_bytes(os.urandom(20_000)))
    Library(root).remove("extra")
    return []


def renames(root: Path) -> list[str]:
    library = Library(root)
    library.rename("swimming", "renamed")
    library.add_unfinished("0" * 8, lambda path: path.write_bytes(os.urandom(20_000)))
    library.rename("renamed", "swimming")
    library.remove_unfinished("0" * 8)
    return []


def lists(root: Path) -> list[str]:
    library = Library(root)
    entries = dict(library.entries())
    found = [f"'list' calls {name} damaged: {one}" for name, one in entries.items() if not isinstance(one, Concept)]
    if not {"koala", "still"} <= entries.keys():
        found.append(f"'list' has {sorted(entries)} alone")
    if not {"swimming", "renamed"} & entries.keys() and not {"swimming", "renamed"} & dict(library.entries()).keys():
        found.append(f"'list' twice has {sorted(entries)} alone")
    return found


def verifies(root: Path) -> list[str]:
    library = Library(root)
    found = [f"'verify' tells {problem}" for problem in library.verify()]
    for name in ("koala", "swimming", "still"):
        try:
            library.weights(name)
        except NotFoundError as error:
            if name != "swimming":
                found.append(str(error))
    return found


def types(root: Path) -> list[str]:
    """The command line, in a process of its own."""
    words = random.choice(["list", "list --json", "show koala", "show still", "verify", "verify koala", "path still"])
    said = root.with_name(f"said-{os.getpid()}")
    ended = Child(command(*words.split(), home=root, folder=root.parent), said).wait()
    return [] if ended and ended.code == 0 else [f"'{words}' ended with {ended and ended.code}: {ended and ended.said}"]


ACTS: list[Act] = [replaces, comes_and_goes, renames, lists, verifies, types]


def work(act: Act, root: Path, until: float, report: Path) -> Callable[[], int]:
    """Do it again and again, and report how often, and what failed."""

    def task() -> int:
        done: Counter[str] = Counter()
        found: list[str] = []
        random.seed(act.__name__)
        while time.monotonic() < until:
            try:
                found += act(root)
            except LockedError:
                done["waited for ten seconds in vain"] += 1
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")
            done["done"] += 1
        report.write_text(json.dumps([done, found]))
        return 0

    return task


def main() -> int:
    seconds, count = options(600, __doc__).trials, Count()
    with ground() as folder:
        root = folder / "home"
        for name in ("koala", "swimming", "still"):
            put(root, name, 0)
        until = time.monotonic() + seconds
        reports = {act.__name__: folder / f"report-{act.__name__}" for act in ACTS}
        children = [
            Child(work(act, root, until, reports[act.__name__]), folder / f"said-{act.__name__}") for act in ACTS
        ]
        for child in children:
            child.wait()
        for name, report in reports.items():
            if not report.exists():
                count.trial(name, f"the process died: {(folder / f'said-{name}').read_text()[-1000:]}")
                continue
            done, found = json.loads(report.read_text())
            count.trials[name] += done["done"]
            count.noted[f"times {name} waited for ten seconds in vain"] += done.get("waited for ten seconds in vain", 0)
            for fault in found:
                count.trial(name, fault)
        known = {name: set(range(10**6)) for name in ("koala", "swimming", "still")}
        known["extra"] = known["renamed"] = {None, *range(10**6)}
        Library(root).check_writable()
        entries = dict(Library(root).entries())
        if "renamed" in entries:
            known["swimming"].add(None)
        count.trial("afterwards", *faults(root, known))
    print(f"{seconds} seconds of six processes")
    return count.told()


if __name__ == "__main__":
    sys.exit(main())
