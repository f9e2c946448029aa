"""Disks that are full at some moment of any writing: `python tests/campaign/disks.py` (as root, on Linux).

On a file system of a few megabytes in memory, with another part of it taken every time. A command must end well or with
exit code 11 and one sentence, and leave all that was there; with room again it must end well.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trials import Child, Count, command, foretell, ground, import_everything, options

import_everything()

from bases import build_tiny_random  # noqa: E402

from customttt import checkpoint, media  # noqa: E402
from customttt.library import Library  # noqa: E402
from customttt.tiny.demo import INPUTS  # noqa: E402

SIZE = 24 << 20
"""Bytes of the disk."""
FREE = 10, 21
"""Of which power of two to which are left free."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of SIZE bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, free: int) -> None:
    """Leave so many bytes free."""
    import psutil

    (disk / "ballast").unlink(missing_ok=True)
    left = psutil.disk_usage(str(disk)).free - free
    with (disk / "ballast").open("wb") as file:
        for _ in range(max(left, 0) >> 12):
            file.write(bytes(4096))


def main() -> int:
    number, count = options(300, __doc__).trials, Count()
    checkpoint.EVERY_SECONDS = 0.0
    with ground() as folder, small_disk(folder / "disk") as disk:
        base, home = str(build_tiny_random(folder / "base")), disk / "home"
        pictures, clip = str(INPUTS / "koala"), str(INPUTS / "swimming.mp4")
        learn = ("--base", base, "--steps", "2", "--force")
        lines = {
            "learn-appearance": ("learn-appearance", "koala", pictures, *learn),
            "learn-motion": ("learn-motion", "swimming", clip, *learn),
            "compose": ("compose", "koala", "swimming", "-o", "out.mp4", "--ttt-steps", "1", "--steps", "1"),
            "compose frames": ("compose", "koala", "swimming", "-o", "frames", "--ttt-steps", "1", "--steps", "1"),
            "export": ("export", "koala", "-o", "koala.customttt"),
            "export diffusers": ("export", "swimming", "--format", "diffusers", "-o", "swimming.safetensors"),
            "import": ("import", "koala.customttt", "--base", base, "--force"),
            "rename": ("rename", "extra", "renamed"),
        }
        tasks = {name: command(*words, home=home, folder=disk) for name, words in lines.items()}
        for name, task in tasks.items():
            if name == "rename":
                extra = ("import", "koala.customttt", "--base", base, "--name", "extra")
                Child(command(*extra, home=home, folder=disk), folder / "said").wait()
            if name.startswith(("learn", "compose")):
                foretell(*lines[name], home=home, folder=disk)
            ended = Child(task, folder / "said").wait()
            count.trial(f"{name} with room", *([] if ended and ended.code == 0 else [str(ended)]))
        Library(home).rename("renamed", "extra")
        for turn in range(number):
            name = list(tasks)[turn % len(tasks)]
            fill(disk, int(2 ** random.uniform(*FREE)))
            ended = Child(tasks[name], folder / "said").wait()
            assert ended
            (disk / "ballast").unlink()
            found = (
                [] if ended.is_sound and ended.code in (0, 11) else [f"ended with {ended.code}: {ended.said[-1500:]}"]
            )
            found += [str(one) for one in Library(home).verify()]
            names = {one for one, _ in Library(home).entries()}
            if not {"koala", "swimming"} <= names or not {"extra", "renamed"} & names:
                found.append(f"there are only {sorted(names)}")
            for video in ("out.mp4", "frames"):
                try:
                    media.read_recipe(disk / video)
                    media.read_frames(disk / video)
                except Exception as error:
                    found.append(f"{video}: {error}")
            if "renamed" in names:
                Library(home).rename("renamed", "extra")
            count.noted["had room enough"] += ended.code == 0
            count.trial(name, *found)
        for name, task in tasks.items():
            ended = Child(task, folder / "said").wait()
            count.trial(f"{name} with room again", *([] if ended and ended.code == 0 else [str(ended)]))
    return count.told()


if __name__ == "__main__":
    sys.exit(main())
