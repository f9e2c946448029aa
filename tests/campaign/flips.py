"""Flip bits in files and cut them off: `python tests/campaign/flips.py`.

A library must say which of its files is not as it was saved, and never give it away; a concept that travels and a
recipe in a video must be refused or be as they were. LoRAs in the forms of other programs have no checksum: they must
be refused in a sentence or read.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from trials import Count, ground, import_everything, options

import_everything()

from bases import build_tiny_random  # noqa: E402
from places import frames  # noqa: E402
from travel import add, make_weights, pickled, safetensors  # noqa: E402

from customttt import backbones, media  # noqa: E402
from customttt.concept import Concept  # noqa: E402
from customttt.errors import CustomTTTError, DamagedError  # noqa: E402
from customttt.interchange import exchange, parcel  # noqa: E402
from customttt.interchange.exchange import Home  # noqa: E402
from customttt.library import Library  # noqa: E402

RECIPE = {"prompt": "on Mars", "seed": 5, "appearance": {"name": "koala", "scale": 1.0}}
SHARES = {"library": 0.5, "parcels": 0.3, "recipes": 0.1, "strangers": 0.1}
"""Of the trials."""
Look = Callable[[], list[str]]


def spoilt(content: bytes) -> bytes:
    """One bit, one byte or the end is another; a tenth of them gets longer."""
    kind, changed = random.random(), bytearray(content)
    if kind < 0.3:
        return content[: random.randrange(len(content))]
    if kind < 0.4:
        return content + random.randbytes(random.randrange(1, 20))
    changed[random.randrange(len(changed))] ^= 1 << random.randrange(8) if kind < 0.8 else random.randrange(1, 256)
    return bytes(changed)


def with_spoilt(path: Path, look: Look) -> list[str]:
    """What is found wrong while a file is not what it was."""
    content = path.read_bytes()
    path.write_bytes(spoilt(content))
    try:
        return look()
    except Exception as error:
        return [f"{path.name}: {type(error).__name__}: {error}"]
    finally:
        path.write_bytes(content)


def in_the_library(root: Path, path: Path) -> list[str]:
    """What a spoilt file of the library was not found by."""
    library, name = Library(root), path.parent.name
    named = f"{name}/{path.name}" if name in ("adapted", "unfinished") else name
    found = []
    if [problem.name for problem in library.verify()] != [named]:
        found.append(f"'verify' tells {library.verify()} of {path}")
    entries = dict(library.entries())
    damaged = {one for one, entry in entries.items() if not isinstance(entry, Concept)}
    if entries.keys() != {"koala", "swimming"} or damaged - {name}:
        found.append(f"'list' tells {entries} of {path}")
    if name in entries:
        try:
            library.weights(name)
            found.append(f"{path} is given away")
        except DamagedError:
            pass
    elif library.adapted("a" * 8) if name == "adapted" else library.unfinished("b" * 8):
        found.append(f"{path} is given away")
    return found


def library_flips(count: Count, root: Path, home: Home, number: int) -> None:
    library = Library(root)
    add(library, home, "appearance")
    add(library, home, "motion")
    library.add_adapted("a" * 8, lambda path: path.write_bytes(random.randbytes(5000)))
    library.add_unfinished("b" * 8, lambda path: path.write_bytes(random.randbytes(5000)))
    files = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    for turn in range(number):
        path = files[turn % len(files)]
        count.trial(f"library {path.parent.name}", *with_spoilt(path, partial(in_the_library, root, path)))
    count.trial("library afterwards", *map(str, Library(root).verify()))


def refused_or_read(path: Path, home: Home, sealed: bool) -> list[str]:
    """A file that is handed over: refused as the documents tell; only one without a seal may be read."""
    try:
        arrival = exchange.admit(parcel.read(path, allow_pickle=True), home, "koala")
    except CustomTTTError as error:
        text = str(error)
        return [] if error.exit_code in (2, 3, 6) and "\n" not in text and len(text) < 1000 else [f"said {text!r}"]
    return [f"let in as {arrival.concept}"] if sealed else []


def parcel_flips(count: Count, root: Path, folder: Path, home: Home, own: int, others: int) -> None:
    library, path = Library(root), folder / "koala.file"
    exchange.export(library, library.get("koala"), "customttt", path)
    for _ in range(own):
        count.trial("own form", *with_spoilt(path, partial(refused_or_read, path, home, sealed=True)))
    weights = make_weights(home, "appearance")
    forms = {"safetensors": safetensors(weights), "pickle": pickled(weights)}
    for form in ("kohya", "diffusers"):
        exchange.export(library, library.get("koala"), form, path)
        forms[form] = path.read_bytes()
    for turn in range(others):
        form = list(forms)[turn % len(forms)]
        content = forms[form]
        head = content[:3000] if turn % 2 else content  # most of what can be wrong is at the beginning
        path.write_bytes(head)
        path.write_bytes(spoilt(head) + content[len(head) :])
        try:
            found = refused_or_read(path, home, sealed=False)
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        count.trial(f"form of others: {form}", *found)


def as_it_was_or_refused(path: Path) -> list[str]:
    try:
        made = media.read_recipe(path)
    except CustomTTTError:
        return []
    return [] if made == RECIPE else [f"{path.name} tells of {made}"]


def recipe_flips(count: Count, folder: Path, number: int) -> None:
    folder.mkdir()
    for name in ("a.mp4", "a.gif", "a.webp", "frames"):
        media.write_video(folder / name, frames(0), 8, RECIPE)
    paths = [folder / "a.mp4", folder / "a.gif", folder / "a.webp", folder / "frames" / "recipe.json"]
    paths.append(folder / "frames" / "0000.png")
    for turn in range(number):
        path = paths[turn % len(paths)]
        read = path.parent if path.name == "recipe.json" else path
        content = path.read_bytes()
        note = content.find(b"customttt")
        if note >= 0 and turn % 2:  # in the note itself
            at = note + random.randrange(400)
            changed = bytearray(content)
            changed[min(at, len(content) - 1)] ^= 1 << random.randrange(8)
            path.write_bytes(changed)
            found = as_it_was_or_refused(read)
            path.write_bytes(content)
        else:
            found = with_spoilt(path, partial(as_it_was_or_refused, read))
        count.trial(f"recipe in {path.name}", *found)


def main() -> int:
    number, count = options(10_000, __doc__).trials, Count()
    with ground() as folder:
        base = str(build_tiny_random(folder / "base"))
        home = Home(base, backbones.identify(base), backbones.places(base))
        shares = {name: int(share * number) for name, share in SHARES.items()}
        library_flips(count, folder / "home", home, shares["library"])
        parcel_flips(count, folder / "home", folder, home, shares["parcels"], shares["strangers"])
        recipe_flips(count, folder / "videos", shares["recipes"])
    return count.told()


if __name__ == "__main__":
    sys.exit(main())
