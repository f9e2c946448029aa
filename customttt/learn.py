"""Learn a concept: from pictures or a clip to LoRA weights and the manifest that goes with them. Knows no library."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from customttt import lora, train
from customttt.backbones import Backbone
from customttt.checkpoint import FORGETFUL, Keeper
from customttt.concept import Concept, Kind, Source
from customttt.config import Aspect, SampleConfig, TrainConfig, digest, lowest_terms
from customttt.library import WEIGHTS, Library
from customttt.machine import versions
from customttt.media import Clip, Picture, Pixels
from customttt.progress import Report, silent
from customttt.text import escaped
from customttt.video import to_video

Inputs = Sequence[Picture] | Clip
"""What a concept is learned from: an appearance from pictures, a motion from a clip."""
VIEWS = 8
"""Of every picture, where pictures are shifted."""
CHANGEABLE = ("steps", "learning_rate")
"""Fields of TrainConfig that a run may change when it goes on."""


@dataclass(frozen=True)
class LearnedConcept:
    """A concept and its weights, not yet in any library."""

    concept: Concept
    weights: lora.Weights

    def add_to(self, library: Library, force: bool = False) -> Concept:
        """Store it; see `Library.add` for what is raised."""

        def write(folder: Path) -> None:
            lora.save(
                self.weights, folder / WEIGHTS, customttt={"kind": self.concept.kind, "phrase": self.concept.phrase}
            )

        return library.add(self.concept, write, force=force)


@dataclass(frozen=True)
class Wording:
    """What a concept is called and what its training prompt says."""

    name: str
    phrase: str
    prompt: str


def appearance(
    backbone: Backbone,
    pictures: Sequence[Picture],
    wording: Wording,
    config: TrainConfig,
    accelerator: Accelerator,
    report: Report = silent,
    keeper: Keeper = FORGETFUL,
    rung: int = 0,
) -> LearnedConcept:
    """Learn a subject from its pictures; where a picture has captions, they replace the prompt."""
    began, concept = time.monotonic(), manifest(backbone, pictures, wording, config)
    latents, prompts = encode_pictures(backbone, pictures, wording.prompt, config)
    weights, history = train.learn_appearance(
        backbone, latents, backbone.embed(prompts), config, accelerator, report, keeper, rung=rung
    )
    return _learned(concept, weights, history, began)


def encode_pictures(
    backbone: Backbone, pictures: Sequence[Picture], prompt: str, config: TrainConfig
) -> tuple[Float[Tensor, "n c 1 h w"], list[str]]:
    """Latents of every view of every picture with each of its captions, or with the prompt, and what those say."""
    latents, prompts = [], []
    for picture in pictures:
        views = [backbone.encode(to_video(view[None])) for view in moved(picture.pixels, config)]
        for text in picture.captions or (prompt,):
            latents += views
            prompts += [text] * len(views)
    return torch.cat(latents), prompts


def moved(pixels: Pixels, config: TrainConfig) -> list[Pixels]:
    """A picture at VIEWS random places, its edges drawn out; only itself where the configuration shifts nothing."""
    if not config.shift:
        return [pixels]
    height, width = pixels.shape[:2]
    right, down = round(config.shift * width), round(config.shift / 2 * height)
    wide = np.pad(pixels, ((down, down), (right, right), (0, 0)), mode="edge")
    places = np.random.default_rng(config.seed).integers(0, (2 * down + 1, 2 * right + 1), (VIEWS, 2))
    return [wide[top : top + height, left : left + width] for top, left in places]


def motion(
    backbone: Backbone,
    clip: Clip,
    wording: Wording,
    config: TrainConfig,
    accelerator: Accelerator,
    report: Report = silent,
    keeper: Keeper = FORGETFUL,
    rung: int = 0,
) -> LearnedConcept:
    """Learn a movement from one clip."""
    began, concept = time.monotonic(), manifest(backbone, clip, wording, config)
    latents, embeds = backbone.encode(to_video(clip.frames)), backbone.embed([wording.prompt])
    weights, history = train.learn_motion(backbone, latents, embeds, config, accelerator, report, keeper, rung=rung)
    return _learned(concept, weights, history, began)


def run_key(kind: Kind, fingerprint: str, wording: Wording, config: TrainConfig, inputs: str) -> str:
    """What a run of learning is kept under: all that makes it, but the settings in CHANGEABLE (sha256)."""
    fixed = {key: value for key, value in asdict(config).items() if key not in CHANGEABLE}
    return digest([kind, fingerprint, asdict(wording), fixed, inputs])


def kind_of(inputs: Inputs) -> Kind:
    """What is learned from them."""
    return "motion" if isinstance(inputs, Clip) else "appearance"


def digest_of(inputs: Inputs) -> str:
    """sha256 of all pixels and captions: the same inputs, cut the same way, with the same words."""
    if isinstance(inputs, Clip):
        return hashlib.sha256(f"{inputs.frames.shape}".encode() + inputs.frames.tobytes()).hexdigest()
    digest = hashlib.sha256()
    for picture in inputs:
        digest.update(f"{picture.pixels.shape} {picture.captions!r}".encode() + picture.pixels.tobytes())
    return digest.hexdigest()


def aspect_of(inputs: Inputs, own: SampleConfig) -> Aspect | None:
    """Width to height of a clip's frames; None of pictures, and where it is the base's own."""
    if not isinstance(inputs, Clip):
        return None
    _, height, width, _ = inputs.frames.shape
    own_height, own_width = own.sides
    return None if width * own_height == height * own_width else lowest_terms(width, height)


def manifest(backbone: Backbone, inputs: Inputs, wording: Wording, config: TrainConfig) -> Concept:
    """What is known of a concept before it is learned: there are no losses yet, and it took no time.

    It is whole and can be written, so that nothing is learned that could not be kept.
    """
    files = [inputs] if isinstance(inputs, Clip) else inputs
    aspect = aspect_of(inputs, backbone.defaults.sample)
    sources = [Source(name=escaped(one.name), sha256=one.sha256) for one in files]
    concept = Concept(
        name=wording.name, kind=kind_of(inputs), phrase=wording.phrase, prompt=wording.prompt, base=backbone.name,
        base_fingerprint=backbone.fingerprint, layers=config.layers, rank=config.rank, steps=config.steps,
        learning_rate=config.learning_rate, seed=config.seed, sources=tuple(sources),
        inputs=digest_of(inputs), losses=(), versions=versions(), created=datetime.now(UTC), seconds=0,
        format_version=2 if aspect else 1, aspect=aspect,
    )  # fmt: skip
    concept.to_json().encode()
    return concept


def _learned(concept: Concept, weights: lora.Weights, history: Sequence[float], began: float) -> LearnedConcept:
    losses, seconds = tuple(round(loss, 6) for loss in history), round(time.monotonic() - began, 1)
    return LearnedConcept(concept.model_copy(update={"losses": losses, "seconds": seconds}), weights)
