"""The denoising loop: a schedule's steps with classifier-free guidance, in which a LoRA may rest for a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from customttt import diffusion, lora
from customttt.backbones import Backbone
from customttt.config import SampleConfig
from customttt.progress import Progress, Report, silent
from customttt.recipe import kind_of, stretches
from customttt.thrift import frozen


@dataclass(frozen=True)
class Area:
    """A part of a video that is led towards a prediction of its own."""

    share: Float[Tensor, "f h w"]
    """How much that counts at each position."""
    embeds: Float[Tensor, "1 l d"]
    """Of what is read."""
    adapters: frozenset[str]
    """The LoRAs that may act."""
    shift: int
    """By how many columns of latents the frame is moved while it is predicted, round its edge."""


@torch.no_grad()
def denoise(
    backbone: Backbone,
    noise: diffusion.Latents,
    prompt_embeds: Float[Tensor, "b l d"],
    negative_embeds: Float[Tensor, "b l d"],
    *,
    guidance_scale: float,
    unconditional_scale: float = 1.0,
    path: Sequence[float],
    areas: Sequence[Area] = (),
    report: Report = silent,
) -> diffusion.Latents:
    """The latents at the end of `path`, a schedule's or a part of it, from those at its start.

    With guidance_scale 1 the unconditional half is not computed at all. Each of `areas` takes a pass more.
    """
    latents, embeds = noise, torch.cat([prompt_embeds, negative_embeds])
    for index, (timestep, following) in enumerate(pairwise(path)):
        batch = torch.full((len(latents),), timestep, device=latents.device)
        if guidance_scale == 1:
            prediction = _in_areas(backbone, latents, batch, backbone.predict(latents, batch, prompt_embeds), areas)
        else:
            conditional, unconditional = _halves(backbone, latents, batch, embeds, unconditional_scale)
            conditional = _in_areas(backbone, latents, batch, conditional, areas)
            prediction = diffusion.guide(conditional, unconditional, guidance_scale)
        latents = backbone.schedule.step(prediction, latents, timestep, following)
        report(Progress("denoising", index + 1, len(path) - 1))
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
        with lora.weaker(backbone.network, unconditional_scale):
            return conditional, backbone.predict(latents, timesteps, negative_embeds)
    both = backbone.predict(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), embeds)
    conditional, unconditional = both.chunk(2)
    return conditional, unconditional


def _in_areas(
    backbone: Backbone,
    latents: diffusion.Latents,
    timesteps: diffusion.Timesteps,
    conditional: diffusion.Latents,
    areas: Sequence[Area],
) -> diffusion.Latents:
    """The conditional prediction, in each part led towards that of its own prompt by its own LoRAs."""
    prediction, scales = conditional, lora.acting(backbone.network) if areas else {}
    for area in areas:
        acting = {name: scale for name, scale in scales.items() if name in area.adapters}
        with lora.active(backbone.network, **acting), lora.unmasked(backbone.network):
            moved, embeds = latents.roll(area.shift, -1), area.embeds.expand(len(latents), -1, -1)
            own = backbone.predict(moved, timesteps, embeds).roll(-area.shift, -1)
        prediction = prediction + area.share.to(own) * (own - conditional)
    return prediction


def denoise_in_phases(
    backbone: Backbone,
    noise: diffusion.Latents,
    prompt_embeds: Float[Tensor, "b l d"],
    negative_embeds: Float[Tensor, "b l d"],
    sample: SampleConfig,
    scales: Mapping[str, float],
    report: Report = silent,
    areas: Sequence[Area] = (),
) -> diffusion.Latents:
    """Clean latents from noise as a recipe samples, by the LoRAs in `scales`, each while it does not rest."""
    latents, path = noise, backbone.schedule.path(sample.num_inference_steps)
    for acting, part in phases(sample, scales, path):
        with frozen(backbone.network, sample.unconditional_scale, **acting):
            latents = denoise(
                backbone, latents, prompt_embeds, negative_embeds, guidance_scale=sample.guidance_scale,
                unconditional_scale=sample.unconditional_scale, path=part, areas=areas,
                report=_whole(report, path, part),
            )  # fmt: skip
    return latents


def _whole(report: Report, path: Sequence[float], part: Sequence[float]) -> Report:
    """Reports steps of a part as those of the whole path."""
    done = path.index(part[0])
    return lambda progress: report(replace(progress, step=done + progress.step, total=len(path) - 1))


def phases(
    sample: SampleConfig, scales: Mapping[str, float], path: Sequence[float]
) -> list[tuple[dict[str, float], Sequence[float]]]:
    """(scales of the LoRAs that act, part of the path): one phase unless the settings let a LoRA rest.

    The appearance waits for a motion only; alone it acts from the start.
    """
    steps = len(path) - 1
    parts = []
    moves = any(scale for name, scale in scales.items() if kind_of(name) == "motion")
    for kinds, shares in stretches(sample if moves else sample.but(appearance_from=0.0)):
        begin, end = (int(share * steps) for share in shares)
        if begin < end:
            acting: dict[str, float] = {name: scale for name, scale in scales.items() if kind_of(name) in kinds}
            parts.append((acting, path[begin : end + 1]))
    return parts
