"""The commands on the library: list, show, rename, rm, path, verify. None of them imports torch."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from customttt.concept import Concept
from customttt.errors import DamagedError, NotFoundError, UsageError
from customttt.library import Library
from customttt_cli import completion, options, output, showing
from customttt_cli.sources import count

_AnyName = Annotated[
    str | None,
    typer.Argument(help="A concept's name; by default the whole library.", autocompletion=completion.concepts()),
]


def list_concepts(
    kind: Annotated[options.Kind | None, typer.Option(help="Only this kind.", show_default=False)] = None,
    as_json: options.Json = False,
) -> None:
    """List what has been learned (also: ls)."""
    library = Library()
    entries = [
        (name, entry)
        for name, entry in library.entries()
        if kind is None or isinstance(entry, DamagedError) or entry.kind == kind.value
    ]
    if as_json:
        output.result(json.dumps([_summary(name, entry) for name, entry in entries], indent=2, ensure_ascii=False))
    elif entries:
        _table(entries)
    else:
        what = f"no {kind.value}" if kind else "nothing"
        output.say(f"There is {what} in {library.root} yet; begin with 'customttt learn-appearance koala ./imgs'.")


def _summary(name: str, entry: Concept | DamagedError) -> dict[str, Any]:
    if isinstance(entry, DamagedError):
        return {"name": name, "damaged": str(entry)}
    return entry.model_dump(mode="json", exclude={"losses"})


def _table(entries: list[tuple[str, Concept | DamagedError]]) -> None:
    now = datetime.now(UTC)
    columns = ("name", "kind", "phrase", "base", "steps", "learned", "preview")
    rows = [
        (name, "damaged", f"see 'customttt verify {name}'", "", "", "", "")
        if isinstance(entry, DamagedError)
        else (
            name, entry.kind, entry.phrase, _short(entry.base), _steps(entry), showing.ago(entry.created, now),
            next(iter(entry.previews), ""),
        )
        for name, entry in entries
    ]  # fmt: skip
    output.table(columns, rows, [isinstance(entry, DamagedError) for _, entry in entries])


def _steps(concept: Concept) -> str:
    return str(concept.steps or "?")


@cache  # of few bases, though of thousands of concepts
def _short(base: str) -> str:
    return Path(base).name if Path(base).is_absolute() else base


def show(
    thing: Annotated[
        str,
        typer.Argument(
            metavar="NAME|VIDEO", help="A concept or a video.", show_default=False, autocompletion=completion.concepts()
        ),
    ],
    view: Annotated[bool, typer.Option("--open", help="Open its preview, or the video.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show how a concept was learned, or how a video was made."""
    library = Library()
    is_concept = thing in [name for name, _ in library.entries()]
    if not is_concept and (Path(thing).exists() or Path(thing).suffix.lower() in (".mp4", ".gif", ".webp")):
        _show_video(Path(thing), as_json)
        if view:
            _open(Path(thing))
        return
    concept = library.get(thing)
    folder = library.path(thing)
    if as_json:
        fields = {**concept.model_dump(mode="json"), "path": str(folder)}
        output.result(json.dumps(fields, indent=2, ensure_ascii=False))
    else:
        for line in showing.concept_lines(concept, folder):
            output.result(line)
    if view:
        if not concept.previews:
            raise NotFoundError(f"'{thing}' has no preview: it was imported without, or learned by an earlier version.")
        _open(folder / concept.previews[0])


def _open(path: Path) -> None:
    """Let the system show a file. Raises UsageError where it has nothing for that."""
    try:
        code = typer.launch(str(path.absolute()))
    except OSError:
        code = 1
    if code:
        raise UsageError(f"This system has no viewer that --open could start; the file is {path.absolute()}.")


def _show_video(path: Path, as_json: bool) -> None:
    from customttt import media
    from customttt.recipe import VideoRecipe

    try:
        made = media.read_recipe(path)
    except DamagedError as error:
        output.warn(str(error))
        made = media.read_recipe(path, altered=True)
    if as_json:
        output.result(json.dumps(made, indent=2, ensure_ascii=False))
        return
    for line in showing.recipe_lines(VideoRecipe.from_dict(made), made.get("versions", {})):
        output.result(line)
    output.say(f"The same again: customttt compose --recipe {path}")


def rename(
    old: options.ConceptName, new: Annotated[str, typer.Argument(help="The name it gets.", show_default=False)]
) -> None:
    """Give a concept another name."""
    library = Library()
    library.rename(old, new)
    output.say(f"'{old}' is '{new}' now.")
    output.result(str(library.path(new)))


def remove(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Concepts.", show_default=False, autocompletion=completion.concepts()),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: options.DryRun = False,
) -> None:
    """Remove concepts for good, after asking."""
    library = Library()
    folders = {name: library.path(name) for name in names}
    for name, folder in folders.items():
        output.say(f"{name}: {folder} ({showing.size_of(folder)})")
    if dry_run:
        output.say(f"{count(len(folders), 'concept')} would be removed; nothing was.")
    elif yes or _agreed(len(folders)):
        for name in folders:
            library.remove(name)
            output.result(name)
    else:
        output.say("Nothing was removed.")


def _agreed(number: int) -> bool:
    if not output.interactive():
        raise UsageError("There is no terminal to ask on; add --yes to remove, or --dry-run to see what would go.")
    return output.confirm(f"Remove {count(number, 'concept')} for good?")


def path(name: _AnyName = None) -> None:
    """Print where the library, or one concept, is on disk."""
    output.result(str(Library().path(name)))


def verify(name: _AnyName = None) -> None:
    """Read every byte of the library, or of one concept, and tell what differs from what was saved."""
    library = Library()
    problems = library.verify(name)
    for problem in problems:
        output.result(f"{problem.name}: {problem.sentence}")
    if problems:
        raise DamagedError(
            f"{count(len(problems), 'problem')} found; learn what is damaged again, or remove it with 'customttt rm'."
        )
    output.result(f"'{name}' is intact." if name else _all_intact(len(library.entries())))


def _all_intact(number: int) -> str:
    return "The one concept is intact." if number == 1 else f"All {number} concepts are intact."
