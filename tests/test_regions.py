"""Places: what a LoRA adds stays where its subject is, on every base, and without places nothing changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_places import PAIR, WORDS
from test_recipe import DOG, JUMPING, SWIMMING, recipe
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from customttt import compose, lora, regions
from customttt.backbones import Backbone, open_base
from customttt.errors import UsageError
from customttt.recipe import Ingredient, Subject, kind_of
from customttt.sampling import denoise_in_phases

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone(any_base: Path) -> Backbone:
    return open_base(str(any_base), CPU)


def test_places_are_where_they_say_and_fade_into_their_neighbours() -> None:
    left, right = (regions.region(place, (2, 8, 16)) for place in ("left", "right"))
    assert left.shape == (2, 8, 16)
    assert left[:, :, :6].eq(1).all()
    assert left[:, :, 10:].eq(0).all()
    assert torch.allclose(left + right, torch.ones(2, 8, 16))
    top, bottom = (regions.region(place, (1, 16, 4)) for place in ("top", "bottom"))
    assert top[:, :6].eq(1).all()
    assert torch.allclose(top + bottom, torch.ones(1, 16, 4))
    thirds = [regions.region(place, (1, 4, 24)) for place in ("left-third", "middle", "right-third")]
    assert torch.allclose(sum(thirds, start=torch.zeros(1)), torch.ones(1, 4, 24))


def test_who_has_no_place_is_where_nobody_is_placed_and_a_shared_motion_where_any_is() -> None:
    shape, cat = (1, 8, 16), Subject(Ingredient("cat", "cat", "f" * 64), SWIMMING)
    left, right = regions.region("left", shape), regions.region("right", shape)
    made = recipe(others=(Subject(DOG, JUMPING), cat), place="left")
    some = regions.by_adapter(made, regions._by_place(made, shape))
    expected = {
        "appearance": left,
        "motion": left + right,
        "appearance2": right,
        "motion2": right,
        "appearance3": right,
    }
    assert list(some) == ["appearance", "motion", "appearance2", "motion2", "appearance3"]
    assert all(torch.allclose(some[slot], mask) for slot, mask in expected.items())


def wear(backbone: Backbone, slots: Iterable[str], every: int = 1) -> None:
    """Put LoRAs in that can be seen, on all that a concept may wrap in each or every so manieth layer."""
    generator = torch.Generator().manual_seed(1)
    for slot in slots:
        kind = kind_of(slot)
        for parameter in lora.inject(
            backbone.network, slot, backbone.targets(kind, backbone.layers(kind)[::every]), rank=2
        ):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def test_a_lora_adds_nothing_outside_of_its_place(backbone: Backbone) -> None:
    """On every linear of every family: what its own mask spreads is where its output differs from the base's."""
    sample = backbone.defaults.sample
    made = replace(PAIR, sample=sample)
    shape = backbone.latent_shape(sample.num_frames, *sample.sides)
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str) -> RemovableHandle:
        return backbone.network.get_submodule(name).register_forward_hook(
            lambda layer, given, out: seen.setdefault(name, []).append(out - layer.base_layer(given[0]))
        )

    wear(backbone, ["appearance", "motion"])
    hooks = [watch(name) for name in lora.wrapped(backbone.network)]
    noise, embeds = torch.randn(2, *shape), backbone.embed(["A koala.", ""])
    with (
        torch.no_grad(),
        regions.kept_apart(backbone, made, embeds[:1]),
        lora.active(backbone.network, appearance=1, motion=1),
    ):
        backbone.predict(noise, torch.full((2,), 500.0), embeds)
    for hook in hooks:
        hook.remove()
    lora.remove(backbone.network, "appearance", "motion")
    inside, checked = regions.region("left", shape[1:]), 0
    for name, (added,) in seen.items():
        mask = backbone.spread(name, inside)
        if mask is None:
            assert added.shape[1] == backbone.prompt_shape[0] or added.any()
            continue
        positions = added.unflatten(0, (2, len(mask)))
        assert positions.masked_select((mask == 0).expand_as(positions)).eq(0).all(), name
        assert positions.masked_select((mask > 0).expand_as(positions)).any(), name
        checked += 1
    assert checked > 20


