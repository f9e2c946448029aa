"""The rivals of CustomTTT that learn anew from the pictures and the clip: one short function each.

What they have in common here, so that the methods are compared and not their tuning: the concepts' own pictures (moved
as the base's recipe moves them), captions, clip and prompts; the optimizer, learning rates, steps, rank and seed that
the concepts were learned with; and LoRAs on every layer that has the modules. Where a method's own recipe differs in
that, its docstring says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from customttt import learn, lora, losses, train
from customttt.backbones import Backbone, PromptEmbeds, WordEmbedding
from customttt.checkpoint import FORGETFUL, Keeper
from customttt.concept import Concept, Kind
from customttt.config import Defaults, TrainConfig, digest
from customttt.diffusion import Latents
from customttt.errors import UsageError
from customttt.media import Clip, Picture
from customttt.progress import Report, silent
from customttt.recipe import training_prompt
from customttt.thrift import Ladder, Terms
from customttt.video import to_video

FORMAT_VERSION = 2
"""Part of every key; raise it when a rival here learns otherwise than before."""
MASKED = 0.2
"""Share of the steps without the clip's spatial LoRA, in MotionDirector's and DiffDirector's public code [C]."""
WORD_SHARE = 0.75
"""Of DreamVideo's steps for the subject: 3,000 for the word and 1,000 for the adapter in its public settings [C]."""

Stages = Callable[[str], Keeper]
"""What keeps the run of each stage of a rival's learning, by the stage's name."""


def forgetful(_: str) -> Keeper:
    """Keeps nothing."""
    return FORGETFUL


@dataclass(frozen=True)
class Material:
    """Two concepts and what they were learned from: all that a rival needs besides the base."""

    appearance: Concept
    motion: Concept
    pictures: Sequence[Picture]
    clip: Clip
    defaults: Defaults

    def config(self, kind: Kind) -> TrainConfig:
        """The budget of a concept: the base's settings, with steps, learning rate, rank and seed as it was learned."""
        own: TrainConfig = getattr(self.defaults, kind)
        concept: Concept = getattr(self, kind)
        return own.but(
            steps=concept.steps or None, learning_rate=concept.learning_rate or None, rank=concept.rank,
            seed=concept.seed,
        )  # fmt: skip

    def key(self, rival: str) -> str:
        """What a rival learns from this is kept under it: all that makes it (sha256)."""
        concepts = [
            (one.base_fingerprint, one.phrase, one.prompt, one.inputs) for one in (self.appearance, self.motion)
        ]
        budget = [self.config("appearance").to_dict(), self.config("motion").to_dict()]
        return digest([FORMAT_VERSION, rival, concepts, budget])


@dataclass(frozen=True)
class MethodWeights:
    """What a method renders with: LoRAs, and DreamVideo's word for the subject."""

    loras: lora.Loras
    word: WordEmbedding | None = None

    def spoken(self, backbone: Backbone, noun: str) -> AbstractContextManager[None]:
        """While this lasts, the base reads the word that was learned, if there is one, where the noun stands."""
        return nullcontext() if self.word is None else backbone.meaning(noun, self.word)

    def to_weights(self) -> lora.Weights:
        """As one file holds it."""
        return lora.join(self.loras) | ({} if self.word is None else {"word": self.word})

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> MethodWeights:
        return cls(lora.split(weights), weights.get("word"))


def teach(
    rival: str,
    backbone: Backbone,
    material: Material,
    accelerator: Accelerator,
    report: Report = silent,
    stages: Stages = forgetful,
    subject: lora.Weights | None = None,
) -> MethodWeights:
    """What the rival of that name (see RIVALS) learns from the material.

    `subject` is what `full` has learned of the subject, where that is at hand: DiffDirector learns the same.
    """
    appearance = material.appearance
    pictures, prompts = learn.encode_pictures(
        backbone, material.pictures, appearance.prompt, material.config("appearance")
    )
    lesson = RivalLesson(
        backbone, material, accelerator, report, stages, appearance.phrase, prompts, pictures,
        clip=backbone.encode(to_video(material.clip.frames)),
        clip_embeds=backbone.embed([material.motion.prompt]), everywhere=subject,
    )  # fmt: skip
    return RIVALS[rival](lesson)


