"""The command `compare`: the same concepts, prompt and seeds by every method, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from customttt import pairs
from customttt.errors import CustomTTTError, UsageError
from customttt.library import Library
from customttt.measure.compare import METHODS, RUN
from customttt.recipe import Rival, VideoRecipe
from customttt.wish import Settings, Wish, others, places
from customttt_cli import completion, evaluate, exhibits, options, output, relearn, render
from customttt_cli.exhibits import Exhibit

if TYPE_CHECKING:
    from customttt.measure.rivals import Material
    from customttt.workshop import Workshop

CELL = 128
_Methods = Annotated[
    str | None,
    typer.Option(
        help=f"Some of {', '.join(METHODS)}; with commas between. By default all.",
        show_default=False,
        autocompletion=completion.methods,
    ),
]
Cells = dict[str, dict[int, Path]]
Shown = dict[str, list[Exhibit]]
Scores = dict[str, dict[str, dict[str, Any]]]
"""Estimates by method and by what was measured."""


def compare(
    appearance: Annotated[str, options.concept_argument("appearance")],
    motion: Annotated[str, options.concept_argument("motion")],
    prompt: options.Scene = "",
    further: options.Others = None,
    then: options.Then = None,
    place: options.Places = None,
    apart: options.Apart = False,
    methods: _Methods = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="The pictures of the appearance, for methods that learn anew.", show_default=False),
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(help="The clip of the motion, for methods that learn anew.", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(help="Videos a method, of seeds from 0.", min=1)] = 3,
    folder: Annotated[Path, typer.Option("--output", "-o", help="A folder for videos, grid and table.")] = Path(
        "customttt-compare"
    ),
    base: options.ConceptsBase = None,
    as_json: options.Json = False,
) -> None:
    """Compose by every method from the same noise, and lay the videos side by side; a killed run goes on."""
    chosen = _chosen(methods, bool(images), bool(clip))
    wish = Wish(prompt, 0, seeds, base, Settings(apart=apart, places=places(place or ())))
    wish.check()
    from customttt import media

    library = Library()
    pair = pairs.named(library, appearance, motion, others(further or ()), then or ())
    media.check_output(folder / "grid.mp4")
    recipe = render.settle(pair, wish)
    material = relearn.read(pair, recipe, images, clip) if images and clip else None
    recipes = {name: _recipe(name, recipe, material) for name in chosen}
    cells = _make(library, recipes, wish.seeds(recipe), folder, material)
    shown = {name: [exhibits.read(path, None, name) for path in paths.values()] for name, paths in cells.items()}
    _lay_out(shown, recipe.sample.fps, folder)
    scores = _scores(shown, images if material else None, clip if material else None)
    found = {"prompt": recipe.target_prompt, "scores": scores}
    videos = {name: [path.name for path in paths.values()] for name, paths in cells.items()}
    (folder / RUN).write_text(json.dumps({**found, "videos": videos}, indent=1), encoding="utf-8")
    _tell(scores)
    _tell_notes(list(cells))
    output.result(json.dumps(found, indent=1) if as_json else str(folder))


def _chosen(methods: str | None, images: bool, clip: bool) -> list[str]:
    """The methods to compare. Raises UsageError for an unknown one, or one without what it learns from."""
    if images != clip:
        given, lacking = ("--images", "--clip") if images else ("--clip", "--images")
        raise UsageError(f"Methods that learn anew need the pictures and the clip; give {lacking} with {given}.")
    names = list(METHODS) if methods is None else [name.strip() for name in methods.split(",")]
    if bad := [name for name in names if name not in METHODS]:
        raise UsageError(f"There is no method {bad[0]!r}; there are {', '.join(METHODS)}.")
    learning = [name for name in names if METHODS[name].learns]
    if images or not learning:
        return names
    if methods is not None:
        raise UsageError(f"Method '{learning[0]}' learns anew from the pictures and the clip; add --images and --clip.")
    output.say(f"Left out without --images and --clip, as they learn anew from both: {', '.join(learning)}.")
    return [name for name in names if name not in learning]


def _title(name: str) -> str:
    return METHODS[name].title.replace("\n", " ")


def _recipe(name: str, recipe: VideoRecipe, material: Material | None) -> VideoRecipe:
    """That of a method; a rival's tells what it learned from."""
    made = METHODS[name].recipe(recipe)
    if material is None or not METHODS[name].learns:
        return made
    return replace(made, rival=Rival(name, material.key(name)))


