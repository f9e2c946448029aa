"""Who is where, in a recipe: the places there are, who may have one, and the words that tell subjects apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_recipe import DOG, JUMPING, recipe

from customttt.errors import UsageError
from customttt.recipe import PLACES, Ingredient, Subject, VideoRecipe
from customttt.wish import Settings

PAIR = recipe(others=(Subject(DOG, JUMPING, "right"),), place="left")
WORDS = recipe(others=(Subject(Ingredient("man", "man", "c" * 64), JUMPING),), apart=True)
HALVES = {"left": (0, 0.5, 0, 1), "right": (0.5, 1, 0, 1), "top": (0, 1, 0, 0.5), "bottom": (0, 1, 0.5, 1)}
THIRDS = {"left-third": (0, 1 / 3, 0, 1), "middle": (1 / 3, 2 / 3, 0, 1), "right-third": (2 / 3, 1, 0, 1)}
BESIDE = [("left", "right"), ("top", "bottom"), ("left-third", "middle"), ("left-third", "right-third"),
          ("middle", "right-third"), ("left", "right-third"), ("left-third", "right")]  # fmt: skip


def test_places_are_halves_and_thirds_of_the_frame() -> None:
    assert dict(PLACES) == {**HALVES, **THIRDS}


@pytest.mark.parametrize("one", PLACES)
@pytest.mark.parametrize("other", PLACES)
def test_places_side_by_side_go_together_and_no_others(one: str, other: str) -> None:
    subjects = {"others": (Subject(DOG, JUMPING, other),), "place": one}
    if (one, other) in BESIDE or (other, one) in BESIDE:
        assert recipe(**subjects).is_placed
        return
    with pytest.raises(UsageError, match=rf"'koala' \({one}\) and 'dog' \({other}\) overlap; give them places apart"):
        recipe(**subjects)


def test_a_third_subject_must_have_room_too() -> None:
    cat = Subject(Ingredient("cat", "cat", "e" * 64), JUMPING, "middle")
    assert replace(PAIR, place="left-third", others=(replace(PAIR.others[0], place="right-third"), cat)).is_placed
    with pytest.raises(UsageError, match=r"'dog'.+ and 'cat'.+ overlap"):
        replace(PAIR, place="left-third", others=(*PAIR.others, cat))


def test_what_a_place_reads_is_its_own_subjects_clause() -> None:
    assert PAIR.own_prompts == ["A koala is swimming on Mars.", "A dog is jumping on Mars."]
    whole = replace(PAIR, prompt="{appearance} sees how {dog} is jumping.", others=(Subject(DOG, None, "right"),))
    assert whole.own_prompts == ["A koala is swimming.", "A dog."]


def test_words_that_cannot_tell_subjects_apart_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^There is one subject in the video, and nothing to keep it apart from"):
        recipe(apart=True)
    with pytest.raises(UsageError, match=r"^Subjects are kept apart by their places or by their words; leave out one"):
        replace(PAIR, apart=True)
    with pytest.raises(UsageError, match=r"^Two subjects are called 'koala', and cannot be kept apart by it"):
        recipe(others=(Subject(Ingredient("other", "my KOALA", "f"), JUMPING),), apart=True)
    bear = Ingredient("bear", "koala bear", "f")  # its noun is its last word
    assert recipe(others=(Subject(bear, JUMPING),), apart=True).subjects[1].noun == "bear"
    assert VideoRecipe.from_dict(WORDS.to_dict()) == WORDS
    assert "apart" not in recipe().to_dict()


def test_places_are_kept_in_a_recipe_and_do_not_train_again() -> None:
    assert VideoRecipe.from_dict(PAIR.to_dict()) == PAIR
    free = recipe(others=(Subject(DOG, JUMPING),))
    assert free.placed({"koala": "left", "dog": "right"}) == PAIR
    assert PAIR.adaptation_key() == free.adaptation_key()
    assert "place" not in recipe().to_dict()
    assert PAIR.placed({}) == free
    assert PAIR.placed({"dog": "top"}).others[0].place == "top"
    assert recipe(place="top").is_placed
    assert recipe(place="top").subjects[0].place == "top"


def test_two_or_three_are_side_by_side_and_one_or_four_anywhere() -> None:
    crowd = [Subject(Ingredient(name, name, "d" * 64), JUMPING) for name in ("dog", "man", "cat")]
    for number, places in enumerate([("",), ("left", "right"), ("left-third", "middle", "right-third"), ("",) * 4]):
        made = recipe(others=tuple(crowd[:number])).side_by_side()
        assert tuple(one.place for one in made.subjects) == places
    wish = Settings(places={"dog": "top"})
    assert [one.place for one in wish.again(PAIR).subjects] == ["", "top"]
    assert [one.place for one in Settings(apart=True).again(PAIR).subjects] == ["", ""]
    assert Settings(steps=3).again(PAIR).place == "left"


def test_places_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match=r"The places of 'koala' \(left\) and 'dog' \(top\) overlap"):
        PAIR.placed({"koala": "left", "dog": "top"})
    with pytest.raises(UsageError, match=r"'cat' is no subject of this video; .+ to koala and dog"):
        PAIR.placed({"cat": "top"})
    with pytest.raises(UsageError, match="The place 'nowhere' is unknown; there are left, right"):
        PAIR.placed({"dog": "nowhere"})
    with pytest.raises(UsageError, match=r"^The place 'x{40}' is unknown"):
        PAIR.placed({"dog": "x" * 99})
    with pytest.raises(UsageError, match=r"^The recipe has a place that is no text"):
        VideoRecipe.from_dict({**PAIR.to_dict(), "others": [{**PAIR.to_dict()["others"][0], "place": 5}]})
    for place in PLACES:
        recipe(place=place)
