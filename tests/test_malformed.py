"""Malformed concept files: each is refused with one sentence and a documented exit code, and nothing is written."""

from __future__ import annotations

import io
import json
import os
import random
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from material import assert_one_sentence, run, snapshot
from travel import add, make_weights, pickled, safetensors, zipped

from customttt import backbones, lora
from customttt.concept import Concept
from customttt.interchange import exchange, parcel
from customttt.interchange.exchange import Home
from customttt.library import Library

EACH = 3
"""Files of every way to spoil one."""
ZIP_DIRECTORY = b"PK\x01\x02"

Spoiler = Callable[[random.Random, "Good"], bytes]


class Good:
    """What is to be spoilt."""

    def __init__(self, home: Home, folder: Path) -> None:
        library = Library(folder / "library")
        self.concept = add(library, home, "appearance")
        self.weights = make_weights(home, "appearance")
        exchange.export(library, self.concept, "customttt", folder / "koala.customttt")
        self.packed = (folder / "koala.customttt").read_bytes()
        self.lora = library.weights("koala").read_bytes()
        self.manifest = self.concept.to_json().encode()

    def changed(self, **weights: torch.Tensor) -> bytes:
        """The LoRA with some matrices in place of others."""
        return safetensors(self.weights | weights)

    def archive(self, *more: tuple[zipfile.ZipInfo | str, bytes], manifest: bytes | None = None) -> bytes:
        """Our own form with other members, and a seal that fits: by someone who means it."""
        first = [("manifest.json", self.manifest if manifest is None else manifest), ("lora.safetensors", self.lora)]
        infos = [
            (info if isinstance(info, zipfile.ZipInfo) else zipfile.ZipInfo(info), content)
            for info, content in [*first, *more]
        ]
        return sealed(zipped(infos))


def sealed(content: bytes) -> bytes:
    return content + parcel.seal(content)


@pytest.fixture(scope="module")
def good(travel_home: Home, tmp_path_factory: pytest.TempPathFactory) -> Good:
    return Good(travel_home, tmp_path_factory.mktemp("good"))


# -- our own form


def a_flipped_byte(rng: random.Random, good: Good) -> bytes:
    content = bytearray(good.packed)
    content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    return bytes(content)


def a_cut_tail(rng: random.Random, good: Good) -> bytes:
    return good.packed[: rng.randrange(len(good.packed))]


def a_longer_tail(rng: random.Random, good: Good) -> bytes:
    return good.packed + rng.randbytes(rng.randrange(1, 100))


def a_member_that_climbs(rng: random.Random, good: Good) -> bytes:
    return good.archive((rng.choice(["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:evil"]), b"evil"))


def a_link(rng: random.Random, good: Good) -> bytes:
    info = zipfile.ZipInfo(rng.choice(["link", "preview.png", "a"]))
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return good.archive((info, b"/etc/passwd"))


def a_folder(_: random.Random, good: Good) -> bytes:
    return good.archive(("folder/", b""))


def a_member_twice(rng: random.Random, good: Good) -> bytes:
    return good.archive((rng.choice(["manifest.json", "lora.safetensors"]), good.lora))


def a_compressed_bomb(_: random.Random, good: Good) -> bytes:
    info = zipfile.ZipInfo("bomb")
    info.compress_type = zipfile.ZIP_DEFLATED
    return good.archive((info, bytes(10**6)))


def a_huge_declared_member(rng: random.Random, good: Good) -> bytes:
    content = bytearray(good.archive()[:-64])
    entry = content.rindex(ZIP_DIRECTORY)
    struct.pack_into("<II", content, entry + 20, *[rng.randrange(2**31, 2**32 - 2)] * 2)
    return sealed(bytes(content))


def a_stranger(rng: random.Random, good: Good) -> bytes:
    return good.archive((rng.choice(["more.bin", "LORA.safetensors", "a/b"]), b"more"))


def no_manifest(_: random.Random, good: Good) -> bytes:
    return sealed(zipped([(zipfile.ZipInfo("lora.safetensors"), good.lora)]))


def no_weights(_: random.Random, good: Good) -> bytes:
    return sealed(zipped([(zipfile.ZipInfo("manifest.json"), good.manifest)]))


def another_manifest(rng: random.Random, good: Good) -> bytes:
    changes: dict[str, Any] = rng.choice([{"rank": 8}, {"kind": "motion"}, {"layers": (1,)}, {"layers": (2, 6, 7)}])
    return good.archive(manifest=Concept(**{**dict(good.concept), **changes}).to_json().encode())


def a_manifest_that_lists_itself(_: random.Random, good: Good) -> bytes:
    files = {**good.concept.files, "manifest.json": "0" * 64}
    return good.archive(manifest=good.concept.model_copy(update={"files": files}).to_json().encode())


def a_changed_manifest(rng: random.Random, good: Good) -> bytes:
    return good.archive(manifest=good.manifest.replace(b"koala", rng.choice([b"tiger", b"", b"\xff", b'"'])))