@dataclass(frozen=True)
class RivalLesson:
    """The material, as the base reads it, and the two things that most rivals learn from it."""

    backbone: Backbone
    material: Material
    accelerator: Accelerator
    report: Report
    stages: Stages
    noun: str
    prompts: Sequence[str]
    """Of each picture."""
    pictures: Float[Tensor, "n c 1 h w"]
    clip: Float[Tensor, "1 c f h w"]
    clip_embeds: Float[Tensor, "1 l d"]
    everywhere: lora.Weights | None = None
    """The subject in all spatial linears, if it has been learned before."""

    def config(self, kind: Kind) -> TrainConfig:
        """The budget, on every layer, and at all noise, as a rival's LoRAs act throughout."""
        return self.material.config(kind).but(layers=self.backbone.layers(kind), noise=(0.0, 1.0))

    def targets(self, kind: Kind) -> list[str]:
        """All linears of that kind."""
        return self.backbone.targets(kind, self.backbone.layers(kind))

    def subject(
        self, targets: Sequence[str] | None = None, embeds: PromptEmbeds | None = None, steps: int | None = None
    ) -> lora.Weights:
        """A spatial LoRA from the pictures, motion modules bypassed: by default on all linears, in all steps."""
        weights, _ = train.learn_appearance(
            self.backbone, self.pictures, self.backbone.embed(self.prompts) if embeds is None else embeds,
            self.config("appearance").but(steps=steps), self.accelerator, self.report, self.stages("subject"), targets,
        )  # fmt: skip
        return weights

    def movement(self, debias: float | None = None) -> lora.Weights:
        """A temporal LoRA from the clip; without `debias` by L_org alone."""
        weights, _ = train.learn_motion(
            self.backbone, self.clip, self.clip_embeds, self.config("motion").but(debias=debias), self.accelerator,
            self.report, self.stages("movement"),
        )  # fmt: skip
        return weights


def _pair(appearance: lora.Weights, motion: lora.Weights, word: WordEmbedding | None = None) -> MethodWeights:
    return MethodWeights({"appearance": appearance, "motion": motion}, word)


def full(lesson: RivalLesson) -> MethodWeights:
    """The paper's "full LoRA": what CustomTTT learns before test-time training, on all layers."""
    return _pair(lesson.subject(), lesson.movement())


def motiondirector(lesson: RivalLesson) -> MethodWeights:
    """MotionDirector's dual-path recipe (arXiv 2310.08465); spatial LoRAs leave the cross-attention as it is.

    Published: AdamW at 5e-4 for both paths, 150 steps for a clip and 1,000 for pictures, half of them mirrored, and at
    inference noise that is half the inverted clip. Here all methods share optimizer, steps, pictures and noise.
    """
    reading = lesson.backbone.cross_attention(lesson.backbone.layers("appearance"))
    spatial = [name for name in lesson.targets("appearance") if name not in reading]
    return _pair(lesson.subject(spatial), _two_paths(lesson, spatial))


def diffdirector(lesson: RivalLesson) -> MethodWeights:
    """DiffDirector (github.com/ExponentialML/AnimateDiff-MotionDirector): MotionDirector's recipe, for AnimateDiff.

    Its spatial LoRAs wrap the cross-attention, too, and its optimizer is Lion: at 5e-5 for the temporal path and 1e-5
    for the spatial one, the two learning rates of CustomTTT. Here both paths of the clip have the motion's. Not taken
    over: 503 steps, rank 64 from 384 pixels on, no dropout in the temporal LoRA.
    """
    subject = lesson.subject() if lesson.everywhere is None else lesson.everywhere
    return _pair(subject, _two_paths(lesson, lesson.targets("appearance")))


def dreamvideo(lesson: RivalLesson) -> MethodWeights:
    """DreamVideo (arXiv 2312.04433), simplified: a word for the subject, then an adapter of the cross-attention.

    The word replaces the noun, from whose embedding it starts; 3/4 of the subject's steps are for it, as in the public
    settings. Simplified: LoRAs stand in for both bottleneck adapters; no base here has an image encoder, so the motion
    adapter has no appearance guidance; the pictures have no masks; both parts of the subject have one learning rate.
    """
    prompt = training_prompt("appearance", lesson.noun)
    prompts = [text if lesson.noun.lower() in text.lower() else prompt for text in lesson.prompts]
    steps = lesson.config("appearance").steps
    word = _invert(lesson, prompts, int(WORD_SHARE * steps))
    with lesson.backbone.meaning(lesson.noun, word):
        embeds = lesson.backbone.embed(prompts)
    cross_attention = lesson.backbone.cross_attention(lesson.backbone.layers("appearance"))
    identity = lesson.subject(cross_attention, embeds, steps - int(WORD_SHARE * steps))
    return _pair(identity, lesson.movement(debias=0.0), word)


