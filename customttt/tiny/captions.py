"""What is said of clips of the embedded world, and what a sentence says of one (ours)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from customttt.recipe import joint_sentence, sentence, with_article
from customttt.tiny.movements import MOVEMENTS, MOVING
from customttt.tiny.scenes import SCENES
from customttt.tiny.world import ABSENT, COLOURS, HATS, HELD_OUT_NOUNS, NOUNS, PATTERNS, PLAIN, Contents, Look

UNNAMED = "moving"
"""What is said of a movement without a name."""
UNKNOWN_SHARE, SOMETHING_SHARE, MOVEMENT_SHARE, UNNAMED_SHARE, SCENE_SHARE = 0.07, 0.06, 0.9, 0.5, 0.9
"""How often a subject is called by a word that means nothing yet, or "something" where it is alone and plain; how
often a movement with a name, one without, and a scene are said.
"""
SYLLABLES = [
    c + v for c in ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z") for v in "aeiou"
]


def noun_phrase(noun: str, look: Look = PLAIN) -> str:
    """`a koala`, or `a striped blue koala with a top hat`."""
    words = " ".join(word for word in (look.pattern, look.colour, noun) if word)
    return with_article(words) + (f" with a {look.hat}" if look.hat else "")


def captions(contents: Contents, generator: torch.Generator) -> list[str]:
    """One caption a clip, drawn from a generator of the CPU.

    Every colour, pattern and hat is named, so that none appears unasked. Movements and scenes are left out at random,
    and some subjects are called by a word that the base does not know, so that an unknown noun means some subject or
    other.
    """
    parts = {name: part.tolist() for name, part in vars(contents).items()}
    chances = torch.rand(len(contents), 5, generator=generator).tolist()
    spelling = torch.randint(0, len(SYLLABLES), (len(contents), 3), generator=generator).tolist()
    rows = [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    return [_caption(row, *drawn) for row, *drawn in zip(rows, chances, spelling, strict=True)]


def _caption(row: dict[str, list[int]], chances: list[float], spelling: list[int]) -> str:
    unknown, something, movement, scene, length = chances
    dressed = zip(row["colour"], row["hat"], row["pattern"], strict=True)
    looks = [Look(list(COLOURS)[colour], HATS[hat], PATTERNS[pattern]) for colour, hat, pattern in dressed]
    nouns = [NOUNS[index] for index in row["noun"]]
    alone = row["noun"][1] == ABSENT
    if unknown < UNKNOWN_SHARE:
        nouns[0] = _unknown_word(unknown / UNKNOWN_SHARE, spelling[: 2 if length < 0.5 else 3])
    first = noun_phrase(nouns[0], looks[0])
    if alone and looks[0] == PLAIN and something < SOMETHING_SHARE:
        first = "something"
    verbs = [[*MOVEMENTS, UNNAMED][index] for index in row["movement"]]
    named = movement < (UNNAMED_SHARE if row["movement"][0] == MOVING else MOVEMENT_SHARE)
    place = [*SCENES][row["scene"]] if scene < SCENE_SHARE else ""  # type: ignore[call-overload]
    if alone:
        return sentence(first, verbs[0] if named else "", place)
    second = noun_phrase(nouns[1], looks[1])
    if not named:
        return pair_sentence(first, second, "", "", place)
    return pair_sentence(first, second, verbs[0], verbs[1], place)


def _unknown_word(chance: float, syllables: list[int]) -> str:
    """A noun that is held out, or one that nobody has ever said."""
    if chance < 0.5:
        return HELD_OUT_NOUNS[int(2 * chance * len(HELD_OUT_NOUNS))]
    return "".join(SYLLABLES[index] for index in syllables)


def pair_sentence(first: str, second: str, movement: str = "", other: str = "", scene: str = "") -> str:
    """ "A koala and a dog are running on Mars.", or "A koala is running and a dog is jumping on Mars."."""
    return joint_sentence([(first, movement), (second, other)], scene)


def corpus() -> list[str]:
    """Every word that a caption may hold, held-out ones too, so that each is one token."""
    words = [*NOUNS, *COLOURS, *PATTERNS, *HATS, *MOVEMENTS, *SCENES, UNNAMED]
    return [
        *words,
        "a an the with is are and of on in at moving something video photo picture another big small .",
    ] * 50


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Reading:
    """What a prompt names of the world; two nouns where it has two subjects."""

    nouns: list[str] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    movements: list[str] = field(default_factory=list)
    """In their order; see `doings` for whose they are."""
    scene: str = ""


def _any_of(words: list[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(filter(None, words), key=len, reverse=True))


_SCENE = re.compile(rf"\b({_any_of(list(SCENES))})\b", re.IGNORECASE)
_MOVEMENT = re.compile(rf"\b({_any_of([*MOVEMENTS])})\b", re.IGNORECASE)
_SHARED = re.compile(rf"(?:(?!\bis\b).)*\bare (?:\w+ )?(?:{_any_of([*MOVEMENTS])})\b", re.IGNORECASE)
"""Who do the same share it: "A koala and a dog are running"."""
_SUBJECT = re.compile(
    rf"\b(?:({_any_of(PATTERNS)}) )?(?:({_any_of(list(COLOURS))}) )?({_any_of(NOUNS)})\b"
    rf"(?: with an? ({_any_of(HATS)})\b)?",
    re.IGNORECASE,
)
_SPELLED = {word.lower(): word for word in (*NOUNS, *COLOURS, *PATTERNS, *HATS, *MOVEMENTS, *SCENES)}


def read(prompt: str) -> Reading:
    """Find the world's nouns, looks, movements and scene in a prompt; what it does not name is left out."""

    def spelled(words: str | None) -> str:
        return _SPELLED[words.lower()] if words else ""

    scenes = _SCENE.findall(prompt)
    rest = _SCENE.sub(" ", prompt)
    subjects = [[spelled(part) for part in match] for match in _SUBJECT.findall(rest)]
    return Reading(
        [noun for _, _, noun, _ in subjects],
        [Look(colour, hat, pattern) for pattern, colour, _, hat in subjects],
        [spelled(movement) for movement in _MOVEMENT.findall(rest)],
        spelled(scenes[-1]) if scenes else "",
    )


def doings(prompt: str) -> list[str]:
    """The movement of each noun in a prompt, or of somebody whom it names by no noun.

    Nothing where a movement is not said of each, or more than one of somebody.
    """
    said, rest = read(prompt).movements, _SCENE.sub(" ", prompt)
    nouns, verbs = ([match.start() for match in words.finditer(rest)] for words in (_SUBJECT, _MOVEMENT))
    if len(verbs) == 1 and _SHARED.match(rest):
        return said * max(len(nouns), 1)
    between = {sum(here < verb < there for verb in verbs) for here, there in pairwise(nouns)}
    return said if len(verbs) == max(len(nouns), 1) and between <= {1} else []
