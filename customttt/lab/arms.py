"""The arms of the study: every way in which two concepts are put together there, and which are compared in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from customttt.concept import Kind
from customttt.measure.compare import METHODS
from customttt.recipe import VideoRecipe

BLOCKS = "influence"
"""Stands among the tables for the prompt influence of each block."""
Learning = Mapping[Kind, Mapping[str, Any]]
"""Changes to settings of learning."""


@dataclass(frozen=True)
class Arm:
    """One way to put two concepts together."""

    title: str
    change: Callable[[VideoRecipe], VideoRecipe] = lambda recipe: recipe
    """From the base's own recipe to that of this arm."""
    learning: Learning = field(default_factory=dict)
    """What is changed in the base's own settings of learning."""
    rival: str = ""
    """Which of `rivals` learns anew for it; empty where none does."""


THROUGHOUT: Learning = {"motion": {"noise": (0.0, 1.0)}}
"""How a motion is learned that never rests: at all noise, as published."""


def _layers(appearance: tuple[int, ...], motion: tuple[int, ...]) -> Arm:
    title = f"appearance {','.join(map(str, appearance))}, motion {','.join(map(str, motion))}"
    learning: Learning = {"appearance": {"layers": appearance}, "motion": {**THROUGHOUT["motion"], "layers": motion}}
    return Arm(title, METHODS["direct"].recipe, learning)


METHOD_ARMS = {
    name: Arm(
        method.title.replace("\n", " "), method.recipe, THROUGHOUT if name in ("direct", "switch", "published") else {},
        rival=name if method.learns else "",
    )
    for name, method in METHODS.items()
}  # fmt: skip


def _trained(arm: Arm, title: str, times: Mapping[str, float] | None = None, **changes: Any) -> Arm:
    """The same with another title and some of its test-time training changed, or made so many `times` as large."""

    def change(recipe: VideoRecipe) -> VideoRecipe:
        changed = arm.change(recipe)
        larger = {name: getattr(changed.ttt, name) * by for name, by in (times or {}).items()}
        return replace(changed, ttt=changed.ttt.but(**larger, **changes))

    return replace(arm, title=title, change=change)


DIRECT, OWN, PUBLISHED = METHOD_ARMS["direct"], METHOD_ARMS["untrained"], METHOD_ARMS["published"]
OURS, UNTRAINED = Arm("ours"), replace(OWN, title="ours without test-time training")
SPLIT = {"renoise_appearance": (0.0, 0.5), "renoise_motion": (0.5, 1.0)}
ASKED: dict[str, dict[str, Any]] = {
    "a third of the learning rate": {"times": {"learning_rate": 1 / 3}},
    "three times the learning rate": {"times": {"learning_rate": 3}},
    "teachers without guidance": {"reference_guidance": 1.0},
}
"""What the paper leaves open, one at a time (design: the open choices), of both recipes."""
CHOICES = ASKED | {
    "ten times the learning rate": {"times": {"learning_rate": 10}},
    "references from a pool of 4": {"references": 4},
    "noised again in the upper half": {"renoise_appearance": (0.5, 1.0), "renoise_motion": (0.5, 1.0)},
    "noised again in the lower half": {"renoise_appearance": (0.0, 0.5), "renoise_motion": (0.0, 0.5)},
    "debiased temporal term": {"debias": 1.0},
    "ours: the path from high noise, the looks from low": SPLIT,
    "ours: the subject itself in the motion teacher's prompt": {"subject_moves": True},
    "ours: of the motion reference only how frames differ": {"plain": 0.0, "debias": 1.0},
}
"""What is asked of the paper's recipe."""
OURS_CHOICES = ASKED | {
    "three times the steps": {"times": {"steps": 3}},
    "a fresh reference every step": {"references": 0},
    "noised again at any level": {"renoise_appearance": (0.0, 1.0), "renoise_motion": (0.0, 1.0)},
    "the plain temporal term": {"plain": 1.0, "debias": 0.0},
    "the plain term beside the debiased one": {"plain": 1.0},
    "other animals in the motion teacher's prompt": {"subject_moves": False},
    "both LoRAs act in the student at any noise, at one rate": {"student_rests": False, "motion_rate": 1.0, **SPLIT},
}
"""What is asked of ours: some take back to the paper's what is ours."""


def _sampled(arm: Arm, title: str, **changes: Any) -> Arm:
    """The same with another title and some settings of sampling changed."""

    def change(recipe: VideoRecipe) -> VideoRecipe:
        changed = arm.change(recipe)
        return replace(changed, sample=changed.sample.but(**changes))

    return replace(arm, title=title, change=change)


def _rests(waits: float, until: float, learning: Learning = THROUGHOUT) -> Arm:
    """Both LoRAs, the motion's alone up to the first share of the denoising, the appearance's from the second on."""
    title = f"appearance from {waits:.0%}, motion until {until:.0%}{', learned at all noise' if learning else ''}"
    return _sampled(replace(OWN, learning=learning), title, appearance_from=waits, motion_until=until)