def _make(
    library: Library,
    recipes: Mapping[str, VideoRecipe],
    seeds: Sequence[int],
    folder: Path,
    material: Material | None,
) -> Cells:
    """The videos of every method; one that was made by the same recipe before is not made again.

    The base is loaded once, and only if a video is missing.
    """
    cells: Cells = {}
    first: dict[VideoRecipe, str] = {}
    shop: Workshop | None = None
    for number, (name, recipe) in enumerate(recipes.items(), 1):
        output.say(f"Method {number} of {len(recipes)}, '{name}': {_title(name)}.")
        if first.setdefault(recipe, name) != name:
            output.say(f"It is the same as '{first[recipe]}' on this base.")
            continue
        cells[name] = {seed: folder / f"{name}-seed{seed}.mp4" for seed in seeds}
        missing = {seed: path for seed, path in cells[name].items() if not _is_made(path, recipe.with_seed(seed))}
        if missing:
            shop = shop or render.opened(recipe.base, library)
            (folder / RUN).unlink(missing_ok=True)  # of videos that are replaced
            for _ in render.videos(shop, recipe, missing, material):
                output.goes_on()
    return cells


def _is_made(path: Path, recipe: VideoRecipe) -> bool:
    from customttt import media

    try:
        return VideoRecipe.from_dict(media.read_recipe(path)) == recipe
    except CustomTTTError:  # not there, half written, or another one
        return False


def _scores(shown: Shown, images: Sequence[Path] | None, clip: Path | None) -> Scores:
    """What `evaluate` measures, by method, with intervals over seeds; what it cannot measure says why."""
    candidates, rows, groups = evaluate.measured(list(chain.from_iterable(shown.values())), images or (), clip)
    for row in rows:
        if row.missing:
            output.say(f"No {row.what}: {row.missing}.")
    return {
        name: {row.what: asdict(estimate) for row in rows if (estimate := row.estimate(candidates, chosen))}
        for name, chosen in groups.items()
    }


def _lay_out(shown: Shown, fps: int, folder: Path) -> None:
    """A grid of the first seed's frames, and a video with a row a method and a column a seed."""
    import numpy as np

    from customttt import media
    from customttt.measure import sheets

    videos = {name: [one.frames for one in some] for name, some in shown.items()}
    rows = [(METHODS[name].title, some[0]) for name, some in videos.items()]
    media.write_png(folder / "grid.png", sheets.contact_sheet(rows, CELL))
    count = min(len(video) for some in videos.values() for video in some)
    sheets_of_time = [
        sheets.contact_sheet(
            [(METHODS[name].title, [video[t] for video in some]) for name, some in videos.items()], CELL
        )
        for t in range(count)
    ]
    media.write_video(folder / "side-by-side.mp4", np.stack(sheets_of_time), fps, {"made by": "customttt compare"})


def _tell(scores: Scores) -> None:
    from customttt.measure.stats import Estimate

    heads = list(dict.fromkeys(what for some in scores.values() for what in some))
    if not heads:
        return

    def cell(one: Mapping[str, Any] | None) -> str:
        return f"{Estimate(**one):.2f}" if one else "-"

    rows = [(name, *(cell(some.get(head)) for head in heads)) for name, some in scores.items()]
    output.table(("method", *heads), rows, [False] * len(rows))


def _tell_notes(chosen: Sequence[str]) -> None:
    for name in chosen:
        if METHODS[name].note:
            output.say(f"{name}: {METHODS[name].note}.")
