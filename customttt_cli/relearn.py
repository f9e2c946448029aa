"""What the rivals of `compare` learn from, checked and read before a model is loaded, and what they learned, kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from customttt.concept import Concept
from customttt.errors import LockedError, StoreError, UsageError
from customttt.library import Library
from customttt.recipe import Rival, VideoRecipe
from customttt_cli import lesson, output
from customttt_cli.pairs import Pair
from customttt_cli.sources import tell_passed_over

if TYPE_CHECKING:
    from accelerate import Accelerator

    from customttt.backbones import Backbone
    from customttt.checkpoint import Keeper
    from customttt.lora import Weights
    from customttt.measure.rivals import Material, Taught
    from customttt.media import Clip, Picture


def read(pair: Pair, recipe: VideoRecipe, images: Sequence[Path], clip: Path) -> Material:
    """The pictures and the clip that the two concepts were learned from.

    Raises UsageError for others, and NotFoundError or MediaError for what cannot be read.
    """
    from customttt import backbones
    from customttt.measure.rivals import Material

    pictures = _pictures(pair.appearance, images, recipe.sample.size)
    return Material(
        pair.appearance, pair.motion, pictures, _clip(pair.motion, clip, recipe), backbones.defaults(recipe.base)
    )


def _pictures(concept: Concept, paths: Sequence[Path], size: int) -> list[Picture]:
    from customttt import learn, media

    for fit in (False, True):
        pictures = media.read_pictures(list(paths), size, fit)
        if learn.picture_digest(pictures) == concept.inputs:
            tell_passed_over(paths)
            return pictures
    given = ", ".join(f"'{path}'" for path in paths)
    if {picture.sha256 for picture in pictures} == _sha256s(concept):
        raise UsageError(
            f"The pictures in {given} are those that '{concept.name}' was learned from, but their captions or their "
            f"order were others; put these back, or learn '{concept.name}' again."
        )
    raise UsageError(
        f"The pictures in {given} are not those that '{concept.name}' was learned from ({_names(concept)}); "
        "give these to --images."
    )


def _clip(concept: Concept, path: Path, recipe: VideoRecipe) -> Clip:
    from customttt import learn, media

    clip = media.read_clip(path, recipe.sample.num_frames, recipe.sample.fps, recipe.sample.size)
    if learn.clip_digest(clip) == concept.inputs:
        return clip
    if {clip.sha256} == _sha256s(concept):
        raise UsageError(
            f"'{concept.name}' was learned from a part of '{path}' (--start, --end or --frames); to compare, "
            "save that part as a clip of its own and learn from it."
        )
    raise UsageError(
        f"'{path}' is not the clip that '{concept.name}' was learned from ({_names(concept)}); give that to --clip."
    )


def _sha256s(concept: Concept) -> set[str]:
    return {source.sha256 for source in concept.sources}


def _names(concept: Concept) -> str:
    return ", ".join(source.name for source in concept.sources)


def check_kept(library: Library, rival: Rival) -> None:
    """Raise UsageError unless the library holds what a rival learned."""
    if library.adapted(rival.key) is None:
        raise _lacking(rival)


def _lacking(rival: Rival) -> UsageError:
    return UsageError(
        f"The video was made by '{rival.name}', and what that learned is not in this library; "
        f"'customttt compare --methods {rival.name}' with --images and --clip learns it."
    )


def taught(
    library: Library, rival: Rival, backbone: Backbone, accelerator: Accelerator, material: Material | None
) -> Taught:
    """What a rival learned, which is not learned twice; a killed run of it goes on."""
    from customttt import lora
    from customttt.measure import rivals

    if kept := library.adapted(rival.key):
        output.say(f"'{rival.name}' learned from these before; its result is used again.")
        return rivals.Taught.from_weights(lora.load(kept))
    if material is None:
        raise _lacking(rival)
    keys: list[str] = []

    def stage(name: str) -> Keeper:
        keys.append(hashlib.sha256(f"{rival.key} {name}".encode()).hexdigest())
        return lesson.keeping(library, keys[-1], library.unfinished(keys[-1]), {})

    with output.progress() as report:
        learned = rivals.teach(rival.name, backbone, material, accelerator, report, stage)
    keep(library, rival.key, learned.to_weights())
    for key in keys if library.adapted(rival.key) else ():
        library.remove_unfinished(key)
    return learned


def keep(library: Library, key: str, weights: Weights) -> None:
    """Keep what took long; a library that cannot be written costs the next seed's time, not this video."""
    from customttt import lora

    try:
        library.add_adapted(key, lambda path: lora.save(weights, path))
    except (StoreError, LockedError) as error:
        output.warn(f"The adapted LoRAs are not kept for the next time: {error}")
