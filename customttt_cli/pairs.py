"""Two concepts for one video: found by name or by a recipe, of one base, and unchanged. No torch at the top."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from customttt.concept import Concept, Kind
from customttt.errors import BaseUnavailableError, DamagedError, NotFoundError
from customttt.library import WEIGHTS, Library
from customttt.recipe import Ingredient, VideoRecipe
from customttt_cli import output
from customttt_cli.wish import Wish


@dataclass(frozen=True)
class Pair:
    """An appearance and a motion with their verified weights."""

    appearance: Concept
    motion: Concept
    weights: tuple[Path, Path]
    recipe: VideoRecipe | None = None
    """Where they come from one."""
    file: Path | None = None
    """The video that it stands in."""

    @property
    def title(self) -> str:
        return f"{self.appearance.name}-{self.motion.name}"


def named(library: Library, appearance: str, motion: str) -> Pair:
    """Raises NotFoundError, UsageError for another kind, DamagedError or BaseUnavailableError."""
    return _pair(library, library.get(appearance, "appearance"), library.get(motion, "motion"))


def in_recipe(library: Library, file: Path, altered: bool = False) -> Pair:
    """The concepts that a video was made of, by the sha256 of their weights: renamed ones are found, too.

    A recipe that is not as it was written is refused, unless `altered` takes it.

    Raises NotFoundError, MediaError, UsageError, DamagedError or BaseUnavailableError.
    """
    from customttt import media

    try:
        recipe = VideoRecipe.from_dict(media.read_recipe(file, altered))
    except DamagedError as error:
        raise DamagedError(f"{error} 'customttt show' prints it, and --force renders it all the same.") from error
    found = (
        _with_weights(library, "appearance", recipe.appearance, file),
        _with_weights(library, "motion", recipe.motion, file),
    )
    return replace(_pair(library, *found), recipe=recipe, file=file)


def _with_weights(library: Library, kind: Kind, ingredient: Ingredient, file: Path) -> Concept:
    for concept in library.concepts(kind):
        if concept.files.get(WEIGHTS) == ingredient.sha256:
            return concept
    try:
        library.get(ingredient.name)
    except NotFoundError:
        reason = "is not in the library"
    else:
        reason = "is another one now: it was learned again since"
    raise NotFoundError(
        f"'{file}' was made with the {kind} '{ingredient.name}', which {reason}; "
        "bring back the one with weights " + ingredient.sha256[:12] + "."
    )


def _pair(library: Library, appearance: Concept, motion: Concept) -> Pair:
    if appearance.base_fingerprint != motion.base_fingerprint:
        apart = "another" if appearance.base != motion.base else "another version of that"
        raise BaseUnavailableError(
            f"Concept '{motion.name}' was learned on '{motion.base}', '{appearance.name}' on {apart} base, "
            f"'{appearance.base}'; learn one of them again with the other's --base."
        )
    return Pair(appearance, motion, (library.weights(appearance.name), library.weights(motion.name)))


def settle(pair: Pair, wish: Wish) -> VideoRecipe:
    """Choose the base, tell why, and write the recipe. Raises BaseUnavailableError where base and concepts differ."""
    output.quiet()
    with output.waiting("Loading torch"):
        from customttt import backbones

        if wish.base:
            base, why = backbones.choose_base(wish.base)
        else:
            base, why = pair.appearance.base, f"'{pair.appearance.name}' was learned on it"
        fingerprint, defaults = backbones.identify(base), backbones.defaults(base)
    output.say(f"Base: {base} ({why})")
    _check_base(pair.appearance, base, fingerprint)
    if pair.recipe:
        return replace(wish.again(pair.recipe), base=base)
    return wish.new(pair.appearance, pair.motion, base, fingerprint, defaults)


def _check_base(concept: Concept, base: str, fingerprint: str) -> None:
    if concept.base_fingerprint == fingerprint:
        return
    if concept.base == base:
        raise BaseUnavailableError(
            f"Concept '{concept.name}' was learned on '{base}' as it was before it changed; learn it again."
        )
    raise BaseUnavailableError(
        f"Concept '{concept.name}' was learned on '{concept.base}', not on '{base}'; "
        f"leave --base out, or learn it again with --base {base}."
    )
