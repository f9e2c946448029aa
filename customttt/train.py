"""The one training loop, and the two things it learns: an appearance and a motion. Knows no library.

Latents and prompt embeddings come in ready: neither the VAE nor the text encoder is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Float
from lion_pytorch import Lion
from torch import Tensor, nn

from customttt import diffusion, lora, losses
from customttt.backbones import Backbone
from customttt.checkpoint import FORGETFUL, Keeper, randomness
from customttt.config import TrainConfig
from customttt.errors import DivergedError

LION_BETAS, LION_WEIGHT_DECAY = (0.9, 0.99), 0.1


@dataclass(frozen=True)
class Progress:
    """Where a long step stands: reported after every step."""

    phase: str
    step: int
    """Steps done."""
    total: int
    loss: float | None = None


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """A report that tells nobody."""


def optimize(
    parameters: list[nn.Parameter],
    loss_at: Callable[[int], Float[Tensor, ""]],
    *,
    phase: str,
    steps: int,
    learning_rate: float,
    accelerator: Accelerator,
    report: Report = silent,
    keeper: Keeper = FORGETFUL,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Minimize `loss_at(step)` over `parameters` with Lion (arXiv 2302.06675) and return every loss.

    A keeper, which needs the generator that `loss_at` draws from, lets a killed run go on. Raises DivergedError as soon
    as a loss is not a finite number; what was kept before stays kept.
    """
    lion = Lion(parameters, lr=learning_rate, betas=LION_BETAS, weight_decay=LION_WEIGHT_DECAY)
    optimizer = accelerator.prepare(lion)  # in half precision it undoes the scale of the loss
    generator = generator or torch.Generator()
    with lora.trainable(parameters):
        history = keeper.restore(parameters, optimizer, generator)
        for step in range(len(history), steps):
            random = randomness(generator)
            with accelerator.autocast():
                loss = loss_at(step)
            value = _finite(loss.item(), phase, step, learning_rate, keeper.steps)
            keeper.offer(parameters, optimizer, random, history)
            history.append(value)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            report(Progress(phase, step + 1, steps, history[-1]))
    return history


def _finite(loss: float, phase: str, step: int, learning_rate: float, kept: int) -> float:
    if not math.isfinite(loss):
        way_on = (
            f"step {kept} is kept: go on from it with --resume and" if kept else "nothing was saved; start again with"
        )
        raise DivergedError(
            f"The loss became {loss} at step {step + 1} of {phase} with learning rate {learning_rate:g}; "
            f"{way_on} a smaller --learning-rate."
        )
    return loss


def noised(
    backbone: Backbone,
    latents: diffusion.Latents,
    generator: torch.Generator,
    within: tuple[float, float] = (0.0, 1.0),
) -> tuple[diffusion.Latents, diffusion.Latents, diffusion.Timesteps]:
    """Fresh noise on `latents` at timesteps uniform `within` these shares of the schedule.

    Returns (noisy latents, what to predict, timesteps).
    """
    schedule = backbone.schedule
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    low, high = (round(share * len(schedule)) for share in within)
    timesteps = torch.randint(low, high, (len(latents),), generator=generator).to(latents.device)
    noisy = diffusion.add_noise(schedule, latents, noise, timesteps)
    return noisy, diffusion.target(schedule, latents, noise, timesteps), timesteps


def learn_appearance(
    backbone: Backbone,
    latents: Float[Tensor, "n c 1 h w"],
    prompt_embeds: Float[Tensor, "n l d"],
    config: TrainConfig,
    accelerator: Accelerator,
    report: Report = silent,
    keeper: Keeper = FORGETFUL,
    targets: Sequence[str] | None = None,
) -> tuple[lora.Weights, list[float]]:
    """Spatial LoRA of one subject from its pictures, motion modules bypassed. Returns (weights, losses).

    `targets` are the linears it wraps: by default all those of the configuration's layers.
    """
    generator = torch.Generator().manual_seed(config.seed)

    def loss_at(_: int) -> Float[Tensor, ""]:
        chosen = torch.randint(0, len(latents), (config.batch_size,), generator=generator)
        noisy, target, timesteps = noised(backbone, latents[chosen], generator)
        with backbone.without_motion():
            prediction = backbone.predict(noisy, timesteps, prompt_embeds[chosen])
        return losses.denoising(prediction, target)

    linears = targets or backbone.targets("appearance", config.layers)
    weights, history = learn(
        backbone, {"appearance": linears}, config, loss_at, accelerator, phase="learning the appearance",
        report=report, keeper=keeper, generator=generator,
    )  # fmt: skip
    return weights["appearance"], history


def learn_motion(
    backbone: Backbone,
    latents: Float[Tensor, "1 c f h w"],
    prompt_embeds: Float[Tensor, "1 l d"],
    config: TrainConfig,
    accelerator: Accelerator,
    report: Report = silent,
    keeper: Keeper = FORGETFUL,
) -> tuple[lora.Weights, list[float]]:
    """Temporal LoRA of one movement from one clip, with the debiased loss. Returns (weights, losses)."""
    generator = torch.Generator().manual_seed(config.seed)

    def loss_at(_: int) -> Float[Tensor, ""]:
        copies = latents.expand(config.batch_size, -1, -1, -1, -1)
        noisy, target, timesteps = noised(backbone, copies, generator)
        prediction = backbone.predict(noisy, timesteps, prompt_embeds.expand(config.batch_size, -1, -1))
        anchor = int(torch.randint(0, latents.shape[2], (), generator=generator))
        return losses.motion(prediction, target, anchor, config.debias)

    weights, history = learn(
        backbone, {"motion": backbone.targets("motion", config.layers)}, config, loss_at, accelerator,
        phase="learning the motion", report=report, keeper=keeper, generator=generator,
    )  # fmt: skip
    return weights["motion"], history


def learn(
    backbone: Backbone,
    targets: Mapping[str, Sequence[str]],
    config: TrainConfig,
    loss_at: Callable[[int], Float[Tensor, ""]],
    accelerator: Accelerator,
    *,
    phase: str,
    generator: torch.Generator,
    report: Report = silent,
    keeper: Keeper = FORGETFUL,
) -> tuple[dict[str, lora.Weights], list[float]]:
    """Add one LoRA or several (name -> linears it wraps), optimize them together, and take them out again.

    Unless `loss_at` says otherwise, all of them act. Returns (weights by name, losses).
    """
    unet, parameters = backbone.unet, []
    for adapter, linears in targets.items():
        parameters += lora.inject(
            unet, adapter, list(linears), rank=config.rank, dropout=config.dropout, seed=config.seed
        )
    try:
        with torch.random.fork_rng(devices=[]), lora.active(unet, **dict.fromkeys(targets, 1.0)):
            torch.manual_seed(config.seed)  # dropout
            unet.train()
            history = optimize(
                parameters, loss_at, phase=phase, steps=config.steps, learning_rate=config.learning_rate,
                accelerator=accelerator, report=report, keeper=keeper, generator=generator,
            )  # fmt: skip
        return {adapter: lora.state(unet, adapter) for adapter in targets}, history
    finally:
        unet.eval()
        lora.remove(unet, *targets)
