"""Recipes: the sentences they make, and what the adapted LoRAs depend on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_library import concept
from tokenizers import Tokenizer

import customttt.tiny
from customttt.config import SampleConfig, TTTConfig
from customttt.errors import UsageError
from customttt.limits import MAX_SUBJECTS
from customttt.recipe import (
    MAX_THREADS,
    Ingredient,
    Rival,
    Subject,
    VideoRecipe,
    check_prompt,
    joint_sentence,
    kind_of,
    listed,
    phrase_of,
    renoised,
    sentence,
    stretches,
    training_prompt,
    with_article,
)


def recipe(prompt: str = "on Mars", **options: object) -> VideoRecipe:
    appearance = Ingredient("koala", "koala", "a" * 64)
    motion = Ingredient("swimming", "swimming", "b" * 64)
    made = VideoRecipe(appearance, motion, prompt, "tiny", "f00d", TTTConfig(), SampleConfig())
    return replace(made, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("on Mars", "A koala is swimming on Mars."),
        ("on Mars.", "A koala is swimming on Mars."),
        ("on planet X.", "A koala is swimming on planet X."),
        ("", "A koala is swimming."),
        ("{appearance} and a dog are {motion}", "A koala and a dog are swimming"),
        ("there {appearance} stands", "There a koala stands"),
        ("{appearance} in {braces}", "A koala in {braces}"),
        ("a dog is {motion}", "A dog is swimming"),
    ],
)
def test_the_target_prompt_is_a_sentence(prompt: str, target: str) -> None:
    assert recipe(prompt).target_prompt == target


def test_the_prompts_of_test_time_training_are_those_of_the_paper() -> None:
    made = recipe()
    assert made.joint_prompt == "A koala is swimming."
    assert made.teacher_prompts["appearance"][0] == "A koala is standing."
    assert made.teacher_prompts["motion"][0] == "A man is swimming."
    assert recipe(ttt=TTTConfig(subject_moves=True)).teacher_prompts["motion"] == ["A koala is swimming."]


def test_words_are_joined_as_english_does() -> None:
    assert sentence("a bear", "is lifting weights") == "A bear is lifting weights."
    assert phrase_of("teddy-bear_2") == "teddy bear 2"
    assert training_prompt("appearance", "owl") == "An owl."
    assert training_prompt("motion", "is swimming") == "Something is swimming."
    assert with_article("my old brown dog") == "my old brown dog"
    assert [listed(["a", "b", "c"][:number]) for number in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


def test_a_noun_gets_the_article_that_is_spoken() -> None:
    for noun in "owl", "Umbrella", "uninvited guest", "unimportant man", "eel":
        assert with_article(noun) == f"an {noun}"
    for noun in "koala", "unicorn", "Unicorn", "UFO", "user", "European", "one-eyed cat":
        assert with_article(noun) == f"a {noun}"


@pytest.mark.parametrize("word", "a an the my your his her its our their one two some My".split())  # noqa: SIM905
def test_a_noun_that_has_a_determiner_gets_no_article(word: str) -> None:
    assert with_article(f"{word} old dog") == f"{word} old dog"


def test_a_recipe_survives_json() -> None:
    made = recipe(seed=7)
    assert VideoRecipe.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_a_recipe_of_format_1_still_loads() -> None:
    def written(name: str, letter: str) -> dict[str, str]:
        return {"name": name, "phrase": name, "sha256": 64 * letter}

    older = {
        "customttt": 1, "versions": {"torch": "2.6"}, "appearance": written("koala", "a"),
        "motion": written("swimming", "b"), "prompt": "on Mars", "base": "tiny", "base_fingerprint": "f00d",
        "ttt": {}, "sample": {},
    }  # fmt: skip
    assert VideoRecipe.from_dict(older) == recipe(appearance=Ingredient("koala", "koala", "a" * 64, 1.0), seed=0)
    assert recipe().to_dict()["customttt"] == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [({"customttt": 99}, "^The recipe was not written by this version of customttt; it cannot be rendered again"),
     ({"nonsense": 1}, "unknown settings: nonsense"), ({"appearance": {"name": "x"}}, "incomplete")],
    ids=["version", "unknown", "incomplete"],
)  # fmt: skip
def test_what_is_no_recipe_is_refused(change: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        VideoRecipe.from_dict({**recipe().to_dict(), **change})
    with pytest.raises(UsageError, match="this version"):
        VideoRecipe.from_dict({"prompt": "on Mars"})


def test_an_ingredient_is_a_concept_with_the_digest_of_its_weights() -> None:
    files = {"lora.safetensors": "a" * 64, "preview.png": "b" * 64}
    koala = concept("koala", phrase="my koala", files=files)
    assert Ingredient.of(koala) == Ingredient("koala", "my koala", "a" * 64, 1.0)
    assert Ingredient.of(koala, 0.5).scale == 0.5


def test_another_seed_is_all_that_differs() -> None:
    assert recipe().with_seed(3) == recipe(seed=3)


def test_as_published_both_loras_act_throughout_and_words_rate_and_guidance_stay() -> None:
    words = {"learning_rate": 1e-4, "doings": ("resting",), "objects": ("dog",)}
    own = recipe(
        ttt=TTTConfig(steps=5, student_rests=True, **words),  # type: ignore[arg-type]
        sample=SampleConfig(guidance_scale=3.0, appearance_from=0.3, motion_until=0.8, unconditional_scale=0.5),
    )
    published = TTTConfig(reference_guidance=3.0, **words)  # type: ignore[arg-type]
    assert own.as_published() == recipe(ttt=published, sample=SampleConfig(guidance_scale=3.0))


@pytest.mark.parametrize(
    "change",
    [{"seed": 5}, {"prompt": "in the snow"}, {"appearance": Ingredient("koala", "koala", "a" * 64, scale=0.5)},
     {"sample": SampleConfig(guidance_scale=3.0)}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_seed_scene_scale_and_guidance_do_not_train_again(change: dict[str, object]) -> None:
    assert recipe(**change).adaptation_key() == recipe().adaptation_key()


@pytest.mark.parametrize(
    "change",
    [{"ttt": TTTConfig(steps=5)}, {"motion": Ingredient("swimming", "swimming", "c" * 64)}, {"base_fingerprint": "x"},
     {"appearance": Ingredient("koala", "wombat", "a" * 64)}, {"appearance": Ingredient("koala", "koala", "c" * 64)},
     {"sample": SampleConfig(num_frames=8)}, {"sample": SampleConfig(unconditional_scale=0.5)},
     {"ttt": TTTConfig(student_rests=True)}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_training_depends_on_trains_again(change: dict[str, object]) -> None:
    assert recipe(**change).adaptation_key() != recipe().adaptation_key()


def test_texts_have_a_length_that_can_be_read() -> None:
    check_prompt("x" * 1000)
    recipe(base="x" * 4096)
    with pytest.raises(UsageError, match=r"^The prompt has 1,001 characters; at most 1,000 are read"):
        check_prompt("x" * 1001)
    with pytest.raises(UsageError, match=r"^The recipe's base has 4,097 characters; at most 4,096 are read"):
        recipe(base="x" * 4097)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Ingredient("x\n", "koala", "a"), "name"),
        (lambda: Ingredient("x", "koala\n", "a"), "phrase"),
        (lambda: Ingredient("x", "koala", "\n"), "sha256"),
        (lambda: Rival("full\n", "c"), "name"),
        (lambda: Rival("full", "\n"), "key"),
        (lambda: recipe(base="\n"), "base"),
        (lambda: recipe(base_fingerprint="\n"), "base fingerprint"),
    ],
)
def test_every_text_of_a_recipe_is_one_line(make: Callable[[], object], named: str) -> None:
    with pytest.raises(UsageError, match=f"^The recipe's {named} holds a line break"):
        make()


SPACES = "\t\u00a0\u1680\u2002\u2003\u2009\u200a\u202f\u205f\u3000"


@pytest.mark.parametrize("space", SPACES, ids=ascii)
def test_spaces_of_every_kind_are_spaces(space: str) -> None:
    check_prompt(f"on{space}Mars")
    assert recipe(prompt=f"{space}on Mars{space}").target_prompt == "A koala is swimming on Mars."


def test_the_embedded_base_reads_every_space_as_one() -> None:
    file = Path(customttt.tiny.__file__).parent / "weights" / "tokenizer" / "tokenizer.json"
    read = Tokenizer.from_file(str(file)).encode
    assert {tuple(read(f"a koala on{space}mars").ids) for space in f" {SPACES}"} == {tuple(read("a koala on mars").ids)}


@pytest.mark.parametrize(
    "text",
    ["a \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f", "\U0001f3f4\U000e0067\U000e007f",
     "می\u200cخواهم", "\u200fשלום", "co\u00adop", "\ue000", "\U0001fae9", "한국어", "e\u0301"],
    ids=ascii,
)  # fmt: skip
def test_joiners_and_letters_of_every_script_are_text(text: str) -> None:
    check_prompt(text)


@pytest.mark.parametrize(
    ("character", "called"),
    [
        *((chr(code), f"the control character U+{code:04X}") for code in (0, 7, 8, 0x1B, 0x1F, 0x7F, 0x80, 0x9B)),
        *((chr(code), f"the control character U+{code:04X}") for code in (0x202A, 0x202E, 0x2066, 0x2069)),
        *((mark, "a line break") for mark in "\n\r\v\f\x85\u2028\u2029"),
        *(
            (chr(code), rf"half a character \(U\+{code:04X}\), as is left of text that is not UTF-8")
            for code in (0xD800, 0xDC80, 0xDFFF)
        ),
    ],
    ids=ascii,
)
def test_what_is_no_text_is_refused_by_its_name(character: str, called: str) -> None:
    with pytest.raises(UsageError, match=rf"^The prompt holds {called.replace('U+', 'U.')}.*; write it as one line"):
        check_prompt(f"on{character} Mars")


def test_a_scale_out_of_range_is_refused() -> None:
    for scale in (-0.1, 4.1, 9.0):
        with pytest.raises(UsageError, match=f"The scale {scale:g} is out of range"):
            recipe(appearance=Ingredient("koala", "koala", "a" * 64, scale))
    for scale in (0.0, 4.0):
        recipe(motion=Ingredient("swimming", "swimming", "b" * 64, scale))


def test_a_recipe_from_before_there_were_rivals_still_loads() -> None:
    older = json.loads(json.dumps(recipe().to_dict()))
    del older["rival"]
    assert VideoRecipe.from_dict(older) == recipe()


def test_a_rival_s_recipe_survives_json_and_is_no_other_method_s() -> None:
    plain = recipe(ttt=TTTConfig(steps=0))
    made = replace(plain, rival=Rival("full", "c" * 64))
    assert VideoRecipe.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert made not in (plain, replace(plain, rival=Rival("dreamvideo", "c" * 64)))


def test_a_rival_knows_no_test_time_training() -> None:
    with pytest.raises(UsageError, match="'full', which knows no test-time training"):
        recipe(rival=Rival("full", "c" * 64))


def test_a_student_that_rests_or_is_weaker_trains_again_where_sampling_changes() -> None:
    rests = recipe(ttt=TTTConfig(student_rests=True))
    later = replace(rests, sample=rests.sample.but(appearance_from=0.3))
    sooner = replace(later, sample=rests.sample.but(appearance_from=0.2))
    longer = replace(later, ttt=later.ttt.but(steps=31))
    assert len({one.adaptation_key() for one in (rests, later, sooner, longer)}) == 4
    scales = (recipe(sample=SampleConfig(unconditional_scale=scale)) for scale in (0.0, 0.5, 0.6, 1.0))
    assert len({one.adaptation_key() for one in scales}) == 4
    shapes = (recipe(sample=SampleConfig(aspect=aspect)) for aspect in ((1, 1), (16, 9), (9, 16)))
    assert len({one.adaptation_key() for one in shapes}) == 3


def test_where_nothing_could_be_learned_is_refused() -> None:
    late = TTTConfig(renoise_appearance=(0.7, 1.0), student_rests=True)
    with pytest.raises(UsageError, match="The appearance reference is noised again"):
        recipe(ttt=late, sample=SampleConfig(appearance_from=0.4))
    with pytest.raises(UsageError, match=r"from 0\.5 to 1, where no LoRA acts on it"):  # not even for an instant
        recipe(ttt=late.but(renoise_appearance=(0.5, 1.0)), sample=SampleConfig(appearance_from=0.5))
    recipe(ttt=late.but(steps=0), sample=SampleConfig(appearance_from=0.4))


def test_both_loras_act_from_clean_to_noise_where_none_rests() -> None:
    both = frozenset({"appearance", "motion"})
    assert stretches(SampleConfig()) == [(both, (0.0, 1.0))]
    apart = TTTConfig(renoise_appearance=(0.1, 0.3), renoise_motion=(0.2, 0.5))
    assert renoised("appearance", apart, SampleConfig()) == [(both, (0.1, 0.3))]
    assert renoised("motion", apart, SampleConfig()) == [(both, (0.2, 0.5))]


def test_the_parts_of_the_noise_are_those_of_sampling_where_the_student_rests() -> None:
    rests, both = SampleConfig(appearance_from=0.25, motion_until=0.5), frozenset({"appearance", "motion"})
    plain, resting = TTTConfig(), TTTConfig(student_rests=True)
    everywhere = [(both, (0.0, 1.0))]
    assert renoised("appearance", plain, rests) == renoised("motion", plain, rests) == everywhere
    assert renoised("appearance", resting, SampleConfig()) == renoised("motion", resting, SampleConfig()) == everywhere
    alone = [(frozenset({"appearance"}), (0.0, 0.5)), (both, (0.5, 0.75))]
    assert renoised("appearance", resting, rests) == alone  # it has nothing to learn where it rests
    assert renoised("motion", resting, rests) == [*alone, (frozenset({"motion"}), (0.75, 1.0))]
    gap = SampleConfig(appearance_from=0.75, motion_until=0.5)
    assert [where for _, where in renoised("motion", resting, gap)] == [(0.0, 0.25), (0.5, 1.0)]


DOG, JUMPING = Ingredient("dog", "dog", "c" * 64), Ingredient("jumping", "jumping", "d" * 64)
CAT, SWIMMING = Ingredient("my-cat", "my cat", "e" * 64), Ingredient("swimming", "swimming", "b" * 64)
FOX, JUMPER, BYSTANDER = replace(DOG, name="fox"), Subject(DOG, JUMPING), Subject(CAT)


@pytest.mark.parametrize(
    ("prompt", "others", "target"),
    [
        ("on Mars", (JUMPER,), "A koala is swimming and a dog is jumping on Mars."),
        ("", (Subject(DOG, SWIMMING),), "A koala and a dog are swimming."),
        ("on Mars", (Subject(DOG, SWIMMING),), "A koala and a dog are swimming on Mars."),
        ("on Mars.", (JUMPER, Subject(CAT, JUMPING)),
         "A koala is swimming, a dog is jumping and my cat is jumping on Mars."),
        ("{koala} is {swimming} while {my-cat} sleeps", (BYSTANDER,), "A koala is swimming while my cat sleeps"),
        ("{appearance} and {dog} are {motion}", (JUMPER,), "A koala and a dog are swimming"),
        ("{koala} and the dog are {jumping}", (JUMPER,), "A koala and the dog are jumping"),
    ],
)  # fmt: skip
def test_several_subjects_stand_in_one_sentence(prompt: str, others: tuple[Subject, ...], target: str) -> None:
    assert recipe(prompt, others=others).target_prompt == target


def test_a_verb_that_says_is_says_it_once() -> None:
    assert joint_sentence([("a dog", "is jumping"), ("a cat", "is lying")]) == "A dog is jumping and a cat is lying."
    assert joint_sentence([("a dog", "is jumping"), ("a cat", "is jumping")]) == "A dog and a cat are jumping."
    assert joint_sentence([("a dog", ""), ("a cat", "")], "at night") == "A dog and a cat at night."


def test_there_are_sixteen_subjects_at_most() -> None:
    crowd = [Subject(Ingredient(f"dog{number}", f"dog{number}", "d" * 64), JUMPING) for number in range(MAX_SUBJECTS)]
    assert len(recipe(others=tuple(crowd[1:])).subjects) == MAX_SUBJECTS
    with pytest.raises(UsageError, match=rf"^The video has 17 subjects; at most {MAX_SUBJECTS} are taken"):
        recipe(others=tuple(crowd))


@pytest.mark.parametrize("threads", [-1, MAX_THREADS + 1])
def test_threads_that_cannot_be_are_refused(threads: int) -> None:
    with pytest.raises(UsageError, match=f"^The recipe's threads are {threads}; they must be 0 to 4,096"):
        recipe(threads=threads)
    assert recipe().threads == 0
    assert recipe(threads=MAX_THREADS) == recipe(), "they change the last bits, not what the video is of"


def test_ingredients_are_named_by_subject_and_a_shared_motion_is_one() -> None:
    several = recipe("{koala} {dog} {my-cat} {fox}", others=(Subject(DOG, SWIMMING), BYSTANDER, Subject(FOX, JUMPING)))
    names = {slot: one.name for slot, one in several.ingredients.items()}
    assert names == {
        "appearance": "koala", "motion": "swimming", "appearance2": "dog", "appearance3": "my-cat",
        "appearance4": "fox", "motion4": "jumping",
    }  # fmt: skip
    assert [kind_of(slot) for slot in names] == ["appearance", "motion", *["appearance"] * 3, "motion"]
    assert list(recipe().ingredients) == ["appearance", "motion"]


@pytest.mark.parametrize(
    ("prompt", "count", "target", "last"),
    [
        ("on Mars", 1, "A koala is swimming and then jumping on Mars.", "A koala is jumping on Mars."),
        ("", 2, "A koala is swimming, then jumping and then diving.", "A koala is diving."),
        ("at night {appearance} is {motion}", 1, "At night a koala is swimming and then jumping",
         "At night a koala is jumping"),
    ],
)  # fmt: skip
def test_one_motion_after_another_is_a_video_of_each_in_its_turn(
    prompt: str, count: int, target: str, last: str
) -> None:
    then = (JUMPING, Ingredient("diving", "is diving", "e" * 64))[:count]
    several = recipe(prompt, then=then)
    assert several.target_prompt == target
    assert [one.motion for one in several.turns] == [several.motion, *then]
    assert several.turns[0] == recipe(prompt)
    assert several.turns[-1].target_prompt == last
    assert list(several.ingredients)[:4] == ["appearance", "motion", "appearance2", "motion2"]
    assert VideoRecipe.from_dict(json.loads(json.dumps(several.to_dict()))) == several
    assert recipe(then=then[::-1]).target_prompt.count("is") == 1
    assert "then" not in recipe().to_dict()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"others": (JUMPER,)}, "one subject is alone"),
        ({"place": "left"}, "one subject is alone"),
        ({"then": (JUMPING, JUMPING)}, "'jumping' is a motion twice"),
        ({"then": (SWIMMING,)}, "'swimming' is a motion twice"),
        ({"prompt": "{appearance} {jumping}"}, "write {motion} in its place"),
        ({"rival": Rival("full", "d" * 64), "ttt": TTTConfig(steps=0)}, "'full' knows one motion"),
    ],
)
def test_motions_that_cannot_come_one_after_the_other_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipe(**{"then": (JUMPING,), **options})  # type: ignore[arg-type]


def test_each_of_several_motions_takes_four_frames() -> None:
    for frames, then in ((8, (JUMPING,)), (1, ())):
        recipe(then=then, sample=SampleConfig(num_frames=frames)).check_frames()
    with pytest.raises(UsageError, match="7 frames are too few for 2 motions"):
        recipe(then=(JUMPING,), sample=SampleConfig(num_frames=7)).check_frames()


def test_each_teacher_shows_its_own_ingredient_and_the_student_reads_of_all() -> None:
    several = recipe("{koala} runs from {dog} and {my-cat}", others=(JUMPER, BYSTANDER))
    read = {slot: texts[0] for slot, texts in several.teacher_prompts.items()}
    assert read == {
        "appearance": "A koala is standing.", "motion": "A man is swimming.", "appearance2": "A dog is standing.",
        "motion2": "A man is jumping.", "appearance3": "My cat is standing.",
    }  # fmt: skip
    assert several.joint_prompt == "A koala is swimming, a dog is jumping and my cat is standing."
    moves = replace(several, ttt=TTTConfig(subject_moves=True)).teacher_prompts
    assert (moves["motion"], moves["motion2"]) == (["A koala is swimming."], ["A dog is jumping."])


def test_a_recipe_of_several_survives_json_and_one_of_a_single_subject_is_written_as_ever() -> None:
    several = recipe("{koala} {dog} {my-cat}", others=(JUMPER, BYSTANDER))
    assert VideoRecipe.from_dict(json.loads(json.dumps(several.to_dict()))) == several
    assert "others" not in recipe().to_dict()


def test_adapted_loras_of_earlier_versions_are_found_again() -> None:
    assert recipe().adaptation_key() == "5a00f8019a1d3bc1715b2f738aa21acfb31aefdd1843422e23109fbb3b9acb8d"


def test_further_subjects_train_again() -> None:
    other = replace(JUMPER, appearance=replace(DOG, sha256="f" * 64))
    ones = [recipe(), *(recipe(others=(one,)) for one in (JUMPER, other, Subject(DOG, SWIMMING)))]
    assert len({one.adaptation_key() for one in ones}) == 4
    louder = Subject(replace(DOG, scale=0.5), JUMPING)
    assert recipe(others=(louder,)).adaptation_key() == ones[1].adaptation_key()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"others": (Subject(Ingredient("koala", "bear", "f"), JUMPING),)}, "'koala' is a subject twice"),
        ({"others": (BYSTANDER,)},
         r'What \'my-cat\' does is not said; .+ "{koala} is {swimming} and {my-cat} is standing on Mars"'),
        ({"others": (JUMPER,), "prompt": "{koala} and {cat}"},
         "{cat}, which is nothing in this video; it has {koala}, {swimming}, {dog} and {jumping}"),
        ({"others": (JUMPER,), "prompt": "{koala} alone"}, "does not speak of 'dog'; write {dog}"),
        ({"others": (Subject(replace(DOG, scale=5.0), JUMPING),)}, "scale 5 is out of range"),
        ({"others": (JUMPER,), "rival": Rival("full", "c"), "ttt": TTTConfig(steps=0)}, "'full' knows one subject"),
    ],
    ids=["twice", "still", "unknown", "unnamed", "scale", "rival"],
)  # fmt: skip
def test_subjects_that_cannot_be_told_are_refused(change: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        recipe(**change)


@pytest.mark.parametrize("others", [5, "dog", [5], [{}], [{"appearance": {"name": "x"}}], [{"motion": None}], {"a": 1}])
def test_subjects_that_are_none_are_refused(others: object) -> None:
    with pytest.raises(UsageError, match=r"^The recipe"):
        VideoRecipe.from_dict({**recipe().to_dict(), "others": others})
