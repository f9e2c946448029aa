"""The settings of learning, test-time training and sampling: frozen, each with its unit, its source and its bounds.

Defaults are the paper's ([S]: the CustomTTT supplement; [C]: public code of its ancestor MotionDirector; [O]: open in
every public text, so the default is ours). A base's own recipe (`backbones/`) may replace them. [M] is what a choice
was measured to buy on the `tiny` of 64 x 64 pixels: changes in subject kept and movement kept; LOG.md has the
intervals, and what lost and was taken out again.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from customttt.errors import UsageError
from customttt.limits import (
    MAX_ASPECT,
    MAX_BATCH,
    MAX_FPS,
    MAX_FRAMES,
    MAX_MAGNIFY,
    MAX_RANK,
    MAX_SEED,
    MAX_SIZE,
    MAX_STEPS,
)

SIDE_STEP = 64
"""Pixels of which a longer side is a multiple: all bases can do such, and 16:9 becomes what they were trained with, as
832 x 480 of Wan and 576 x 320 of ZeroScope (ours)."""
Aspect = tuple[int, int]
"""Width to height."""


def digest(parts: Any) -> str:
    """A name for what is made of `parts`, plain data of JSON (sha256)."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _setting(name: str) -> str:
    """How a sentence begins that tells of a field."""
    return f"The setting '{name.replace('_', ' ')}'"


def _at_least(low: float, **values: float) -> None:
    """Raise UsageError for any value that is below `low` or not a number."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= low):
            raise UsageError(f"{_setting(name)} is {value}; it must be at least {low:g}.")


def _at_most(**limits: tuple[float, float]) -> None:
    """Raise UsageError for any value (the first of each pair) that is above its limit: no machine could do it."""
    for name, (value, high) in limits.items():
        if value > high:
            raise UsageError(f"{_setting(name)} is {value}; it must be at most {high:,}.")


def check_seed(seed: int, called: str = "The seed") -> None:
    """Raise UsageError for a seed that no generator takes."""
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise UsageError(f"{called} is {seed!r}; it must be from 0 to 2^64 - 1, which is {MAX_SEED}.")


def _check_shares(**pairs: tuple[float, ...]) -> None:
    """Raise UsageError for what are not two rising shares."""
    for name, pair in pairs.items():
        if not (len(pair) == 2 and 0 <= pair[0] < pair[1] <= 1):
            raise UsageError(f"{_setting(name)} is {pair}; it must be two rising shares from 0 to 1.")


def parse_aspect(text: str | None) -> Aspect | None:
    """`16:9` as (16, 9). Raises UsageError."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,4}):([1-9][0-9]{0,4})", text.strip())
    if not match:
        raise UsageError(f"The aspect is {_shown(text)}; give width and height as in 16:9.")
    return lowest_terms(int(match[1]), int(match[2]))


def lowest_terms(width: int, height: int) -> Aspect:
    """1920 to 1080 as (16, 9)."""
    common = math.gcd(width, height)
    return width // common, height // common


def check_fields(cls: type, data: Any) -> None:
    """Raise UsageError unless `data`, from JSON, has fields of this dataclass alone, each of its type."""
    known = {name: hint for name, hint in get_type_hints(cls).items() if get_origin(hint) is not ClassVar}
    if not isinstance(data, Mapping):
        raise UsageError(f"The recipe has {_shown(data)} where settings should be.")
    if unknown := sorted(set(data) - set(known)):
        raise UsageError(f"The recipe has unknown settings: {_short(', '.join(unknown))}.")
    for name, value in data.items():
        _check_type(name, value, known[name])


_CALLED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Raise UsageError for a value of JSON that is not of a field's type."""
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        number = None if Ellipsis in get_args(hint) else len(get_args(hint))
        if (
            not isinstance(value, list | tuple)
            or not all(_is(one, kind) for one in value)
            or number not in (None, len(value))
        ):
            raise _unfit(name, value, f"a list, each {_CALLED[kind]}")
    elif hint in _CALLED and not _is(value, hint):
        raise _unfit(name, value, _CALLED[hint])


