"""The concepts of one video: found by name or by a recipe, of one base, and unchanged. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from customttt.concept import Concept, Kind
from customttt.config import Defaults
from customttt.errors import BaseUnavailableError, NotFoundError
from customttt.library import WEIGHTS, Library
from customttt.recipe import Ingredient, Subject, VideoRecipe, by_slot


@dataclass(frozen=True)
class Pair:
    """An appearance and a motion of one base, and those of further subjects, with their verified weights."""

    appearance: Concept
    motion: Concept
    others: tuple[tuple[Concept, Concept | None], ...] = ()
    """Who has no motion is a bystander."""
    then: tuple[Concept, ...] = ()
    """Motions after the first."""
    weights: Mapping[str, Path] = field(default_factory=dict)
    """By the names of their adapters, as `concepts`."""

    @property
    def title(self) -> str:
        return "-".join(dict.fromkeys(one.name for one in self.concepts.values()))

    @property
    def concepts(self) -> dict[str, Concept]:
        """All of them, by the names of their adapters."""
        turns = [(self.appearance, one) for one in (self.motion, *self.then)]
        return by_slot([*turns, *self.others])

    def recipe(self, prompt: str, base: str, fingerprint: str, defaults: Defaults, seed: int = 0) -> VideoRecipe:
        """The recipe of a video of them by a base's own settings, in the shape that the first motion was learned in.

        Subjects are side by side.

        Raises UsageError for a prompt that cannot be read or that names in braces what is not there,
        BaseUnavailableError for a base that they do not belong to.
        """
        self.check_base(base, fingerprint)
        ingredients = Ingredient.of(self.appearance), Ingredient.of(self.motion)
        sample = defaults.sample.but(aspect=self.motion.aspect)
        others = tuple(
            Subject(Ingredient.of(looks), Ingredient.of(moves) if moves else None) for looks, moves in self.others
        )
        then = tuple(map(Ingredient.of, self.then))
        made = VideoRecipe(
            *ingredients, prompt, base, fingerprint, defaults.ttt, sample, seed, others=others, then=then
        )
        made.check_words()  # of one subject, recipes have had others, which stand in the sentence as they are
        return made.side_by_side()

    def check_base(self, base: str, fingerprint: str) -> None:
        """Raise BaseUnavailableError unless they were learned on the base as it is now."""
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


def named(
    library: Library,
    appearance: str,
    motion: str,
    others: Sequence[tuple[str, str | None]] = (),
    then: Sequence[str] = (),
) -> Pair:
    """Raises NotFoundError, UsageError for another kind, DamagedError or BaseUnavailableError."""
    further = [
        (library.get(one, "appearance"), library.get(moves, "motion") if moves else None) for one, moves in others
    ]
    looks, first = library.get(appearance, "appearance"), library.get(motion, "motion")
    return _pair(library, looks, first, further, [library.get(one, "motion") for one in then])


def of_recipe(library: Library, recipe: VideoRecipe, video: str = "The video") -> Pair:
    """The concepts that a video was made of, by the sha256 of their weights: renamed ones are found, too.

    Raises NotFoundError, which calls the video so, DamagedError or BaseUnavailableError.
    """

    def named(kind: Kind, ingredient: Ingredient) -> Concept:
        return _with_weights(library, kind, ingredient, recipe.base_fingerprint, video)

    (appearance, motion), *others = [
        (named("appearance", one.appearance), named("motion", one.motion) if one.motion else None)
        for one in recipe.subjects
    ]
    assert motion
    return _pair(library, appearance, motion, others, [named("motion", one) for one in recipe.then])


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


def _pair(
    library: Library,
    appearance: Concept,
    motion: Concept,
    others: Sequence[tuple[Concept, Concept | None]],
    then: Sequence[Concept],
) -> Pair:
    pair = Pair(appearance, motion, tuple(others), tuple(then))
    for one in pair.concepts.values():
        if appearance.base_fingerprint != one.base_fingerprint:
            apart = "another" if appearance.base != one.base else "another version of that"
            raise BaseUnavailableError(
                f"Concept '{one.name}' was learned on '{one.base}', '{appearance.name}' on {apart} base, "
                f"'{appearance.base}'; learn one of them again with the other's --base."
            )
    return replace(pair, weights={slot: library.weights(one.name) for slot, one in pair.concepts.items()})