def test_a_place_has_a_prediction_of_its_own_subject_in_the_middle_of_the_frame(backbone: Backbone) -> None:
    made = replace(PAIR, sample=backbone.defaults.sample)
    shape = backbone.latent_shape(made.sample.num_frames, *made.sample.sides)[1:]
    left, right = regions.areas(backbone, made)
    assert torch.allclose(left.share + right.share, torch.ones(shape))
    assert torch.equal(left.embeds, backbone.embed(["A koala is swimming on Mars."]))
    assert torch.equal(right.embeds, backbone.embed(["A dog is jumping on Mars."]))
    assert (left.adapters, right.adapters) == ({"appearance", "motion"}, {"appearance2", "motion2"})
    assert left.shift == -right.shift == round(shape[-1] / 4)
    upright = replace(made, place="top", others=(Subject(DOG, SWIMMING, "bottom"),))
    assert [area.shift for area in regions.areas(backbone, upright)] == [0, 0]
    assert regions.areas(backbone, upright)[1].adapters == {"appearance2", "motion"}
    assert regions.areas(backbone, replace(made, place="", others=())) == []
    assert regions.areas(backbone, replace(WORDS, sample=made.sample)) == []


def test_each_of_several_motions_has_frames_of_its_own(backbone: Backbone) -> None:
    frames = 9
    made = recipe(then=(JUMPING,), sample=backbone.defaults.sample.but(num_frames=frames))
    first, second = regions.turns(backbone, made)
    latents, _, _ = backbone.latent_shape(frames, *made.sample.sides)[1:]
    assert torch.allclose(first.share + second.share, torch.ones(latents, 1, 1))
    assert first.share[0] == second.share[-1] == 1
    assert torch.equal(second.embeds, backbone.embed(["A koala is jumping on Mars."]))
    assert (first.adapters, second.adapters) == ({"appearance", "motion"}, {"appearance2", "motion2"})
    assert regions.turns(backbone, recipe(sample=made.sample)) == []


def test_places_and_words_change_a_video_and_leave_no_trace(tiny_random_base: Path) -> None:
    base = open_base(str(tiny_random_base), CPU)
    sample = base.defaults.sample.but(num_inference_steps=2)
    free = replace(WORDS, sample=sample, apart=False)
    wear(base, free.ingredients, 4)
    loras = {slot: lora.state(base.network, slot) for slot in free.ingredients}
    lora.remove(base.network, *loras)
    placed, apart = free.placed({"koala": "left", "man": "right"}), replace(free, apart=True)
    before, *others, after = (compose.render(base, loras, one) for one in (free, placed, apart, free))
    assert all((one != before).any() for one in others)
    assert (others[0] != others[1]).any()
    assert (before == after).all()


