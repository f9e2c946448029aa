"""The command `compose`: appearances and motions, or a video's recipe, become videos."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from customttt import pairs
from customttt.errors import DamagedError, UsageError
from customttt.library import Library
from customttt.pairs import Pair
from customttt.recipe import VideoRecipe
from customttt.wish import Settings, Wish, others
from customttt_cli import options, output, render, showing
from customttt_cli.video_options import with_video_options

if TYPE_CHECKING:
    from customttt.planner import Forecast

_Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="A .mp4, .gif or .webp, or a folder for png frames.", show_default=False),
]
_Seed = Annotated[int | None, typer.Option(help="Another seed, another video; by default 0.", show_default=False)]


@with_video_options
def compose(
    appearance: Annotated[str | None, options.concept_argument("appearance")] = None,
    motion: Annotated[str | None, options.concept_argument("motion")] = None,
    prompt: options.Scene = "",
    further: options.Others = None,
    then: options.Then = None,
    out: _Output = None,
    seed: _Seed = None,
    num: Annotated[int, typer.Option(help="How many videos, of consecutive seeds.")] = 1,
    *,
    settings: dict[str, Any],
    recipe: Annotated[Path | None, typer.Option(help="Render this video again, or with what else is given.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Take a recipe that was altered.")] = False,
    base: options.ConceptsBase = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Put a learned appearance and a learned motion into one video, adapted to each other by test-time training.

    With further subjects, each with a movement of its own: --with dog:jumping. Or with one movement after another:
    --then jumping.
    """
    wish = Wish(prompt, seed, num, base, Settings(**settings))
    wish.check()
    library = Library()
    names = [name for name in (appearance, motion) if name is not None]
    pair, made = _pair(library, names, others(further or ()), then or (), recipe, force)
    paths = render.output_paths(out, pair.title, wish.seeds(made))
    _check_outputs(list(paths.values()), recipe)
    wanted = render.settle(pair, wish, made)
    forecast = render.forecast(library, pair, wanted, len(paths), dry_run)
    if dry_run:
        _plan(wanted, forecast, list(paths.values()), as_json)
    else:
        _render(library, wanted, paths, forecast, as_json, pair.title if out is None else None)


def _pair(
    library: Library,
    names: Sequence[str],
    further: Sequence[tuple[str, str | None]],
    then: Sequence[str],
    video: Path | None,
    altered: bool,
) -> tuple[Pair, VideoRecipe | None]:
    """The concepts, by name or by the recipe in a video, and that recipe."""
    if video is None:
        if len(names) < 2:
            raise UsageError('Give an appearance and a motion: customttt compose koala swimming "on Mars".')
        appearance, motion = names
        return pairs.named(library, appearance, motion, further, then), None
    if names or further or then:
        raise UsageError("--recipe names the concepts itself; leave APPEARANCE, MOTION, PROMPT, --with and --then out.")
    made = _read(video, altered)
    return pairs.of_recipe(library, made, f"'{video}'"), made


def _read(video: Path, altered: bool) -> VideoRecipe:
    """The recipe in a video; one that is not as it was written is refused, unless `altered` takes it.

    Raises NotFoundError, MediaError, UsageError or DamagedError.
    """
    from customttt import media

    try:
        return VideoRecipe.from_dict(media.read_recipe(video, altered))
    except DamagedError as error:
        raise DamagedError(f"{error} 'customttt show' prints it, and --force renders it all the same.") from error


def _check_outputs(paths: list[Path], recipe: Path | None) -> None:
    """Raise UsageError or StoreError for a path that cannot be written, or that the recipe is read from."""
    from customttt import media

    for path in paths:
        media.check_output(path)
        if recipe is not None and path.absolute().resolve() == recipe.absolute().resolve():
            raise UsageError(f"'{path}' is the video that --recipe names; name another with --output.")


def _plan(recipe: VideoRecipe, forecast: Forecast, paths: list[Path], as_json: bool) -> None:
    """What would be done, on stdout."""
    if as_json:
        plan = {"paths": list(map(str, paths)), "recipe": recipe.to_dict(), **showing.forecast_fields(forecast)}
        output.result(json.dumps(plan, indent=2, ensure_ascii=False))
        return
    for line in (*showing.recipe_lines(recipe, {}), *showing.forecast_lines(forecast)):
        output.result(line)


def _render(
    library: Library,
    recipe: VideoRecipe,
    paths: Mapping[int, Path],
    forecast: Forecast,
    as_json: bool,
    title: str | None,
) -> None:
    for line in showing.forecast_lines(forecast):
        output.say(line)
    shop = render.opened(recipe.base, library)
    for seed, path, made in render.videos(shop, recipe, paths, rung=forecast.position, title=title):
        output.result(json.dumps({"path": str(path), "seed": seed, "recipe": made}) if as_json else str(path))
        output.stored()
    output.say(f"How it was made: customttt show {path}")
    output.say(f"Once more, with another seed: customttt compose --recipe {path} --seed {seed + 1}")