def _guided(arm: Arm, scale: float) -> Arm:
    """The same, with the LoRAs at another scale in the unconditional half of guidance."""
    return _sampled(arm, f"{arm.title}, {scale:.0%} in the unconditional half", unconditional_scale=scale)


def _resting(waits: float, times: float, motion_rate: float = 1.0) -> Arm:
    """Ours, with another share of the denoising for the motion alone, and other learning rates."""
    title = f"appearance from {waits:.0%}, {times:g} and {times * motion_rate:g} times the learning rate"
    ranges = {"renoise_appearance": (0.0, 1 - waits), "renoise_motion": (0.1, 1 - waits)}
    arm = _trained(OURS, title, {"learning_rate": times}, motion_rate=motion_rate, **ranges)
    return _sampled(arm, title, appearance_from=waits)


RESTING = ((0.27, 1, 3.0), (0.4, 1, 3.0), (0.54, 1, 3.0), (0.47, 1, 1.0), (0.47, 1, 6.0), (0.47, 2, 1.0), (0.0, 2, 1.0))
"""From where the appearance acts, how many times its learning rate, and over that the motion's."""
LEARNING: dict[str, Learning] = {
    "the motion at all noise": THROUGHOUT,
    "the motion in the upper 40 % of the noise": {"motion": {"noise": (0.6, 1.0)}},
    "the motion in 200 steps at a constant rate": {"motion": {"steps": 200, "falling": False}},
    "the motion in half the steps": {"motion": {"steps": 150}},
    "the motion in half the steps, at twice the rate": {"motion": {"steps": 150, "learning_rate": 5e-4}},
    "the motion in two thirds of the steps, at 1.5 times the rate": {
        "motion": {"steps": 200, "learning_rate": 3.75e-4}
    },
    "the motion at half the rate": {"motion": {"learning_rate": 1.25e-4}},
    "the motion at twice the rate": {"motion": {"learning_rate": 5e-4}},
    "unmoved pictures": {"appearance": {"shift": 0.0}},
    "the appearance in all linears": {"appearance": {"linears": ("",)}},
    "all linears, unmoved, twice the rate": {"appearance": {"linears": ("",), "shift": 0.0, "learning_rate": 8e-4}},
    "the appearance at twice the rate": {"appearance": {"learning_rate": 8e-4}},
    "the appearance in half the steps": {"appearance": {"steps": 110}},
}
"""How `tiny` could learn instead; all linears, unmoved, is how it once did."""
SUPPLEMENT = ("ttt", "main", "layers", BLOCKS)
"""The tables that the supplement has."""
TABLES: dict[str, dict[str, Arm]] = {
    "main": {name: arm for name, arm in METHOD_ARMS.items() if name != "customttt"} | {"ours": Arm("CustomTTT, ours")},
    "ttt": {
        "direct": DIRECT,
        "appearance": METHOD_ARMS["appearance"],
        "motion": METHOD_ARMS["motion"],
        "untrained": UNTRAINED,
        "paper": replace(PUBLISHED, title="f = 5, the paper's"),
        "f10": _trained(PUBLISHED, "f = 10", reference_steps=10),
        "ours": OURS,
    },
    "layers": {
        "direct": replace(DIRECT, title="the base's own layers"),
        "s26t25": _layers((2, 6), (2, 5)),
        "s01t25": _layers((0, 1), (2, 5)),
        "s26t17": _layers((2, 6), (1, 7)),
        "s01t17": _layers((0, 1), (1, 7)),
    },
    "rest": {"throughout": replace(_rests(0.0, 1.0), title="both LoRAs throughout")}
    | {
        f"rest{waits}-{until}": _rests(waits, until)
        for waits, until in ((0.0, 0.4), (0.0, 0.67), (0.0, 0.8), (0.27, 0.67), (0.47, 1.0), (0.47, 0.67))
    }
    | {
        f"own{waits}-{until}": _rests(waits, until, {})
        for waits in (0.27, 0.4, 0.47, 0.6)
        for until in (0.67, 0.74, 0.8)
    },
    "guidance": {
        f"{name}-{scale}": _guided(METHOD_ARMS[name], scale)
        for name in ("direct", "untrained", "appearance", "motion")
        for scale in (1.0, 0.75, 0.5, 0.25, 0.0)
    },
    "learning": {"untrained": replace(OWN, title="the base's own")}
    | {
        f"learning{i}": replace(OWN, title=title, learning=learning)
        for i, (title, learning) in enumerate(LEARNING.items())
    },
    "own": {"ours": OURS, "untrained": UNTRAINED}
    | {name: METHOD_ARMS[name] for name in ("appearance", "motion")}
    | {f"own{i}": _trained(OURS, title, **changes) for i, (title, changes) in enumerate(OURS_CHOICES.items())}
    | {f"resting{i}": _resting(*settings) for i, settings in enumerate(RESTING)},
    "choices": {"paper": replace(PUBLISHED, title="the paper's recipe")}
    | {f"choice{i}": _trained(PUBLISHED, title, **changes) for i, (title, changes) in enumerate(CHOICES.items())},
}
"""Which arms are compared with each other; the first is what the others' differences are from."""