def test_a_video_that_fails_before_it_begins_leaves_no_adapters(
    tiny_random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next would be drawn with what is left of this one."""
    base, restore = open_base(str(tiny_random_base), CPU), lora.restore

    def full(network: torch.nn.Module, slot: str, weights: lora.Weights) -> object:
        if slot == "motion":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return restore(network, slot, weights)

    wear(base, ["appearance"], 4)
    loras = {"appearance": lora.state(base.network, "appearance"), "motion": {}}
    lora.remove(base.network, "appearance")
    monkeypatch.setattr(lora, "restore", full)
    with pytest.raises(torch.OutOfMemoryError):
        compose.render(base, loras, recipe(sample=base.defaults.sample))
    assert lora.wrapped(base.network) == []


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(
    ("places", "expected"),
    [(("", ""), 1), (("left", "right"), 2), (("left", ""), 2), (("left-third", "right-third"), 3), (("left",), 2)],
)
def test_a_recipe_knows_how_many_predictions_a_step_takes(
    guidance: float, places: tuple[str, ...], expected: int, tiny_random_wan_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, asked = open_base(str(tiny_random_wan_base), CPU), []
    predict = base.predict

    def counted(noisy: Tensor, *rest: Tensor) -> Tensor:
        asked.append(len(noisy))
        return predict(noisy, *rest)

    monkeypatch.setattr(base, "predict", counted)
    others = tuple(Subject(DOG, JUMPING, place) for place in places[1:])
    sample = base.defaults.sample.but(num_inference_steps=1, guidance_scale=guidance)
    made = recipe(others=others, place=places[0], sample=sample)
    embeds = base.embed([made.target_prompt]), base.embed([""])
    noise = compose.initial_noise(base, sample, 0)
    denoise_in_phases(base, noise, *embeds, sample, {}, areas=regions.areas(base, made))
    assert sum(asked) == made.predictions == expected + (guidance != 1)


def test_words_are_read_where_they_stand(backbone: Backbone) -> None:
    koala, man = (backbone.tokens_of("A koala and a man and a koala.", word) for word in ("koala", "man"))
    assert len(koala) == 2 * len(man)
    assert koala[0] < man[0] < koala[-1]
    with pytest.raises(UsageError, match="'mars' is not read in 'A koala'"):
        backbone.tokens_of("A koala", "mars")
    _, most = backbone.count_tokens("")
    long = "koala " + "man " * most + "koala"
    assert max(backbone.tokens_of(long, "koala")) < most, "the end is not read"
    with pytest.raises(UsageError, match="'koala' is not read in"):
        backbone.tokens_of("man " * most + "koala", "koala")


def test_each_position_belongs_to_the_word_that_is_read_most_there() -> None:
    read = torch.tensor([[0.4, 0.2, 0.0], [0.1, 0.2, 0.3]]).view(2, 1, 1, 3)
    whose = regions.shares(read).view(2, 3)
    assert torch.allclose(whose.sum(0), torch.ones(3))
    assert whose[0, 0] > 0.9
    assert whose[1, 2] == 1
    assert torch.equal(whose[0, 1], whose[1, 1])


def test_loras_follow_the_words_of_their_subjects_and_leave_no_trace(backbone: Backbone) -> None:
    """Once the prompt was read, alone or beside the empty one; the empty prompt is not listened to."""
    sample, network = backbone.defaults.sample, backbone.network
    made = replace(WORDS, sample=sample)
    embeds = backbone.embed([made.target_prompt, ""])
    noise = torch.randn(1, *backbone.latent_shape(sample.num_frames, *sample.sides))
    words, steps = regions.Words(backbone, made, embeds[:1]), torch.tensor([500.0])
    wear(backbone, made.ingredients, 4)
    with torch.no_grad(), lora.active(network, **dict.fromkeys(made.ingredients, 1.0)), words.followed():
        backbone.predict(noise, steps, embeds[1:])
        assert words.kept is None
        everywhere, apart = (backbone.predict(noise, steps, embeds[:1]) for _ in range(2))
        assert (everywhere != apart).any()
        assert words.masks[lora.wrapped(network)[-1]].keys() == made.ingredients.keys()
    lora.remove(network, *made.ingredients)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_what_is_read_is_the_same_beside_the_empty_prompt(tiny_random_base: Path) -> None:
    base = open_base(str(tiny_random_base), CPU)
    sample = base.defaults.sample
    embeds = base.embed([WORDS.target_prompt, ""])
    noise, kept = torch.randn(1, *base.latent_shape(sample.num_frames, *sample.sides)), []
    for number in (1, 2):
        words = regions.Words(base, replace(WORDS, sample=sample), embeds[:1])
        with torch.no_grad(), words.followed():
            base.predict(noise.expand(number, -1, -1, -1, -1), torch.full((number,), 500.0), embeds[:number])
        kept.append(words.kept)
    assert torch.allclose(kept[0], kept[1], atol=1e-5)  # type: ignore[arg-type]
