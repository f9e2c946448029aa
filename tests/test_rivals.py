"""The rivals that learn anew: what each learns in, what it keeps, and what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from customttt import checkpoint, compose, lora, media
from customttt.backbones import Backbone, open_base
from customttt.concept import Concept
from customttt.library import Library
from customttt.measure import rivals
from customttt.measure.compare import METHODS
from customttt.measure.rivals import Material, MethodWeights
from customttt.progress import Progress, silent
from customttt.recipe import Ingredient, VideoRecipe

STEPS = 4


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def backbone(tiny_random_base: Path) -> Backbone:
    return open_base(str(tiny_random_base), torch.device("cpu"))


@pytest.fixture(scope="module")
def library(_learned_once: Path) -> Library:
    return Library(_learned_once)


@pytest.fixture(scope="module")
def material(library: Library, backbone: Backbone, pictures: Path, clip: Path) -> Material:
    return material_of(library, backbone, pictures, clip)


def material_of(library: Library, backbone: Backbone, pictures: Path, clip: Path) -> Material:
    concepts = [with_steps(library.get(name)) for name in ("koala", "swimming")]
    sample = backbone.defaults.sample
    seen = media.read_pictures([pictures], sample.size)
    return Material(
        *concepts, seen, media.read_clip(clip, sample.num_frames, sample.fps, sample.size), backbone.defaults
    )


def with_steps(concept: Concept, **changes: object) -> Concept:
    return concept.model_copy(update={"steps": STEPS, **changes})


@pytest.fixture(scope="module")
def taught(backbone: Backbone, material: Material, accelerator: Accelerator) -> Mapping[str, MethodWeights]:
    """What every rival learns, each once."""
    return {name: rivals.teach(name, backbone, material, accelerator) for name in rivals.RIVALS}


def modules(weights: Mapping[str, torch.Tensor]) -> set[str]:
    return {key.rsplit(".lora_", 1)[0] for key in weights}


def test_the_methods_that_learn_anew_are_the_rivals() -> None:
    assert {name for name, method in METHODS.items() if method.learns} == set(rivals.RIVALS)


def test_full_lora_learns_in_every_layer_that_has_the_modules(
    backbone: Backbone, taught: Mapping[str, MethodWeights]
) -> None:
    assert backbone.layers("appearance") == (0, 1, 2, 4, 6, 7, 8)
    assert backbone.layers("motion") == (0, 1, 2, 3, 5, 6, 7, 8)
    for kind, weights in taught["full"].loras.items():
        assert modules(weights) == set(backbone.targets(kind, backbone.layers(kind)))


def test_each_rival_wraps_the_attention_that_its_recipe_says(taught: Mapping[str, MethodWeights]) -> None:
    spatial = {name: modules(one.loras["appearance"]) for name, one in taught.items()}
    cross = {name for name in spatial["full"] if ".attn2." in name}
    assert spatial["diffdirector"] == spatial["full"]
    assert spatial["motiondirector"] == spatial["full"] - cross
    assert spatial["dreamvideo"] == cross
    assert all(modules(one.loras["motion"]) == modules(taught["full"].loras["motion"]) for one in taught.values())


def test_the_spatial_lora_of_the_clip_is_thrown_away(backbone: Backbone, taught: Mapping[str, MethodWeights]) -> None:
    temporal = set(backbone.targets("motion", backbone.layers("motion")))
    assert modules(taught["diffdirector"].loras["motion"]) == temporal
    subject = taught["full"].loras["appearance"]
    assert all(torch.equal(taught["diffdirector"].loras["appearance"][key], subject[key]) for key in subject), (
        "of the pictures only"
    )
    assert not any("looks" in name for name in backbone.network.state_dict())


def test_the_clip_s_looks_change_what_its_movement_learns(
    backbone: Backbone, material: Material, taught: Mapping[str, MethodWeights], accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Else the spatial path would be there for nothing."""
    monkeypatch.setattr(rivals, "MASKED", 1.0)
    alone = rivals.teach("diffdirector", backbone, material, accelerator).loras["motion"]
    assert not all(torch.equal(value, alone[key]) for key, value in taught["diffdirector"].loras["motion"].items())


def test_every_rival_has_the_same_steps(backbone: Backbone, material: Material, accelerator: Accelerator) -> None:
    for name in rivals.RIVALS:
        seen: list[Progress] = []
        rivals.teach(name, backbone, material, accelerator, seen.append)
        movement = [one for one in seen if "motion" in one.phase]
        assert (len(seen) - len(movement), len(movement)) == (STEPS, STEPS), name
    assert Counter(one.phase for one in seen)["learning the word"] == 3  # of DreamVideo's four


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_a_rival_leaves_the_base_as_it_was_and_learns_the_same_again(
    backbone: Backbone, material: Material, taught: Mapping[str, MethodWeights], accelerator: Accelerator, name: str
) -> None:
    networks = {"unet": backbone.network, "text": backbone.text_encoder}  # type: ignore[attr-defined]
    before = {part: {key: value.clone() for key, value in one.state_dict().items()} for part, one in networks.items()}
    torch.manual_seed(99)  # the world outside does not matter
    again, first = rivals.teach(name, backbone, material, accelerator).to_weights(), taught[name].to_weights()
    assert again.keys() == first.keys()
    assert all(torch.equal(again[key], first[key]) for key in first)
    for part, network in networks.items():
        after = network.state_dict()
        assert after.keys() == before[part].keys()
        assert all(torch.equal(after[key], value) for key, value in before[part].items())


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_every_rival_learns_on_the_other_family_too(
    tiny_random_3d_base: Path, library: Library, pictures: Path, clip: Path, accelerator: Accelerator, name: str
) -> None:
    other = open_base(str(tiny_random_3d_base), torch.device("cpu"))
    material = material_of(library, other, pictures, clip)
    learned = rivals.teach(name, other, material, accelerator)
    assert all(any(value.any() for key, value in one.items() if "lora_B" in key) for one in learned.loras.values())


