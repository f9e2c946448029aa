"""From two concepts to files: settle the recipe, say what it will take, and write the video of each seed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from customttt.errors import AlreadyExistsError, UsageError
from customttt.library import Library
from customttt.pairs import Pair
from customttt.recipe import VideoRecipe
from customttt.wish import Wish
from customttt_cli import output, showing

if TYPE_CHECKING:
    from customttt.measure.rivals import Material
    from customttt.media import Frames
    from customttt.planner import Forecast
    from customttt.workshop import Workshop


def output_paths(out: Path | None, title: str, seeds: Sequence[int]) -> dict[int, Path]:
    """Where the video of each seed goes; without `--output`, to names in this folder that nothing has yet."""
    if out is not None:
        return _each(out, seeds)
    stems = chain([title], (f"{title}-{number}" for number in count(2)))
    candidates = (_each(Path(f"{stem}.mp4"), seeds) for stem in stems)
    return next(paths for paths in candidates if not any(map(os.path.lexists, paths.values())))


def _each(path: Path, seeds: Sequence[int]) -> dict[int, Path]:
    if len(seeds) == 1:
        return {seeds[0]: path}
    if not path.name:
        raise UsageError(f"--output is '{path}'; several videos need a name, to which their seeds are added.")
    return {seed: path.with_name(f"{path.stem}-seed{seed}{path.suffix}") for seed in seeds}


def settle(pair: Pair, wish: Wish, made: VideoRecipe | None = None) -> VideoRecipe:
    """Choose the base, tell why, and write the recipe, or change the one of a video that was `made` before.

    Raises BaseUnavailableError where base and concepts differ, UsageError for more subjects than the base draws, or for
    too few frames.
    """
    with output.loading_torch():
        from customttt import backbones, threads

        if wish.base:
            base, why = backbones.choose_base(wish.base)
        else:
            base, why = pair.appearance.base, f"'{pair.appearance.name}' was learned on it"
        fingerprint, defaults = backbones.identify(base), backbones.defaults(base)
    output.say(showing.base_line(base, why))
    if made:
        pair.check_base(base, fingerprint)
        made = replace(made, base=base, base_fingerprint=fingerprint)
    else:
        made = replace(pair.recipe(wish.prompt, base, fingerprint, defaults), threads=threads.number())
    recipe = wish.again(made)
    backbones.check_subjects(base, len(recipe.subjects))
    recipe.check_frames()
    return recipe


def forecast(library: Library, pair: Pair, recipe: VideoRecipe, videos: int, dry_run: bool) -> Forecast:
    """What it will take. Raises what would stop it, before anything is loaded."""
    from customttt import backbones, workshop

    if not dry_run:
        backbones.check_at_hand(recipe.base)
    if recipe.rival and not dry_run:
        workshop.check_taught(library, recipe.rival)
    with output.waiting("Working out memory and time"):
        return workshop.forecast(library, pair, recipe, videos)


def opened(base: str, library: Library) -> Workshop:
    """The base, loaded, which tells on the terminal what it does. Raises BaseUnavailableError or OutOfMemoryError."""
    from customttt.workshop import Workshop

    with output.loading(base):
        return Workshop.open(base, library, say=output.say, kept=output.kept)


def videos(
    shop: Workshop,
    recipe: VideoRecipe,
    paths: Mapping[int, Path],
    material: Material | None = None,
    rung: int = 0,
    title: str | None = None,
) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    """Make one video after the other: (seed, path, the recipe as written into it).

    A rival learns from the material what the library does not hold. With the `title` from which the paths were made,
    a path that something has taken meanwhile gives way to the next. Raises what `Workshop.prepare` and `write` do.
    """
    prompt = recipe.target_prompt
    output.say(f'Prompt: "{prompt}"')
    if long := shop.unread([("The prompt", prompt)]):
        output.warn(long)
    with output.progress() as report:
        taught = replace(shop, report=report).prepare(recipe, material, rung)
    if recipe.rival or recipe.ttt.steps:  # what was learned is kept
        output.goes_on()
    for seed, path in paths.items():
        with output.progress() as report:
            frames = replace(shop, report=report).compose(recipe.with_seed(seed), taught)
        yield seed, *_saved(path, frames, recipe.with_seed(seed), title, list(paths))


def _saved(
    path: Path, frames: Frames, recipe: VideoRecipe, title: str | None, seeds: Sequence[int]
) -> tuple[Path, dict[str, Any]]:
    """Where a video is, and the recipe as written into it; see `videos`."""
    from customttt import workshop

    while True:
        try:
            return path, workshop.save(path, frames, recipe, anew=title is not None)
        except AlreadyExistsError:
            if title is None:
                raise
            path = output_paths(None, title, seeds)[recipe.seed]
