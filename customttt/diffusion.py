"""The forward process, its training targets, guidance and the DDIM step, as pure functions.

Symbols: alpha_bar_t is `alphas_cumprod[t]`, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM, arXiv
2006.11239). Latents are (b c f h w); timesteps are (b,), from 0 (clean) to T - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Latents = Float[Tensor, "b c f h w"]
Timesteps = Int[Tensor, " b"]
PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class NoiseSchedule:
    """How noise grows with the timestep, and what the network predicts."""

    alphas_cumprod: Float[Tensor, " t"]
    prediction_type: PredictionType = "epsilon"
    spacing: Literal["leading", "linspace", "trailing"] = "leading"
    steps_offset: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Read a diffusers `scheduler_config.json`. Raises ValueError for a schedule this code does not know."""
        shape, (start, end) = config["beta_schedule"], (config["beta_start"], config["beta_end"])
        count, prediction = config.get("num_train_timesteps", 1000), config.get("prediction_type", "epsilon")
        if shape not in ("linear", "scaled_linear") or prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"beta_schedule {shape!r} with prediction_type {prediction!r} is not supported")
        power = 2 if shape == "scaled_linear" else 1
        betas = torch.linspace(start ** (1 / power), end ** (1 / power), count, dtype=torch.float64) ** power
        alphas_cumprod = (1 - betas).cumprod(0)
        if config.get("rescale_betas_zero_snr", False):
            alphas_cumprod = zero_terminal_snr(alphas_cumprod)
        return cls(
            alphas_cumprod.float(), prediction, config.get("timestep_spacing", "leading"), config.get("steps_offset", 0)
        )

    def __len__(self) -> int:
        return len(self.alphas_cumprod)


def zero_terminal_snr(alphas_cumprod: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Shift and scale sqrt(alpha_bar) so that the last timestep is pure noise (arXiv 2305.08891)."""
    root = alphas_cumprod.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root.square()


def _roots(
    schedule: NoiseSchedule, timesteps: Timesteps
) -> tuple[Float[Tensor, "b 1 1 1 1"], Float[Tensor, "b 1 1 1 1"]]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), ready to multiply latents."""
    alpha_bar = schedule.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1, 1)
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def add_noise(schedule: NoiseSchedule, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
    """x_t from x_0 and eps (arXiv 2006.11239)."""
    signal, sigma = _roots(schedule, timesteps)
    return signal * latents + sigma * noise


def target(schedule: NoiseSchedule, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
    """What the network predicts: eps, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (arXiv 2202.00512)."""
    if schedule.prediction_type == "epsilon":
        return noise
    signal, sigma = _roots(schedule, timesteps)
    return signal * noise - sigma * latents


def split(
    schedule: NoiseSchedule, prediction: Latents, noisy_latents: Latents, timesteps: Timesteps
) -> tuple[Latents, Latents]:
    """(x_0, eps) as the network's prediction implies them."""
    signal, sigma = _roots(schedule, timesteps)
    if schedule.prediction_type == "epsilon":
        return (noisy_latents - sigma * prediction) / signal, prediction
    return signal * noisy_latents - sigma * prediction, sigma * noisy_latents + signal * prediction


def guide(conditional: Latents, unconditional: Latents, guidance_scale: float) -> Latents:
    """Classifier-free guidance (arXiv 2207.12598, with guidance_scale = 1 + w)."""
    return unconditional + guidance_scale * (conditional - unconditional)


def inference_timesteps(schedule: NoiseSchedule, num_inference_steps: int) -> Int[Tensor, " n"]:
    """The timesteps a sampler visits, noisiest first (arXiv 2305.08891 names the three spacings)."""
    count, n = len(schedule), num_inference_steps
    if schedule.spacing == "trailing":
        return torch.arange(count, 0, -count / n).round().long()[:n] - 1
    if schedule.spacing == "linspace":
        return torch.linspace(0, count - 1, n, dtype=torch.float64).round().long().flip(0)
    return (torch.arange(n) * (count // n)).flip(0) + schedule.steps_offset


def ddim_step(
    schedule: NoiseSchedule, prediction: Latents, noisy_latents: Latents, timestep: int, previous: int
) -> Latents:
    """One deterministic DDIM step from `timestep` to `previous` (-1: clean) (arXiv 2010.02502, sigma = 0)."""
    batch = torch.full((len(noisy_latents),), timestep, device=noisy_latents.device)
    clean, noise = split(schedule, prediction, noisy_latents, batch)
    return clean if previous < 0 else add_noise(schedule, clean, noise, torch.full_like(batch, previous))
