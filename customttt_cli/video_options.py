"""The options that say how a video is composed, which `compose` and `grid` share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from customttt.errors import UsageError
from customttt.wish import places
from customttt_cli import options

_Scale = Annotated[float | None, typer.Option(help="How strongly it acts, 0 to 4; 1 as learned.", show_default=False)]


def _settings(
    place: options.Places = None,
    apart: options.Apart = False,
    frames: Annotated[int | None, typer.Option(help="Frames; by default the base's.")] = None,
    aspect: Annotated[
        str | None,
        typer.Option(help="Width to height, as in 16:9; by default that of the motion's clip.", show_default=False),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of denoising; by default the base's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt, from 1.")] = None,
    no_ttt: Annotated[bool, typer.Option("--no-ttt", help="Leave test-time training out.")] = False,
    ttt_steps: Annotated[int | None, typer.Option(help="Steps of test-time training; by default the base's.")] = None,
    as_published: Annotated[
        bool, typer.Option("--as-published", help="The paper's test-time training and sampling, not the base's own.")
    ] = False,
    appearance_scale: _Scale = None,
    motion_scale: _Scale = None,
) -> dict[str, Any]:
    """Fields of `wish.Settings`, those that were given. Raises UsageError."""
    if no_ttt and ttt_steps:
        raise UsageError(f"--no-ttt and --ttt-steps {ttt_steps} exclude each other; use one of them.")
    fields = {
        "frames": frames, "aspect": aspect, "steps": steps, "guidance": guidance,
        "ttt_steps": 0 if no_ttt else ttt_steps, "appearance_scale": appearance_scale, "motion_scale": motion_scale,
        "as_published": as_published or None, "apart": apart or None, "places": places(place or ()) or None,
    }  # fmt: skip
    return {name: value for name, value in fields.items() if value is not None}


def with_video_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with all these options where it has one argument `settings`."""
    shared = inspect.signature(_settings, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True)

    @wraps(command)
    def run(**given: Any) -> None:
        settings = _settings(**{name: given.pop(name) for name in shared})
        command(**given, settings=settings)

    parameters = [
        one
        for name, own_one in own.parameters.items()
        for one in (shared.values() if name == "settings" else [own_one])
    ]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run
