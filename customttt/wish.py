"""What `compose` and `grid` were asked for beyond the names: settings, each None where nothing was given. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import BaseModel, ConfigDict

from customttt.config import SampleConfig, TTTConfig, check_seed, parse_aspect
from customttt.errors import UsageError
from customttt.recipe import PLACES, Ingredient, VideoRecipe, check_prompt, listed

MAX_VIDEOS = 1000


class Settings(BaseModel):
    """How videos are composed: options of `compose` and `grid`, and what a grid's file says; see `Wish`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    frames: int | None = None
    aspect: str | None = None
    steps: int | None = None
    guidance: float | None = None
    ttt_steps: int | None = None
    appearance_scale: float | None = None
    motion_scale: float | None = None
    as_published: bool = False
    apart: bool = False
    places: Mapping[str, str] = {}
    """Of subjects, by name, in place of all that stand in the recipe; see `recipe.PLACES`."""

    def check(self) -> None:
        """Raise UsageError for values that no base could use."""
        anything = Ingredient("x", "x", "")
        self.model_copy(update={"places": {}, "apart": False}).again(
            VideoRecipe(anything, anything, "", "", "", TTTConfig(), SampleConfig())
        )

    def again(self, recipe: VideoRecipe) -> VideoRecipe:
        """A recipe with what was given in place of what stands in it."""
        recipe = recipe.as_published() if self.as_published else recipe
        recipe = recipe.placed(self.places) if self.places or self.apart else recipe
        return replace(
            recipe,
            appearance=_scaled(recipe.appearance, self.appearance_scale),
            motion=_scaled(recipe.motion, self.motion_scale),
            then=tuple(_scaled(one, self.motion_scale) for one in recipe.then),
            others=tuple(
                replace(
                    one,
                    appearance=_scaled(one.appearance, self.appearance_scale),
                    motion=one.motion and _scaled(one.motion, self.motion_scale),
                )
                for one in recipe.others
            ),
            ttt=recipe.ttt.but(steps=self.ttt_steps),
            sample=recipe.sample.but(
                num_frames=self.frames,
                aspect=parse_aspect(self.aspect),
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
            ),
            apart=recipe.apart or self.apart,
        )


@dataclass(frozen=True)
class Wish:
    """Some videos of one prompt; what is None is the base's own, or the recipe's."""

    prompt: str
    seed: int | None = None
    num: int = 1
    base: str | None = None
    settings: Settings = field(default_factory=Settings)

    def check(self) -> None:
        """Raise UsageError for values that no base could use."""
        if not 1 <= self.num <= MAX_VIDEOS:
            raise UsageError(f"--num is {self.num}; it must be 1 to {MAX_VIDEOS}.")
        for seed in (self.seed or 0, (self.seed or 0) + self.num - 1):
            check_seed(seed, "--seed")
        check_prompt(self.prompt)
        self.settings.check()

    def seeds(self, recipe: VideoRecipe | None) -> range:
        """One seed a video."""
        first = self.seed if self.seed is not None else recipe.seed if recipe else 0
        return range(first, first + self.num)

    def again(self, recipe: VideoRecipe) -> VideoRecipe:
        """A recipe with what was given in place of what stands in it."""
        return replace(self.settings.again(recipe), seed=recipe.seed if self.seed is None else self.seed)


def others(texts: Sequence[str]) -> list[tuple[str, str | None]]:
    """Further subjects, as "dog:jumping" or "cat": (appearance, motion or None) of each. Raises UsageError."""
    found = []
    for text in texts:
        appearance, colon, motion = text.partition(":")
        if not appearance or (colon and not motion) or ":" in motion:
            raise UsageError(
                f"A further subject cannot be '{text[:80]}'; give an appearance and a motion, dog:jumping, or dog "
                "alone."
            )
        found.append((appearance, motion or None))
    return found


def places(texts: Sequence[str]) -> dict[str, str]:
    """Places by the names of subjects, of "koala:left". Raises UsageError."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, place = text.partition(":")
        if place not in PLACES:
            raise UsageError(
                f"A place cannot be '{text[:80]}'; give a subject and one of {listed([*PLACES])}, such as koala:left."
            )
        if name in found:
            raise UsageError(f"'{name}' has two places; give it one.")
        found[name] = place
    return found


def _scaled(ingredient: Ingredient, scale: float | None) -> Ingredient:
    return ingredient if scale is None else replace(ingredient, scale=scale)
