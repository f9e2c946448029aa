"""The same two concepts, prompt and noise put together in several ways: what each buys. Every way is a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from customttt.recipe import VideoRecipe
from customttt.text import read_json
from customttt.wish import Settings

RUN = "compare.json"
"""What a comparison leaves beside its videos: which they are by method, and what was measured of them."""
SWITCH_AT = 0.4
"""Share of the denoising steps that belongs to the motion LoRA: the path is settled early, the subject late (ours)."""


@dataclass(frozen=True)
class Method:
    """One way to put two concepts together."""

    title: str
    recipe: Callable[[VideoRecipe], VideoRecipe]
    """The recipe of CustomTTT to that of this method."""
    learns: bool = False
    """Whether it learns anew from the pictures and the clip: a function of `rivals`."""
    note: str = ""
    """What must be known beside its row of the table."""


def _untrained(recipe: VideoRecipe) -> VideoRecipe:
    return replace(recipe, ttt=recipe.ttt.but(steps=0))


def _plain(recipe: VideoRecipe, **parts: float) -> VideoRecipe:
    """Without test-time training, sampled as published but for the LoRAs' `parts` of the denoising."""
    return replace(_untrained(recipe), sample=recipe.sample.as_published().but(**parts))


def _without(*kinds: str) -> Callable[[VideoRecipe], VideoRecipe]:
    """Without test-time training and without these LoRAs, of any subject, sampled as the base does it."""
    looks, moves = (0.0 if kind in kinds else None for kind in ("appearance", "motion"))
    return Settings(ttt_steps=0, appearance_scale=looks, motion_scale=moves).again


METHODS: Mapping[str, Method] = {
    "base": Method("the base alone", _without("appearance", "motion")),
    "appearance": Method("appearance LoRA alone", _without("motion")),
    "motion": Method("motion LoRA alone", _without("appearance")),
    "direct": Method("both LoRAs,\nno test-time training", _plain),
    "switch": Method(
        "motion early,\nappearance late",
        lambda recipe: _plain(recipe, appearance_from=SWITCH_AT, motion_until=SWITCH_AT),
    ),
    "full": Method("LoRAs on all layers,\nno test-time training", _plain, learns=True),
    "motiondirector": Method("MotionDirector", _plain, learns=True),
    "diffdirector": Method("DiffDirector", _plain, learns=True),
    "dreamvideo": Method(
        "DreamVideo,\nsimplified",
        _plain,
        learns=True,
        note="simplified: LoRAs for its adapters, and no appearance guidance, as no base here has an image encoder",
    ),
    "untrained": Method("the base's own way,\nno test-time training", _untrained),
    "published": Method("CustomTTT\nas published", VideoRecipe.as_published),
    "customttt": Method("CustomTTT:\nthe base's own\ntest-time training", lambda recipe: recipe),
}
"""By the name that is typed. `switch` needs no training at all: a competitor. Those that learn anew are `rivals`."""


def cells(run: Path) -> dict[Path, str]:
    """The videos of a comparison and their methods; nothing where the folder is not one's.

    Of what an older version left, whose file lists none, every video that is named as one.
    """
    if not (run / RUN).is_file():
        return {}
    named = {path: path.stem.rpartition("-seed")[0] for path in sorted(run.glob("*-seed*.mp4"))}
    ours = {path: name for path, name in named.items() if name in METHODS}
    listed = read_json(run / RUN, dict).get("videos")
    if not isinstance(listed, dict):
        return ours
    return {path: name for path, name in ours.items() if path.name in _names(listed.get(name))}


def _names(listed: Any) -> list[Any]:
    return listed if isinstance(listed, list) else []
