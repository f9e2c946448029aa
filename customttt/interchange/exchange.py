"""Concepts that travel: a library's entry as one file, and a file from anywhere as a library's entry.

| form | what it is |
|---|---|
| `customttt` | a zip of uncompressed members: the manifest, and the entry's files as they are, under a seal |
| `diffusers` | safetensors under the keys of diffusers and PEFT: `unet.load_lora_adapter(file, prefix="unet")` |
| `kohya` | safetensors under the keys of kohya's programs, which ComfyUI reads, with their `ss_*` metadata |
| `comfyui` | the same under ComfyUI's own keys, where it has some |

The last three carry the trigger phrase and the base as `modelspec.*` (github.com/Stability-AI/ModelSpec), and no
checksum. What comes in is held against the base's modules before anything is stored.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from customttt import __version__, backbones, lora, previews
from customttt.backbones import Place
from customttt.backbones.family import Family
from customttt.concept import Concept, Kind, Source, check_name
from customttt.errors import BaseUnavailableError, DamagedError, UsageError
from customttt.interchange import keys, scales
from customttt.interchange.parcel import SEAL, Parcel, refusing, seal
from customttt.library import MANIFEST, WEIGHTS, Library
from customttt.limits import MAX_PHRASE, MAX_PROMPT
from customttt.media import placed
from customttt.recipe import NO_TEXT, phrase_of, training_prompt

Form = Literal["customttt", "diffusers", "kohya", "comfyui"]
SUFFIX: dict[Form, str] = {
    "customttt": ".customttt",
    "diffusers": ".safetensors",
    "kohya": ".safetensors",
    "comfyui": ".safetensors",
}
OWN_KIND, OWN_PHRASE, TRIGGER = "customttt.kind", "customttt.phrase", "modelspec.trigger_phrase"


@dataclass(frozen=True)
class Home:
    """The base that a concept comes to, and what a LoRA can wrap in it."""

    base: str
    fingerprint: str
    places: Mapping[str, Place]


@dataclass(frozen=True)
class Arrival:
    """A concept that fits its base, not yet in any library."""

    concept: Concept
    write: Callable[[Path], object]
    notes: tuple[str, ...] = ()
    """What of the file is not in it as it stood there, a line each."""

    def add_to(self, library: Library, force: bool = False) -> Concept:
        """Store it; see `Library.add` for what is raised."""
        return library.add(self.concept, self.write, force=force)


# -- out


def export(library: Library, concept: Concept, form: Form, path: Path) -> None:
    """Write a concept to one file, whole or not at all; what it was learned from is never in it.

    Raises DamagedError, StoreError, UsageError for a form in which no program could read it, and BaseUnavailableError
    where that cannot be told.
    """
    weights = library.weights(concept.name)  # all files verified
    if form == "customttt":
        files = {name: digest for name, digest in concept.files.items() if name != previews.INPUTS}
        content = _pack(
            concept.model_copy(update={"files": files}),
            {name: (weights.parent / name).read_bytes() for name in files},
        )
        with placed(path) as aside:
            aside.write_bytes(content)
        return
    own = lora.load(weights)
    renamed, metadata = _renamed(own, concept, form), _metadata(concept, form)
    if expert := keys.expert(own):
        metadata["modelspec.description"] += f", in {expert} of its two experts"
    with placed(path) as aside:
        lora.save(renamed, aside, **metadata)


def _renamed(weights: lora.Weights, concept: Concept, form: Form) -> lora.Weights:
    if form == "diffusers":
        return {keys.of_diffusers(key): weight for key, weight in weights.items()}
    family = backbones.family_of(backbones.locate(concept.base))
    renamed = {_spelt(family, key, concept, form): weight for key, weight in weights.items()}
    downs = [key for key in renamed if key.endswith(".lora_down.weight")]  # not in the spellings without an alpha
    return renamed | {key.replace(".lora_down.weight", ".alpha"): torch.tensor(float(concept.rank)) for key in downs}


def _spelt(family: type[Family], key: str, concept: Concept, form: Form) -> str:
    """Raises UsageError where no program knows the spelling."""
    if spelt := (family.comfyui if form == "comfyui" else family.kohya)(key, concept.kind):
        return spelt
    raise UsageError(
        f"'{concept.name}' was learned on '{concept.base}', and no program reads LoRAs of that architecture in "
        f"the form {form}; use --format diffusers."
    )


def _architecture(concept: Concept) -> tuple[str, str]:
    """As `modelspec.architecture` and `ss_base_model_version` have it; empty where the base is not at hand."""
    try:
        origin = backbones.locate(concept.base)
        family = backbones.family_of(origin)
    except BaseUnavailableError:
        return "", ""
    if origin.known and (own := origin.known.architecture_name):
        return own, own
    return family.ARCHITECTURES[concept.kind], family.KOHYA_BASE


def _metadata(concept: Concept, form: Form) -> dict[str, str]:
    """What other programs show of a LoRA; the manifest says more."""
    architecture, kohya_base = _architecture(concept)
    known = {
        "modelspec.sai_model_spec": "1.0.0",
        **({"modelspec.architecture": f"{architecture}/lora"} if architecture else {}),
        "modelspec.implementation": "diffusers",
        "modelspec.title": concept.name,
        "modelspec.description": f"{concept.kind} LoRA for {concept.base}, learned by customttt {__version__}",
        "modelspec.date": concept.created.isoformat(),
        TRIGGER: concept.phrase,
        OWN_KIND: concept.kind,
        OWN_PHRASE: concept.phrase,
    }
    return known if form == "diffusers" else known | _kohya_metadata(concept, kohya_base)


def _kohya_metadata(concept: Concept, base: str) -> dict[str, str]:
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(concept.rank),
        "ss_network_alpha": str(concept.rank),
        "ss_base_model_version": base,
        "ss_sd_model_name": concept.base,
        "ss_output_name": concept.name,
        "ss_learning_rate": str(concept.learning_rate),
        "ss_steps": str(concept.steps),
        "ss_seed": str(concept.seed),
        "ss_tag_frequency": json.dumps({concept.name: {concept.phrase: 1}}),
    }


def _pack(concept: Concept, files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {MANIFEST: concept.to_json().encode(), **files}.items():
            archive.writestr(zipfile.ZipInfo(name), content)
        archive.comment = bytes(SEAL)
    content = buffer.getvalue()[:-SEAL]
    return content + seal(content)


# -- in


def home_of(parcel: Parcel, asked: str | None) -> tuple[Home, str]:
    """The base that was asked for, else the one that a concept was learned on, else this machine's; and why that one.

    Raises BaseUnavailableError where a concept was learned on another version of its base, and none was asked for.
    """
    known = parcel.concept
    if known and not asked:
        base, why = known.base, f"'{known.name}' was learned on it"
    else:
        base, why = backbones.choose_base(asked)
    fingerprint = backbones.identify(base)
    if known and not asked and fingerprint != known.base_fingerprint:
        raise BaseUnavailableError(
            f"'{parcel.file}' was learned on another '{base}' than the one here; "
            f"add --base {base} to import it for this one all the same."
        )
    return Home(base, fingerprint, backbones.places(base)), why


def admit(parcel: Parcel, home: Home, name: str | None = None, kind: Kind | None = None) -> Arrival:
    """A parcel as a concept of a base.

    Raises DamagedError for weights that do not fit the base, UsageError for those of another kind or a bad name.
    """
    title = name or parcel.name
    check_name(title)
    weights, settled, notes = _weights(parcel, home, kind)
    layers = tuple(sorted({home.places[module].layer for module in keys.wrapped(weights)}))
    rank = next(len(weight) for key, weight in weights.items() if ".lora_A." in key)
    if parcel.concept is None:
        phrase, remark = _phrase(parcel, title)
        concept = _stranger(parcel, title, settled, phrase, home, layers, rank)
        return Arrival(concept, lambda folder: _save(weights, concept, folder), notes + remark)
    known = parcel.concept
    if (known.kind, set(known.layers), known.rank) != (settled, set(layers), rank) or weights.keys() != set(
        parcel.tensors
    ):
        raise DamagedError(f"'{parcel.file}' cannot be imported: its manifest is that of other weights.")
    moved = {"name": title, "base": home.base, "base_fingerprint": home.fingerprint}
    return Arrival(known.model_copy(update=moved), lambda folder: _write(parcel.members, folder))


def _weights(parcel: Parcel, home: Home, kind: Kind | None) -> tuple[lora.Weights, Kind, tuple[str, ...]]:
    """A parcel's weights of one kind under our keys, their kind, and what of the parcel they are not.

    Raises DamagedError or UsageError.
    """
    places = home.places
    if keys.are_twins(places):
        kind = kind or _kind(parcel, {None})
        places = {module: place for module, place in places.items() if place.kind == kind}
    with refusing(f"'{parcel.file}' cannot be imported for the base '{home.base}'"):
        named = keys.named(parcel.tensors, places, kind) if isinstance(parcel.tensors, list) else parcel.tensors
        kept, left = keys.sift(named, places)
        strength = scales.find(parcel.metadata, parcel.config if scales.is_peft(kept) else "")
        weights = keys.translate(kept, places, strength)
    notes = []
    if left:
        parts = " and ".join(f"{count:,} keys of {what}" for what, count in left.items())
        notes.append(f"'{parcel.file}' is imported without {parts}.")
    if strength is None and parcel.concept is None and scales.is_nowhere(kept):
        notes.append(
            f"How strongly '{parcel.file}' acts stands in an {scales.CONFIG}, which is not here; it acts at 1."
        )
    settled = kind or _kind(parcel, {places[module].kind for module in keys.wrapped(weights)})
    return _of_one_kind(parcel, weights, places, settled), settled, tuple(notes)


def _kind(parcel: Parcel, kinds: set[Kind | None]) -> Kind:
    """What a file holds, by where it was learned. Raises UsageError where that does not tell."""
    own = parcel.concept.kind if parcel.concept else parcel.metadata.get(OWN_KIND)
    possible = kinds - {None} or {own} & set(get_args(Kind))
    if len(possible) == 1:
        return cast(Kind, next(iter(possible)))
    holds = "an appearance and a motion" if possible else "an appearance or a motion, which this base does not tell"
    raise UsageError(f"'{parcel.file}' holds {holds}; choose one with --kind appearance or --kind motion.")


def _of_one_kind(parcel: Parcel, weights: lora.Weights, places: Mapping[str, Place], kind: Kind) -> lora.Weights:
    of = {key: places[key.rsplit(".lora_", 1)[0]].kind for key in weights}
    if kept := {key: weight for key, weight in weights.items() if of[key] in (kind, None)}:
        return kept
    other = "a motion" if kind == "appearance" else "an appearance"
    raise UsageError(f"'{parcel.file}' holds no {kind} but {other}.")


def _phrase(parcel: Parcel, name: str) -> tuple[str, tuple[str, ...]]:
    """What the file calls its concept if that can stand in a sentence, else the name, and a line that says so."""
    own, trigger = parcel.metadata.get(OWN_PHRASE, ""), " ".join(parcel.metadata.get(TRIGGER, "").split())
    if own.strip() and len(own) <= MAX_PROMPT and not NO_TEXT.search(own):
        return own, ()
    if len(trigger) <= MAX_PHRASE and not NO_TEXT.search(trigger) and not re.search(r"[,;:|<>(){}\[\]]", trigger):
        return trigger or phrase_of(name), ()
    shown = trigger if len(trigger) <= MAX_PHRASE else f"{trigger[:24]}..."
    remark = f"The trigger phrase {shown!r} ({len(trigger):,} characters) cannot stand in a sentence as a noun"
    return phrase_of(name), (f'{remark}; the concept is called "{phrase_of(name)}".',)


def _stranger(
    parcel: Parcel, name: str, kind: Kind, phrase: str, home: Home, layers: tuple[int, ...], rank: int
) -> Concept:
    """The manifest of a LoRA that another program made, or that went through another program's form."""
    return Concept(
        name=name, kind=kind, phrase=phrase, prompt=training_prompt(kind, phrase), base=home.base,
        base_fingerprint=home.fingerprint, layers=layers, rank=rank, steps=0, learning_rate=0, seed=0,
        sources=(Source(name=parcel.file, sha256=parcel.sha256),), inputs=parcel.sha256, losses=(), versions={},
        created=datetime.now(UTC), seconds=0,
    )  # fmt: skip


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    previews.check(files, folder)


def _save(weights: lora.Weights, concept: Concept, folder: Path) -> None:
    lora.save(weights, folder / WEIGHTS, customttt={"kind": concept.kind, "phrase": concept.phrase})
