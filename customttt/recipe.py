"""The recipe of a video: everything that determines its frames, and the sentences the models read. No torch.

It is written into the video's own metadata, and `compose --recipe` renders the same frames from it again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, pairwise
from types import MappingProxyType
from typing import Any, TypeVar, cast, get_args

from customttt.concept import Concept, Kind
from customttt.config import SampleConfig, TTTConfig, check_fields, check_seed, digest
from customttt.errors import UsageError
from customttt.limits import MAX_PROMPT, MAX_SUBJECTS, MAX_TEXT

FORMAT_VERSION = 1
LATER = ("others", "place", "apart", "then")
"""Fields that recipes were given later, which say nothing where there is nothing to say: old ones stay as they are."""
FRAMES_OF_A_TURN = 4
"""That a motion needs at least, where one comes after another."""
MAX_THREADS = 4096
LINE_BREAKS = "\n\r\v\f\x85\u2028\u2029"
NO_TEXT = re.compile("[\x00-\x08\n-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 controls and DEL, but for the tab; separators of lines; overrides of direction; halves of characters."""
PLACES: Mapping[str, tuple[float, float, float, float]] = MappingProxyType({
    "left": (0, 1 / 2, 0, 1), "right": (1 / 2, 1, 0, 1), "top": (0, 1, 0, 1 / 2), "bottom": (0, 1, 1 / 2, 1),
    "left-third": (0, 1 / 3, 0, 1), "middle": (1 / 3, 2 / 3, 0, 1), "right-third": (2 / 3, 1, 0, 1),
})  # fmt: skip
"""Where a subject may be, as shares of the frame: from left to right, and from top to bottom."""
ABREAST = MappingProxyType({2: ("left", "right"), 3: ("left-third", "middle", "right-third")})
"""Where so many subjects are of whom nothing else is said."""
BRACES = re.compile(r"\{([^{}]+)\}")
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


def joint_sentence(clauses: Sequence[tuple[str, str]], scene: str = "") -> str:
    """ "A koala is swimming and a dog is jumping on Mars." from (subject, verb); who do the same share it: "A koala and
    a dog are running."."""
    subjects, verbs = zip(*clauses, strict=True)
    if len(clauses) == 1:
        return sentence(subjects[0], verbs[0], scene)
    if len(set(verbs)) > 1:
        return sentence(listed([f"{subject} is {verb.removeprefix('is ')}" for subject, verb in clauses]), "", scene)
    shared = verbs[0].removeprefix("is ")
    return sentence(listed(subjects) + (f" are {shared}" if shared else ""), "", scene)


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def in_turn(verbs: Sequence[str]) -> str:
    """`swimming`, `swimming and then jumping`, `swimming, then jumping and then diving`."""
    first, *others = verbs
    *most, last = (first, *(verb.removeprefix("is ") for verb in others))
    return f"{', then '.join(most)} and then {last}" if most else last


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

    @classmethod
    def from_dict(cls, data: Any) -> Ingredient:
        """Raises UsageError for what is no ingredient of a recipe."""
        check_fields(cls, data)
        return cls(**data)


One = TypeVar("One", Ingredient, Concept)


def by_slot(pairings: Iterable[tuple[One, One | None]]) -> dict[str, One]:
    """What goes into a video, by the name of its adapter: `appearance` and `motion` of the first subject, then
    `appearance2`, `motion2` and so on; a motion that several share has one."""
    slots: dict[str, One] = {}
    for number, (appearance, motion) in enumerate(pairings):
        slots[adapter_name("appearance", number)] = appearance
        if motion and all(one.name != motion.name for name, one in slots.items() if kind_of(name) == "motion"):
            slots[adapter_name("motion", number)] = motion
    return slots


def adapter_name(kind: str, number: int) -> str:
    """Of a kind, of the first pairing (0), the second, and so on."""
    return f"{kind}{number + 1}" if number else kind


def kind_of(slot: str) -> Kind:
    """Of what goes into a video, by the name of its adapter."""
    return cast("Kind", slot.rstrip("0123456789"))


