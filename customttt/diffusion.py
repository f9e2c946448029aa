"""The forward process, its training targets, guidance and the sampler's steps: what a base's schedule answers.

Latents are (b c f h w); timesteps are (b,), what the network reads of how noisy they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from customttt.errors import UsageError

Latents = Float[Tensor, "b c f h w"]
Timesteps = Num[Tensor, " b"]
PredictionType = Literal["epsilon", "v_prediction"]


@runtime_checkable
class Schedule(Protocol):
    """How a base was taught to denoise. Nothing outside asks whether it predicts noise, v or a flow."""

    def draw(self, count: int, within: tuple[float, float], generator: torch.Generator) -> Timesteps:
        """Timesteps to learn at, between these shares of the noise (0 clean, 1 noise), on the CPU."""

    def add_noise(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Noisy latents of clean ones."""

    def target(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """What the network predicts there."""

    def path(self, num_inference_steps: int) -> list[float]:
        """The timesteps of a sampler, noisiest first, and after them the one that stands for clean latents."""

    def step(self, prediction: Latents, noisy_latents: Latents, timestep: float, following: float) -> Latents:
        """The latents at the following timestep of a path."""


CLEAN = -1
"""The timestep that stands for clean latents where timesteps are numbers of steps."""


@dataclass(frozen=True)
class NoiseSchedule:
    """Denoising diffusion in T steps, 0 the least noisy, with DDIM as its sampler.

    alpha_bar_t is `alphas_cumprod[t]`, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (arXiv 2006.11239).
    """

    alphas_cumprod: Float[Tensor, " t"]
    prediction_type: PredictionType = "epsilon"
    spacing: Literal["leading", "linspace", "trailing"] = "leading"
    steps_offset: int = 0
    _there: dict[torch.device, Float[Tensor, " t"]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """`alphas_cumprod` on the devices that asked for it, so that a step copies nothing there."""

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

    def draw(self, count: int, within: tuple[float, float], generator: torch.Generator) -> Int[Tensor, " b"]:
        """Uniform."""
        low, high = (round(share * len(self.alphas_cumprod)) for share in within)
        return torch.randint(low, high, (count,), generator=generator)

    def add_noise(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """x_t from x_0 and eps (arXiv 2006.11239)."""
        signal, sigma = self._roots(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """eps, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (arXiv 2202.00512)."""
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._roots(timesteps)
        return signal * noise - sigma * latents

    def split(self, prediction: Latents, noisy_latents: Latents, timesteps: Timesteps) -> tuple[Latents, Latents]:
        """(x_0, eps) as the network's prediction implies them."""
        signal, sigma = self._roots(timesteps)
        if self.prediction_type == "epsilon":
            return (noisy_latents - sigma * prediction) / signal, prediction
        return signal * noisy_latents - sigma * prediction, sigma * noisy_latents + signal * prediction

    def path(self, num_inference_steps: int) -> list[float]:
        """Spaced as the base was (arXiv 2305.08891 names the three ways). Raises UsageError for more than it has."""
        count, n = len(self.alphas_cumprod), num_inference_steps
        if n > count:
            raise UsageError(f"{n:,} steps of denoising are too many; this base has {count:,}.")
        if self.spacing == "trailing":
            steps = torch.arange(count, 0, -count / n).round().long()[:n] - 1
        elif self.spacing == "linspace":
            steps = torch.linspace(0, count - 1, n, dtype=torch.float64).round().long().flip(0)
        else:
            steps = (torch.arange(n) * (count // n)).flip(0) + self.steps_offset
        return [*steps.tolist(), CLEAN]

    def step(self, prediction: Latents, noisy_latents: Latents, timestep: float, following: float) -> Latents:
        """DDIM, deterministic (arXiv 2010.02502, sigma = 0)."""
        batch = torch.full((len(noisy_latents),), timestep, device=noisy_latents.device)
        clean, noise = self.split(prediction, noisy_latents, batch)
        return clean if following == CLEAN else self.add_noise(clean, noise, torch.full_like(batch, following))

    def _roots(self, timesteps: Timesteps) -> tuple[Float[Tensor, "b 1 1 1 1"], Float[Tensor, "b 1 1 1 1"]]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), ready to multiply latents."""
        if timesteps.device not in self._there:
            self._there[timesteps.device] = self.alphas_cumprod.to(timesteps.device)
        alpha_bar = self._there[timesteps.device][timesteps].view(-1, 1, 1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


PLAIN_FLOW = (
    "use_dynamic_shifting", "invert_sigmas", "shift_terminal", "stochastic_sampling", "use_karras_sigmas",
    "use_exponential_sigmas", "use_beta_sigmas",
)  # fmt: skip
"""What diffusers' schedulers of flows can do besides, and `FlowSchedule` cannot."""


@dataclass(frozen=True)
class FlowSchedule:
    """Flow matching on a straight line, with Euler's steps: x_s = (1 - s) x_0 + s eps (arXiv 2210.02747, 2209.03003).

    s is the share of the noise, from 0 to 1, and `noisiest` times s the timestep that the network reads.
    """

    shift: float = 1.0
    """The steps of a sampler gather in much noise: s becomes shift s / (1 + (shift - 1) s) (arXiv 2403.03206)."""
    noisiest: int = 1000
    """The timestep of nothing but noise."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FlowSchedule:
        """Read a diffusers `scheduler_config.json`, of whichever sampler: all share the line, and ours is Euler's.

        Raises ValueError for one that is no plain flow.
        """
        name, other = config.get("_class_name", "a scheduler"), [one for one in PLAIN_FLOW if config.get(one)]
        flows = "FlowMatch" in name or config.get("prediction_type") == "flow_prediction"
        if other or not flows:
            raise ValueError(f"{name} with {other[0] if other else 'no flow'} is not supported")
        return cls(float(config.get("flow_shift", config.get("shift", 1.0))), config.get("num_train_timesteps", 1000))

    def draw(self, count: int, within: tuple[float, float], generator: torch.Generator) -> Float[Tensor, " b"]:
        """Uniform in s, whatever the sampler's shift; other trainers often draw with the shift, or near the middle."""
        low, high = within
        return self.noisiest * (low + (high - low) * torch.rand(count, generator=generator))

    def add_noise(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """x_s from x_0 and eps."""
        share = (timesteps.to(latents) / self.noisiest).view(-1, 1, 1, 1, 1)
        return (1 - share) * latents + share * noise

    def target(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:  # noqa: ARG002
        """eps - x_0, the direction of the line, the same at every timestep."""
        return noise - latents

    def path(self, num_inference_steps: int) -> list[float]:
        """As diffusers' `FlowMatchEulerDiscreteScheduler` spaces them: it shifts the least noisy of all twice."""
        least = self.shifted(torch.tensor(1 / self.noisiest, dtype=torch.float64))
        shares = torch.linspace(1, float(least), num_inference_steps, dtype=torch.float64)
        return [*(self.noisiest * self.shifted(shares)).tolist(), 0.0]

    def step(self, prediction: Latents, noisy_latents: Latents, timestep: float, following: float) -> Latents:
        """Euler's step along the predicted direction."""
        return noisy_latents + (following - timestep) / self.noisiest * prediction

    def shifted(self, shares: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """Shares of the noise as the sampler's steps lie."""
        return self.shift * shares / (1 + (self.shift - 1) * shares)


def zero_terminal_snr(alphas_cumprod: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Shift and scale sqrt(alpha_bar) so that the last timestep is pure noise (arXiv 2305.08891)."""
    root = alphas_cumprod.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root.square()


def bring(drawn: Num[Tensor, "*n"], device: torch.device) -> Num[Tensor, "*n"]:
    """What was drawn on the CPU, where a seed means the same for every device, on a device, without waiting for it."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)


def guide(conditional: Latents, unconditional: Latents, guidance_scale: float) -> Latents:
    """Classifier-free guidance (arXiv 2207.12598, with guidance_scale = 1 + w)."""
    return unconditional + guidance_scale * (conditional - unconditional)
