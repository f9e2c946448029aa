"""A page of videos and what they were made of, or of the library: one file that needs no network and no program.

The videos lie beside it and are loaded as they come near. Everything that comes from files is escaped: in the page by
Jinja's autoescape, in the script because it sets text and attributes alone; and the page's own policy lets no script
run but its own, nor anything be fetched from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from customttt import machine, media, previews
from customttt.concept import Concept
from customttt.errors import CustomTTTError, DamagedError, NotFoundError, UsageError
from customttt.limits import MAX_GALLERY
from customttt.measure import compare
from customttt.measure.compare import METHODS, RUN
from customttt.recipe import Subject, VideoRecipe, in_turn
from customttt.text import escaped, read_json

ENDINGS = (".mp4", ".gif", ".webp")
SUMMARY, SCORES = "grid.json", "scores.json"
EMPTY: Mapping[str, Any] = {"damaged": "", "lines": [], "curve": "", "picture": "", "video": "", "inputs": ""}
"""A card without anything."""
Lines = Callable[[VideoRecipe], Sequence[tuple[str, str]]]
"""A recipe for people: names and values."""


@dataclass(frozen=True)
class GalleryVideo:
    """One video of a folder, and what is known of it."""

    path: Path
    recipe: VideoRecipe
    method: str = ""
    """Of a comparison."""
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Collection:
    """All videos of a folder, and what a grid did not make."""

    folder: Path
    videos: Sequence[GalleryVideo]
    failures: Sequence[Mapping[str, str]] = ()
    strangers: int = 0
    """Videos without a recipe that this version reads."""

    @property
    def compared(self) -> bool:
        return any(video.method for video in self.videos)


def collect(folder: Path) -> Collection:
    """The videos below a folder that carry their recipe, in order. Raises NotFoundError or UsageError."""
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder '{folder}'; give one with videos of customttt.")
    paths = sorted(_found(folder))
    if len(paths) > MAX_GALLERY:
        raise UsageError(f"Folder '{folder}' has more than {MAX_GALLERY:,} videos; make a page of a part of it.")
    with ThreadPoolExecutor(machine.cores()) as pool:  # each is asked by a process of ffmpeg
        recipes = list(pool.map(_recipe, paths))
    by_video, by_method = _scores(folder)
    own = compare.cells(folder)
    cells = {path: name for place in {path.parent for path in paths} for path, name in compare.cells(place).items()}
    videos = [
        GalleryVideo(
            path,
            recipe,
            cells.get(path) or (recipe.rival.name if recipe.rival else ""),
            {**by_method.get(own.get(path, ""), {}), **by_video.get(path.name, {})},
        )
        for path, recipe in zip(paths, recipes, strict=True)
        if recipe is not None
    ]
    if not videos:
        raise NotFoundError(
            f"Folder '{folder}' is no gallery: none of its videos carries a recipe of customttt; give the folder of "
            "'customttt grid', 'compare' or 'compose'."
        )
    return Collection(folder, sorted(videos, key=_place), _failures(folder), len(paths) - len(videos))


def page(collection: Collection, lines: Lines, out: Path, title: str) -> str:
    """The page of a collection, as it is to lie at `out`."""
    names = list(dict.fromkeys(name for one in collection.videos for name in one.scores))
    axes = ("method", "seed") if collection.compared else ("appearance", "motion")
    videos = [_fields(one, lines, out) for one in collection.videos]
    return _rendered(title, videos=videos, scores=names, rows=axes[0], columns=axes[1], failures=collection.failures)


def library_page(
    entries: Iterable[tuple[str, Concept | DamagedError]],
    lines: Callable[[Concept], Sequence[tuple[str, str]]],
    title: str,
    concepts: Path,
    out: Path,
) -> str:
    """The page of a library, as it is to lie at `out`: a card for each concept, whose folders lie in `concepts`."""
    cards = [
        {**EMPTY, "name": name, "damaged": str(one)}
        if isinstance(one, DamagedError)
        else card(one, lines(one), lambda file, name=name: _link(concepts / name / file, out))  # type: ignore[misc]
        for name, one in entries
    ]
    return _rendered(title, concepts=cards)


def card(concept: Concept, lines: Sequence[tuple[str, str]], link: Callable[[str], str]) -> dict[str, Any]:
    """What a page shows of a concept; `link` is the address of one of its files."""
    there = {name: link(name) for name in concept.previews}
    return {
        **EMPTY, "name": concept.name, "lines": lines, "curve": previews.curve(concept.losses),
        "picture": there.get(previews.PICTURE, ""), "video": there.get(previews.VIDEO, ""),
        "inputs": there.get(previews.INPUTS, ""),
    }  # fmt: skip


# -- below: how it is found and written


def _found(folder: Path) -> Iterator[Path]:
    """Videos in a folder and below; links are not followed out of it."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place) / name for name in files if name.lower().endswith(ENDINGS) and name[0] != ".")


