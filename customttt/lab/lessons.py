"""What the world's held-out part teaches: pictures, clips, and the concepts that are learned from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from jaxtyping import Int
from torch import Tensor

from customttt import learn, media
from customttt.concept import Concept, Kind
from customttt.config import TrainConfig, digest
from customttt.errors import NotFoundError
from customttt.progress import Say
from customttt.recipe import sentence, with_article
from customttt.tiny import world
from customttt.tiny.captions import noun_phrase, pair_sentence
from customttt.tiny.demo import CLIP_NOUN, CLIP_SCENE, PICTURE_SCENES, STILL, captions
from customttt.tiny.movements import HELD_OUT_MOVEMENTS, MOVEMENTS
from customttt.tiny.scenes import SCENES
from customttt.video import to_frames
from customttt.workshop import Workshop

SEED = 78
"""Of the first renders that are learned from; the n-th seed of learning sees those of the n-th seed after it."""


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


def clip(movement: str, seed: int = SEED, num_frames: int = world.FRAMES, fps: float = 8.0) -> media.Clip:
    """A dog in the desert that does it."""
    video = render([Content(CLIP_NOUN, movement, CLIP_SCENE)], seed, num_frames=num_frames, vary=0.0).video
    return media.Clip(movement, to_frames(video), fps, "0" * 64)


@dataclass(frozen=True)
class School:
    """A workshop that learns from the held-out part: with one `--out`, `score` and `study` learn nothing twice."""

    shop: Workshop
    say: Say

    def learned(self, kind: Kind, of: Content, config: TrainConfig) -> Concept:
        """A noun and look, from `pictures`, or a movement, from `clip`; rendered anew for each seed of learning."""
        name = self.name(kind, of, config)
        if known := self.known(name):
            return known
        self.say(f"learning the {kind} {of.file_name} in blocks {','.join(map(str, config.layers))}")
        seed, words = SEED + config.seed, replace(wording(kind, of), name=name)
        sample = self.shop.backbone.defaults.sample
        inputs = (
            clip(of.movement, seed, sample.num_frames, sample.fps)
            if kind == "motion"
            else pictures(of.noun, of.look, seed)
        )
        return self.shop.learn(self.shop.plan(words, inputs, config), force=True)  # another process may have, too

    def name(self, kind: Kind, of: Content, config: TrainConfig) -> str:
        """What it is called in the library: all that makes it."""
        key = digest([self.shop.backbone.fingerprint, config.changed()])[:16]
        return f"{kind}-{of.file_name}-{key}"

    def known(self, name: str) -> Concept | None:
        """The concept of that name; None where it is not learned yet."""
        try:
            return self.shop.library.get(name)
        except NotFoundError:
            return None


def wording(kind: Kind, of: Content) -> learn.Wording:
    """What a learned subject or movement is called, and what its training prompt says."""
    if kind == "motion":
        return learn.Wording("movement", of.movement, sentence(with_article(CLIP_NOUN), of.movement, CLIP_SCENE))
    return learn.Wording("subject", of.noun, sentence(with_article(of.noun)))
