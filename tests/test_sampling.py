"""Guidance: at which scale the LoRAs act in its unconditional half."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from customttt import lora
from customttt.backbones import Backbone, open_base
from customttt.library import Library
from customttt.sampling import denoise

SCALE, PATH = 3.0, [999, 500, -1]


@pytest.fixture
def backbone(learned: Path, tiny_random_base: Path) -> Backbone:
    """With an appearance LoRA that can be seen."""
    made = open_base(str(tiny_random_base), torch.device("cpu"))
    weights = lora.load(Library(learned).weights("koala"))
    lora.restore(made.network, "appearance", {key: 20 * value for key, value in weights.items()})
    return made


def noise(backbone: Backbone) -> Tensor:
    return torch.randn(1, *backbone.latent_shape(2, 64), generator=torch.Generator().manual_seed(0))


def sampled(backbone: Backbone, unconditional_scale: float, adapted: bool = True) -> Tensor:
    embeds = backbone.embed(["A koala."]), backbone.embed([""])
    with lora.active(backbone.network, **({"appearance": 0.8} if adapted else {})):
        return denoise(
            backbone, noise(backbone), *embeds, guidance_scale=SCALE, unconditional_scale=unconditional_scale,
            path=PATH,
        )  # fmt: skip


@pytest.mark.parametrize("unconditional_scale", [0.0, 0.5, 1.0])
def test_the_unconditional_half_has_the_loras_at_its_own_scale(backbone: Backbone, unconditional_scale: float) -> None:
    latents = noise(backbone)
    with torch.no_grad():
        for step, following in pairwise(PATH):
            at = torch.tensor([step])
            with lora.active(backbone.network, appearance=0.8):
                adapted = backbone.predict(latents, at, backbone.embed(["A koala."]))
            with lora.active(backbone.network, appearance=0.8 * unconditional_scale):
                weaker = backbone.predict(latents, at, backbone.embed([""]))
            guided = weaker + SCALE * (adapted - weaker)
            latents = backbone.schedule.step(guided, latents, step, following)
    assert torch.allclose(sampled(backbone, unconditional_scale), latents, atol=1e-5)


def test_each_scale_makes_another_video(backbone: Backbone) -> None:
    weak, half, whole = (sampled(backbone, scale) for scale in (0.0, 0.5, 1.0))
    assert not torch.allclose(weak, half, atol=1e-2)
    assert not torch.allclose(half, whole, atol=1e-2)


def test_where_no_lora_acts_the_scale_is_nothing(backbone: Backbone) -> None:
    usual, ours = (sampled(backbone, scale, adapted=False) for scale in (1.0, 0.5))
    assert torch.allclose(usual, ours, atol=1e-4)
