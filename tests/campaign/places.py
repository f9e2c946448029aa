"""Libraries, concepts and videos that the campaign tries its hand at, and what must be true of them after anything."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from customttt import media
from customttt.concept import Concept, Kind
from customttt.library import WEIGHTS, Library

SIZE = 200_000
"""Bytes of weights, which are none: the library does not look into them."""


def make(name: str, version: int, kind: Kind = "appearance") -> tuple[Concept, Callable[[Path], object]]:
    """A concept, which tells its version in `seed`, and what writes its weights."""
    concept = Concept(
        name=name, kind=kind, phrase=name, prompt=f"A {name}.", base="tiny", base_fingerprint="0" * 16, layers=(2, 6),
        rank=4, steps=3, learning_rate=1e-4, seed=version, sources=(), inputs=hashlib.sha256(name.encode()).hexdigest(),
        losses=(0.5,) * 3, versions={"torch": "2"}, created=datetime.now(UTC), seconds=1,
    )  # fmt: skip
    content = hashlib.sha256(f"{name} {version}".encode()).digest() * (SIZE // 32)
    return concept, lambda folder: (folder / WEIGHTS).write_bytes(content)


def put(root: Path, name: str, version: int) -> None:
    concept, write = make(name, version)
    Library(root).add(concept, write, force=True)


def faults(root: Path, known: Mapping[str, set[int | None]]) -> list[str]:
    """What is wrong with a library in which these concepts may be, each in one of these versions (None: gone)."""
    library = Library(root)
    entries, found = dict(library.entries()), [str(problem) for problem in library.verify()]
    found += [f"'{name}' is damaged: {entry}" for name, entry in entries.items() if not isinstance(entry, Concept)]
    found += [f"'{name}' came from nowhere" for name in entries.keys() - known.keys()]
    for name, versions in known.items():
        entry = entries.get(name)
        version = entry.seed if isinstance(entry, Concept) else None
        if version not in versions:
            found.append(f"'{name}' is {version}, not one of {versions}")
    return found


def content_of(path: Path) -> dict[str, bytes]:
    """What a file or a folder of files holds."""
    files = path.iterdir() if path.is_dir() else [path]
    return {file.name if path.is_dir() else "": file.read_bytes() for file in files}


def frames(seed: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 24, 24, 3), np.uint8)
    return noise.repeat(4, axis=1).repeat(4, axis=2)


def recipe(seed: int) -> dict[str, Any]:
    return {"prompt": "on Mars", "seed": seed}


def record(path: Path, seed: int) -> dict[str, bytes]:
    """Write a video; returns what it is then."""
    media.write_video(path, frames(seed), 8, recipe(seed))
    return content_of(path)
