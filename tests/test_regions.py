"""Places: what a LoRA adds stays where its subject is, on every base, and without places nothing changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_recipe import DOG, JUMPING, SWIMMING, recipe
from torch import Tensor

from customttt import compose, lora, regions
from customttt.backbones import Backbone, open_base
from customttt.errors import UsageError
from customttt.recipe import PLACES, Ingredient, Subject, VideoRecipe

CPU = torch.device("cpu")
PAIR = recipe(others=(Subject(DOG, JUMPING, "right"),), place="left")


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
    some = regions.by_adapter(recipe(others=(Subject(DOG, JUMPING), cat), place="left"), shape)
    expected = {
        "appearance": left,
        "motion": left + right,
        "appearance2": right,
        "motion2": right,
        "appearance3": right,
    }
    assert list(some) == ["appearance", "motion", "appearance2", "motion2", "appearance3"]
    assert all(torch.allclose(some[slot], mask) for slot, mask in expected.items())


def loud(backbone: Backbone, made: VideoRecipe) -> lora.Loras:
    """LoRAs that can be seen, on everything that a concept of each kind may wrap."""
    generator, loras = torch.Generator().manual_seed(1), {}
    for slot in made.ingredients:
        kind = slot.rstrip("2")
        lora.inject(backbone.network, "new", backbone.targets(kind, backbone.layers(kind)), rank=2)  # type: ignore[arg-type]
        empty = lora.state(backbone.network, "new")
        lora.remove(backbone.network, "new")
        loras[slot] = {name: torch.randn(one.shape, generator=generator) * 0.1 for name, one in empty.items()}
    return loras


def test_a_lora_adds_nothing_outside_of_its_place(any_base: Path) -> None:
    """On every linear of every family: what its own mask spreads is where its output differs from the base's."""
    backbone = open_base(str(any_base), CPU)
    sample = backbone.defaults.sample
    made = replace(PAIR, sample=sample)
    shape = backbone.latent_shape(sample.num_frames, *sample.sides)
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str) -> None:
        backbone.network.get_submodule(name).register_forward_hook(
            lambda layer, given, out: seen.setdefault(name, []).append(out - layer.base_layer(given[0]))
        )

    loras = loud(backbone, made)
    for slot, weights in loras.items():
        lora.restore(backbone.network, slot, weights)
    for name in lora.wrapped(backbone.network):
        watch(name)
    noise, embeds = torch.randn(2, *shape), backbone.embed(["A koala.", ""])
    with torch.no_grad(), regions.kept_apart(backbone, made), lora.active(backbone.network, appearance=1, motion=1):
        backbone.predict(noise, torch.full((2,), 500.0), embeds)
    inside, checked = regions.by_adapter(made, shape[1:])["appearance"], 0
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


def test_places_change_a_video_and_leave_no_trace(tiny_random_base: Path) -> None:
    backbone = open_base(str(tiny_random_base), CPU)
    made = replace(PAIR, sample=backbone.defaults.sample)
    loras = loud(backbone, made)
    free = replace(made, place="", others=(Subject(DOG, JUMPING),))
    before = compose.render(backbone, loras, free)
    placed = compose.render(backbone, loras, made)
    assert (placed != before).any()
    assert (compose.render(backbone, loras, free) == before).all()
    assert (compose.render(backbone, loras, made) == placed).all()


def test_places_are_kept_in_a_recipe_and_do_not_train_again() -> None:
    assert VideoRecipe.from_dict(PAIR.to_dict()) == PAIR
    free = recipe(others=(Subject(DOG, JUMPING),))
    assert free.placed({"koala": "left", "dog": "right"}) == PAIR
    assert PAIR.adaptation_key() == free.adaptation_key()
    assert "place" not in recipe().to_dict()


def test_places_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match=r"The places of 'koala' \(left\) and 'dog' \(top\) overlap"):
        PAIR.placed({"dog": "top"})
    with pytest.raises(UsageError, match=r"'cat' is no subject of this video; .+ to koala and dog"):
        PAIR.placed({"cat": "top"})
    with pytest.raises(UsageError, match="The place 'nowhere' is unknown; there are left, right"):
        PAIR.placed({"dog": "nowhere"})
    with pytest.raises(UsageError, match="a place that is no text"):
        VideoRecipe.from_dict({**PAIR.to_dict(), "others": [{**PAIR.to_dict()["others"][0], "place": 5}]})
    for place in PLACES:
        recipe(place=place)
