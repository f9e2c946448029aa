"""The forward process and DDIM agree with diffusers and with their own algebra."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler

from customttt import diffusion
from customttt.tiny.models import SCHEDULER

PAPER = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
CONFIGS = [PAPER, {**PAPER, "beta_schedule": "scaled_linear"}, {**PAPER, "prediction_type": "v_prediction"}, SCHEDULER]


def latents(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=CONFIGS, ids=["linear", "scaled", "v", "tiny"])
def both(request: pytest.FixtureRequest) -> tuple[diffusion.NoiseSchedule, DDIMScheduler]:
    options = {key: value for key, value in request.param.items() if not key.startswith("_")}
    theirs = DDIMScheduler(**{"clip_sample": False, **options})
    return diffusion.NoiseSchedule.from_config(request.param), theirs


def test_noise_is_added_as_diffusers_adds_it(both: tuple[diffusion.NoiseSchedule, DDIMScheduler]) -> None:
    ours, theirs = both
    timesteps = torch.tensor([3, 700])
    expected = theirs.add_noise(latents(0), latents(1), timesteps)
    assert torch.allclose(ours.add_noise(latents(0), latents(1), timesteps), expected, atol=1e-5)


def test_targets_are_those_of_diffusers(both: tuple[diffusion.NoiseSchedule, DDIMScheduler]) -> None:
    ours, theirs = both
    timesteps = torch.tensor([3, 700])
    velocity = theirs.get_velocity(latents(0), latents(1), timesteps)
    expected = latents(1) if ours.prediction_type == "epsilon" else velocity
    assert torch.allclose(ours.target(latents(0), latents(1), timesteps), expected, atol=1e-5)


def test_ddim_walks_as_in_diffusers(both: tuple[diffusion.NoiseSchedule, DDIMScheduler]) -> None:
    ours, theirs = both
    theirs.set_timesteps(20)
    path = ours.path(20)
    assert path == [*theirs.timesteps.tolist(), diffusion.CLEAN]
    mine = other = latents(0)
    for index, (step, following) in enumerate(pairwise(path)):
        prediction = latents(index + 2)
        mine = ours.step(prediction, mine, step, following)
        other = theirs.step(prediction, step, other).prev_sample
    assert torch.allclose(mine, other, atol=1e-3, rtol=1e-3)


def test_the_target_gives_back_latents_and_noise(both: tuple[diffusion.NoiseSchedule, DDIMScheduler]) -> None:
    ours, _ = both
    timesteps = torch.tensor([10, 500])
    noisy = ours.add_noise(latents(0), latents(1), timesteps)
    goal = ours.target(latents(0), latents(1), timesteps)
    clean, noise = ours.split(goal, noisy, timesteps)
    assert torch.allclose(clean, latents(0), atol=1e-3)
    assert torch.allclose(noise, latents(1), atol=1e-3)


def test_a_zero_terminal_snr_schedule_ends_in_pure_noise() -> None:
    schedule = diffusion.NoiseSchedule.from_config(SCHEDULER)
    assert schedule.alphas_cumprod[-1] == 0
    last = torch.tensor([999, 999])
    assert torch.equal(schedule.add_noise(latents(0), latents(1), last), latents(1))


def test_guidance_of_one_is_no_guidance() -> None:
    assert torch.allclose(diffusion.guide(latents(0), latents(1), 1.0), latents(0), atol=1e-6)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="not supported"):
        diffusion.NoiseSchedule.from_config({**PAPER, "beta_schedule": "cosine"})


def test_timesteps_are_drawn_within_shares_of_the_noise(both: tuple[diffusion.NoiseSchedule, DDIMScheduler]) -> None:
    drawn = both[0].draw(2000, (0.4, 0.6), torch.Generator().manual_seed(0))
    assert (drawn.min(), drawn.max()) == (400, 599)
    assert torch.equal(drawn, both[0].draw(2000, (0.4, 0.6), torch.Generator().manual_seed(0)))
