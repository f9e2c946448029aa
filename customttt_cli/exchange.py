"""The commands `export` and `import`: concepts as single files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from customttt.concept import check_name
from customttt.errors import AlreadyExistsError, NotFoundError, UsageError
from customttt.library import Library
from customttt_cli import options, output


class FormOption(StrEnum):
    CUSTOMTTT = "customttt"
    DIFFUSERS = "diffusers"
    KOHYA = "kohya"
    COMFYUI = "comfyui"


def export(
    name: options.ConceptName,
    kind: Annotated[options.Kind | None, typer.Option(help="Refuse it if it is not of this kind.")] = None,
    form: Annotated[
        FormOption, typer.Option("--format", help="customttt keeps everything; the others are for other programs.")
    ] = FormOption.CUSTOMTTT,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="By default NAME here.", show_default=False)
    ] = None,
) -> None:
    """Write a concept to one file: our own form, or a LoRA for diffusers or for ComfyUI (kohya, comfyui)."""
    from customttt import media

    library = Library()
    concept = library.get(name, kind.value if kind else None)
    if out is not None:
        media.check_place(out)
    with output.loading_torch():
        from customttt.interchange import exchange
    path = out or Path(name + exchange.SUFFIX[form.value])
    if path.absolute().resolve().is_relative_to(library.root.resolve()):
        raise UsageError(f"'{path}' is inside the library, whose files are its own; name a file elsewhere.")
    if path.is_dir() or (out is None and path.exists()):
        raise AlreadyExistsError(f"'{path}' is here already; name another file with --output.")
    exchange.export(library, concept, form.value, path)
    output.say(f"Exported '{name}' for {form.value}; 'customttt import {path}' brings it back.")
    output.result(str(path))


def import_concept(
    file: Annotated[
        Path, typer.Argument(help="What export or another program wrote: a file, or PEFT's folder.", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call it; by default as in the file, or as the file.", show_default=False)
    ] = None,
    kind: Annotated[
        options.Kind | None, typer.Option(help="Which one, where a file holds both or the base does not tell (wan).")
    ] = None,
    base: options.ImportBase = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read weights from a PyTorch file (.pt, .ckpt), too.")
    ] = False,
    force: options.Force = False,
) -> None:
    """Add a concept from a file: our own form, or a LoRA of diffusers, PEFT, kohya or MotionDirector."""
    library = Library()
    if not file.exists():
        raise NotFoundError(f"There is no file '{file}'; give what 'customttt export' or another program wrote.")
    if name is not None:
        check_name(name)
        library.check_free(name, force)
    with output.loading_torch():
        from customttt.interchange import exchange, parcel
    opened = parcel.read(file, allow_pickle)
    library.check_free(name or opened.name, force)
    home, why = exchange.home_of(opened, base)
    output.say(f"Base: {home.base} ({why})")
    if opened.concept and home.fingerprint != opened.concept.base_fingerprint:
        output.warn(
            f"'{opened.concept.name}' was learned on '{opened.concept.base}', and is imported for another base."
        )
    arrival = exchange.admit(opened, home, name, kind.value if kind else None)
    added = arrival.add_to(library, force)
    for note in arrival.notes:
        output.warn(note)
    output.say(f"Imported the {added.kind} '{added.name}': \"{added.phrase}\", rank {added.rank}.")
    output.result(str(library.path(added.name)))
