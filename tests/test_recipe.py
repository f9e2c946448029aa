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
from customttt.recipe import (
    Ingredient,
    Rival,
    VideoRecipe,
    check_prompt,
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
        ("a dog is {motion}", "A dog is swimming"),
    ],
)
def test_the_target_prompt_is_a_sentence(prompt: str, target: str) -> None:
    assert recipe(prompt).target_prompt == target


def test_the_prompts_of_test_time_training_are_those_of_the_paper() -> None:
    made = recipe()
    assert made.joint_prompt == "A koala is swimming."
    assert made.doing_prompts[0] == "A koala is standing."
    assert made.object_prompts[0] == "A man is swimming."
    assert recipe(ttt=TTTConfig(subject_moves=True)).object_prompts == ["A koala is swimming."]


def test_words_are_joined_as_english_does() -> None:
    assert sentence("a bear", "is lifting weights") == "A bear is lifting weights."
    assert phrase_of("teddy-bear_2") == "teddy bear 2"
    assert training_prompt("appearance", "owl") == "An owl."
    assert training_prompt("motion", "is swimming") == "Something is swimming."


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