def a_manifest_of_control_characters(rng: random.Random, good: Good) -> bytes:
    spoilt = {rng.choice(["phrase", "prompt", "base"]): "koala\x1b[2J"}
    return good.archive(manifest=good.concept.model_copy(update=spoilt).to_json().encode())


def a_newer_manifest(_: random.Random, good: Good) -> bytes:
    return good.archive(manifest=good.manifest.replace(b'"format_version": 1', b'"format_version": 3'))


def other_weights_than_the_manifest_s(_: random.Random, good: Good) -> bytes:
    members = [("manifest.json", good.manifest), ("lora.safetensors", good.changed())]
    return sealed(zipped([(zipfile.ZipInfo(name), content) for name, content in members]))


# -- safetensors


def a_wrong_shape(rng: random.Random, good: Good) -> bytes:
    key = rng.choice(list(good.weights))
    return good.changed(**{key: rng.choice([torch.ones(3, 7), torch.ones(4), torch.ones(4, 32, 1), torch.tensor(1.0)])})


def not_a_number(rng: random.Random, good: Good) -> bytes:
    key = rng.choice(list(good.weights))
    spoilt = good.weights[key].clone()
    spoilt.view(-1)[rng.randrange(spoilt.numel())] = rng.choice([float("nan"), float("inf"), -float("inf")])
    return good.changed(**{key: spoilt})


def integers(rng: random.Random, good: Good) -> bytes:
    key = rng.choice(list(good.weights))
    dtype = rng.choice([torch.int32, torch.uint8, torch.float64, torch.bool])
    return good.changed(**{key: good.weights[key].to(dtype)})


def rank_10_000(rng: random.Random, good: Good) -> bytes:
    module = rng.choice(list(good.weights)).rsplit(".lora_", 1)[0]
    down, up = (good.weights[f"{module}.lora_{role}.weight"] for role in "AB")
    matrices = {"A": torch.zeros(10_000, down.shape[1]), "B": torch.zeros(len(up), 10_000)}
    return safetensors({f"{module}.lora_{role}.weight": matrix for role, matrix in matrices.items()})


def rank_0(rng: random.Random, good: Good) -> bytes:
    module = rng.choice(list(good.weights)).rsplit(".lora_", 1)[0]
    down, up = (good.weights[f"{module}.lora_{role}.weight"] for role in "AB")
    return good.changed(**{f"{module}.lora_A.weight": down[:0], f"{module}.lora_B.weight": up[:, :0]})


def a_pair_of_two_ranks(rng: random.Random, good: Good) -> bytes:
    module = rng.choice(list(good.weights)).rsplit(".lora_", 1)[0]
    down = good.weights[f"{module}.lora_A.weight"]
    return good.changed(**{f"{module}.lora_A.weight": down[: rng.randrange(1, len(down))]})


def a_mad_configuration(rng: random.Random, good: Good) -> bytes:
    """In the header, as diffusers writes it."""
    fields: dict[str, Any] = rng.choice(
        [{"r": 5}, {"lora_alpha": float("nan")}, {"alpha_pattern": {"(a|a)*b": 1}}, {"rank_pattern": {"(": 1}}]
    )
    return safetensors(good.weights, lora_adapter_metadata=json.dumps({"r": 4, **fields}))


def half_a_text_encoder(rng: random.Random, good: Good) -> bytes:
    key = rng.choice(
        ["lora_te_text_model_encoder_layers_0_mlp_fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"]
    )
    return good.changed(**{f"{key}.lora_{rng.choice(['up', 'down'])}.weight": torch.ones(4, 32)})


def a_lone_matrix(rng: random.Random, good: Good) -> bytes:
    missing = rng.choice(list(good.weights))
    return safetensors({key: weight for key, weight in good.weights.items() if key != missing})


def an_unknown_key(rng: random.Random, good: Good) -> bytes:
    strangers = ["../../evil", "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "conv_in.lora_A.weight"]
    return good.changed(**{rng.choice(strangers): torch.ones(4, 32)})


def one_matrix_in_two_spellings(rng: random.Random, good: Good) -> bytes:
    key = rng.choice(list(good.weights))
    return good.changed(**{f"unet.{key}": good.weights[key].clone()})


def a_mad_alpha(rng: random.Random, good: Good) -> bytes:
    module = rng.choice(list(good.weights)).rsplit(".lora_", 1)[0]
    alphas = [torch.tensor(float("nan")), torch.tensor(float("inf")), torch.ones(2), torch.ones(0)]
    return good.changed(**{f"{module}.alpha": rng.choice(alphas)})


def no_tensors(rng: random.Random, _: Good) -> bytes:
    return safetensors({}, **rng.choice([{}, {"modelspec.title": "nothing"}]))


def a_half(rng: random.Random, good: Good) -> bytes:
    return good.lora[: rng.randrange(len(good.lora))]


def header(text: str, data: bytes = bytes(4)) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + data


def a_huge_declared_tensor(rng: random.Random, _: Good) -> bytes:
    size = rng.randrange(10**9, 10**15)
    return header(json.dumps({"a": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}))


def a_huge_declared_header(rng: random.Random, good: Good) -> bytes:
    return struct.pack("<Q", rng.randrange(10**9, 2**64)) + good.lora[8:]


def a_tensor_twice(rng: random.Random, good: Good) -> bytes:
    key = rng.choice(list(good.weights))
    entry = f'"{key}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return header(f"{{{entry},{entry}}}")


def a_header_that_is_none(rng: random.Random, _: Good) -> bytes:
    deep = "[" * 100_000
    return header(rng.choice([deep, "[]", "{", '{"__metadata__":{"a":1}}', '{"__metadata__":[]}', "null", '"koala"']))


def noise(rng: random.Random, _: Good) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 7, 8, 9, 1000]))


