"""Concepts on the random base that cost no training, and what other programs would write of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime

import torch
from safetensors.torch import save

from customttt import lora
from customttt.backbones.unets import LINEARS
from customttt.concept import Concept, Kind
from customttt.interchange.exchange import Home
from customttt.library import WEIGHTS, Library

RANK = 4
LAYERS: dict[Kind, tuple[int, ...]] = {"appearance": (2, 6), "motion": (2, 5)}
NAMES: dict[Kind, str] = {"appearance": "koala", "motion": "swimming"}


def make_weights(home: Home, kind: Kind, rank: int = RANK) -> lora.Weights:
    """A LoRA of that kind, as `learn` would leave it, of random values."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for module, place in home.places.items():
        if place.kind == kind and place.layer in LAYERS[kind] and module.endswith(LINEARS):
            out, width = place.shape
            weights[f"{module}.lora_A.weight"] = torch.randn(rank, width, generator=generator) * 0.2
            weights[f"{module}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.2
    return weights


def add(library: Library, home: Home, kind: Kind, phrase: str = "") -> Concept:
    """`koala` or `swimming`, in the library."""
    name = NAMES[kind]
    phrase = phrase or f"purple {name}"
    concept = Concept(
        name=name, kind=kind, phrase=phrase, prompt=f"A {phrase}.", base=home.base,
        base_fingerprint=home.fingerprint, layers=LAYERS[kind], rank=RANK, steps=3, learning_rate=1e-4, seed=5,
        sources=(), inputs="c" * 64, losses=(0.5,) * 3, versions={"torch": "2.6"}, created=datetime.now(UTC), seconds=1,
    )  # fmt: skip
    weights = make_weights(home, kind)
    return library.add(concept, lambda folder: lora.save(weights, folder / WEIGHTS, kind=kind, phrase=concept.phrase))


def safetensors(weights: Mapping[str, torch.Tensor], **metadata: str) -> bytes:
    return save({key: weight.contiguous() for key, weight in weights.items()}, metadata or None)


def pickled(what: object) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(what, buffer)
    return buffer.getvalue()


def zipped(members: list[tuple[zipfile.ZipInfo, bytes]]) -> bytes:
    """An archive with room for a seal at its end."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for info, content in members:
            archive.writestr(info, content)
        archive.comment = bytes(64)
    return buffer.getvalue()[:-64]
