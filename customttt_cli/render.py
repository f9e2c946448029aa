"""From a recipe to files: load, adapt or find the adapted LoRAs in the library, render each seed, write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from customttt.errors import UsageError
from customttt.library import Library
from customttt.recipe import VideoRecipe
from customttt_cli import output, relearn, showing
from customttt_cli.pairs import Pair

if TYPE_CHECKING:
    from accelerate import Accelerator

    from customttt.backbones import Backbone
    from customttt.compose import LoraPair
    from customttt.measure.rivals import Material, Taught
    from customttt.planner import Forecast


def output_paths(out: Path | None, title: str, seeds: Sequence[int]) -> dict[int, Path]:
    """Where the video of each seed goes; without `--output`, to names in this folder that nothing has yet."""
    if out is not None:
        return _each(out, seeds)
    stems = chain([title], (f"{title}-{number}" for number in count(2)))
    candidates = (_each(Path(f"{stem}.mp4"), seeds) for stem in stems)
    return next(paths for paths in candidates if not any(path.exists() for path in paths.values()))


def _each(path: Path, seeds: Sequence[int]) -> dict[int, Path]:
    if len(seeds) == 1:
        return {seeds[0]: path}
    if not path.name:
        raise UsageError(f"--output is '{path}'; several videos need a name, to which their seeds are added.")
    return {seed: path.with_name(f"{path.stem}-seed{seed}{path.suffix}") for seed in seeds}


def forecast(library: Library, pair: Pair, recipe: VideoRecipe, videos: int, dry_run: bool) -> Forecast:
    """What it will take. Raises what would stop it, before anything is loaded."""
    from customttt import backbones, planner

    if not dry_run:
        backbones.check_at_hand(recipe.base)
    appearance, motion = (planner.Adapter(one.layers, one.rank) for one in (pair.appearance, pair.motion))
    steps = 0 if recipe.rival or library.adapted(recipe.adaptation_key()) else recipe.ttt.steps
    with output.waiting("Working out memory and time"):
        return planner.composing(recipe.base, appearance, motion, recipe.ttt.but(steps=steps), recipe.sample, videos)


def videos(
    library: Library,
    pair: Pair,
    recipe: VideoRecipe,
    paths: Mapping[int, Path],
    material: Material | None = None,
    rung: int = 0,
) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    """Make one video after the other: (seed, path, the recipe as written into it).

    A rival learns from the material what the library does not hold. Raises UsageError where it needs that and lacks it.
    """
    from customttt import compose, machine, media, opening

    if recipe.rival and not material:
        relearn.check_kept(library, recipe.rival)
    with output.loading(recipe.base):
        backbone, accelerator = opening.open_accelerated(recipe.base)
    _check(backbone, recipe)
    taught = _taught(backbone, accelerator, library, pair, recipe, material, rung)
    for seed, path in paths.items():
        one = recipe.with_seed(seed)
        with output.progress() as report, taught.spoken(backbone, recipe.appearance.phrase):
            frames = compose.render(backbone, taught.pair, one, accelerator, report)
        made = {**one.to_dict(), "versions": machine.versions()}
        media.write_video(path, frames, recipe.sample.fps, made)
        yield seed, path, made


def _check(backbone: Backbone, recipe: VideoRecipe) -> None:
    """Raise UsageError for too many frames; say what will be made, and that a long prompt is not read to its end."""
    backbone.latent_shape(recipe.sample.num_frames, recipe.sample.size)
    prompt = recipe.target_prompt
    output.say(f'Prompt: "{prompt}"')
    if long := showing.unread(backbone, recipe.base, [("The prompt", prompt)]):
        output.warn(long)


def _taught(
    backbone: Backbone,
    accelerator: Accelerator,
    library: Library,
    pair: Pair,
    recipe: VideoRecipe,
    material: Material | None,
    rung: int,
) -> Taught:
    from customttt.measure.rivals import Taught

    if recipe.rival:
        return relearn.taught(library, recipe.rival, backbone, accelerator, material)
    return Taught(_adapted(backbone, accelerator, library, pair, recipe, rung))


def _adapted(
    backbone: Backbone, accelerator: Accelerator, library: Library, pair: Pair, recipe: VideoRecipe, rung: int
) -> LoraPair:
    """The two LoRAs after test-time training, which is not done twice for the same recipe."""
    from customttt import compose, lora

    loaded = lora.load(pair.weights[0]), lora.load(pair.weights[1])
    if recipe.ttt.steps == 0:
        return loaded
    key = recipe.adaptation_key()
    if cached := library.adapted(key):
        output.say("Test-time training: done for this pair before; its result is used again.")
        return lora.split(lora.load(cached))
    with output.progress() as report:
        adapted = compose.adapt(backbone, loaded, recipe, accelerator, report, rung)
    relearn.keep(library, key, lora.join(adapted))
    return adapted
