"""What reads strangers' files, with files that nobody thought of: it reads them or says in a sentence why not."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some
from PIL import Image
from travel import make_weights, safetensors

from customttt import limits, lora, media, text
from customttt.concept import Concept
from customttt.config import SampleConfig, TrainConfig, TTTConfig
from customttt.errors import CustomTTTError, DamagedError, MediaError, UsageError
from customttt.interchange import keys, parcel, pickles, scales
from customttt.interchange.exchange import Home
from customttt.recipe import Ingredient, VideoRecipe

EXAMPLES = int(os.environ.get("CUSTOMTTT_EXAMPLES", "40"))
"""Of each kind; with more than these, others every time."""
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 40, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
WORDS = some.text(max_size=20)
NUMBERS = some.one_of(some.integers(), some.floats(), some.sampled_from([0, -1, 2**31, 2**64, 1e308]))
JSON = some.recursive(
    some.one_of(some.none(), some.booleans(), NUMBERS, WORDS),
    lambda inner: some.one_of(some.lists(inner, max_size=4), some.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=8,
)
INGREDIENT = Ingredient("koala", "koala", "a" * 64)
RECIPE = VideoRecipe(INGREDIENT, INGREDIENT, "on Mars", "tiny", "b" * 16, TTTConfig(), SampleConfig()).to_dict()
CONCEPT = Concept(
    name="koala", kind="appearance", phrase="koala", prompt="A koala.", base="tiny", base_fingerprint="0",
    layers=(2, 6), rank=4, steps=3, learning_rate=1e-4, seed=5, sources=(), inputs="c" * 64, losses=(0.5,),
    versions={"torch": "2"}, created="2026-11-22T00:00:00Z", seconds=1, files={"lora.safetensors": "d" * 64},
)  # fmt: skip


def check(error: CustomTTTError) -> None:
    """Whatever is refused is refused in a sentence that somebody can read."""
    assert 0 < len(str(error)) < 2000


@some.composite
def altered(draw: some.DrawFn, plain: dict[str, Any]) -> Any:
    """Data of JSON with something else in one place, at any depth; or a field more, or one less."""
    data = json.loads(json.dumps(plain))
    place = data
    while (inner := [one for one in place.values() if isinstance(one, dict)]) and draw(some.booleans()):
        place = draw(some.sampled_from(inner))
    change = draw(some.sampled_from(["other", "more", "less"]))
    name = draw(some.sampled_from(sorted(place))) if place and change != "more" else draw(WORDS)
    if change == "less":
        place.pop(name, None)
    else:
        place[name] = draw(JSON)
    return data


# -- text


@fuzzed
@given(JSON)
def test_json_says_what_it_says(data: Any) -> None:
    written = json.dumps(data)
    assert repr(text.parsed(written, 10**6)) == repr(json.loads(written))


@fuzzed
@given(some.text(alphabet='[]{}",:\\1a \n', max_size=200))
@example("[" * 60 + '"' + "]" * 60)
def test_text_that_is_no_json_is_a_value_error_and_nothing_else(written: str) -> None:
    try:
        found = text.parsed(written, 10**6)
    except ValueError:
        return
    assert repr(found) == repr(json.loads(written))


@fuzzed
@given(some.text())
def test_what_is_escaped_reaches_no_terminal_and_is_the_same_to_json(written: str) -> None:
    shown = text.escaped(written)
    assert not text.CONTROL.search(shown)
    assert text.escaped(shown) == shown
    if not {"\\", '"'} & set(written):
        assert json.loads(f'"{shown}"') == written


# -- recipes, settings and manifests


@fuzzed
@given(some.one_of(altered(RECIPE), some.dictionaries(WORDS, JSON, max_size=4)))
def test_a_recipe_is_taken_as_it_is_or_refused(data: dict[str, Any]) -> None:
    try:
        found = VideoRecipe.from_dict(data)
    except UsageError as error:
        check(error)
        return
    again = VideoRecipe.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found
    assert len(found.adaptation_key()) == 64
    assert found.target_prompt
    assert found.teacher_prompts


@fuzzed
@given(some.sampled_from([TTTConfig(), SampleConfig(), TrainConfig((2, 6), 1e-4)]), some.data())
def test_settings_are_taken_as_they_are_or_refused(plain: Any, data: some.DataObject) -> None:
    fields = data.draw(altered(asdict(plain)))
    try:
        found = type(plain).from_dict(fields)
    except UsageError as error:
        check(error)
        return
    assert type(plain).from_dict(json.loads(json.dumps(found.to_dict()))) == found


def sealed(fields: dict[str, Any]) -> str:
    """A manifest as somebody writes it who knows how the digest is made."""
    import hashlib

    written = json.dumps({"digest": "", **fields})
    digest = hashlib.sha256(written.encode("utf-8", "surrogatepass")).hexdigest()
    return written.replace('"digest": ""', f'"digest": "{digest}"', 1)


@fuzzed
@given(altered(CONCEPT.model_dump(mode="json")))
def test_a_manifest_is_taken_as_it_is_or_damaged(fields: dict[str, Any]) -> None:
    try:
        found = Concept.from_json(sealed(fields))
    except DamagedError as error:
        check(error)
        return
    assert Concept.from_json(found.to_json()) == found


@fuzzed
@given(some.one_of(some.text(max_size=300), some.builds(lambda at: CONCEPT.to_json()[:at], some.integers(0, 900))))
def test_text_that_is_no_manifest_is_damaged(written: str) -> None:
    try:
        assert Concept.from_json(written) == CONCEPT
    except DamagedError as error:
        check(error)


# -- concepts that travel


@some.composite
def spoilt(draw: some.DrawFn, content: bytes) -> bytes:
    """Bytes with a few others in their place, more or less of them."""
    changed = bytearray(content)
    for _ in range(draw(some.integers(1, 3))):
        at = draw(some.integers(0, min(len(changed), draw(some.sampled_from([16, 400, 10**9])))))
        changed[at : at + draw(some.integers(0, 8))] = draw(some.binary(max_size=8))
    return bytes(changed)


def received(path: Path, content: bytes) -> parcel.Parcel | None:
    path.write_bytes(content)
    try:
        return parcel.read(path, allow_pickle=True)
    except DamagedError as error:
        check(error)
        return None


SMALL = {"down_blocks.2.attentions.0.to_q.lora_A.weight": torch.ones(2, 3), "b.alpha": torch.tensor(2.0)}


@fuzzed
@given(some.one_of(spoilt(safetensors(SMALL, note="koala")), some.binary(max_size=200)))
def test_a_parcel_of_any_bytes_is_read_or_damaged(tmp_path: Path, content: bytes) -> None:
    found = received(tmp_path / "a.safetensors", content)
    assert found is None or isinstance(found.tensors, dict)


@fuzzed
@given(some.dictionaries(WORDS, JSON, max_size=4))
def test_a_header_of_any_json_is_read_or_damaged(tmp_path: Path, header: dict[str, Any]) -> None:
    written = json.dumps(header).encode()
    received(tmp_path / "a.safetensors", struct.pack("<Q", len(written)) + written + bytes(16))


PICKLED = io.BytesIO()
torch.save({"state_dict": SMALL, "step": 5}, PICKLED)
PROGRAM = zipfile.ZipFile(PICKLED).read("archive/data.pkl")


@fuzzed
@given(some.one_of(spoilt(PROGRAM), some.binary(max_size=100).map(lambda rest: b"\x80\x02" + rest)))
def test_a_pickle_of_any_bytes_is_weighed_or_damaged(program: bytes) -> None:
    weights = pickles.Scales()
    try:
        weights.weigh(io.BytesIO(program))
    except DamagedError as error:
        check(error)
    assert weights.total <= limits.MAX_PICKLED + 10**4


@fuzzed
@given(spoilt(PICKLED.getvalue()))
def test_a_torch_file_of_any_bytes_is_read_or_damaged(tmp_path: Path, content: bytes) -> None:
    received(tmp_path / "a.pt", content)


ROLES = [
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_down.weight",
    ".lora.up.weight",
    ".alpha",
    "_lora.down.weight",
    ".x",
]
PREFIXES = ["", "unet.", "lora_unet_", "base_model.model.", "lora_te_", "text_encoder."]


@pytest.fixture(scope="module")
def good(travel_home: Home) -> lora.Weights:
    return make_weights(travel_home, "appearance")


@fuzzed
@given(some.data())
def test_keys_of_any_spelling_and_shape_become_ours_or_are_refused(
    travel_home: Home, good: lora.Weights, data: some.DataObject
) -> None:
    weights = dict(good)
    for _ in range(data.draw(some.integers(1, 3))):
        module = data.draw(some.one_of(some.sampled_from(sorted(travel_home.places)), WORDS))
        key = data.draw(some.sampled_from(PREFIXES)) + module + data.draw(some.sampled_from(ROLES))
        shape = data.draw(some.lists(some.integers(0, 5), max_size=3))
        weights[key] = torch.full(shape, data.draw(some.sampled_from([1.0, 0.0, float("nan"), float("inf")])))
    try:
        kept, _ = keys.sift(weights, travel_home.places)
        found = keys.translate(kept, travel_home.places, scales.find({}, ""))
    except DamagedError as error:
        check(error)
        return
    assert set(keys.wrapped(found)) <= set(travel_home.places)
    assert all(matrix.isfinite().all() and matrix.dtype == torch.float32 for matrix in found.values())


@fuzzed
@given(altered({"r": 4, "lora_alpha": 8, "use_rslora": False, "rank_pattern": {"to_q": 4}, "peft_type": "LORA"}))
def test_a_configuration_of_any_fields_is_a_strength_or_damaged(fields: dict[str, Any]) -> None:
    try:
        found = scales.find({}, json.dumps(fields))
        assert found is None or isinstance(found.scale("a.to_q", 4), float)
    except DamagedError as error:
        check(error)


# -- media


def held(suffix: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(buffer, suffix, **options)
    return buffer.getvalue()


EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E] = 6, '{"customttt": {}}'
PICTURES = [
    held("JPEG", exif=EXIF), held("PNG", exif=EXIF), held("TIFF"), held("BMP"), held("GIF", comment=b"{}"),
    held("WEBP", exif=EXIF), held("TIFF", compression="tiff_lzw"),
]  # fmt: skip


@fuzzed
@given(some.sampled_from(PICTURES).flatmap(spoilt))
def test_a_picture_of_any_bytes_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for look in (
        lambda: media.read_pictures([tmp_path / "a.png"], 8)[0].pixels,
        lambda: media.read_recipe(tmp_path / "a.png"),
    ):
        try:
            look()
        except (MediaError, DamagedError) as error:
            check(error)


@fuzzed
@given(some.one_of(JSON, altered({"customttt": {"a": 1}, "fps": 8, "shape": [1, 40, 40, 3], "sha256": "a"})))
def test_a_note_of_any_json_is_a_recipe_or_none(tmp_path: Path, note: Any) -> None:
    folder = tmp_path / "video"
    folder.mkdir(exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(note))
    for look in (media.read_recipe, media.read_frames, lambda path: media.read_recipe(path, altered=True)):
        try:
            look(folder)
        except (MediaError, DamagedError) as error:
            check(error)


@settings(fuzzed, max_examples=EXAMPLES // 8)
@given(some.data())
def test_a_clip_of_any_bytes_is_read_or_refused(tmp_path: Path, data: some.DataObject) -> None:
    path = tmp_path / "a.mp4"
    whole = tmp_path / "whole.mp4"
    if not whole.exists():
        media.write_video(whole, np.zeros((4, 32, 32, 3), np.uint8), 8, {"a": 1})
    path.write_bytes(data.draw(spoilt(whole.read_bytes())))
    for look in (
        lambda: media.read_clip(path, 2, 8, 16),
        lambda: media.read_recipe(path),
        lambda: media.read_frames(path),
    ):
        try:
            look()
        except (MediaError, DamagedError) as error:
            check(error)
