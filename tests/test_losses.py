"""The losses do what their papers say."""

from __future__ import annotations

import math

import pytest
import torch

from customttt import losses


def video(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 5, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_a_perfect_prediction_costs_nothing() -> None:
    assert losses.denoising(video(0), video(0)) == 0
    assert losses.motion(video(0), video(0), anchor=2) == 0


def test_debiasing_shrinks_what_all_frames_share() -> None:
    shared = video(0)[:, :, :1].expand(-1, -1, 5, -1, -1)
    left = losses.debias(shared, anchor=3)
    assert torch.allclose(left, (math.sqrt(2) - 1) * shared, atol=1e-6)


def test_debiased_noise_is_as_strong_as_the_formula_says() -> None:
    """phi(eps) of independent frames is sqrt(beta^2 + 1 + beta^2) times as strong; beta 2 gives 3."""
    noise = torch.randn(4, 4, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    others = losses.debias(noise, anchor=0, beta=2.0)[:, :, 1:]
    assert float(others.std()) == pytest.approx(3.0, rel=0.01)


def test_debiasing_with_beta_zero_changes_nothing() -> None:
    assert torch.equal(losses.debias(video(0), anchor=1, beta=0.0), video(0))


def test_without_its_debiased_part_the_motion_loss_is_the_plain_one() -> None:
    assert losses.motion(video(0), video(1), 0, debias_weight=0.0) == losses.denoising(video(0), video(1))


def test_the_motion_loss_is_the_sum_of_its_two_parts() -> None:
    plain = losses.denoising(video(0), video(1))
    debiased = losses.denoising(losses.debias(video(0), 4), losses.debias(video(1), 4))
    assert torch.allclose(losses.motion(video(0), video(1), 4), plain + debiased)


def test_without_its_plain_part_the_motion_loss_is_the_debiased_one() -> None:
    debiased = losses.denoising(losses.debias(video(0), 4), losses.debias(video(1), 4))
    assert losses.motion(video(0), video(1), 4, plain_weight=0.0) == debiased
