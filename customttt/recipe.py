"""The recipe of a video: everything that determines its frames, and the sentences the models read. No torch.

It is written into the video's own metadata, and `compose --recipe` renders the same frames from it again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, get_args

from customttt.concept import Concept, Kind
from customttt.config import SampleConfig, TTTConfig, check_fields, check_seed, digest
from customttt.errors import UsageError
from customttt.limits import MAX_PROMPT, MAX_TEXT

FORMAT_VERSION = 1
MAX_THREADS = 4096
LINE_BREAKS = "\n\r\v\f\x85\u2028\u2029"
NO_TEXT = re.compile("[\x00-\x08\n-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 controls and DEL, but for the tab; separators of lines; overrides of direction; halves of characters."""
DETERMINERS = {"a", "an", "the", "my", "your", "his", "her", "its", "our", "their", "one", "two", "some"}
VOWEL_SOUND = re.compile(r"(?!uni(?![nm])|ufo|us[aeiu]|eu|one\b)[aeiou]", re.IGNORECASE)
"""How a word begins that wants "an": a unicorn and a UFO do not."""


def check_prompt(prompt: str, what: str = "The prompt") -> None:
    """Raise UsageError for a prompt, or `what` else it is, that no text encoder can read."""
    if len(prompt) > MAX_PROMPT:
        raise UsageError(
            f"{what} has {len(prompt):,} characters; at most {MAX_PROMPT:,} are read. Use a short sentence."
        )
    check_characters(prompt, what)


def check_characters(text: str, what: str) -> None:
    """Raise UsageError for what is no text. Spaces of every kind, joiners and letters of scripts to come are."""
    if match := NO_TEXT.search(text):
        raise UsageError(f"{what} holds {_called(match[0])}; write it as one line of plain text.")


def _check_texts(**texts: str) -> None:
    """Raise UsageError for what is no text that a recipe has."""
    for name, text in texts.items():
        if len(text) > MAX_TEXT:
            raise UsageError(f"The recipe's {name} has {len(text):,} characters; at most {MAX_TEXT:,} are read.")
        check_characters(text, f"The recipe's {name.replace('_', ' ')}")


def _called(character: str) -> str:
    code = f"U+{ord(character):04X}"
    if character in LINE_BREAKS:
        return f"a line break ({code})"
    if "\ud800" <= character <= "\udfff":
        return f"half a character ({code}), as is left of text that is not UTF-8"
    return f"the control character {code}"


def phrase_of(name: str) -> str:
    """The words a concept's name stands for: `teddy-bear` is "teddy bear"."""
    return name.replace("-", " ").replace("_", " ").strip()


def with_article(noun: str) -> str:
    """`koala` as "a koala", `my dog` as it is."""
    if noun.split(maxsplit=1)[0].lower() in DETERMINERS:
        return noun
    return f"{'an' if VOWEL_SOUND.match(noun) else 'a'} {noun}"


def sentence(subject: str, verb: str = "", scene: str = "") -> str:
    """ "A koala is swimming on Mars." from its parts; empty ones are left out."""
    words = [subject, f"is {verb.removeprefix('is ')}" if verb else "", scene.strip().rstrip(".")]
    text = " ".join(word for word in words if word)
    return f"{text[:1].upper()}{text[1:]}."


def training_prompt(kind: Kind, phrase: str) -> str:
    """What a concept is learned with where nothing else is said: "A koala.", "Something is swimming."."""
    return sentence(with_article(phrase)) if kind == "appearance" else sentence("something", phrase)


def stretches(sample: SampleConfig) -> list[tuple[frozenset[Kind], tuple[float, float]]]:
    """Whose LoRAs act from which share of the denoising to which: both from 0 to 1 unless the settings let one rest."""
    joins, rests = sample.appearance_from, sample.motion_until
    shares = []
    for begin, end in pairwise(sorted({0.0, joins, rests, 1.0})):
        acts: dict[Kind, bool] = {"appearance": begin >= joins, "motion": end <= rests}
        shares.append((frozenset(kind for kind, here in acts.items() if here), (begin, end)))
    return shares


def renoised(shown: Kind, ttt: TTTConfig, sample: SampleConfig) -> list[tuple[frozenset[Kind], tuple[float, float]]]:
    """Whose LoRAs of the student act between which shares of the noise, where that teacher's reference is noised again.

    Both at any noise, as published. With `student_rests`, each where it acts in sampling, and without those parts in
    which nothing could be learned. Raises UsageError if none is left.
    """
    low, high = ttt.renoise_appearance if shown == "appearance" else ttt.renoise_motion
    parts = []
    for acting, (begin, end) in reversed(stretches(sample if ttt.student_rests else sample.as_published())):
        part = max(low, 1 - end), min(high, 1 - begin)
        taught = acting if shown == "motion" else acting & {shown}  # motion modules are off for still pictures
        if taught and part[0] < part[1]:
            parts.append((acting, part))
    if not parts:
        raise UsageError(f"The {shown} reference is noised again from {low:g} to {high:g}, where no LoRA acts on it.")
    return parts


@dataclass(frozen=True)
class Ingredient:
    """One concept as it goes into a video."""

    name: str
    phrase: str
    sha256: str
    """Of its weights: a concept learned again under the same name is another ingredient."""
    scale: float = 1.0
    """How strongly its LoRA acts; 1 as learned."""

    def __post_init__(self) -> None:
        _check_texts(name=self.name, phrase=self.phrase, sha256=self.sha256)

    @classmethod
    def of(cls, concept: Concept, scale: float = 1.0) -> Ingredient:
        return cls(concept.name, concept.phrase, concept.files["lora.safetensors"], scale)


