"""What the world's held-out part teaches: pictures, clips, and the LoRAs that are learned from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Int
from torch import Tensor

from customttt import learn, lora, media
from customttt.backbones import Backbone
from customttt.concept import Kind
from customttt.config import TrainConfig, digest
from customttt.recipe import sentence, with_article
from customttt.tiny import world
from customttt.tiny.captions import noun_phrase, pair_sentence
from customttt.tiny.demo import CLIP_NOUN, CLIP_SCENE, PICTURE_SCENES, STILL, captions
from customttt.tiny.movements import HELD_OUT_MOVEMENTS, MOVEMENTS
from customttt.tiny.scenes import SCENES
from customttt.video import to_frames

SEED = 78
"""Of the first renders that are learned from; the n-th seed of learning sees those of the n-th seed after it."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Content:
    """What one clip of the world shows."""

    noun: str
    movement: str
    scene: str
    look: world.Look = world.PLAIN
    other: Content | None = None
    """A second subject, in the same scene."""

    @property
    def prompt(self) -> str:
        subject = noun_phrase(self.noun, self.look)
        if self.other is None:
            return sentence(subject, self.movement, self.scene)
        second = noun_phrase(self.other.noun, self.other.look)
        return pair_sentence(subject, second, self.movement, self.other.movement, self.scene)

    @property
    def file_name(self) -> str:
        """What a file about it is called."""
        return "-".join(part for part in (self.noun, self.movement, *self.look) if part).replace(" ", "_")


def render(
    contents: Sequence[Content],
    seed: int,
    *,
    num_frames: int = world.FRAMES,
    size: int = world.SIZE,
    vary: float = 1.0,
) -> world.Clips:
    """The world's own clips of these contents."""
    generator = torch.Generator().manual_seed(seed)
    return world.render(indices(contents), generator, num_frames=num_frames, size=size, vary=vary)


def indices(contents: Sequence[Content]) -> world.Contents:
    """The same in the world's numbers; what says no movement stands still."""

    def both(values: Callable[[Content], str], names: Iterable[str], absent: int = 0) -> Int[Tensor, "b s"]:
        known = {name: index for index, name in enumerate(names)}
        rows = [[known[values(c)], known[values(c.other)] if c.other else absent] for c in contents]
        return torch.tensor(rows)

    return world.Contents(
        both(lambda c: c.noun, world.NOUNS, world.ABSENT),
        both(lambda c: c.look.colour, world.COLOURS),
        both(lambda c: c.look.hat, world.HATS),
        both(lambda c: c.look.pattern, world.PATTERNS),
        both(lambda c: c.movement or STILL, MOVEMENTS),
        torch.tensor([list(SCENES).index(content.scene) for content in contents]),
    )


def held_out(kind: str) -> list[Content]:
    """Twelve of each: what is learned, and how its pictures or its clip show it."""
    if kind == "look":
        return [
            Content(noun, "", "", look)
            for noun, look in list(product(world.TRAINED_NOUNS, world.HELD_OUT_LOOKS))[:48:4]
        ]
    if kind == "noun":
        return [Content(noun, "", "") for noun in world.HELD_OUT_NOUNS]
    return [Content(CLIP_NOUN, movement, CLIP_SCENE) for movement in HELD_OUT_MOVEMENTS]


def pictures(noun: str, look: world.Look, seed: int = SEED) -> list[media.Picture]:
    """Five still pictures of a subject. What their captions say is not learned as the subject: where it is, and that it
    stands still. A second one leaves that out, so that the looks are not learned as those of who stands still."""
    shown = [Content(noun, STILL, scene, look) for scene in PICTURE_SCENES]
    return [
        media.Picture(scene, to_frames(still[None])[0], captions(noun, scene), "0" * 64)
        for scene, still in zip(PICTURE_SCENES, render(shown, seed, num_frames=1).video, strict=True)
    ]


def clip(movement: str, seed: int = SEED) -> media.Clip:
    """A dog in the desert that does it."""
    video = render([Content(CLIP_NOUN, movement, CLIP_SCENE)], seed, vary=0.0).video
    return media.Clip(movement, to_frames(video), 8.0, "0" * 64)


def keep(weights: lora.Weights, path: Path) -> None:
    """Write weights to `path` whole or not at all."""
    with media.placed(path) as aside:
        lora.save(weights, aside)


@dataclass(frozen=True)
class School:
    """A base that learns from the held-out part, and the folder where what it has learned is kept: one `--out` for
    `score` and `study` and nothing is learned twice."""

    backbone: Backbone
    accelerator: Accelerator
    folder: Path
    say: Say

    def learned(self, kind: Kind, of: Content, config: TrainConfig) -> lora.Weights:
        """The LoRA of a noun and look, from `pictures`, or of a movement, from `clip`.

        The world renders them anew for each seed of learning.
        """
        path = self.path(kind, of, config)
        if not path.exists():
            self.say(f"learning the {kind} {of.file_name} in blocks {','.join(map(str, config.layers))}")
            keep(self._learn(kind, of, config).weights, path)
        return lora.load(path)

    def path(self, kind: Kind, of: Content, config: TrainConfig) -> Path:
        """Where that LoRA is kept: named by all that makes it."""
        key = digest([self.backbone.fingerprint, config.changed()])[:16]
        return self.folder / f"{kind}-{of.file_name}-{key}.safetensors"

    def _learn(self, kind: Kind, of: Content, config: TrainConfig) -> learn.Learned:
        seed, words, given = SEED + config.seed, wording(kind, of), (config, self.accelerator)
        if kind == "motion":
            return learn.motion(self.backbone, clip(of.movement, seed), words, *given)
        return learn.appearance(self.backbone, pictures(of.noun, of.look, seed), words, *given)


def wording(kind: Kind, of: Content) -> learn.Wording:
    """What a learned subject or movement is called, and what its training prompt says."""
    if kind == "motion":
        return learn.Wording("movement", of.movement, sentence(with_article(CLIP_NOUN), of.movement, CLIP_SCENE))
    return learn.Wording("subject", of.noun, sentence(with_article(of.noun)))
