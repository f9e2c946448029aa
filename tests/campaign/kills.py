"""Kill whatever writes, at random moments and before every change of the file system: `python tests/campaign/kills.py`.

The library (add, replace, rename, remove, keep), exports, videos of every kind (of which ffmpeg writes the mp4),
learning and composing. After every kill all that was there must be there as it was or as it should become, and
listed and verified as whole.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from trials import Child, Count, Task, at_event, command, foretell, ground, import_everything, options

# isort: split
from places import content_of, faults, frames, put, recipe, record

from customttt import media
from customttt.library import Library
from customttt.media import outputs

SHARES = {"library": 0.5, "videos": 0.25, "exports": 0.23, "learning": 0.01, "composing": 0.01}
"""Of the trials."""
LONGER, SHORTER = 1.03, 0.9
"""How the range of moments for a kill grows after a kill, and shrinks after a run that had ended before it: it stays
where four of five are killed, so that it reaches a little beyond the end, and few runs are in vain."""
Check = Callable[[], list[str]]


class Killer:
    """Runs tasks and kills them."""

    def __init__(self, count: Count, folder: Path) -> None:
        self.count, self.said = count, folder / "said"
        self.lasted: dict[str, float] = {}
        self.events: dict[str, float] = {}
        """From when on, and from which change on, most have ended: found out by trying."""

    def alone(self, sort: str, task: Task) -> None:
        """Let it run to its end, which must be good."""
        ended = Child(task, self.said).wait()
        assert ended
        if ended.code:
            self.count.trial(sort, f"failed though nobody killed it: {ended.said[-1000:]}")
        self.lasted.setdefault(sort, ended.seconds)

    def kill(self, sort: str, task: Task, check: Check) -> bool:
        """Kill it at a random moment, or before a random change of the file system, and look at what is left.

        Returns whether it was killed before it had ended.
        """
        lasted, events = self.lasted.get(sort, 0.02), self.events.get(sort, 12.0)
        if exactly := random.random() < 0.5:
            child = Child(at_event(task, random.randint(1, round(events))), self.said)
        else:
            child = Child(task, self.said)
            child.wait(random.uniform(0, lasted))
            child.kill()
        ended = child.wait()
        assert ended
        killed = ended.code == -signal.SIGKILL
        factor = LONGER if killed else SHORTER
        if exactly:
            self.events[sort] = max(events * factor, 3)
        else:
            self.lasted[sort] = lasted * factor
        found = check()
        if ended.code not in (0, -signal.SIGKILL) or "Traceback" in ended.said:
            found.append(f"ended with {ended.code}: {ended.said[-1000:]}")
        if killed or found:
            self.count.trial(sort, *found)
        else:
            self.count.noted["more had ended before their kill, and were as sound"] += 1
        return killed


def library_kills(killer: Killer, root: Path, number: int) -> None:
    """Replace, add and remove, rename there and back, keep what is adapted and unfinished."""
    version = done = 0
    for name in ("koala", "swimming", "extra"):
        put(root, name, version)
    known: dict[str, set[int | None]] = {"koala": {0}, "swimming": {0}, "extra": {0}, "renamed": {None}}
    while done < number:
        version += 1
        there = {name for name, _ in Library(root).entries()}
        sort = random.choice(["replace", "extra", "rename", "adapted", "unfinished"])
        if sort == "replace":
            task, known["koala"] = partial(put, root, "koala", version), known["koala"] | {version}
        elif sort == "extra":
            gone = "extra" in there
            task = partial(Library(root).remove, "extra") if gone else partial(put, root, "extra", version)
            known["extra"] |= {None if gone else version}
        elif sort == "rename":
            old, new = ("swimming", "renamed") if "swimming" in there else ("renamed", "swimming")
            if new in there:  # an earlier kill left both
                Library(root).remove(new)
            task = partial(_rename, root, old, new)
            known |= {old: known[old] | {None}, new: known[old] | {None}}
        else:
            task = partial(_keep, root, sort, f"{version % 5:08x}")
        done += killer.kill(sort, task, partial(faults, root, known))
        found = {name: getattr(entry, "seed", None) for name, entry in Library(root).entries()}
        if not {"swimming", "renamed"} & found.keys():
            killer.count.trial(sort, "swimming is lost under both its names")
            put(root, "swimming", version)
            found["swimming"] = version
        known = {name: {found.get(name)} for name in known}


def _rename(root: Path, old: str, new: str) -> None:
    Library(root).rename(old, new)


def _keep(root: Path, sort: str, key: str) -> None:
    keep = Library(root).add_adapted if sort == "adapted" else Library(root).add_unfinished
    keep(key, lambda path: path.write_bytes(os.urandom(50_000)))


def video_kills(killer: Killer, folder: Path, number: int) -> None:
    """Write over a video of each kind."""
    kinds = ["a.mp4", "a.gif", "a.webp", "frames"]
    known: dict[str, list[dict[str, bytes]]] = {
        kind: [record(folder / kind, seed) for seed in (0, 1)] for kind in kinds
    }
    turn = done = 0
    while done < number:
        kind = kinds[turn % len(kinds)]
        sort, path, seed = f"video {kind}", folder / kind, random.randrange(2)
        task = partial(media.write_video, path, frames(seed), 8, recipe(seed))
        if turn < len(kinds) or turn % 100 == 0:
            killer.alone(sort, task)
        done, turn = done + killer.kill(sort, task, partial(_altered, path, known[kind])), turn + 1
        if turn % 50 == 0:
            killer.count.trial("leftovers", *_left(folder, set(kinds)))


def _altered(path: Path, known: list[dict[str, bytes]]) -> list[str]:
    if not path.exists():
        return [f"{path.name} is lost"]
    if content_of(path) not in known:
        return [f"{path.name} is neither the old nor the new one"]
    return []


def _left(folder: Path, own: set[str]) -> list[str]:
    """What the next writer leaves of what killed ones left, once it is old."""
    time.sleep(0.3)  # ffmpeg ends by itself when nobody feeds it
    for left in folder.glob(".customttt-*"):
        os.utime(left, (0, 0), follow_symlinks=False)
    with outputs.placed(folder / "last") as aside:
        aside.write_text("")
    (folder / "last").unlink()
    return [f"{path.name} was left" for path in folder.iterdir() if path.name not in own]


def export_kills(killer: Killer, root: Path, base: Path, folder: Path, number: int) -> None:
    """Write over an exported file, and read the library beside it."""
    from material import snapshot
    from travel import add

    from customttt import backbones
    from customttt.interchange.exchange import Home

    home = Home(str(base), backbones.identify(str(base)), backbones.places(str(base)))
    add(Library(root), home, "appearance")
    forms = ["customttt", "diffusers"]
    path, known = folder / "koala.file", []
    before = snapshot(root)

    def check() -> list[str]:
        return _altered(path, known) + [str(one) for one in Library(root).verify()]

    for form in forms:
        line = command("export", "koala", "--format", form, "-o", path, home=root, folder=folder)
        killer.alone("export", line)
        known.append(content_of(path))
    turn = done = 0
    while done < number:
        line = command("export", "koala", "--format", forms[turn % 2], "-o", path, home=root, folder=folder)
        done, turn = done + killer.kill("export", line, check), turn + 1
        if turn % 50 == 0:
            killer.count.trial("leftovers", *_left(folder, {path.name}))
    count_changed = snapshot(root) != before
    killer.count.trial("library behind exports", *["it was changed"] * count_changed)


def learning_kills(killer: Killer, root: Path, base: Path, folder: Path, learning: int, composing: int) -> None:
    """Learn over a concept that is there, and compose over a video that is there."""
    from customttt import checkpoint
    from customttt.tiny.demo import INPUTS

    checkpoint.EVERY_SECONDS = 0.0
    lines = {
        "learn-appearance": ("learn-appearance", "koala", INPUTS / "koala", "--base", base, "--steps", 4, "--force"),
        "learn-motion": ("learn-motion", "swimming", INPUTS / "swimming.mp4", "--base", base, "--steps", 4, "--force"),
        "compose": (
            "compose", "koala", "swimming", "on Mars", "-o", folder / "out.mp4", "--ttt-steps", 2, "--steps", 2,
        ),
    }  # fmt: skip
    tasks = {sort: command(*map(str, words), home=root, folder=folder) for sort, words in lines.items()}
    for sort, task in tasks.items():
        foretell(*map(str, lines[sort]), home=root, folder=folder)
        killer.alone(sort, task)

    def check() -> list[str]:
        library = Library(root)
        names = {name for name, _ in library.entries()}
        found = [f"{name} is lost" for name in {"koala", "swimming"} - names] + [str(one) for one in library.verify()]
        try:
            media.read_recipe(folder / "out.mp4")
            media.read_frames(folder / "out.mp4")
        except Exception as error:
            found.append(f"out.mp4: {error}")
        return found

    for sort, number in (("learn-appearance", learning // 2), ("learn-motion", learning // 2), ("compose", composing)):
        done = 0
        while done < number:
            done += killer.kill(sort, tasks[sort], check)
    for sort, task in tasks.items():
        killer.alone(sort, task)


def main() -> int:
    found = options(10_000, __doc__)
    number, count = found.trials, Count()
    with ground() as folder:
        killer = Killer(count, folder)
        for name in ("library", "videos", "exports", "home", "exported", "learned"):
            (folder / name).mkdir()
        library_kills(killer, folder / "library", int(SHARES["library"] * number))
        print("library done", flush=True)
        video_kills(killer, folder / "videos", int(SHARES["videos"] * number))
        print("videos done", flush=True)
        import_everything()  # with torch a fork costs ten times as much: not before it is needed
        from bases import build_tiny_random

        base = build_tiny_random(folder / "base")
        export_kills(killer, folder / "exports", base, folder / "exported", int(SHARES["exports"] * number))
        print("exports done", flush=True)
        each = int(SHARES["learning"] * number)
        if each:
            learning_kills(killer, folder / "home", base, folder / "learned", each, each)
    return count.told()


if __name__ == "__main__":
    sys.exit(main())