def _is(value: Any, kind: type) -> bool:
    return type(value) in ((int, float) if kind is float else (kind,))


def _unfit(name: str, value: Any, wanted: str) -> UsageError:
    return UsageError(f"{_setting(name)} is {_shown(value)}; it must be {wanted}.")


def _shown(value: Any) -> str:
    """A stranger's value, short enough for a sentence."""
    return _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _without_retired(retired: Mapping[str, Any], data: Any) -> Any:
    """Data without the settings that are gone. Raises UsageError where one of them had a value of its own."""
    if not isinstance(data, Mapping):
        return data
    for name in retired.keys() & data.keys():
        if (list(value) if isinstance(value := data[name], tuple) else value) != retired[name]:
            raise UsageError(
                f"The recipe has {name.replace('_', ' ')} {_shown(value)}, which this version no longer does: "
                "it bought nothing (LOG.md)."
            )
    return {name: value for name, value in data.items() if name not in retired}


Settings = TypeVar("Settings", bound="_Settings")


class _Settings:
    """What the three have in common: JSON and changing some fields."""

    RETIRED: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Settings of earlier versions that bought nothing, each at the value that is now the only one."""

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Fields that came when recipes were there already; left out at their defaults, so that these keep their names."""

    def to_dict(self) -> dict[str, Any]:
        values, plain = asdict(self), self._plain()  # type: ignore[call-overload]
        return {name: value for name, value in values.items() if name not in self.LATER or value != plain[name]}

    def changed(self) -> dict[str, Any]:
        """What differs from the defaults: a name for these settings that new fields leave as it is."""
        plain = self._plain()
        return {name: value for name, value in self.to_dict().items() if value != plain[name]}

    def _plain(self) -> dict[str, Any]:
        """The defaults."""
        return {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls: type[Settings], data: Any) -> Settings:
        """Raises UsageError for an unknown field, or one that this version knows at another value alone."""
        data = _without_retired(cls.RETIRED, data)
        check_fields(cls, data)
        needed = {field.name for field in fields(cls) if field.default is MISSING}  # type: ignore[arg-type]
        if missing := sorted(needed - set(data)):
            raise UsageError(f"The recipe lacks settings: {', '.join(missing)}.")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})

    def but(self: Settings, **changes: Any) -> Settings:
        """The same settings with some replaced; None means: leave it."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})  # type: ignore[type-var]


@dataclass(frozen=True)
class TrainConfig(_Settings):
    """Learning one concept as a LoRA."""

    layers: tuple[int, ...]
    """Numbered layers of the base; of the paper's U-Net, appearance 2 and 6, motion 2 and 5 [S]."""
    learning_rate: float
    """Lion; appearance 1e-5, motion 5e-5 [S]."""
    steps: int = 500
    """Optimizer steps [S]."""
    batch_size: int = 1
    """Noised copies a step: of pictures (appearance) or of the clip (motion)."""
    rank: int = 32
    """Of every LoRA matrix; scale 1, no alpha / rank [S]."""
    linears: tuple[str, ...] = ("",)
    """How the names of those linears end that get a LoRA; all that the base has for it, as in the paper [S]."""
    dropout: float = 0.1
    """On the LoRA's input, while learning [S]."""
    debias: float = 1.0
    """Weight of the appearance-debiased loss of MotionDirector (arXiv 2310.08465); motion only [C]."""
    shift: float = 0.0
    """Pictures are learned moved by up to this share of the frame sideways, and by half of it upright, so that the
    subject is not learned together with its place; appearance only (ours)."""
    noise: tuple[float, float] = (0.0, 1.0)
    """From which timestep to which it is learned, as shares of the schedule; a base whose sampler lets the LoRA rest
    for a part may leave that part out (ours)."""
    falling: bool = False
    """Whether the learning rate falls evenly to nothing over the steps; constant in public code [C]."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check_shares(noise=self.noise)
        _at_least(1, steps=self.steps, batch_size=self.batch_size, rank=self.rank, layers=len(self.layers))
        _at_least(1, linears=len(self.linears))
        if not 0 <= self.shift <= 0.5:
            raise UsageError(f"{_setting('shift')} is {self.shift:g}; it must be a share of the frame from 0 to 0.5.")
        _at_least(1e-12, learning_rate=self.learning_rate)
        _at_least(0, debias=self.debias)
        _at_most(steps=(self.steps, MAX_STEPS), batch_size=(self.batch_size, MAX_BATCH), rank=(self.rank, MAX_RANK))
        check_seed(self.seed)


@dataclass(frozen=True)
class TTTConfig(_Settings):
    """Test-time training: how two LoRAs are adapted to each other and to the prompt.

    Tried and taken out again [M]: references by the sampler's first f steps, which are not clean (-0.11, -0.38); the
    teacher's prediction as target, motion modules on in the appearance branch, the scene in the student's prompt,
    weights of the two terms: none was better.
    """

    RETIRED = MappingProxyType({
        "reference_schedule": "full", "batch_size": 1, "appearance_weight": 1.0, "motion_weight": 1.0,
        "student_motion": False, "target": "noise", "scene_in_student": False,
    })  # fmt: skip

    steps: int = 30
    """Optimizer steps; 0 composes the two LoRAs as they are [S]. Three times as many: -0.08 of the subject [M]."""
    learning_rate: float = 1e-6
    """Lion [S]. Three times as much: -0.07 of the subject [M]."""
    motion_rate: float = 1.0
    """Learning rate of the motion's LoRA, over that of the appearance's (ours)."""
    reference_steps: int = 5
    """f: DDIM steps a teacher takes to make its reference [S]. Ten are no better, at 1.8 times the time [M]."""
    reference_guidance: float = 9.0
    """Guidance scale of the teachers [O]. None: -0.03, -0.03 [M]."""
    references: int = 0
    """References that each teacher makes in its first steps, and then draws from at random; 0 makes a fresh one every
    step [O]. A fresh one is no better than one of three, at 4.1 times the time [M]."""
    debias: float = 0.0
    """Weight of the appearance-debiased loss in the temporal term [O]."""
    plain: float = 1.0
    """Weight of the plain loss in the temporal term [S]; without it, the student learns of the motion reference mostly
    how its frames differ, and less who it shows (ours). In place of the debiased loss: -0.02, -0.03 [M]."""
    student_rests: bool = False
    """Whether a LoRA of the student rests at the noise at which it rests in sampling (ours), or both act at any [S]:
    +0.01, -0.04 [M]."""
    renoise_appearance: tuple[float, float] = (0.0, 1.0)
    """From which timestep to which the appearance reference is noised, as shares of the schedule [O]. Both at any
    noise: +0.01, -0.01 [M]."""
    renoise_motion: tuple[float, float] = (0.0, 1.0)
    """The same of the motion reference [O]."""
    doings: tuple[str, ...] = ("standing", "walking", "sitting", "running")
    """What the subject does in the appearance teacher's prompt: "a teddy bear is <doing>." [O]"""
    objects: tuple[str, ...] = ("man", "woman", "dog", "bear")
    """Who moves in the motion teacher's prompt: "a <object> is lifting weights." [O]"""
    subject_moves: bool = False
    """Whether the subject itself stands in the motion teacher's prompt instead of `objects` (ours), which are -0.08,
    -0.09 [M]."""

    def as_published(self, guidance_scale: float) -> TTTConfig:
        """The paper's recipe [S], with this one's learning rate and words and the sampler's guidance."""
        return TTTConfig(
            learning_rate=self.learning_rate, doings=self.doings, objects=self.objects,
            reference_guidance=guidance_scale,
        )  # fmt: skip

    def __post_init__(self) -> None:
        _at_least(1e-12, learning_rate=self.learning_rate, motion_rate=self.motion_rate)
        _at_least(0, ttt_steps=self.steps, references=self.references)
        _at_least(0, debias=self.debias, plain=self.plain)
        _at_most(ttt_steps=(self.steps, MAX_STEPS), reference_steps=(self.reference_steps, MAX_STEPS))
        _at_most(references=(self.references, MAX_BATCH))
        _at_least(1, reference_steps=self.reference_steps)
        _at_least(1, reference_guidance=self.reference_guidance, doings=len(self.doings), objects=len(self.objects))
        _check_shares(renoise_appearance=self.renoise_appearance, renoise_motion=self.renoise_motion)


