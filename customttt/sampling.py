"""The denoising loop: DDIM with classifier-free guidance."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from customttt import diffusion
from customttt.backbones import Backbone
from customttt.train import Progress, Report, silent


@torch.no_grad()
def denoise(
    backbone: Backbone,
    noise: diffusion.Latents,
    prompt_embeds: Float[Tensor, "b l d"],
    negative_embeds: Float[Tensor, "b l d"],
    *,
    guidance_scale: float,
    timesteps: list[int],
    until: int = -1,
    report: Report = silent,
) -> diffusion.Latents:
    """Clean latents from noise by DDIM (arXiv 2010.02502, sigma = 0) over `timesteps`, noisiest first.

    `until` is where the last step leads, -1 for clean latents. With guidance_scale 1 the unconditional half is not
    computed at all.
    """
    latents, guided = noise, guidance_scale != 1
    embeds = torch.cat([prompt_embeds, negative_embeds]) if guided else prompt_embeds
    for index, (timestep, previous) in enumerate(zip(timesteps, [*timesteps[1:], until], strict=True)):
        batch = torch.full((len(embeds),), timestep, device=latents.device)
        prediction = backbone.predict(torch.cat([latents, latents]) if guided else latents, batch, embeds)
        if guided:
            conditional, unconditional = prediction.chunk(2)
            prediction = diffusion.guide(conditional, unconditional, guidance_scale)
        latents = diffusion.ddim_step(backbone.schedule, prediction, latents, timestep, previous)
        report(Progress("denoising", index + 1, len(timesteps)))
    return latents