@dataclass(frozen=True)
class Subject:
    """One subject of a video: how it looks and how it moves."""

    appearance: Ingredient
    motion: Ingredient | None = None
    """None: a bystander, which does what the prompt says."""
    place: str = ""
    """One of PLACES, where alone its LoRAs act; empty: wherever nobody else is placed."""

    def __post_init__(self) -> None:
        if self.place and self.place not in PLACES:
            raise UsageError(f"The place {self.place[:40]!r} is unknown; there are {listed([*PLACES])}.")

    @property
    def phrase(self) -> str:
        """ "a koala"."""
        return with_article(self.appearance.phrase)

    @property
    def noun(self) -> str:
        """The last word of what it is called."""
        return self.appearance.phrase.split()[-1]

    @classmethod
    def from_dict(cls, data: Any) -> Subject:
        """Raises UsageError for what is no subject of a recipe."""
        if not isinstance(data, Mapping):
            raise UsageError("The recipe has something else where a subject should be.")
        values = dict(data)
        if not isinstance(values.get("place", ""), str):
            raise UsageError("The recipe has a place that is no text.")
        for kind in ("appearance", "motion"):
            if kind == "appearance" or values.get(kind) is not None:
                values[kind] = Ingredient.from_dict(values[kind])
        return cls(**values)


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
    """One appearance, one motion and one prompt, those of further subjects, and how they are put together."""

    appearance: Ingredient
    motion: Ingredient
    prompt: str
    """As typed: a scene ("on Mars"), or a whole sentence with {appearance} and {motion}, or names of ingredients."""
    base: str
    base_fingerprint: str
    ttt: TTTConfig
    sample: SampleConfig
    seed: int = 0
    rival: Rival | None = None
    """Where the video is one's; None: of the two concepts' own LoRAs."""
    threads: int = field(default=0, compare=False)
    """Of the CPU, which decide the last bits; 0: as many as torch takes by itself, or a GPU."""
    others: tuple[Subject, ...] = ()
    """Further subjects in the same video; where there are none, a recipe says nothing of them."""
    place: str = ""
    """That of the first subject; see `Subject`."""
    apart: bool = False
    """Whether the LoRAs of each subject act where the word for it is read, wherever that is."""
    then: tuple[Ingredient, ...] = ()
    """Motions that a subject which is alone makes after the first, each for an equal part of the frames."""

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
        for scale in (one.scale for one in self.ingredients.values()):
            if not 0 <= scale <= 4:
                raise UsageError(f"The scale {scale:g} is out of range; a LoRA acts at 0 to 4, 1 as it was learned.")
        if self.others:
            self._check_several()
        if self.apart:
            self._check_apart()
        if self.then:
            self._check_turns()
        for one, other in combinations([subject for subject in self.subjects if subject.place], 2):
            (left, right, top, bottom), (left2, right2, top2, bottom2) = PLACES[one.place], PLACES[other.place]
            if max(left, left2) < min(right, right2) and max(top, top2) < min(bottom, bottom2):
                raise UsageError(
                    f"The places of '{one.appearance.name}' ({one.place}) and '{other.appearance.name}' "
                    f"({other.place}) overlap; give them places apart."
                )

    def _check_several(self) -> None:
        """Raise UsageError for subjects that cannot be told apart, or of which the prompt does not speak."""
        names = [one.appearance.name for one in self.subjects]
        if len(names) > MAX_SUBJECTS:
            raise UsageError(f"The video has {len(names):,} subjects; at most {MAX_SUBJECTS} are taken.")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"'{twice}' is a subject twice; each can be in a video once.")
        if self.rival:
            raise UsageError(f"'{self.rival.name}' knows one subject in a video; leave out '{names[1]}'.")
        self.check_words()
        if not self._is_template:
            if still := [one.appearance.name for one in self.subjects if one.motion is None]:
                raise UsageError(
                    f"What '{still[0]}' does is not said; write the whole sentence, such as \"{self._example}\"."
                )
            return
        said = self.target_prompt.lower()
        if missing := [one.appearance.name for one in self.subjects if one.appearance.phrase.lower() not in said]:
            raise UsageError(f"The prompt does not speak of '{missing[0]}'; write {{{missing[0]}}} where it stands.")

    def _check_apart(self) -> None:
        """Raise UsageError for subjects that cannot be told apart by the words for them."""
        nouns = [one.noun.lower() for one in self.subjects]
        if self.is_placed:
            raise UsageError("Subjects are kept apart by their places or by their words; leave out one of the two.")
        if len(nouns) < 2:
            raise UsageError("There is one subject in the video, and nothing to keep it apart from.")
        if twice := next((noun for noun in nouns if nouns.count(noun) > 1), None):
            raise UsageError(f"Two subjects are called '{twice}', and cannot be kept apart by it; give them places.")

    def _check_turns(self) -> None:
        """Raise UsageError for motions that cannot be made one after the other."""
        names = [one.name for one in self.motions]
        if self.others or self.place or self.apart:
            raise UsageError(
                "One motion comes after another where one subject is alone in the video and has no place; leave out "
                "further subjects, places and keeping apart."
            )
        if self.rival:
            raise UsageError(f"'{self.rival.name}' knows one motion in a video; leave out '{names[1]}'.")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"'{twice}' is a motion twice; each can be in a video once.")
        if named := [name for name in BRACES.findall(self.prompt) if name in names]:
            raise UsageError(f"The prompt has {{{named[0]}}}, one of several motions; write {{motion}} in its place.")

    def check_words(self) -> None:
        """Raise UsageError for a name in braces that is nothing in this video."""
        if unknown := [name for name in BRACES.findall(self.prompt) if name not in self._words]:
            raise UsageError(
                f"The prompt has {{{unknown[0]}}}, which is nothing in this video; it has "
                f"{listed([f'{{{name}}}' for name in self._words if name not in get_args(Kind)])}."
            )

    def check_frames(self) -> None:
        """Raise UsageError for fewer frames than motions one after the other take."""
        frames, number = self.sample.num_frames, len(self.motions)
        if self.then and frames < FRAMES_OF_A_TURN * number:
            raise UsageError(
                f"{frames} frames are too few for {number} motions one after the other; each takes {FRAMES_OF_A_TURN} "
                "or more."
            )

    @property
    def motions(self) -> tuple[Ingredient, ...]:
        """Of the first subject, in their order."""
        return self.motion, *self.then

    @property
    def turns(self) -> list[VideoRecipe]:
        """What each motion is a video of, in its turn; where there is one, this recipe alone."""
        return [replace(self, motion=one, then=()) for one in self.motions] if self.then else [self]

    @property
    def subjects(self) -> tuple[Subject, ...]:
        return Subject(self.appearance, self.motion, self.place), *self.others

    @property
    def is_placed(self) -> bool:
        """Whether anybody has a place, and so everybody one."""
        return any(one.place for one in self.subjects)

    @property
    def predictions(self) -> int:
        """How many a step of denoising takes: of the prompt, which nobody reads where places cover the frame; of each
        place by itself; and with guidance without a prompt."""
        guided = int(self.sample.guidance_scale != 1)
        if not self.is_placed:
            return 1 + guided
        sides = [PLACES[one.place] for one in self.subjects if one.place]
        room = sum((right - left) * (bottom - top) for left, right, top, bottom in sides)
        is_covered = len(sides) < len(self.subjects) or room > 0.999  # who has no place has the rest
        return len(self.subjects) + guided + (not is_covered)

    @property
    def ingredients(self) -> dict[str, Ingredient]:
        """All that goes into the video, by the names of their adapters; the subject anew for each of its motions."""
        return by_slot((one.appearance, one.motion) for turn in self.turns for one in turn.subjects)

    @property
    def _words(self) -> dict[str, str]:
        """What stands for each name in braces: that of an ingredient, or its kind for the first of each."""
        words = {}
        for slot, one in self.ingredients.items():
            words[one.name] = one.phrase if kind_of(slot) == "motion" else with_article(one.phrase)
        return words | {"appearance": with_article(self.appearance.phrase), "motion": self._doing}

    @property
    def _doing(self) -> str:
        """ "swimming", or "swimming and then jumping"."""
        return in_turn([one.phrase for one in self.motions])

    @property
    def _is_template(self) -> bool:
        return any(name in self._words for name in BRACES.findall(self.prompt))

    @property
    def _example(self) -> str:
        """A template of these ingredients, in which bystanders stand."""
        clauses = [(f"{{{one.appearance.name}}}", one.motion) for one in self.subjects]
        parts = [f"{name} is {f'{{{motion.name}}}' if motion else 'standing'}" for name, motion in clauses]
        return f"{listed(parts)} {self.prompt}".strip()

    @property
    def target_prompt(self) -> str:
        """What the video shows: "A koala is swimming on Mars."."""
        if self._is_template:
            filled = BRACES.sub(lambda match: self._words.get(match[1], match[0]), self.prompt)
            return f"{filled[:1].upper()}{filled[1:]}"
        return joint_sentence(self._clauses, self.prompt)

    @property
    def own_prompts(self) -> list[str]:
        """What is read in each subject's place beside `target_prompt`: "A koala is swimming on Mars."; of a whole
        sentence, who does what, and not where."""
        if self._is_template:
            return [sentence(one.phrase, one.motion.phrase if one.motion else "") for one in self.subjects]
        return [joint_sentence([clause], self.prompt) for clause in self._clauses]

    @property
    def joint_prompt(self) -> str:
        """What the student reads in test-time training: subjects and movements, without the scene."""
        return joint_sentence(self._clauses)

    @property
    def _clauses(self) -> list[tuple[str, str]]:
        """Who does what; a bystander does the first of what appearance teachers show."""
        first, *others = self.subjects
        clauses = [(one.phrase, one.motion.phrase if one.motion else self.ttt.doings[0]) for one in others]
        return [(first.phrase, self._doing), *clauses]

    @property
    def teacher_prompts(self) -> dict[str, list[str]]:
        """What the teacher of each ingredient reads, by the name of its adapter: "A koala is <doing>." of an
        appearance, "A <object> is swimming." of a motion."""
        prompts: dict[str, list[str]] = {}
        for slot, one in self.ingredients.items():
            if kind_of(slot) == "appearance":
                subject = with_article(one.phrase)
                prompts[slot] = [sentence(subject, doing) for doing in self.ttt.doings]
            else:  # the subject that moves so stands before it
                nouns = [subject] if self.ttt.subject_moves else map(with_article, self.ttt.objects)
                prompts[slot] = [sentence(noun, one.phrase) for noun in nouns]
        return prompts

    def adaptation_key(self) -> str:
        """Names the adapted LoRAs: what test-time training depends on, and nothing else (not seed, not scales)."""
        read = self.teacher_prompts
        prompts = [self.joint_prompt, *read["appearance"], *read["motion"]]
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
        for slot, one in list(self.ingredients.items())[2:]:
            parts.append([slot, one.sha256, read[slot]])
        return digest(parts)

    def with_seed(self, seed: int) -> VideoRecipe:
        return replace(self, seed=seed)

    def placed(self, places: Mapping[str, str]) -> VideoRecipe:
        """With subjects, by name, in these places alone. Raises UsageError for who is not there."""
        names = [one.appearance.name for one in self.subjects]
        if unknown := [name for name in places if name not in names]:
            raise UsageError(f"'{unknown[0]}' is no subject of this video; a place can be given to {listed(names)}.")
        others = tuple(replace(one, place=places.get(one.appearance.name, "")) for one in self.others)
        return replace(self, place=places.get(names[0], ""), others=others)

    def side_by_side(self) -> VideoRecipe:
        """With two or three subjects from left to right, as they stand in the sentence; more have no places (ours)."""
        names = [one.appearance.name for one in self.subjects]
        return self.placed(dict(zip(names, ABREAST[len(names)], strict=True))) if len(names) in ABREAST else self

    def as_published(self) -> VideoRecipe:
        """With the paper's test-time training in place of the base's own, and both LoRAs acting throughout."""
        ttt = self.ttt.as_published(self.sample.guidance_scale)
        return replace(self, ttt=ttt, sample=self.sample.as_published())

    def to_dict(self) -> dict[str, Any]:
        settings = {"ttt": self.ttt.to_dict(), "sample": self.sample.to_dict()}
        values = {"customttt": FORMAT_VERSION, **asdict(self), **settings}
        return {name: value for name, value in values.items() if value or name not in LATER}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VideoRecipe:
        """Raises UsageError for what is not a recipe of this program."""
        values = dict(data)
        if values.pop("customttt", None) != FORMAT_VERSION:
            raise UsageError("The recipe was not written by this version of customttt; it cannot be rendered again.")
        values.pop("versions", None)
        try:
            others = tuple(map(Subject.from_dict, _list(values.pop("others", []), "others", "subjects")))
            then = tuple(map(Ingredient.from_dict, _list(values.pop("then", []), "then", "motions")))
            check_fields(cls, values)
            for kind in ("appearance", "motion"):
                values[kind] = Ingredient.from_dict(values[kind])
            if values.get("rival") is not None:
                check_fields(Rival, values["rival"])
                values["rival"] = Rival(**values["rival"])
            values |= {"ttt": TTTConfig.from_dict(values["ttt"]), "sample": SampleConfig.from_dict(values["sample"])}
            return cls(**values, others=others, then=then)
        except (KeyError, TypeError) as error:
            raise UsageError(f"The recipe is incomplete or has unknown parts ({error}).") from error


def _list(value: Any, name: str, content: str) -> list[Any] | tuple[Any, ...]:
    """Raises UsageError for anything else."""
    if not isinstance(value, list | tuple):
        raise UsageError(f"The recipe's '{name}' is no list of {content}.")
    return value
