"""The forward process, DDIM and Euler's steps agree with diffusers and with their own algebra."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from customttt import diffusion
from customttt.errors import UsageError
from customttt.tiny.models import SCHEDULER

PAPER = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
CONFIGS = {
    "linear": PAPER,
    "scaled": {**PAPER, "beta_schedule": "scaled_linear"},
    "v": {**PAPER, "prediction_type": "v_prediction"},
    "offset": {**PAPER, "steps_offset": 1},
    "trailing": {**PAPER, "timestep_spacing": "trailing"},
    "tiny": SCHEDULER,
}


def latents(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
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


def test_evenly_spaced_timesteps_are_those_of_diffusers() -> None:
    """But for them its DDIM steps to where evenly many steps of training would lead, and ours to the next of them."""
    config = {**PAPER, "timestep_spacing": "linspace"}
    theirs = DDIMScheduler(**config)
    theirs.set_timesteps(20)
    assert diffusion.NoiseSchedule.from_config(config).path(20)[:-1] == theirs.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_a_path_of_all_timesteps_leaves_none_out(spacing: str) -> None:
    schedule = diffusion.NoiseSchedule.from_config({**PAPER, "num_train_timesteps": 500, "timestep_spacing": spacing})
    assert schedule.path(500) == [*range(499, -1, -1), diffusion.CLEAN]
    with pytest.raises(UsageError, match="501 steps of denoising are too many; this base has 500"):
        schedule.path(501)
    assert diffusion.CLEAN not in range(500)


def test_what_a_config_leaves_out_is_as_in_diffusers() -> None:
    short, usual = diffusion.NoiseSchedule.from_config(PAPER), DDIMScheduler()
    schedule = diffusion.NoiseSchedule(short.alphas_cumprod)
    assert (schedule.prediction_type, schedule.spacing) == (usual.config.prediction_type, usual.config.timestep_spacing)
    assert schedule.path(4) == short.path(4) == [*range(750, -1, -250), diffusion.CLEAN]
    assert len(short.alphas_cumprod) == usual.config.num_train_timesteps
    assert torch.equal(schedule.target(latents(0), latents(1), torch.tensor([3, 700])), latents(1))


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


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_a_flow_is_walked_as_in_diffusers(shift: float) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = diffusion.FlowSchedule.from_config({**theirs.config, "_class_name": type(theirs).__name__})
    theirs.set_timesteps(7)
    path = ours.path(7)
    assert path == pytest.approx([*theirs.timesteps.tolist(), 0.0], rel=1e-6)
    mine = other = latents(0)
    for index, (step, following) in enumerate(pairwise(path)):
        prediction = latents(index + 2)
        mine = ours.step(prediction, mine, step, following)
        other = theirs.step(prediction, theirs.timesteps[index], other).prev_sample
    assert torch.allclose(mine, other, atol=1e-5)


def test_a_step_along_the_target_of_a_flow_ends_at_the_clean_latents() -> None:
    flow, timesteps = diffusion.FlowSchedule(), torch.tensor([250.0, 250.0])
    noisy = flow.add_noise(latents(0), latents(1), timesteps)
    assert torch.allclose(noisy, 0.75 * latents(0) + 0.25 * latents(1))
    target = flow.target(latents(0), latents(1), timesteps)
    assert torch.allclose(flow.step(target, noisy, 250.0, flow.path(1)[-1]), latents(0), atol=1e-5)


def test_a_flow_keeps_the_precision_of_the_latents() -> None:
    halves = latents(0).bfloat16(), latents(1).bfloat16()
    assert diffusion.FlowSchedule().add_noise(*halves, torch.tensor([250.0, 3.0])).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "expected"),
    [({}, (1.0, 1000)), ({"shift": 3.0}, (3.0, 1000)), ({"num_train_timesteps": 500}, (1.0, 500)),
     ({"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "flow_shift": 5.0}, (5., 1000))],
    ids=["bare", "shift", "timesteps", "another sampler"],
)  # fmt: skip
def test_a_flow_is_read_from_the_config_of_any_sampler(config: dict[str, object], expected: tuple[float, int]) -> None:
    flow = diffusion.FlowSchedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", **config})
    assert (flow.shift, flow.noisiest) == expected
    assert diffusion.FlowSchedule() == diffusion.FlowSchedule(1.0, 1000)


@pytest.mark.parametrize(
    "setting",
    ["use_dynamic_shifting", "invert_sigmas", "shift_terminal", "stochastic_sampling", "use_karras_sigmas",
     "use_exponential_sigmas", "use_beta_sigmas"],
)  # fmt: skip
def test_a_flow_on_another_line_is_refused_naming_what_bends_it(setting: str) -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", setting: 0.1}
    with pytest.raises(ValueError, match=f"^FlowMatchEulerDiscreteScheduler with {setting} is not supported"):
        diffusion.FlowSchedule.from_config(config)


def test_what_is_no_flow_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a scheduler with no flow is not supported"):
        diffusion.FlowSchedule.from_config(PAPER)


def test_timesteps_of_a_flow_are_drawn_within_shares_of_the_noise() -> None:
    drawn = diffusion.FlowSchedule().draw(1000, (0.25, 0.5), torch.Generator().manual_seed(0))
    assert 250 <= drawn.min() < 255
    assert 495 < drawn.max() < 500
    assert torch.equal(drawn, diffusion.FlowSchedule().draw(1000, (0.25, 0.5), torch.Generator().manual_seed(0)))