def _recipe(path: Path) -> VideoRecipe | None:
    try:
        return VideoRecipe.from_dict(media.read_recipe(path, altered=True))
    except CustomTTTError:
        return None


def _place(one: GalleryVideo) -> tuple[object, ...]:
    """By method, as `compare` knows them, then by all that tells videos apart."""
    order, recipe = list(METHODS), one.recipe
    method = order.index(one.method) if one.method in order else len(order)
    return method, recipe.appearance.name, recipe.motion.name, recipe.prompt, recipe.seed, one.path


def _scores(folder: Path) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """(by file name, by method): what `evaluate --json` printed into scores.json, and what `compare` measured."""
    by_video: dict[str, dict[str, float]] = {}
    by_method: dict[str, dict[str, float]] = {}
    for row in read_json(folder / SCORES, list):
        for path, value in _mapping(_mapping(row).get("videos")).items():
            if _is_number(value):
                by_video.setdefault(Path(path).name, {})[str(row.get("what"))] = value
    for method, some in _mapping(read_json(folder / RUN, dict).get("scores")).items():
        for what, estimate in _mapping(some).items():
            if _is_number(mean := _mapping(estimate).get("value")):
                by_method.setdefault(method, {})[what] = mean
    return by_video, by_method


def _failures(folder: Path) -> list[dict[str, str]]:
    said = read_json(folder / SUMMARY, dict).get("not done")
    names = ("job", "state", "why")
    told = said if isinstance(said, list) else []
    return [{name: str(one.get(name, "")) for name in names} for one in told if isinstance(one, dict)]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fields(one: GalleryVideo, lines: Lines, out: Path) -> dict[str, Any]:
    recipe = one.recipe
    beside = _beside(one.path, out)
    return {
        "src": _link(one.path, out), "still": one.path.suffix.lower() != ".mp4", "fps": recipe.sample.fps,
        "appearance": recipe.appearance.name, "motion": in_turn([one.name for one in recipe.motions]),
        "with": ", ".join(map(_name, recipe.others)), "prompt": recipe.prompt, "seed": recipe.seed,
        "method": one.method, "sentence": recipe.target_prompt,
        "recipe": [*lines(recipe), ("file", escaped(beside.removeprefix("./")))], "scores": dict(one.scores),
        "command": f"customttt compose --recipe {shlex.quote(escaped(beside))} --output again.mp4",
    }  # fmt: skip


def _name(one: Subject) -> str:
    """A further subject as it is typed: "dog:jumping"."""
    return f"{one.appearance.name}:{one.motion.name}" if one.motion else one.appearance.name


def _link(path: Path, out: Path) -> str:
    """The address of a file on the page at `out`."""
    beside = _beside(path, out)
    return quote(beside, safe="/.") if beside.startswith("./") else path.absolute().as_uri()


def _beside(path: Path, out: Path) -> str:
    """A file as it is named from where the page at `out` lies, or where no way leads there, from its drive."""
    try:
        return f"./{Path(os.path.relpath(path, out.parent)).as_posix()}"
    except ValueError:  # on another drive of Windows
        return path.absolute().as_posix()


def _rendered(title: str, **values: Any) -> str:
    loader = PackageLoader("customttt.many", "page")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": True, "sort_keys": False}
    style, script = (environment.loader.get_source(environment, f"gallery.{name}")[0] for name in ("css", "js"))  # type: ignore[union-attr]
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src 'self' file:; media-src 'self' file:; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    whole = {"videos": [], "scores": [], "rows": "", "columns": "", "failures": (), "concepts": None, **values}
    return environment.get_template("gallery.html").render(
        title=title, policy=policy, style=Markup(style), script=Markup(script), **whole
    )


def _hash(text: str) -> str:
    """As a policy names a script that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
