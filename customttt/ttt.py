"""Test-time training: LoRAs that were learned apart are adapted to each other.

CustomTTT (arXiv 2412.15646), pipeline figure and supplement. Two frozen teachers, each a base with one LoRA, show what
they know; the student, a base with both LoRAs, learns to keep both while it reads the joint prompt:

    z_s  <-  f DDIM steps of base + appearance LoRA, motion modules off,  "A teddy bear is <doing>."
    z_t  <-  f DDIM steps of base + motion LoRA,                          "A <object> is lifting weights."
    loss  =  || student(z_s + eps') - eps' ||^2  +  || student(z_t + eps'') - eps'' ||^2
             where the student reads the joint prompt,                  "A teddy bear is lifting weights."

The target comes from the added noise (it is that noise on the paper's base), not from the teacher's prediction: the
student replays what the teachers made.

With several subjects (ours) each further ingredient has a teacher, and the loss a term, of its own; the student has all
LoRAs and reads of all subjects. A step takes as much longer as there are more teachers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from customttt import diffusion, graphs, lora, losses
from customttt.backbones import Backbone, PromptEmbeds
from customttt.concept import Kind
from customttt.config import SampleConfig, TTTConfig
from customttt.errors import UsageError
from customttt.progress import Report, silent
from customttt.recipe import kind_of, renoised
from customttt.sampling import denoise
from customttt.thrift import Ladder, Terms, frozen
from customttt.train import add_random_noise, optimize


@dataclass(frozen=True)
class Prompts:
    """Embeddings of all that teachers and student read."""

    teachers: Mapping[str, Float[Tensor, "n l d"]]
    """By the name of an adapter: of an appearance "<doing>" in turns, of a motion "<object>"."""
    student: Float[Tensor, "1 l d"]
    empty: Float[Tensor, "1 l d"]


def adapt(
    backbone: Backbone,
    loras: lora.Loras,
    prompts: Prompts,
    config: TTTConfig,
    sample: SampleConfig,
    accelerator: Accelerator,
    *,
    seed: int = 0,
    report: Report = silent,
    rung: int = 0,
) -> tuple[lora.Loras, list[float]]:
    """Train all LoRAs together. Returns (LoRAs, losses); the inputs stay as they are.

    `rung` is where on the ladder of `thrift` it begins.
    """
    generator, ladder = torch.Generator().manual_seed(seed), Ladder(backbone, start=rung)
    teachers = [
        Teacher(backbone, slot, prompts.teachers[slot], prompts.empty, config, sample, generator) for slot in loras
    ]
    student = Student(backbone, tuple(loras), prompts.student, config, sample, generator)

    def terms_at(step: int) -> Terms:
        for teacher in teachers:
            yield from student.keeps(teacher, step)

    try:
        students = []
        for slot, weights in loras.items():
            lora.restore(backbone.network, f"{slot}_teacher", weights)
            rate = config.learning_rate * (config.motion_rate if kind_of(slot) == "motion" else 1)
            students.append((lora.restore(backbone.network, f"{slot}_student", weights), rate))
        with graphs.replaying(backbone):
            history = optimize(
                students, terms_at, phase="test-time training", steps=config.steps, accelerator=accelerator,
                ladder=ladder, report=report, generator=generator, remedy="use fewer --ttt-steps, or --no-ttt",
            )  # fmt: skip
        return {slot: lora.state(backbone.network, f"{slot}_student") for slot in loras}, history
    finally:
        names = (f"{slot}_{role}" for slot in loras for role in ("teacher", "student"))
        lora.remove(backbone.network, *names)


class Teacher:
    """The base with one frozen LoRA. It shows what it knows, anew at every step or out of a pool."""

    def __init__(
        self,
        backbone: Backbone,
        slot: str,
        prompts: Float[Tensor, "n l d"],
        empty: Float[Tensor, "1 l d"],
        config: TTTConfig,
        sample: SampleConfig,
        generator: torch.Generator,
    ) -> None:
        self.backbone, self.slot, self.kind = backbone, slot, kind_of(slot)
        self.prompts, self.empty = prompts, empty
        self.config, self.generator = config, generator
        self.unconditional_scale = sample.unconditional_scale
        self.shape = backbone.latent_shape(sample.num_frames, *sample.sides)
        self.path = backbone.schedule.path(config.reference_steps)
        self.pool: list[diffusion.Latents] = []

    def show(self, step: int) -> diffusion.Latents:
        """z_s or z_t of a step."""
        if not self.config.references:
            return self._reference(step)
        if step < self.config.references:
            self.pool[step:] = [self._reference(step)]  # a step that starts again makes its own anew
            return self.pool[step]
        return self.pool[int(torch.randint(0, len(self.pool), (), generator=self.generator))]

    def _reference(self, step: int) -> diffusion.Latents:
        prompt = self.prompts[step % len(self.prompts)][None]
        noise = diffusion.bring(torch.randn(1, *self.shape, generator=self.generator), self.backbone.device)
        with self._acting():
            return denoise(
                self.backbone, noise, prompt, self.empty, path=self.path,
                guidance_scale=self.config.reference_guidance, unconditional_scale=self.unconditional_scale,
            )  # fmt: skip

    @contextmanager
    def _acting(self) -> Iterator[None]:
        motion = self.backbone.framewise() if self.kind == "appearance" else nullcontext()
        with frozen(self.backbone, self.unconditional_scale, **{f"{self.slot}_teacher": 1.0}), motion:
            yield


@dataclass(frozen=True)
class Student:
    """The base with all LoRAs, reading the joint prompt."""

    backbone: Backbone
    slots: Sequence[str]
    prompt: PromptEmbeds
    config: TTTConfig
    sample: SampleConfig
    generator: torch.Generator

    def keeps(self, teacher: Teacher, step: int) -> Terms:
        """Appearance or temporal preservation: the error on what the teacher showed, noised again."""
        shown = teacher.show(step)
        acting, within = self._part(teacher.kind)
        noisy, target, timesteps = add_random_noise(self.backbone, shown, self.generator, within)
        adapters = [f"{slot}_student" for slot in self.slots if kind_of(slot) in acting]
        with lora.active(self.backbone.network, **dict.fromkeys(adapters, 1.0)):
            if teacher.kind == "appearance":
                with self.backbone.framewise():
                    yield losses.denoising(self.backbone.predict(noisy, timesteps, self.prompt), target)
            else:
                anchor = int(torch.randint(0, noisy.shape[2], (), generator=self.generator))
                prediction = self.backbone.predict(noisy, timesteps, self.prompt)
                yield losses.motion(prediction, target, anchor, self.config.debias, self.config.plain)

    def _part(self, shown: Kind) -> tuple[frozenset[Kind], tuple[float, float]]:
        """Whose LoRAs act on what that teacher showed, and between which shares of the noise; drawn where there are
        several such parts."""
        parts = renoised(shown, self.config, self.sample)
        if shown == "appearance":  # a still picture teaches its own kind alone
            low, high = self.backbone.noise(shown)
            clipped = [(acting, (max(low, begin), min(high, end))) for acting, (begin, end) in parts]
            parts = [(acting, (begin, end)) for acting, (begin, end) in clipped if begin < end]
        if not parts:
            raise UsageError(
                f"The {shown} reference is noised again where no LoRA acts on it: on {self.backbone.name} that is from "
                f"{low:g} to {high:g}."
            )
        if len(parts) == 1:
            return parts[0]
        lengths = torch.tensor([high - low for _, (low, high) in parts])
        return parts[int(torch.multinomial(lengths, 1, generator=self.generator))]
