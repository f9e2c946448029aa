"""Concepts that travel: what goes out comes back bit for bit, and works in plain diffusers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors import safe_open
from travel import LAYERS, NAMES, add, make_weights, pickled, safetensors

from customttt import lora
from customttt.backbones import open_base
from customttt.backbones.animatediff import AnimateDiff
from customttt.backbones.unets import LINEARS
from customttt.concept import Concept, Kind
from customttt.errors import DamagedError, NotFoundError, StoreError, UsageError
from customttt.interchange import exchange, parcel
from customttt.interchange.exchange import Form, Home
from customttt.library import Library
from customttt.sampling import denoise
from customttt.video import to_frames


@pytest.fixture
def library(travel_home: Home) -> Library:
    """A library that holds `koala` and `swimming`."""
    library = Library()
    for kind in LAYERS:
        add(library, travel_home, kind)
    return library


def export(library: Library, kind: Kind, form: Form, folder: Path) -> Path:
    path = folder / f"{kind}{exchange.SUFFIX[form]}"
    exchange.export(library, library.get(NAMES[kind]), form, path)
    return path


def take(path: Path, home: Home, name: str = "again", **options: Any) -> Concept:
    opened = parcel.read(path, options.pop("allow_pickle", False))
    return exchange.admit(opened, home, name, **options).add_to(Library())


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def assert_same(name: str, weights: lora.Weights) -> None:
    found = lora.load(Library().weights(name))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", ["customttt", "diffusers", "kohya"])
def test_a_round_trip_is_bit_equal(library: Library, travel_home: Home, kind: Kind, form: Form, tmp_path: Path) -> None:
    again = take(export(library, kind, form, tmp_path), travel_home)
    assert_same("again", make_weights(travel_home, kind))
    first = library.get(NAMES[kind])
    for field in ("kind", "phrase", "prompt", "base", "base_fingerprint", "layers", "rank"):
        if form == "customttt" or field != "prompt":
            assert getattr(again, field) == getattr(first, field), field
    assert [name for name, _ in library.entries()] == sorted(["again", *NAMES.values()])
    assert library.verify() == []


def test_our_own_form_keeps_everything(library: Library, travel_home: Home, tmp_path: Path) -> None:
    again = take(export(library, "motion", "customttt", tmp_path), travel_home)
    assert again == library.get("swimming").model_copy(update={"name": "again"}), "the files' sha256 included"


def test_a_foreign_form_tells_phrase_and_base_and_where_it_came_from(
    library: Library, travel_home: Home, tmp_path: Path
) -> None:
    path = export(library, "appearance", "kohya", tmp_path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.trigger_phrase"] == "purple koala"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["ss_sd_model_name"] == travel_home.base
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "4")
    assert json.loads(metadata["ss_tag_frequency"]) == {"koala": {"purple koala": 1}}
    again = take(path, travel_home)
    assert (again.phrase, again.prompt) == ("purple koala", "A purple koala.")
    assert [source.name for source in again.sources] == [path.name]
    assert (again.steps, again.losses) == (0, ())


@pytest.mark.parametrize("kind", LAYERS)
def test_plain_diffusers_renders_the_same_frames(
    library: Library, travel_home: Home, kind: Kind, tmp_path: Path
) -> None:
    path = export(library, kind, "diffusers", tmp_path)
    ours = open_base(travel_home.base, torch.device("cpu"))
    plain = UNetMotionModel.from_pretrained(travel_home.base, subfolder="unet")
    plain.set_attn_processor(AttnProcessor())  # as ours on a CPU: another one rounds differently
    without = frames(dataclasses.replace(ours, network=plain))
    plain.load_lora_adapter(path, prefix="unet")
    theirs = frames(dataclasses.replace(ours, network=plain))
    lora.restore(ours.network, kind, make_weights(travel_home, kind))
    with lora.active(ours.network, **{kind: 1.0}):
        assert torch.equal(frames(ours), theirs)
    assert not torch.equal(theirs, without)


@torch.no_grad()
def frames(backbone: Any) -> torch.Tensor:
    noise = torch.randn(1, *backbone.latent_shape(4, 32, 32), generator=torch.Generator().manual_seed(0))
    embeds, empty = backbone.embed(["A purple koala is swimming."]), backbone.embed([""])
    latents = denoise(backbone, noise, embeds, empty, guidance_scale=2.0, path=[999, 500, -1])
    return torch.from_numpy(to_frames(backbone.decode(latents)))


def test_a_motion_director_list_is_read_where_pickles_are_allowed(travel_home: Home, tmp_path: Path) -> None:
    expected, tensors = {}, []
    for name, place in travel_home.places.items():
        if place.kind == "motion" and name.endswith(LINEARS):
            up, down = torch.nn.Parameter(torch.randn(place.shape[0], 4)), torch.randn(4, place.shape[1])
            expected |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up.detach()}
            tensors += [up, down]
    path = write(tmp_path / "500_unet.pt", pickled(tensors))
    with pytest.raises(UsageError, match="--allow-pickle"):
        parcel.read(path)
    concept = take(path, travel_home, allow_pickle=True)
    assert (concept.kind, concept.layers, concept.rank) == ("motion", (0, 1, 2, 3, 5, 6, 7, 8), 4)
    assert_same("again", expected)


def test_a_pickled_state_dict_is_read_by_its_names(travel_home: Home, tmp_path: Path) -> None:
    weights = make_weights(travel_home, "motion")
    spelt = {AnimateDiff.kohya(key, "motion"): weight for key, weight in weights.items()}
    path = write(tmp_path / "zoom.ckpt", pickled({"state_dict": spelt, "epoch": 3}))
    assert take(path, travel_home, allow_pickle=True).kind == "motion"
    assert_same("again", weights)


def test_pickled_tensors_may_share_memory_and_be_transposed(travel_home: Home, tmp_path: Path) -> None:
    weights = make_weights(travel_home, "motion")
    shared = {key: weight.T.contiguous().T for key, weight in weights.items()}
    twin, other = (key for key in list(shared)[:4] if "lora_A" in key)
    shared[other] = shared[twin]
    take(write(tmp_path / "shared.pt", pickled(shared)), travel_home, allow_pickle=True)
    assert_same("again", shared)


@pytest.mark.parametrize("prefix", ["", "module.", "motion_module."])
@pytest.mark.parametrize("around", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
@pytest.mark.parametrize("archived", [True, False])
def test_pickles_of_every_age_are_read(
    travel_home: Home, tmp_path: Path, prefix: str, around: Callable[[object], object], archived: bool
) -> None:
    """PyTorch wrote no archives before 1.6; trainers on several GPUs put `module.` before every name."""
    weights = make_weights(travel_home, "motion")
    spelt = {prefix + AnimateDiff.kohya(key, "motion"): weight for key, weight in weights.items()}
    path = tmp_path / "zoom.ckpt"
    torch.save(around(spelt), path, _use_new_zipfile_serialization=archived)
    with pytest.raises(UsageError, match="--allow-pickle"):
        parcel.read(path)
    assert take(path, travel_home, allow_pickle=True).kind == "motion"
    assert_same("again", weights)


@pytest.mark.parametrize(
    "trigger",
    [
        ", ".join(f"koala{i}" for i in range(200)),
        "koala, masterpiece",
        "koala; fur",
        "a koala that sits in a tree and eats leaves all day long until night",
        "koala\x1b[31m",
        "{motion}",
        "(koala:1.2)",
    ],
)
def test_a_trigger_phrase_that_is_no_noun_falls_back_to_the_name(
    travel_home: Home, tmp_path: Path, trigger: str
) -> None:
    content = safetensors(make_weights(travel_home, "appearance"), **{"modelspec.trigger_phrase": trigger})
    arrival = exchange.admit(parcel.read(write(tmp_path / "x.safetensors", content)), travel_home, "grey-koala")
    assert (arrival.concept.phrase, arrival.concept.prompt) == ("grey koala", "A grey koala.")
    (note,) = arrival.notes
    assert 'the concept is called "grey koala"' in note
    assert note.isprintable()
    assert len(note) < 200


@pytest.mark.parametrize("trigger", ["sks dog", "a photo of ohwx man", "k0ala_v1", "  tall   giraffe "])
def test_a_trigger_phrase_that_is_a_noun_is_kept(travel_home: Home, tmp_path: Path, trigger: str) -> None:
    content = safetensors(make_weights(travel_home, "appearance"), **{"modelspec.trigger_phrase": trigger})
    arrival = exchange.admit(parcel.read(write(tmp_path / "x.safetensors", content)), travel_home, "x")
    assert (arrival.concept.phrase, arrival.notes) == (" ".join(trigger.split()), ())


@pytest.mark.parametrize("phrase", ["small, red koala (a toy)", "grey\u3000koala", "koala \U0001f468\u200d\U0001f467"])
@pytest.mark.parametrize("form", exchange.SUFFIX)
def test_our_own_phrase_comes_back_whatever_it_is(travel_home: Home, tmp_path: Path, form: Form, phrase: str) -> None:
    concept = add(Library(), travel_home, "appearance", phrase=phrase)
    exchange.export(Library(), concept, form, tmp_path / "x.safetensors")
    assert take(tmp_path / "x.safetensors", travel_home).phrase == concept.phrase


def test_what_is_left_out_is_counted(travel_home: Home, tmp_path: Path) -> None:
    weights = make_weights(travel_home, "appearance")
    layers = (f"lora_te_text_model_encoder_layers_{i}_self_attn_q_proj" for i in range(3))
    text = {f"{layer}.lora_{role}.weight": torch.ones(4, 4) for layer in layers for role in ("down", "up")}
    path = write(tmp_path / "koala.safetensors", safetensors(weights | text))
    arrival = exchange.admit(parcel.read(path), travel_home)
    assert arrival.notes == ("'koala.safetensors' is imported without 6 keys of the text encoder.",)
    arrival.add_to(Library())
    assert_same("koala", weights)


def test_of_a_file_with_both_kinds_one_is_chosen(travel_home: Home, tmp_path: Path) -> None:
    both = make_weights(travel_home, "appearance") | make_weights(travel_home, "motion")
    path = write(tmp_path / "both.safetensors", safetensors(both))
    with pytest.raises(UsageError, match="--kind appearance or --kind motion"):
        take(path, travel_home)
    assert take(path, travel_home, kind="motion").layers == (2, 5)
    assert_same("again", make_weights(travel_home, "motion"))


def test_another_kind_than_the_one_asked_for_is_refused(library: Library, travel_home: Home, tmp_path: Path) -> None:
    path = export(library, "appearance", "customttt", tmp_path)
    with pytest.raises(UsageError, match="holds no motion but an appearance"):
        take(path, travel_home, kind="motion")


def test_an_imported_lora_of_convolutions_acts(travel_home: Home, tmp_path: Path) -> None:
    """AnimateDiff-MotionDirector's spatial LoRA wraps `proj_in`, a 1 x 1 convolution."""
    name = next(name for name, place in travel_home.places.items() if len(place.shape) == 4)
    out, width, *_ = travel_home.places[name].shape
    weights = {
        f"{name}_lora.down.weight": torch.randn(2, width, 1, 1),
        f"{name}_lora.up.weight": torch.randn(out, 2, 1, 1),
    }
    take(write(tmp_path / "spatial.safetensors", safetensors(weights)), travel_home)
    ours = open_base(travel_home.base, torch.device("cpu"))
    before = frames(ours)
    lora.restore(ours.network, "appearance", lora.load(Library().weights("again")))
    assert not torch.equal(frames(ours), before)


def test_a_damaged_concept_is_not_exported(library: Library, tmp_path: Path) -> None:
    library.weights("koala").write_bytes(b"something else")
    with pytest.raises(DamagedError, match="koala"):
        export(library, "appearance", "kohya", tmp_path)
    assert list(tmp_path.glob("*.safetensors")) == []


def test_an_export_that_cannot_be_written_leaves_nothing(library: Library) -> None:
    for form in exchange.SUFFIX:
        with pytest.raises(StoreError):
            exchange.export(library, library.get("koala"), form, Path("/proc/nowhere/koala"))


def test_what_is_no_file_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", Path("/dev/zero")):
        with pytest.raises(NotFoundError):
            parcel.read(path)