# -- pickles


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploited",)


def a_pickle_that_runs(rng: random.Random, good: Good) -> bytes:
    return pickled(rng.choice([Exploit(), [Exploit()], {**good.weights, "a": Exploit()}]))


def a_list_too_short(rng: random.Random, good: Good) -> bytes:
    tensors = list(good.weights.values())
    return pickled(tensors[: rng.randrange(len(tensors))])


def a_view_larger_than_memory(rng: random.Random, good: Good) -> bytes:
    key = rng.choice(list(good.weights))
    return pickled({**good.weights, key: torch.zeros(1).expand(10**9, 10**3)})


def no_plain_tensor(rng: random.Random, good: Good) -> bytes:
    strangers = ["text", 1.5, None, torch.eye(3).to_sparse(), torch.zeros(3, device="meta")]
    return pickled({**good.weights, "a": rng.choice(strangers)})


def a_spoilt_pickle(rng: random.Random, good: Good) -> bytes:
    content = pickled(good.weights)
    return content[: rng.randrange(4, len(content))]


def old(what: object) -> bytes:
    """As PyTorch wrote files before they were archives."""
    buffer = io.BytesIO()
    torch.save(what, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def an_old_pickle_that_runs(rng: random.Random, good: Good) -> bytes:
    return old(rng.choice([Exploit(), [Exploit()], {**good.weights, "a": Exploit()}]))


def a_spoilt_old_pickle(rng: random.Random, good: Good) -> bytes:
    content = old(good.weights)
    return content[: rng.randrange(16, len(content))]


def a_table_in_itself(rng: random.Random, _: Good) -> bytes:
    table: dict[str, Any] = {}
    table["state_dict"] = {rng.choice(["state_dict", "a"]): table}
    return rng.choice([old, pickled])(table)


def nothing_pickled(rng: random.Random, _: Good) -> bytes:
    return pickled(rng.choice([[], {}, 3, "koala", {"state_dict": {}}]))


SPOILERS: list[Spoiler] = [
    a_flipped_byte, a_flipped_byte, a_flipped_byte, a_cut_tail, a_longer_tail, a_member_that_climbs, a_link, a_folder,
    a_member_twice, a_compressed_bomb, a_huge_declared_member, a_stranger, no_manifest, no_weights, another_manifest,
    a_manifest_that_lists_itself, a_manifest_of_control_characters, a_changed_manifest, a_newer_manifest,
    other_weights_than_the_manifest_s, a_wrong_shape, not_a_number, integers, rank_10_000, rank_0, a_pair_of_two_ranks,
    a_mad_configuration, half_a_text_encoder, a_lone_matrix, an_unknown_key, one_matrix_in_two_spellings, a_mad_alpha,
    no_tensors, a_half, a_huge_declared_tensor, a_huge_declared_header, a_tensor_twice, a_header_that_is_none, noise,
    a_pickle_that_runs, a_list_too_short, a_view_larger_than_memory, no_plain_tensor, a_spoilt_pickle, nothing_pickled,
    an_old_pickle_that_runs, a_spoilt_old_pickle, a_table_in_itself,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("number", range(EACH))
@pytest.mark.parametrize(("index", "spoiler"), list(enumerate(SPOILERS)), ids=[one.__name__ for one in SPOILERS])
def test_a_malformed_file_is_refused(
    index: int, spoiler: Spoiler, number: int, good: Good, travel_home: Home, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(backbones, "places", lambda _: travel_home.places)  # a tenth of a second each
    monkeypatch.setattr(backbones, "identify", lambda _: travel_home.fingerprint)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "koala.file"
    file.write_bytes(spoiler(random.Random(f"{index} {number}"), good))
    before = snapshot(tmp_path)
    done = run("import", file, "--base", travel_home.base, "--allow-pickle", "--name", "koala")
    assert_one_sentence(done, 6, "koala.file")
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "exploited").exists()


def test_a_hundred_of_them_and_more() -> None:
    assert len(SPOILERS) * EACH >= 100


def test_what_is_spoilt_is_good_before(good: Good, travel_home: Home, tmp_path: Path) -> None:
    for number, content in enumerate([good.packed, good.archive(), good.lora, good.changed(), pickled(good.weights)]):
        file = tmp_path / f"{number}.file"
        file.write_bytes(content)
        exchange.admit(parcel.read(file, allow_pickle=True), travel_home, f"koala-{number}").add_to(Library())
    assert len(Library().concepts()) == 5
    assert lora.load(Library().weights("koala-0")).keys() == good.weights.keys()
