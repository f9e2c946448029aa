"""Two concepts for one video: found by name or by a recipe, of one base, and unchanged. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from customttt.concept import Concept, Kind
from customttt.config import Defaults
from customttt.errors import BaseUnavailableError, NotFoundError
from customttt.library import WEIGHTS, Library
from customttt.recipe import Ingredient, VideoRecipe


@dataclass(frozen=True)
class Pair:
    """An appearance and a motion of one base, with their verified weights."""

    appearance: Concept
    motion: Concept
    weights: tuple[Path, Path]

    @property
    def title(self) -> str:
        return f"{self.appearance.name}-{self.motion.name}"

    def recipe(self, prompt: str, base: str, fingerprint: str, defaults: Defaults, seed: int = 0) -> VideoRecipe:
        """The recipe of a video of the two by a base's own settings, in the shape that the motion was learned in.

        Raises UsageError for a prompt that cannot be read, BaseUnavailableError for a base that they do not belong to.
        """
        self.check_base(base, fingerprint)
        ingredients = Ingredient.of(self.appearance), Ingredient.of(self.motion)
        sample = defaults.sample.but(aspect=self.motion.aspect)
        return VideoRecipe(*ingredients, prompt, base, fingerprint, defaults.ttt, sample, seed)

    def check_base(self, base: str, fingerprint: str) -> None:
        """Raise BaseUnavailableError unless the two were learned on the base as it is now."""
        check_base(self.appearance, base, fingerprint)


def check_base(concept: Concept, base: str, fingerprint: str) -> None:
    """Raise BaseUnavailableError unless a concept was learned on the base as it is now."""
    if concept.base_fingerprint == fingerprint:
        return
    if concept.base == base:
        raise BaseUnavailableError(
            f"Concept '{concept.name}' was learned on '{concept.base}' as it was before it changed; learn it again."
        )
    raise BaseUnavailableError(
        f"Concept '{concept.name}' was learned on '{concept.base}', not on '{base}'; "
        f"leave --base out, or learn it again with --base {base}."
    )


def named(library: Library, appearance: str, motion: str) -> Pair:
    """Raises NotFoundError, UsageError for another kind, DamagedError or BaseUnavailableError."""
    return _pair(library, library.get(appearance, "appearance"), library.get(motion, "motion"))


def of_recipe(library: Library, recipe: VideoRecipe, video: str = "The video") -> Pair:
    """The concepts that a video was made of, by the sha256 of their weights: renamed ones are found, too.

    Raises NotFoundError, which calls the video so, DamagedError or BaseUnavailableError.
    """
    appearance = _with_weights(library, "appearance", recipe.appearance, recipe.base_fingerprint, video)
    return _pair(library, appearance, _with_weights(library, "motion", recipe.motion, recipe.base_fingerprint, video))


def _with_weights(library: Library, kind: Kind, ingredient: Ingredient, fingerprint: str, video: str) -> Concept:
    """The concept of these weights; of several copies rather one of the recipe's base, and of its name."""
    copies = [concept for concept in library.concepts(kind) if concept.files.get(WEIGHTS) == ingredient.sha256]
    if copies:
        return min(copies, key=lambda one: (one.base_fingerprint != fingerprint, one.name != ingredient.name))
    try:
        library.get(ingredient.name)
    except NotFoundError:
        reason = "is not in the library"
    else:
        reason = "is another one now: it was learned again since"
    raise NotFoundError(
        f"{video} was made with the {kind} '{ingredient.name}', which {reason}; "
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
