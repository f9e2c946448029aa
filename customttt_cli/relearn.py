"""What the rivals of `compare` learn from, checked and read before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from customttt.concept import Concept
from customttt.errors import UsageError
from customttt.pairs import Pair
from customttt.recipe import VideoRecipe
from customttt_cli.sources import tell_passed_over

if TYPE_CHECKING:
    from customttt.measure.rivals import Material
    from customttt.media import Clip, Picture, Size


def read(pair: Pair, recipe: VideoRecipe, images: Sequence[Path], clip: Path) -> Material:
    """The pictures and the clip that the two concepts were learned from.

    Raises UsageError for others, and NotFoundError or MediaError for what cannot be read.
    """
    from customttt import backbones
    from customttt.measure.rivals import Material

    own = backbones.defaults(recipe.base)
    pictures = _pictures(pair.appearance, images, own.sample.sides)
    return Material(pair.appearance, pair.motion, pictures, _clip(pair.motion, clip, recipe), own)


def _pictures(concept: Concept, paths: Sequence[Path], size: Size) -> list[Picture]:
    from customttt import learn, media

    for fit in (False, True):
        pictures = media.read_pictures(list(paths), size, fit)
        if learn.digest_of(pictures) == concept.inputs:
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

    clip = media.read_clip(path, recipe.sample.num_frames, recipe.sample.fps, recipe.sample.sides)
    if learn.digest_of(clip) == concept.inputs:
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