RIVALS: Mapping[str, Callable[[RivalLesson], MethodWeights]] = MappingProxyType(
    {"full": full, "motiondirector": motiondirector, "diffdirector": diffdirector, "dreamvideo": dreamvideo}
)
"""By the name in `compare`."""


def _two_paths(lesson: RivalLesson, spatial: Sequence[str]) -> lora.Weights:
    """The temporal LoRA of the clip, learned together with a spatial one, which is thrown away.

    Spatial path: one random frame, only the spatial LoRA acts. Temporal path: all frames, both act, L_org + L_ad, and
    only the temporal LoRA learns: what the other explains, it need not learn (arXiv 2310.08465, equations 4 to 7).
    Both paths see the same noise, and the frame passes the motion modules, as in the public code.
    """
    backbone, config = lesson.backbone, lesson.config("motion")
    if backbone.noise("motion") != backbone.noise("appearance"):
        raise UsageError(
            f"On {backbone.name} an appearance and a motion never act at the same noise, as two paths must; leave "
            "motiondirector and diffdirector out."
        )
    generator = torch.Generator().manual_seed(config.seed)
    latents = lesson.clip.expand(config.batch_size, -1, -1, -1, -1)
    embeds = lesson.clip_embeds.expand(config.batch_size, -1, -1)

    def temporal(noisy: Latents, target: Latents, timesteps: Tensor, scales: Mapping[str, float]) -> Terms:
        anchor = int(torch.randint(0, noisy.shape[2], (), generator=generator))
        with lora.trainable(lora.parameters(backbone.network, "looks"), False), lora.active(backbone.network, **scales):
            yield losses.motion(backbone.predict(noisy, timesteps, embeds), target, anchor, config.debias)

    def terms_at(_: int) -> Terms:
        noisy, target, timesteps = train.add_random_noise(backbone, latents, generator)
        if float(torch.rand((), generator=generator)) < MASKED:
            yield from temporal(noisy, target, timesteps, {"motion": 1.0})
            return
        index = torch.randint(0, noisy.shape[2], (1,), generator=generator).to(noisy.device)
        with lora.active(backbone.network, looks=1.0):
            prediction = backbone.predict(noisy.index_select(2, index), timesteps, embeds)
            yield losses.denoising(prediction, target.index_select(2, index))
        yield from temporal(noisy, target, timesteps, {"motion": 1.0, "looks": 1.0})

    weights, _ = train.learn(
        backbone, {"looks": spatial, "motion": lesson.targets("motion")}, config, terms_at, lesson.accelerator,
        phase="learning the motion by two paths", generator=generator, ladder=Ladder(backbone),
        report=lesson.report, keeper=lesson.stages("movement"),
    )  # fmt: skip
    return weights["motion"]


def _invert(lesson: RivalLesson, prompts: Sequence[str], steps: int) -> WordEmbedding:
    """Textual inversion (arXiv 2208.01618): the embedding of a word by which the frozen base draws the pictures."""
    backbone, config = lesson.backbone, lesson.config("appearance")
    generator = torch.Generator().manual_seed(config.seed)
    word = nn.Parameter(backbone.word(lesson.noun))

    def terms_at(_: int) -> Terms:
        chosen = torch.randint(0, len(lesson.pictures), (config.batch_size,), generator=generator)
        noisy, target, timesteps = train.add_random_noise(backbone, lesson.pictures[chosen], generator)
        with backbone.meaning(lesson.noun, word), backbone.framewise():
            prediction = backbone.predict(noisy, timesteps, backbone.embed([prompts[int(index)] for index in chosen]))
            yield losses.denoising(prediction, target)

    train.optimize(
        [([word], config.learning_rate)], terms_at, phase="learning the word", steps=steps,
        accelerator=lesson.accelerator, ladder=Ladder(backbone), report=lesson.report,
        keeper=lesson.stages("word"), generator=generator,
    )  # fmt: skip
    return word.detach().cpu()
