"""Test-time training: two LoRAs that were learned apart are adapted to each other and to the prompt.

CustomTTT (arXiv 2412.15646), pipeline figure and supplement. Two frozen teachers, each a base with one LoRA, show what
they know; the student, a base with both LoRAs, learns to keep both while it reads the joint prompt:

    z_s  <-  f DDIM steps of base + appearance LoRA, motion modules off,  "A teddy bear is <doing>."
    z_t  <-  f DDIM steps of base + motion LoRA,                          "A <object> is lifting weights."
    loss  =  || student(z_s + eps') - eps' ||^2  +  || student(z_t + eps'') - eps'' ||^2
             where the student reads the joint prompt,                  "A teddy bear is lifting weights."

The target is the added noise, not the teacher's prediction: the student replays what the teachers made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from customttt import diffusion, lora, losses
from customttt.backbones import Backbone, PromptEmbeds
from customttt.config import SampleConfig, TTTConfig
from customttt.sampling import denoise
from customttt.train import Report, noised, optimize, silent


@dataclass(frozen=True)
class Prompts:
    """Embeddings of all that teachers and student read."""

    doings: Float[Tensor, "n l d"]
    objects: Float[Tensor, "m l d"]
    student: Float[Tensor, "1 l d"]
    empty: Float[Tensor, "1 l d"]


def adapt(
    backbone: Backbone,
    appearance: lora.Weights,
    motion: lora.Weights,
    prompts: Prompts,
    config: TTTConfig,
    sample: SampleConfig,
    accelerator: Accelerator,
    *,
    seed: int = 0,
    report: Report = silent,
) -> tuple[lora.Weights, lora.Weights, list[float]]:
    """Train both LoRAs together. Returns (appearance, motion, losses); the inputs stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    lora.restore(backbone.unet, "appearance_teacher", appearance)
    lora.restore(backbone.unet, "motion_teacher", motion)
    students = lora.restore(backbone.unet, "appearance_student", appearance)
    students += lora.restore(backbone.unet, "motion_student", motion)
    references = References(backbone, prompts, config, sample, generator)

    def loss_at(step: int) -> Float[Tensor, ""]:
        z_s, z_t = references.at(step)
        with lora.active(backbone.unet, appearance_student=1.0, motion_student=1.0):
            return _student_loss(backbone, z_s, z_t, prompts.student, config, generator)

    try:
        history = optimize(
            students, loss_at, phase="test-time training", steps=config.steps,
            learning_rate=config.learning_rate, accelerator=accelerator, report=report,
        )  # fmt: skip
        adapted = lora.state(backbone.unet, "appearance_student"), lora.state(backbone.unet, "motion_student")
        return *adapted, history
    finally:
        names = (f"{kind}_{role}" for kind in ("appearance", "motion") for role in ("teacher", "student"))
        lora.remove(backbone.unet, *names)


def _student_loss(
    backbone: Backbone,
    z_s: diffusion.Latents,
    z_t: diffusion.Latents,
    prompt: PromptEmbeds,
    config: TTTConfig,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Appearance preservation on z_s plus temporal preservation on z_t, each re-noised at its own uniform timestep."""
    embeds = prompt.expand(config.batch_size, -1, -1)
    noisy, target, timesteps = noised(backbone, z_s.expand(config.batch_size, -1, -1, -1, -1), generator)
    if config.student_motion:
        prediction = backbone.predict(noisy, timesteps, embeds)
    else:
        with backbone.without_motion():
            prediction = backbone.predict(noisy, timesteps, embeds)
    appearance_loss = losses.denoising(prediction, target)

    noisy, target, timesteps = noised(backbone, z_t.expand(config.batch_size, -1, -1, -1, -1), generator)
    anchor = int(torch.randint(0, z_t.shape[2], (), generator=generator))
    motion_loss = losses.motion(backbone.predict(noisy, timesteps, embeds), target, anchor, config.debias)
    return config.appearance_weight * appearance_loss + config.motion_weight * motion_loss


class References:
    """What the teachers show: (z_s, z_t), fresh at every step or from a pool made on first use."""

    def __init__(
        self,
        backbone: Backbone,
        prompts: Prompts,
        config: TTTConfig,
        sample: SampleConfig,
        generator: torch.Generator,
    ) -> None:
        self.backbone, self.prompts, self.config, self.generator = backbone, prompts, config, generator
        self.shape = backbone.latent_shape(sample.num_frames, sample.size)
        self.timesteps, self.until = reference_timesteps(backbone.schedule, config, sample)
        self.pool: list[tuple[diffusion.Latents, diffusion.Latents]] = []

    def at(self, step: int) -> tuple[diffusion.Latents, diffusion.Latents]:
        if not self.config.references:
            return self._pair(step)
        if len(self.pool) < self.config.references:
            self.pool.append(self._pair(step))
            return self.pool[-1]
        return self.pool[int(torch.randint(0, len(self.pool), (), generator=self.generator))]

    def _pair(self, step: int) -> tuple[diffusion.Latents, diffusion.Latents]:
        unet, prompts = self.backbone.unet, self.prompts
        with lora.active(unet, appearance_teacher=1.0), self.backbone.without_motion():
            z_s = self._sample(prompts.doings[step % len(prompts.doings)])
        with lora.active(unet, motion_teacher=1.0):
            z_t = self._sample(prompts.objects[step % len(prompts.objects)])
        return z_s, z_t

    def _sample(self, prompt: Float[Tensor, "l d"]) -> diffusion.Latents:
        noise = torch.randn(1, *self.shape, generator=self.generator).to(self.backbone.device)
        return denoise(
            self.backbone, noise, prompt[None], self.prompts.empty, timesteps=self.timesteps, until=self.until,
            guidance_scale=self.config.reference_guidance,
        )  # fmt: skip


def reference_timesteps(
    schedule: diffusion.NoiseSchedule, config: TTTConfig, sample: SampleConfig
) -> tuple[list[int], int]:
    """(timesteps a teacher visits, where its last step leads): f steps to the clean end, or the sampler's first f."""
    f = config.reference_steps
    if config.reference_schedule == "full":
        return diffusion.inference_timesteps(schedule, f).tolist(), -1
    steps = [*diffusion.inference_timesteps(schedule, sample.num_inference_steps).tolist(), -1]
    return steps[:f], steps[min(f, len(steps) - 1)]