@dataclass(frozen=True)
class Rival:
    """A method of `compare` that learned anew from the concepts' pictures and clip; their own LoRAs are not used."""

    name: str
    key: str
    """sha256 of all that its learning depends on; what it learned is kept in the library under it."""

    def __post_init__(self) -> None:
        _check_texts(name=self.name, key=self.key)


@dataclass(frozen=True)
class VideoRecipe:
    """One appearance, one motion, one prompt, and how they are put together."""

    appearance: Ingredient
    motion: Ingredient
    prompt: str
    """As typed: a scene ("on Mars"), or a whole sentence with {appearance} and {motion}."""
    base: str
    base_fingerprint: str
    ttt: TTTConfig
    sample: SampleConfig
    seed: int = 0
    rival: Rival | None = None
    """Where the video is one's; None: of the two concepts' own LoRAs."""
    threads: int = field(default=0, compare=False)
    """Of the CPU, which decide the last bits; 0: as many as torch takes by itself, or a GPU."""

    def __post_init__(self) -> None:
        _check_texts(base=self.base, base_fingerprint=self.base_fingerprint)
        check_prompt(self.prompt)
        check_seed(self.seed)
        if not isinstance(self.threads, int) or not 0 <= self.threads <= MAX_THREADS:
            raise UsageError(f"The recipe's threads are {self.threads}; they must be 0 to {MAX_THREADS:,}.")
        if self.rival and self.ttt.steps:
            raise UsageError(
                f"The recipe is that of '{self.rival.name}', which knows no test-time training; "
                f"leave out --ttt-steps {self.ttt.steps}."
            )
        for shown in get_args(Kind) if self.ttt.steps else ():
            renoised(shown, self.ttt, self.sample)
        for scale in (self.appearance.scale, self.motion.scale):
            if not 0 <= scale <= 4:
                raise UsageError(f"The scale {scale:g} is out of range; a LoRA acts at 0 to 4, 1 as it was learned.")

    @property
    def subject(self) -> str:
        return with_article(self.appearance.phrase)

    @property
    def target_prompt(self) -> str:
        """What the video shows: "A koala is swimming on Mars."."""
        if "{appearance}" in self.prompt or "{motion}" in self.prompt:
            filled = self.prompt.replace("{appearance}", self.subject).replace("{motion}", self.motion.phrase)
            return f"{filled[:1].upper()}{filled[1:]}"
        return sentence(self.subject, self.motion.phrase, self.prompt)

    @property
    def joint_prompt(self) -> str:
        """What the student reads in test-time training: subject and movement, without the scene."""
        return sentence(self.subject, self.motion.phrase)

    @property
    def doing_prompts(self) -> list[str]:
        """What the appearance teacher reads: "A koala is <doing>."."""
        return [sentence(self.subject, doing) for doing in self.ttt.doings]

    @property
    def object_prompts(self) -> list[str]:
        """What the motion teacher reads: "A <object> is swimming."."""
        nouns = (self.appearance.phrase,) if self.ttt.subject_moves else self.ttt.objects
        return [sentence(with_article(noun), self.motion.phrase) for noun in nouns]

    def adaptation_key(self) -> str:
        """Names the adapted LoRAs: what test-time training depends on, and nothing else (not seed, not scales)."""
        prompts = [self.joint_prompt, *self.doing_prompts, *self.object_prompts]
        parts = [
            FORMAT_VERSION, self.appearance.sha256, self.motion.sha256, self.base_fingerprint, prompts,
            self.ttt.to_dict(), self.sample.num_frames, self.sample.size,
        ]  # fmt: skip
        height, width = self.sample.sides
        if height != width:
            parts.append(self.sample.sides)
        if self.sample.unconditional_scale < 1:
            parts.append(self.sample.unconditional_scale)
        if self.ttt.student_rests:
            parts += [self.sample.appearance_from, self.sample.motion_until]
        return digest(parts)

    def with_seed(self, seed: int) -> VideoRecipe:
        return replace(self, seed=seed)

    def as_published(self) -> VideoRecipe:
        """With the paper's test-time training in place of the base's own, and both LoRAs acting throughout."""
        ttt = self.ttt.as_published(self.sample.guidance_scale)
        return replace(self, ttt=ttt, sample=self.sample.as_published())

    def to_dict(self) -> dict[str, Any]:
        settings = {"ttt": self.ttt.to_dict(), "sample": self.sample.to_dict()}
        return {"customttt": FORMAT_VERSION, **asdict(self), **settings}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VideoRecipe:
        """Raises UsageError for what is not a recipe of this program."""
        values = dict(data)
        if values.pop("customttt", None) != FORMAT_VERSION:
            raise UsageError("The recipe was not written by this version of customttt; it cannot be rendered again.")
        values.pop("versions", None)
        try:
            check_fields(cls, values)
            for kind in ("appearance", "motion"):
                check_fields(Ingredient, values[kind])
                values[kind] = Ingredient(**values[kind])
            if values.get("rival") is not None:
                check_fields(Rival, values["rival"])
                values["rival"] = Rival(**values["rival"])
            values |= {"ttt": TTTConfig.from_dict(values["ttt"]), "sample": SampleConfig.from_dict(values["sample"])}
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise UsageError(f"The recipe is incomplete or has unknown parts ({error}).") from error
