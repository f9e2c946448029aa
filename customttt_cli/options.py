"""Options that several commands share, and what the text of an option means."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from customttt import concept
from customttt.config import Aspect, SampleConfig, parse_aspect
from customttt.errors import UsageError
from customttt.library import check_length
from customttt.recipe import PLACES, listed
from customttt_cli import completion

AUTO = "auto"
"""The value of --layers that stands for what `influence` found."""

PATHS_OR_NAMES = ("base", "thing")
"""Names of options and arguments that may be a path or another name."""


class Kind(StrEnum):
    APPEARANCE = "appearance"
    MOTION = "motion"


Places = Annotated[
    list[str] | None,
    typer.Option(
        "--place",
        help=f"Where a subject is, koala:left, by default beside the others: {listed([*PLACES])}. Can be repeated.",
        show_default=False,
    ),
]


Apart = Annotated[
    bool, typer.Option("--apart", help="Let the LoRAs of each subject act where the base reads the word for it.")
]


def concept_argument(kind: concept.Kind) -> Any:
    """The argument that takes the name of a learned concept of a kind."""
    return typer.Argument(help=f"A learned {kind}.", show_default=False, autocompletion=completion.concepts(kind))


NewName = Annotated[str, typer.Argument(help="What to call it: letters, digits, '-', '_' and '.'.", show_default=False)]
ConceptName = Annotated[
    str, typer.Argument(help="A concept's name.", show_default=False, autocompletion=completion.concepts())
]
Scene = Annotated[str, typer.Argument(help="Where: 'on Mars'. Or a sentence with {appearance} and {motion}.")]
Others = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        help="A further subject and its movement, dog:jumping; or a subject alone, of which PROMPT is then a whole "
        "sentence with the names in braces. Can be repeated.",
        show_default=False,
        autocompletion=completion.subjects,
    ),
]
Then = Annotated[
    list[str] | None,
    typer.Option(
        help="A motion that the subject makes after the first, for an equal part of the frames. Can be repeated.",
        show_default=False,
        autocompletion=completion.concepts("motion"),
    ),
]


def _base(otherwise: str, envvar: str | None = None) -> Any:
    """The option for a base; what is taken without it."""
    return typer.Option(
        "--base",
        envvar=envvar,
        help=f"{', '.join(completion.BASES)}, a folder or a hub id; by default {otherwise}.",
        show_default=False,
        autocompletion=completion.bases,
    )


Base = Annotated[str | None, _base("animatediff on a large GPU, else tiny", "CUSTOMTTT_BASE")]
ImportBase = Annotated[
    str | None, _base("the one that a .customttt file was learned on; of other files as for learning")
]
ConceptsBase = Annotated[str | None, _base("the one that the concepts were learned on")]
Prompt = Annotated[
    str | None, typer.Option(help="The whole sentence to learn with, instead of the default.", show_default=False)
]
Steps = Annotated[int | None, typer.Option(help="Steps of training; by default the base's.", show_default=False)]
Rank = Annotated[int | None, typer.Option(help="Rank of the LoRA; by default the base's.", show_default=False)]
LearningRate = Annotated[float | None, typer.Option(help="Of Lion; by default the base's.", show_default=False)]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Numbered layers of the base to learn in: 2,6; auto: those that 'influence' found. By default the base's.",
        show_default=False,
    ),
]
TrainSeed = Annotated[int | None, typer.Option("--seed", help="Of noise and start; by default 0.", show_default=False)]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run although --steps or --learning-rate changed.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the concept that has this name.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
ClipAspect = Annotated[
    str | None,
    typer.Option(
        help="Width to height to crop the clip to, as in 16:9; by default its own, or a square where the base makes "
        "nothing else.",
        show_default=False,
    ),
]


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """`2,6` as (2, 6), sorted and each once; None where they are settled later. Raises UsageError."""
    if text is None or text == AUTO:
        return None
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UsageError(f"--layers is {text!r}; give numbers of layers, such as 2,6, or auto.") from error


def checked_aspect(text: str | None) -> Aspect | None:
    """`16:9` as (16, 9). Raises UsageError for what no video can have."""
    aspect = parse_aspect(text)
    SampleConfig().but(aspect=aspect)
    return aspect


def at_home(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command in whose paths `~` is the home folder, also where no shell has put it in, as in `--output=~/a.mp4`."""

    @wraps(command)
    def run(**given: Any) -> Any:
        return command(**{name: _at_home(value, name in PATHS_OR_NAMES) for name, value in given.items()})

    return run


def _at_home(value: Any, place: bool) -> Any:
    """`value` with the home folder in place of `~`, if it is a path or several. Raises UsageError."""
    if isinstance(value, (list, tuple)):
        return [_at_home(one, place) for one in value]
    if not (isinstance(value, Path) or (place and isinstance(value, str))):
        return value
    try:
        path = type(value)(Path(value).expanduser()) if str(value).startswith("~") else value
    except RuntimeError as error:
        raise UsageError(
            f"'{value}' begins with a home folder that is not known here; write the path in full."
        ) from error
    check_length(Path(path))
    return path
