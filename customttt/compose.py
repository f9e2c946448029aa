"""Compose appearances and motions into a video: adapt, denoise, decode. Knows LoRA weights, no library."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from customttt import diffusion, lora, regions, threads, ttt
from customttt.backbones import Backbone, autocast
from customttt.concept import Kind
from customttt.config import SampleConfig
from customttt.media import Frames
from customttt.progress import Report, silent
from customttt.recipe import VideoRecipe
from customttt.sampling import denoise_in_phases
from customttt.video import to_frames


def adapt(
    backbone: Backbone,
    loras: lora.Loras,
    recipe: VideoRecipe,
    accelerator: Accelerator,
    report: Report = silent,
    rung: int = 0,
) -> lora.Loras:
    """The LoRAs after test-time training; with zero steps they are what they were. Does not depend on the seed."""
    if recipe.ttt.steps == 0:
        return loras
    with threads.using(recipe.threads):
        prompts = ttt.Prompts(
            teachers={slot: backbone.embed(texts) for slot, texts in recipe.teacher_prompts.items()},
            student=backbone.embed([recipe.joint_prompt]),
            empty=backbone.embed([""]),
        )
        adapted, _ = ttt.adapt(
            backbone, loras, prompts, recipe.ttt, recipe.sample, accelerator, seed=0, report=report, rung=rung
        )
    return adapted


@torch.no_grad()
def render(backbone: Backbone, loras: lora.Loras, recipe: VideoRecipe, report: Report = silent) -> Frames:
    """The frames of one seed, uint8 (f h w c). Same recipe, same frames, bit for bit on a CPU."""
    with threads.using(recipe.threads):
        scales = {slot: one.scale for slot, one in recipe.ingredients.items()}
        noise = initial_noise(backbone, recipe.sample, recipe.seed)
        prompt, empty = backbone.embed([recipe.target_prompt]), backbone.embed([""])
        areas, turns = regions.areas(backbone, recipe), regions.turns(backbone, recipe)
        try:
            for slot in scales:
                lora.restore(backbone.network, slot, loras[slot])
            with autocast(backbone.device), regions.kept_apart(backbone, recipe, prompt):
                latents = denoise_in_phases(
                    backbone, noise, prompt, empty, recipe.sample, scales, report, areas=areas, turns=turns
                )
        finally:
            lora.remove(backbone.network, *scales)
        return to_frames(backbone.decode(latents), recipe.sample.magnify)


@torch.no_grad()
def try_out(
    backbone: Backbone,
    kind: Kind,
    weights: lora.Weights,
    prompt: str,
    sample: SampleConfig,
    seeds: Sequence[int],
    report: Report = silent,
) -> list[Frames]:
    """Videos of what one LoRA alone makes of a prompt, one a seed."""
    try:
        lora.restore(backbone.network, kind, weights)
        latents = _drawn(backbone, kind, prompt, sample, seeds, report)
    finally:
        lora.remove(backbone.network, kind)
    return [to_frames(backbone.decode(one)) for one in torch.split(latents, 1)]


@torch.no_grad()
def glance(backbone: Backbone, kind: Kind, prompt: str, sample: SampleConfig) -> Frames:
    """A video of what a LoRA makes of a prompt while it is being learned, which goes on as if nobody had looked."""
    network, learning = backbone.network, backbone.network.training
    network.eval()
    try:
        with torch.random.fork_rng():
            return to_frames(backbone.decode(_drawn(backbone, kind, prompt, sample, (0,))))
    finally:
        network.train(learning)


def _drawn(
    backbone: Backbone, kind: Kind, prompt: str, sample: SampleConfig, seeds: Sequence[int], report: Report = silent
) -> diffusion.Latents:
    """Latents of one seed after the other, by the one LoRA that is in the network."""
    noise = torch.cat([initial_noise(backbone, sample, seed) for seed in seeds])
    prompts, empty = (backbone.embed([text] * len(seeds)) for text in (prompt, ""))
    with autocast(backbone.device):
        return denoise_in_phases(backbone, noise, prompts, empty, sample, {kind: 1.0}, report)


def initial_noise(backbone: Backbone, sample: SampleConfig, seed: int) -> diffusion.Latents:
    """Noise of one video; drawn on the CPU, so that a seed means the same on every device."""
    shape = backbone.latent_shape(sample.num_frames, *sample.sides)
    generator = torch.Generator().manual_seed(seed)
    return diffusion.bring(torch.randn(1, *shape, generator=generator), backbone.device)
