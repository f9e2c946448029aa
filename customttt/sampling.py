"""The denoising loop: DDIM with classifier-free guidance, in which a LoRA may rest for a part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from customttt import diffusion, lora
from customttt.backbones import Backbone
from customttt.config import SampleConfig
from customttt.progress import Progress, Report, silent
from customttt.recipe import stretches


@torch.no_grad()
def denoise(
    backbone: Backbone,
    noise: diffusion.Latents,
    prompt_embeds: Float[Tensor, "b l d"],
    negative_embeds: Float[Tensor, "b l d"],
    *,
    guidance_scale: float,
    unconditional_scale: float = 1.0,
    timesteps: list[int],
    until: int = -1,
    report: Report = silent,
) -> diffusion.Latents:
    """Clean latents from noise by DDIM (arXiv 2010.02502, sigma = 0) over `timesteps`, noisiest first.

    `until` is where the last step leads, -1 for clean latents. With guidance_scale 1 the unconditional half is not
    computed at all.
    """
    latents, embeds = noise, torch.cat([prompt_embeds, negative_embeds])
    for index, (timestep, previous) in enumerate(zip(timesteps, [*timesteps[1:], until], strict=True)):
        batch = torch.full((len(latents),), timestep, device=latents.device)
        if guidance_scale == 1:
            prediction = backbone.predict(latents, batch, prompt_embeds)
        else:
            halves = _halves(backbone, latents, batch, embeds, unconditional_scale)
            prediction = diffusion.guide(*halves, guidance_scale)
        latents = diffusion.ddim_step(backbone.schedule, prediction, latents, timestep, previous)
        report(Progress("denoising", index + 1, len(timesteps)))
    return latents


def _halves(
    backbone: Backbone,
    latents: diffusion.Latents,
    timesteps: diffusion.Timesteps,
    embeds: Float[Tensor, "n l d"],
    unconditional_scale: float,
) -> tuple[diffusion.Latents, diffusion.Latents]:
    """The conditional and the unconditional prediction; `embeds` are those of the prompts, then the negative ones."""
    if unconditional_scale < 1:
        prompt_embeds, negative_embeds = embeds.chunk(2)
        conditional = backbone.predict(latents, timesteps, prompt_embeds)
        with lora.weaker(backbone.unet, unconditional_scale):
            return conditional, backbone.predict(latents, timesteps, negative_embeds)
    both = backbone.predict(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), embeds)
    conditional, unconditional = both.chunk(2)
    return conditional, unconditional


def denoise_in_phases(
    backbone: Backbone,
    noise: diffusion.Latents,
    prompt_embeds: Float[Tensor, "b l d"],
    negative_embeds: Float[Tensor, "b l d"],
    sample: SampleConfig,
    scales: Mapping[str, float],
    report: Report = silent,
) -> diffusion.Latents:
    """Clean latents from noise as a recipe samples, by the LoRAs in `scales`, each while it does not rest."""
    latents, timesteps = noise, diffusion.inference_timesteps(backbone.schedule, sample.num_inference_steps).tolist()
    for acting, some, until in phases(sample, scales, timesteps):
        with lora.active(backbone.unet, **acting):
            latents = denoise(
                backbone, latents, prompt_embeds, negative_embeds, guidance_scale=sample.guidance_scale,
                unconditional_scale=sample.unconditional_scale, timesteps=some, until=until,
                report=_whole(report, timesteps, some),
            )  # fmt: skip
    return latents


def _whole(report: Report, timesteps: list[int], some: list[int]) -> Report:
    """Reports steps of `some` as those of all `timesteps`."""
    done = timesteps.index(some[0])
    return lambda progress: report(replace(progress, step=done + progress.step, total=len(timesteps)))


def phases(
    sample: SampleConfig, scales: Mapping[str, float], timesteps: list[int]
) -> list[tuple[dict[str, float], list[int], int]]:
    """(scales of the LoRAs that act, timesteps, where they lead): one phase unless the settings let a LoRA rest.

    The appearance waits for a motion only; alone it acts from the start.
    """
    count = len(timesteps)
    found = []
    for kinds, shares in stretches(sample if scales.get("motion") else sample.but(appearance_from=0.0)):
        begin, end = (int(share * count) for share in shares)
        if begin < end:
            acting: dict[str, float] = {name: scale for name, scale in scales.items() if name in kinds}
            found.append((acting, timesteps[begin:end], timesteps[end] if end < count else -1))
    return found