@dataclass(frozen=True)
class SampleConfig(_Settings):
    """Rendering a video."""

    LATER = frozenset({"aspect"})

    num_frames: int = 16
    """Frames [S]."""
    num_inference_steps: int = 25
    """DDIM steps [S]."""
    guidance_scale: float = 9.0
    """Classifier-free guidance [S]; 1 is none."""
    unconditional_scale: float = 1.0
    """Of both LoRAs in the unconditional half of guidance. 1 is usual; 0 predicts that half by the base without them,
    which is autoguidance (arXiv 2406.02507; for one LoRA 2410.03941): what they have learned is strengthened with the
    prompt. Between is ours."""
    size: int = 256
    """The shorter side in pixels [S]."""
    aspect: Aspect = (1, 1)
    """Width to height, about: see `sides`. The paper's videos are squares [S]."""
    fps: int = 8
    """Frames a second [S]."""
    magnify: int = 1
    """How many times larger than `size` the file shows the frames."""
    appearance_from: float = 0.0
    """Share of the denoising steps before which the appearance LoRA rests, so that the path is the motion's (ours)."""
    motion_until: float = 1.0
    """Share of the denoising steps after which the motion LoRA rests: by then the path is settled, and what it would
    still draw is how its clip looks (ours)."""

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) in pixels; the longer is a multiple of SIDE_STEP, or where that is nearer, as the shorter."""
        width, height = self.aspect
        exact = self.size * max(width, height) / min(width, height)
        near = SIDE_STEP * round(exact / SIDE_STEP)
        longer = near if abs(near - exact) < exact - self.size else self.size
        return (self.size, longer) if width > height else (longer, self.size)

    def as_published(self) -> SampleConfig:
        """Both LoRAs act throughout, and in both halves of guidance, as everywhere else."""
        return replace(self, unconditional_scale=1.0, appearance_from=0.0, motion_until=1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.appearance_from < 1:
            raise UsageError(
                f"{_setting('appearance_from')} is {self.appearance_from:g}; it must be a share from 0 to below 1."
            )
        if not 0 < self.motion_until <= 1:
            raise UsageError(
                f"{_setting('motion_until')} is {self.motion_until:g}; it must be a share above 0, at most 1."
            )
        _at_least(1, frames=self.num_frames, steps=self.num_inference_steps, fps=self.fps, magnify=self.magnify)
        _at_least(1, guidance=self.guidance_scale)
        if not 0 <= self.unconditional_scale <= 1:
            raise UsageError(
                f"{_setting('unconditional_scale')} is {self.unconditional_scale:g}; it must be from 0 to 1."
            )
        _at_least(8, size=self.size)
        if not (min(self.aspect) >= 1 and max(self.aspect) <= MAX_ASPECT * min(self.aspect)):
            raise UsageError(
                f"The aspect is {':'.join(map(str, self.aspect))}; it must be from 1:{MAX_ASPECT} to {MAX_ASPECT}:1."
            )
        _at_most(frames=(self.num_frames, MAX_FRAMES), size=(max(self.sides), MAX_SIZE), fps=(self.fps, MAX_FPS))
        _at_most(steps=(self.num_inference_steps, MAX_STEPS), magnify=(self.magnify, MAX_MAGNIFY))


@dataclass(frozen=True)
class Defaults:
    """A base's own settings for all that can be done with it."""

    appearance: TrainConfig
    motion: TrainConfig
    ttt: TTTConfig
    sample: SampleConfig

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Defaults:
        """Read the parts from JSON data. Raises UsageError for an unknown field."""
        return cls(
            TrainConfig.from_dict(data["appearance"]),
            TrainConfig.from_dict(data["motion"]),
            TTTConfig.from_dict(data["ttt"]),
            SampleConfig.from_dict(data["sample"]),
        )
