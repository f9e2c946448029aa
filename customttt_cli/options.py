"""Options that several commands share, and what the text of an option means."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from customttt.errors import UsageError

LAST_LAYER = 8
AUTO = "auto"
"""The value of --layers that stands for what `influence` found."""


class Kind(StrEnum):
    APPEARANCE = "appearance"
    MOTION = "motion"


NewName = Annotated[str, typer.Argument(help="What to call it: letters, digits, '-', '_' and '.'.", show_default=False)]
Base = Annotated[
    str | None,
    typer.Option(
        envvar="CUSTOMTTT_BASE",
        help="One of 'customttt bases', a folder or a hub id. By default animatediff on a large GPU, else tiny.",
        show_default=False,
    ),
]
Prompt = Annotated[
    str | None, typer.Option(help="The whole sentence to learn with, instead of the default.", show_default=False)
]
Steps = Annotated[int | None, typer.Option(help="Steps of training; by default the base's.", show_default=False)]
Rank = Annotated[int | None, typer.Option(help="Rank of the LoRA; by default the base's.", show_default=False)]
LearningRate = Annotated[float | None, typer.Option(help="Of Lion; by default the base's.", show_default=False)]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Blocks of the U-Net to learn in, 0 to 8: 2,6; auto: those that 'influence' found. By default the base's.",
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


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """`2,6` as (2, 6), sorted and each once; None where they are settled later. Raises UsageError."""
    if text is None or text == AUTO:
        return None
    try:
        layers = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise UsageError(f"--layers is {text!r}; give the numbers of blocks, such as 2,6, or auto.") from error
    if bad := [layer for layer in layers if not 0 <= layer <= LAST_LAYER]:
        raise UsageError(f"Layer {bad[0]} does not exist; the blocks of the U-Net are 0 to {LAST_LAYER}.")
    return tuple(layers)
