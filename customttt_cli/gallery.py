"""The command `gallery`: a page of the videos of a folder, or of the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customttt.errors import UsageError
from customttt.library import Library
from customttt_cli import options, output, showing
from customttt_cli.sources import count

if TYPE_CHECKING:
    from customttt.concept import Concept
    from customttt.recipe import VideoRecipe

PAGE = "gallery.html"


def gallery(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A folder of videos, of a grid or of a comparison; by default the library itself."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The page; by default gallery.html in FOLDER, or here.", show_default=False
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="What stands above it.", show_default=False)] = None,
    as_json: options.Json = False,
) -> None:
    """Write a page to look at: videos side by side and in step, or what the library holds. It needs no network."""
    path = out or (folder or Path()) / PAGE
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"Output '{path}' must end in .html.")
    from customttt import media

    if folder is None:
        media.check_place(path)
        text, number = _library(path, title)
        noun = "concept"
    else:
        text, number = _videos(folder, path, title)
        noun = "video"
    with media.placed(path) as aside:
        aside.write_text(text, encoding="utf-8")
    output.result(json.dumps({"path": str(path), f"{noun}s": number}) if as_json else str(path))
    output.say(f"{count(number, noun)}; open the page in a browser.")


def _videos(folder: Path, path: Path, title: str | None) -> tuple[str, int]:
    from customttt import media
    from customttt.many import gallery

    with output.waiting("Reading the videos"):
        collection = gallery.collect(folder)
    media.check_place(path)
    if collection.strangers:
        output.say(f"{count(collection.strangers, 'video')} without a recipe of customttt left out.")
    number = len(collection.videos)
    title = title or f"{folder.resolve().name}: {count(number, 'video')}"
    return gallery.page(collection, _recipe, path, title), number


def _recipe(recipe: VideoRecipe) -> list[tuple[str, str]]:
    return showing.pairs_of(showing.recipe_lines(recipe, {}))


def _library(path: Path, title: str | None) -> tuple[str, int]:
    from customttt.many import gallery

    library = Library()
    entries = library.entries()

    def lines(concept: Concept) -> list[tuple[str, str]]:
        folder = library.path(concept.name)
        shown = showing.pairs_of(showing.concept_lines(concept, folder))
        return [*(pair for pair in shown if pair[0] not in ("name", "path")), ("size", showing.size_of(folder))]

    title = title or f"{count(len(entries), 'concept')} learned"
    return gallery.library_page(entries, lines, title, library.path() / "concepts", path), len(entries)