def test_a_learned_word_changes_only_its_own_embedding(backbone: Backbone) -> None:
    known = backbone.embed(["A koala is swimming.", "Something is swimming."])
    with backbone.meaning("koala", backbone.word("koala")):
        assert torch.equal(backbone.embed(["A koala is swimming."]), known[:1]), (
            "with its own embedding nothing changes"
        )
    with backbone.meaning("koala", backbone.word("koala") + 1):
        said = backbone.embed(["A koala is swimming.", "Something is swimming."])
    assert not torch.equal(said[0], known[0])
    assert torch.equal(said[1], known[1])
    assert torch.equal(backbone.embed(["A koala is swimming."]), known[:1])


def test_the_word_is_learned_from_its_noun_and_only_dreamvideo_has_one(
    backbone: Backbone, taught: Mapping[str, MethodWeights]
) -> None:
    word = taught["dreamvideo"].word
    assert word is not None
    far = (word - backbone.word("koala")).abs()
    assert 0 < float(far.max()) < 0.01  # three steps of Lion at 1e-4
    assert {name for name, one in taught.items() if one.word is not None} == {"dreamvideo"}


def test_a_caption_without_the_noun_teaches_the_word_by_its_prompt(
    backbone: Backbone, material: Material, taught: Mapping[str, MethodWeights], accelerator: Accelerator
) -> None:
    silent_pictures = [replace(picture, captions=("In the snow.",)) for picture in material.pictures]
    other = rivals.teach("dreamvideo", backbone, replace(material, pictures=silent_pictures), accelerator)
    assert torch.equal(other.word, taught["dreamvideo"].word)  # type: ignore[arg-type]


def test_what_was_learned_survives_a_file(taught: Mapping[str, MethodWeights], tmp_path: Path) -> None:
    for name, one in taught.items():
        lora.save(one.to_weights(), tmp_path / name)
        read = MethodWeights.from_weights(lora.load(tmp_path / name))
        assert read.to_weights().keys() == one.to_weights().keys()
        assert all(torch.equal(value, read.to_weights()[key]) for key, value in one.to_weights().items())


def test_the_word_is_spoken_when_a_video_is_rendered(
    backbone: Backbone, material: Material, taught: Mapping[str, MethodWeights]
) -> None:
    concepts = Ingredient.of(material.appearance), Ingredient.of(material.motion)
    settings = backbone.defaults
    plain = VideoRecipe(*concepts, "", backbone.name, "f", settings.ttt.but(steps=0), settings.sample)

    def frames(one: MethodWeights) -> media.Frames:
        with one.spoken(backbone, "koala"):
            return compose.render(backbone, one.loras, plain)

    learned = taught["dreamvideo"]
    grown = {  # so that it can be seen
        kind: {key: 20 * value for key, value in one.items()} for kind, one in learned.loras.items()
    }
    loud = MethodWeights(grown, torch.linspace(-1, 1, len(backbone.word("koala"))))
    assert np.array_equal(frames(loud), frames(loud))
    assert not np.array_equal(frames(loud), frames(MethodWeights(loud.loras)))


@pytest.mark.parametrize(
    "change",
    [
        lambda one: replace(one, appearance=with_steps(one.appearance, prompt="A bear.")),
        lambda one: replace(one, appearance=with_steps(one.appearance, inputs="0" * 64)),
        lambda one: replace(one, motion=with_steps(one.motion, inputs="0" * 64)),
        lambda one: replace(one, motion=with_steps(one.motion, seed=5)),
        lambda one: replace(one, motion=with_steps(one.motion, steps=7)),
        lambda one: replace(one, motion=with_steps(one.motion, base_fingerprint="f")),
    ],
)
def test_what_a_rival_depends_on_is_in_its_key(material: Material, change: Callable[[Material], Material]) -> None:
    keys = [one.key(name) for one in (material, change(material)) for name in rivals.RIVALS]
    assert len(set(keys)) == len(keys)


def test_a_concept_of_unknown_steps_has_the_base_s(material: Material) -> None:
    imported = replace(material, motion=with_steps(material.motion, steps=0, learning_rate=0.0))
    own = material.defaults.motion
    assert (imported.config("motion").steps, imported.config("motion").learning_rate) == (own.steps, own.learning_rate)


@pytest.mark.parametrize("killed_after", [2, STEPS + 3])
@pytest.mark.parametrize("name", ["motiondirector", "dreamvideo"])
def test_a_killed_rival_goes_on_and_learns_the_same(
    backbone: Backbone, material: Material, taught: Mapping[str, MethodWeights], accelerator: Accelerator, name: str,
    killed_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    steps_done = 0

    def stages(stage: str) -> checkpoint.Keeper:
        path = tmp_path / stage
        return checkpoint.Keeper(path if path.exists() else None, lambda write: write(path))

    def kill(_: Progress) -> None:
        nonlocal steps_done
        steps_done += 1
        if steps_done == killed_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rivals.teach(name, backbone, material, accelerator, kill, stages)
    resumed = rivals.teach(name, backbone, material, accelerator, silent, stages).to_weights()
    assert all(torch.equal(resumed[key], value) for key, value in taught[name].to_weights().items())
