"""Guidance: what predicts its unconditional half."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from customttt import diffusion, lora
from customttt.backbones import Backbone, open_base
from customttt.library import Library
from customttt.sampling import denoise

SCALE, STEPS = 3.0, [999, 500]


@pytest.fixture
def backbone(learned: Path, tiny_random_base: Path) -> Backbone:
    """With an appearance LoRA that can be seen."""
    made = open_base(str(tiny_random_base), torch.device("cpu"))
    weights = lora.load(Library(learned).weights("koala"))
    lora.restore(made.unet, "appearance", {key: 20 * value for key, value in weights.items()})
    return made


def noise(backbone: Backbone) -> Tensor:
    return torch.randn(1, *backbone.latent_shape(2, 64), generator=torch.Generator().manual_seed(0))


def sampled(backbone: Backbone, guidance_from: str, adapted: bool = True) -> Tensor:
    embeds = backbone.embed(["A koala."]), backbone.embed([""])
    with lora.active(backbone.unet, **({"appearance": 1.0} if adapted else {})):
        return denoise(
            backbone, noise(backbone), *embeds, guidance_scale=SCALE, guidance_from=guidance_from, timesteps=STEPS
        )  # fmt: skip


def test_guidance_from_the_base_leads_away_from_what_has_no_lora(backbone: Backbone) -> None:
    latents = noise(backbone)
    with torch.no_grad():
        for step, previous in zip(STEPS, [*STEPS[1:], -1], strict=True):
            at = torch.tensor([step])
            with lora.active(backbone.unet, appearance=1.0):
                adapted = backbone.predict(latents, at, backbone.embed(["A koala."]))
            with lora.active(backbone.unet):
                base = backbone.predict(latents, at, backbone.embed([""]))
            guided = base + SCALE * (adapted - base)
            latents = diffusion.ddim_step(backbone.schedule, guided, latents, step, previous)
    assert torch.allclose(sampled(backbone, "base"), latents, atol=1e-5)
    assert not torch.allclose(sampled(backbone, "loras"), latents, atol=1e-2)


def test_where_no_lora_acts_both_ways_are_one(backbone: Backbone) -> None:
    usual, ours = (sampled(backbone, source, adapted=False) for source in ("loras", "base"))
    assert torch.allclose(usual, ours, atol=1e-4)
