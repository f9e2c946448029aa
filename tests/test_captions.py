"""Captions: what they say is seen, what is seen of looks is said, and a sentence can be read back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from customttt.tiny import world
from customttt.tiny.captions import UNNAMED, Reading, captions, corpus, doings, noun_phrase, pair_sentence, read
from customttt.tiny.movements import MOVEMENTS, MOVING
from customttt.tiny.scenes import SCENES
from customttt.tiny.world import ABSENT, COLOURS, HATS, HELD_OUT_NOUNS, NOUNS, PATTERNS, PLAIN, Contents, Look


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int, pairs: float = 0.08) -> tuple[Contents, list[str]]:
    contents = world.draw(count, generator(3), pairs)
    return contents, captions(contents, generator(4))


def looks_of(contents: Contents, index: int) -> list[Look]:
    """Of the subjects that one clip has."""
    parts = (part[index].tolist() for part in (contents.noun, contents.colour, contents.hat, contents.pattern))
    colours = list(COLOURS)
    return [Look(colours[c], HATS[h], PATTERNS[p]) for noun, c, h, p in zip(*parts, strict=True) if noun != ABSENT]


@pytest.mark.parametrize(
    ("phrase", "noun", "look"),
    [
        ("a unicorn", "unicorn", PLAIN),
        ("a ufo", "ufo", PLAIN),
        ("an owl", "owl", PLAIN),
        ("an orange koala", "koala", Look("orange")),
        ("a purple owl", "owl", Look("purple")),
        ("a striped orange koala", "koala", Look("orange", pattern="striped")),
        ("a koala with a top hat", "koala", Look(hat="top hat")),
        ("a spotted blue orange with a bow", "orange", Look("blue", "bow", "spotted")),
    ],
)
def test_a_subject_is_called_by_its_look_with_the_right_article(phrase: str, noun: str, look: Look) -> None:
    assert noun_phrase(noun, look) == phrase
    assert read(f"{phrase[0].upper()}{phrase[1:]}.") == Reading([noun], [look])


def test_two_subjects_make_one_sentence() -> None:
    assert pair_sentence("a koala", "a dog") == "A koala and a dog."
    assert (
        pair_sentence("a koala", "a dog", "running", "running", "on Mars") == "A koala and a dog are running on Mars."
    )
    assert pair_sentence("a koala", "a dog", "running", "jumping") == "A koala is running and a dog is jumping."


def test_every_caption_is_read_back_as_what_is_seen() -> None:
    contents, texts = drawn(1000, pairs=0.5)
    verbs = [*MOVEMENTS, UNNAMED]
    for index, text in enumerate(texts):
        said, nouns = read(text), [NOUNS[noun] for noun in contents.noun[index].tolist() if noun != ABSENT]
        movements = [verbs[movement] for movement in contents.movement[index].tolist()][: len(nouns)]
        assert said.scene in ("", list(SCENES)[int(contents.scene[index])])
        assert set(said.movements) <= set(movements)
        assert said.nouns[1:] == nouns[1:] or len(said.nouns) < len(nouns)
        if said.nouns == nouns:
            assert said.looks == looks_of(contents, index)


def test_every_colour_hat_and_pattern_that_is_seen_is_named() -> None:
    contents, texts = drawn(1000, pairs=0.3)
    for index, text in enumerate(texts):
        words = f" {text.lower()}"
        for look in looks_of(contents, index):
            assert all(f" {part}" in words for part in look if part), text


def test_some_nouns_are_unknown_words_and_no_look_is_lost_for_it() -> None:
    contents, texts = drawn(4000, pairs=0.0)
    odd = [(index, text) for index, text in enumerate(texts) if NOUNS[int(contents.noun[index, 0])] not in text.lower()]
    something = [text for _, text in odd if "something" in text.lower()]
    unknown = [(index, text) for index, text in odd if "something" not in text.lower()]
    assert 0.05 <= len(unknown) / len(texts) <= 0.08
    assert 0 < len(something) / len(texts) < 0.03
    assert any(noun in text for _, text in unknown for noun in HELD_OUT_NOUNS)
    assert any(not read(text).nouns for _, text in unknown)
    assert all(looks_of(contents, index)[0] == PLAIN for index, text in odd if text in something)


def test_what_is_left_out_is_left_out_now_and_then() -> None:
    contents, texts = drawn(3000, pairs=0.0)
    said = [read(text) for text in texts]
    unnamed = contents.movement[:, 0] == MOVING
    told = torch.tensor([UNNAMED in text for text in texts])
    named = torch.tensor([bool(one.movements) for one in said])
    assert 0.4 < told[unnamed].float().mean() < 0.6
    assert not named[unnamed].any()
    assert 0.85 < named[~unnamed].float().mean() < 0.95
    assert 0.85 < sum(bool(one.scene) for one in said) / len(said) < 0.95


def test_a_caption_depends_on_its_generator_alone() -> None:
    contents, texts = drawn(20)
    assert captions(contents, generator(4)) == texts
    assert captions(replace(contents), generator(5)) != texts


def test_the_corpus_has_every_word_that_a_caption_may_hold() -> None:
    known = {word for line in corpus() for word in line.lower().split()}
    for look in (Look(colour, hat, pattern) for colour in COLOURS for hat in HATS for pattern in PATTERNS):
        assert set(noun_phrase("koala", look).split()) <= known
    for words in (*NOUNS, *MOVEMENTS, *SCENES, UNNAMED, *pair_sentence("a", "a", UNNAMED, UNNAMED)[:-1].split()):
        assert set(words.lower().split()) <= known


def test_a_prompt_is_read_as_far_as_it_names_anything() -> None:
    assert read("Something.") == Reading()
    prompt = "An orange koala with a bow is running on the moon."
    assert read(prompt) == Reading(["koala"], [Look("orange", "bow")], ["running"], "on the moon")
    two = read("a KOALA and a dog with a cap are standing still at night")
    assert two == Reading(["koala", "dog"], [PLAIN, Look(hat="cap")], ["standing still"], "at night")
    assert read("A moon in the sky.") == Reading(["moon"], [PLAIN], [], "in the sky")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("A koala is jumping.", ["jumping"]),
        ("A bobo is jumping.", ["jumping"]),
        ("A koala and a dog are jumping on Mars.", ["jumping", "jumping"]),
        ("A koala and a dog are both jumping.", ["jumping", "jumping"]),
        ("A koala is jumping and a dog is running.", ["jumping", "running"]),
        ("A jumping koala meets a running dog.", ["jumping", "running"]),
        ("A koala is moonwalking and a dog is jumping.", []),
        ("A koala is moonwalking and a dog and a bobo are jumping.", []),
        ("A koala is jumping while a dog watches.", []),
        ("A koala and a dog are jumping and then running.", []),
        ("A koala is jumping and then running, and a dog is waving.", []),
        ("A koala is jumping and then running.", []),
        ("A koala.", []),
    ],
)
def test_a_movement_is_of_each_subject_only_where_it_is_said_of_it_or_shared(prompt: str, said: list[str]) -> None:
    assert doings(prompt) == said
