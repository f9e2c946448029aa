"""The denoising loop: a schedule's steps with classifier-free guidance, in which a LoRA may rest for a part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from customttt import diffusion, graphs, lora
from customttt.backbones import Backbone
from customttt.config import SampleConfig
from customttt.progress import Progress, Report, silent
from customttt.recipe import kind_of, stretches
from customttt.thrift import frozen

COVERED = 1e-4
"""By how little shares of areas may miss one, and still cover the frame."""


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


@dataclass(frozen=True)
class Turn:
    """A part of the frames, which are predicted by LoRAs and from a prompt of their own."""

    share: Float[Tensor, "f 1 1"]
    """How much that prediction counts in each frame."""
    embeds: Float[Tensor, "1 l d"]
    """Of what is read."""
    adapters: frozenset[str]
    """The LoRAs that may act."""


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
    turns: Sequence[Turn] = (),
    report: Report = silent,
) -> diffusion.Latents:
    """The latents at the end of `path`, a schedule's or a part of it, from those at its start.

    With guidance_scale 1 the unconditional half is not computed at all. Each of `areas` takes a pass, and where they
    cover the frame, the prompt is not read. Where there are `turns`, all is computed in each, with its own prompt.
    """
    latents, embeds = noise, torch.cat([prompt_embeds, negative_embeds])
    covered = bool(areas) and bool(torch.stack([area.share for area in areas]).sum(0).min() > 1 - COVERED)
    for index, (timestep, following) in enumerate(pairwise(path)):
        batch = torch.full((len(latents),), timestep, device=latents.device)
        guided = partial(
            _guided, backbone, latents, batch, guidance_scale=guidance_scale, unconditional_scale=unconditional_scale,
            areas=areas, covered=covered,
        )  # fmt: skip
        prediction = _in_turns(backbone, turns, negative_embeds, guided) if turns else guided(embeds)
        latents = backbone.schedule.step(prediction, latents, timestep, following)
        report(Progress("denoising", index + 1, len(path) - 1))
    return latents


def _guided(
    backbone: Backbone,
    latents: diffusion.Latents,
    timesteps: diffusion.Timesteps,
    embeds: Float[Tensor, "n l d"],
    *,
    guidance_scale: float,
    unconditional_scale: float,
    areas: Sequence[Area],
    covered: bool,
) -> diffusion.Latents:
    """The prediction that a step is taken by; `embeds` are those of the prompts, then the negative ones."""
    prompts, negatives = embeds.chunk(2)
    if covered:  # nobody reads the prompts
        conditional = unconditional = torch.zeros_like(latents)
        if guidance_scale != 1:
            unconditional = _unconditional(backbone, latents, timesteps, negatives, unconditional_scale)
    elif guidance_scale == 1:
        conditional = unconditional = backbone.predict(latents, timesteps, prompts)
    else:
        conditional, unconditional = _halves(backbone, latents, timesteps, embeds, unconditional_scale)
    conditional = _in_areas(backbone, latents, timesteps, conditional, areas)
    return conditional if guidance_scale == 1 else diffusion.guide(conditional, unconditional, guidance_scale)


def _in_turns(
    backbone: Backbone,
    turns: Sequence[Turn],
    negative_embeds: Float[Tensor, "b l d"],
    guided: Callable[[Float[Tensor, "n l d"]], diffusion.Latents],
) -> diffusion.Latents:
    """In the frames of each turn what it predicts of the whole video."""
    scales, parts = lora.acting(backbone.network), []
    for turn in turns:
        acting = {name: scale for name, scale in scales.items() if name in turn.adapters}
        with lora.active(backbone.network, **acting):
            own = guided(torch.cat([turn.embeds.expand_as(negative_embeds), negative_embeds]))
        parts.append(turn.share.to(own) * own)
    return torch.stack(parts).sum(0)


def _halves(
    backbone: Backbone,
    latents: diffusion.Latents,
    timesteps: diffusion.Timesteps,
    embeds: Float[Tensor, "n l d"],
    unconditional_scale: float,
) -> tuple[diffusion.Latents, diffusion.Latents]:
    """The conditional and the unconditional prediction."""
    if unconditional_scale < 1:
        prompts, negatives = embeds.chunk(2)
        conditional = backbone.predict(latents, timesteps, prompts)
        return conditional, _unconditional(backbone, latents, timesteps, negatives, unconditional_scale)
    both = backbone.predict(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), embeds)
    conditional, unconditional = both.chunk(2)
    return conditional, unconditional


def _unconditional(
    backbone: Backbone,
    latents: diffusion.Latents,
    timesteps: diffusion.Timesteps,
    negatives: Float[Tensor, "b l d"],
    scale: float,
) -> diffusion.Latents:
    with lora.weaker(backbone.network, scale):
        return backbone.predict(latents, timesteps, negatives)


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
    turns: Sequence[Turn] = (),
) -> diffusion.Latents:
    """Clean latents from noise as a recipe samples, by the LoRAs in `scales`, each while it does not rest."""
    latents, path = noise, backbone.schedule.path(sample.num_inference_steps)
    frozen_here = partial(frozen, backbone, unconditional_scale=sample.unconditional_scale)
    act = partial(lora.active, backbone.network) if turns else frozen_here
    with graphs.replaying(backbone):
        for acting, part in phases(sample, scales, path):
            with act(**acting):
                latents = denoise(
                    backbone, latents, prompt_embeds, negative_embeds, guidance_scale=sample.guidance_scale,
                    unconditional_scale=sample.unconditional_scale, path=part, areas=areas, turns=turns,
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
