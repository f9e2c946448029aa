"""The command `demo`: the whole story in minutes, on a plain CPU, with what ships in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from customttt.library import Library
from customttt_cli import output, showing


def demo(
    folder: Annotated[
        Path, typer.Option("--output", "-o", help="A folder for the videos and the contact sheet.")
    ] = Path("customttt-demo"),
    base: Annotated[str, typer.Option(help="tiny, or the folder of another base of its world.")] = "tiny",
) -> None:
    """Learn a subject and a movement, compose them with and without test-time training, and lay it all out."""
    from customttt import media

    library = Library()
    library.check_writable()
    media.check_output(folder / "contact-sheet.mp4")
    with output.loading_torch():
        from customttt.tiny import demo as story
    output.say(showing.base_line(base, "it comes with this package" if base == "tiny" else "as asked"))
    with output.progress() as report:
        sheet = story.run(folder, library, report, output.say, base)
    output.result(str(sheet))
