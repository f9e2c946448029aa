"""The pieces of the page that show something, as HTML, in which everything is escaped, whoever wrote it; and what the
text of its fields means. No tensors.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL import Image

from customttt import previews
from customttt.concept import Concept
from customttt.errors import DamagedError, UsageError
from customttt.many import gallery
from customttt.media import FilmStrip, Pixels
from customttt.ui.desk import DeskTask

ADDRESS = "/gradio_api/file="
"""Where Gradio's server gives out files that it may."""
_LOADER = ChoiceLoader([PackageLoader("customttt.ui", "look"), PackageLoader("customttt.many", "page")])
_ENVIRONMENT = Environment(loader=_LOADER, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
_HARMLESS = {ord("{"): "&#123;", ord("}"): "&#125;", ord("$"): "&#36;"}
"""Gradio takes HTML for a template of its own in which these mean something."""


def said(text: str, bad: bool = False) -> str:
    """A sentence under a form."""
    return _rendered("said.html", text=text, bad=bad)


def tasks(those: Iterable[DeskTask]) -> str:
    """What waits, runs and has ended, the newest first, with a button each to stop or to go on."""
    shown = [
        {
            "number": task.number, "title": task.title, "state": task.state, "said": task.said, "speed": task.speed,
            "progress": task.progress, "curve": previews.curve(task.losses), "loss": task.losses[-1:],
        }
        for task in reversed(list(those))
    ]  # fmt: skip
    return _rendered("tasks.html", tasks=shown)


def made(those: Iterable[DeskTask]) -> str:
    """The pictures and videos of all tasks side by side, those of the newest first; some may be gone meanwhile."""
    shown = [
        {"title": task.title, "files": [_shown(path, text) for path, text in task.files if path.is_file()]}
        for task in reversed(list(those))
    ]
    return _rendered("made.html", tasks=[one for one in shown if one["files"]])


def library(entries: Iterable[tuple[str, Concept | DamagedError]], concepts: Path) -> str:
    """A card for each entry."""
    cards = []
    for name, one in entries:
        if isinstance(one, DamagedError):
            cards.append({**gallery.EMPTY, "name": name, "damaged": str(one)})
        else:
            cards.append(gallery.card(one, _facts(one), _in(concepts / name)))
    return _rendered("library.html", concepts=cards)


def pictures(those: Sequence[tuple[str, Pixels, Sequence[str]]]) -> str:
    """What is taken of pictures: name, what is left of it, and its captions."""
    shown = [{"source": embedded(one), "name": name, "notes": notes, "out": False} for name, one, notes in those]
    return _rendered("pictures.html", pictures=shown)


def film(strip: FilmStrip, start: float, end: float) -> str:
    """Frames of a whole clip with their times; those outside of a part (seconds) are pale."""
    shown = [
        {"source": embedded(frame), "name": f"{time:.2f} s", "notes": (), "out": not start <= time <= end}
        for frame, time in zip(strip.frames, strip.times, strict=True)
    ]
    return _rendered("pictures.html", pictures=shown)


def embedded(pixels: Pixels) -> str:
    """A small picture as an address that holds all of it."""
    image, content = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    image.thumbnail((previews.CELL, previews.CELL))
    image.save(content, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def number(what: str, text: str) -> float | None:
    """None for no text. Raises UsageError."""
    try:
        number = float(text) if text.strip() else None
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise UsageError(f"{what} cannot be {text[:40]!r}; give a number, or nothing.")
    return number


def whole(what: str, text: str) -> int | None:
    """None for no text. Raises UsageError."""
    try:
        return int(text) if text.strip() else None
    except ValueError as error:
        raise UsageError(f"{what} cannot be {text[:40]!r}; give a whole number, or nothing.") from error


def given(text: str | None) -> str | None:
    """None for no text; that of a field that is not shown is None, too."""
    return (text or "").strip() or None


def split(text: str | None) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def style() -> str:
    """Of all of these."""
    return _ENVIRONMENT.loader.get_source(_ENVIRONMENT, "ui.css")[0]  # type: ignore[union-attr]


def _facts(concept: Concept) -> list[tuple[str, str]]:
    steps = f"{concept.steps} steps" if concept.steps else "by another program"
    return [
        ("kind", concept.kind), ("prompt", concept.prompt), ("base", Path(concept.base).name), ("learned", steps),
        ("from", ", ".join(source.name for source in concept.sources)),
    ]  # fmt: skip


def _shown(path: Path, text: str) -> dict[str, Any]:
    return {"source": address(path), "moves": path.suffix == ".mp4", "text": text}


def _in(folder: Path) -> Callable[[str], str]:
    return lambda file: address(folder / file)


def address(path: Path) -> str:
    """Of a file on the page; a file that changes gets another one."""
    changed = path.stat().st_mtime_ns if path.exists() else 0
    return f"{ADDRESS}{quote(path.absolute().as_posix())}?{changed}"


def _rendered(template: str, **values: Any) -> str:
    return _ENVIRONMENT.get_template(template).render(**values).translate(_HARMLESS)
