"""Wan 2.2's 5B makes videos of text: what diffusers' own pipeline draws, and sides in steps of 32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bases import build_tiny_random_5b
from standin import Hub
from test_wan import difference, pipeline

from customttt import backbones, sampling
from customttt.backbones import Backbone, open_base
from customttt.errors import UsageError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tiny_random_wan_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_random_5b(tmp_path_factory.mktemp("base") / "5b", tiny_random_wan_base)


@pytest.fixture(scope="module")
def wan(folder: Path) -> Backbone:
    return open_base(str(folder), CPU)


@torch.no_grad()
def test_diffusers_own_pipeline_draws_the_same_video(wan: Backbone, folder: Path) -> None:
    """It gives every token a timestep of its own, which are all the same where no picture is given."""
    prompt, shape = "a koala is swimming on mars", wan.latent_shape(9, 64, 96)
    assert shape == (48, 3, 4, 6)
    started = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    pipe: Any = pipeline(folder)
    pipe.register_to_config(expand_timesteps=True)
    options = {
        "prompt": prompt, "negative_prompt": "", "height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 6,
        "guidance_scale": 4.0, "latents": started,
    }  # fmt: skip
    embeds = wan.embed([prompt]), wan.embed([""])
    latents = sampling.denoise(wan, started, *embeds, guidance_scale=4.0, path=wan.schedule.path(6))
    assert difference(latents, pipe(**options, output_type="latent").frames) < 1e-5
    frames = pipe(**options, output_type="pt").frames.transpose(1, 2)
    assert difference(wan.decode(latents) / 2 + 0.5, frames) < 1e-4


def test_its_codec_has_patches_of_two_pixels_and_sides_in_steps_of_32(wan: Backbone) -> None:
    video = torch.rand(1, 3, 5, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = wan.encode(video)
    assert latents.shape == (1, *wan.latent_shape(5, 64, 96))
    assert wan.decode(latents).shape == video.shape
    with pytest.raises(UsageError, match="multiples of 32, such as 32 or 64"):
        wan.latent_shape(5, 64, 48)


def test_it_has_settings_of_its_own() -> None:
    own = backbones.families()[-1].recipe({"num_layers": 30, "in_channels": 48}).sample
    assert (own.sides, own.fps) == ((704, 704), 24)
    assert own.but(aspect=(16, 9)).sides == (704, 1280)


def test_it_is_planned_by_its_own_codec_before_it_is_downloaded(standin: Hub, cache: Path, folder: Path) -> None:  # noqa: ARG001
    standin.repositories["owner/5b"] = folder
    sketch = backbones.sketch("owner/5b", CPU)
    assert sketch.latent_shape(5, 64, 96) == (48, 2, 4, 6)
    assert not [name for name in standin.downloaded if name.endswith(".safetensors")]
