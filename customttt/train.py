"""The training loop, and the two things that are learned with it: an appearance and a motion. Knows no library.

It reads latents and prompt embeddings: neither the VAE nor the text encoder is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from customttt import diffusion, graphs, lora, losses
from customttt.backbones import Backbone
from customttt.checkpoint import FORGETFUL, Keeper, randomness, set_randomness
from customttt.concept import Kind
from customttt.config import TrainConfig
from customttt.errors import DivergedError, OutOfMemoryError, UsageError
from customttt.lion import Lion
from customttt.progress import Progress, Report, silent
from customttt.thrift import Ladder, Terms

LION_BETAS, LION_WEIGHT_DECAY = (0.9, 0.99), 0.1


def optimize(
    groups: Sequence[tuple[list[nn.Parameter], float]],
    terms_at: Callable[[int], Terms],
    *,
    phase: str,
    steps: int,
    accelerator: Accelerator,
    ladder: Ladder,
    falling: bool = False,
    report: Report = silent,
    keeper: Keeper = FORGETFUL,
    generator: torch.Generator | None = None,
    remedy: str = "learn with a smaller --learning-rate",
) -> list[float]:
    """Minimize the sum of `terms_at(step)` with Lion (arXiv 2302.06675) and return every loss.

    `groups` are parameters, and the learning rate of each group. With `falling` it falls evenly to nothing. A keeper,
    which needs the generator that `terms_at` draws from, lets a killed run go on; a ladder lets a step that ran out of
    memory start again with less. Raises DivergedError as soon as a loss is not a finite number, with a `remedy`, and
    OutOfMemoryError on the last rung; what was kept before stays kept.
    """
    parameters = [one for some, _ in groups for one in some]
    given = [{"params": some, "lr": rate} for some, rate in groups]
    lion = Lion(given, betas=LION_BETAS, weight_decay=LION_WEIGHT_DECAY)
    optimizer = accelerator.prepare(lion)  # in half precision it undoes the scale of the loss
    generator = generator or torch.Generator()
    accelerator._optimizers.clear()  # or it holds what every run has learned, on the device, for as long as it lives
    with lora.trainable(parameters):
        history = keeper.restore(parameters, optimizer, generator)
        for step in range(len(history), steps):
            random = randomness(generator)
            while (loss := ladder.back_up(terms_at(step), accelerator)) is None:  # memory ran out
                if not ladder.climb():
                    keeper.save(parameters, optimizer, random, history)
                    raise _too_large(phase, step, keeper.steps)
                report(Progress(phase, step, steps, note=f"Memory ran out at step {step + 1}; now {ladder.rung}."))
                optimizer.zero_grad()
                set_randomness(random, generator)
            value = _finite(loss, f"step {step + 1} of {phase}", groups[0][1], keeper, remedy)
            keeper.offer(parameters, optimizer, random, history)
            history.append(value)
            for group, (_, rate) in zip(optimizer.param_groups, groups, strict=True):
                group["lr"] = rate * (1 - step / steps) if falling else rate
            optimizer.step()
            optimizer.zero_grad()
            report(Progress(phase, step + 1, steps, value))
    return history


def _too_large(phase: str, step: int, kept: int) -> OutOfMemoryError:
    way_on = (
        f"step {kept} is kept: the same command goes on from it, once other programs have made room"
        if kept
        else "nothing was saved; close other programs, or use fewer --frames or a smaller base"
    )
    return OutOfMemoryError(
        f"There is not enough memory for step {step + 1} of {phase}, with every way to save memory in use; {way_on}."
    )


def _finite(loss: float, where: str, learning_rate: float, keeper: Keeper, remedy: str) -> float:
    if not math.isfinite(loss):
        way_on = remedy if keeper.steps else f"nothing was saved; {remedy}"
        if keeper.steps and keeper.settings:  # which may change
            way_on = f"step {keeper.steps} is kept: go on from it with --resume and a smaller --learning-rate"
        raise DivergedError(f"The loss became {loss} at {where} with learning rate {learning_rate:g}; {way_on}.")
    return loss


def add_random_noise(
    backbone: Backbone,
    latents: diffusion.Latents,
    generator: torch.Generator,
    within: tuple[float, float] = (0.0, 1.0),
) -> tuple[diffusion.Latents, diffusion.Latents, diffusion.Timesteps]:
    """Latents with fresh noise, at random timesteps `within` these shares of the noise.

    Returns (noisy latents, what the network should predict, timesteps).
    """
    schedule = backbone.schedule
    noise = diffusion.bring(torch.randn(latents.shape, generator=generator), latents.device).to(latents.dtype)
    timesteps = diffusion.bring(schedule.draw(len(latents), within, generator), latents.device)
    return schedule.add_noise(latents, noise, timesteps), schedule.target(latents, noise, timesteps), timesteps


def noise_of(backbone: Backbone, kind: Kind, asked: tuple[float, float]) -> tuple[float, float]:
    """The part of these shares of the noise in which a LoRA of `kind` can act. Raises UsageError if there is none."""
    low, high = backbone.noise(kind)
    within = max(low, asked[0]), min(high, asked[1])
    if within[0] >= within[1]:
        raise UsageError(
            f"The {kind} is to be learned from {asked[0]:g} to {asked[1]:g} of the noise; on {backbone.name} its LoRA "
            f"acts from {low:g} to {high:g} alone."
        )
    return within


def target_linears(backbone: Backbone, kind: Kind, config: TrainConfig) -> list[str]:
    """Names of the linears that a LoRA of this kind wraps: those of the configuration, in its layers."""
    return [name for name in backbone.targets(kind, config.layers) if name.endswith(config.linears)]


def learn_appearance(
    backbone: Backbone,
    latents: Float[Tensor, "n c 1 h w"],
    prompt_embeds: Float[Tensor, "n l d"],
    config: TrainConfig,
    accelerator: Accelerator,
    report: Report = silent,
    keeper: Keeper = FORGETFUL,
    targets: Sequence[str] | None = None,
    rung: int = 0,
) -> tuple[lora.Weights, list[float]]:
    """Spatial LoRA of one subject from its pictures, motion modules bypassed. Returns (weights, losses).

    `targets` are the linears it wraps, by default those of the configuration; `rung` is where on the
    ladder of `thrift` it begins.
    """
    generator, ladder = torch.Generator().manual_seed(config.seed), Ladder(backbone, config.batch_size, rung)
    within = noise_of(backbone, "appearance", config.noise)

    def terms_at(_: int) -> Terms:
        pick = torch.randint(0, len(latents), (config.batch_size,), generator=generator).tolist()
        picked, embeds = (torch.stack([one[index] for index in pick]) for one in (latents, prompt_embeds))
        noisy, target, timesteps = add_random_noise(backbone, picked, generator, within)
        with backbone.framewise():
            for part, share in ladder.parts():
                prediction = backbone.predict(noisy[part], timesteps[part], embeds[part])
                yield share * losses.denoising(prediction, target[part])

    linears = targets or target_linears(backbone, "appearance", config)
    weights, history = learn(
        backbone, {"appearance": linears}, config, terms_at, accelerator, phase="learning the appearance",
        report=report, keeper=keeper, generator=generator, ladder=ladder,
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
    rung: int = 0,
) -> tuple[lora.Weights, list[float]]:
    """Temporal LoRA of one movement from one clip, with the debiased loss. Returns (weights, losses)."""
    generator, ladder = torch.Generator().manual_seed(config.seed), Ladder(backbone, config.batch_size, rung)
    embeds = prompt_embeds.expand(config.batch_size, -1, -1)
    within = noise_of(backbone, "motion", config.noise)

    def terms_at(_: int) -> Terms:
        copies = latents.expand(config.batch_size, -1, -1, -1, -1)
        noisy, target, timesteps = add_random_noise(backbone, copies, generator, within)
        anchor = int(torch.randint(0, latents.shape[2], (), generator=generator))
        for part, share in ladder.parts():
            prediction = backbone.predict(noisy[part], timesteps[part], embeds[part])
            yield share * losses.motion(prediction, target[part], anchor, config.debias)

    weights, history = learn(
        backbone, {"motion": target_linears(backbone, "motion", config)}, config, terms_at, accelerator,
        phase="learning the motion", report=report, keeper=keeper, generator=generator, ladder=ladder,
    )  # fmt: skip
    return weights["motion"], history


def learn(
    backbone: Backbone,
    targets: Mapping[str, Sequence[str]],
    config: TrainConfig,
    terms_at: Callable[[int], Terms],
    accelerator: Accelerator,
    *,
    phase: str,
    generator: torch.Generator,
    ladder: Ladder,
    report: Report = silent,
    keeper: Keeper = FORGETFUL,
) -> tuple[dict[str, lora.Weights], list[float]]:
    """Add one LoRA or several (name -> linears it wraps), optimize them together, and take them out again.

    Unless `terms_at` says otherwise, all of them act. Returns (weights by name, losses).
    """
    network = backbone.network
    try:
        parameters = []
        for adapter, linears in targets.items():
            parameters += lora.inject(
                network, adapter, list(linears), rank=config.rank, dropout=config.dropout, seed=config.seed
            )
        acting = lora.active(network, **dict.fromkeys(targets, 1.0))
        with torch.random.fork_rng(devices=[]), acting, graphs.replaying(backbone):
            torch.manual_seed(config.seed)  # dropout
            network.train()
            history = optimize(
                [(parameters, config.learning_rate)], terms_at, phase=phase, steps=config.steps,
                falling=config.falling, accelerator=accelerator, report=report, keeper=keeper, generator=generator,
                ladder=ladder,
            )  # fmt: skip
        return {adapter: lora.state(network, adapter) for adapter in targets}, history
    finally:
        network.eval()
        lora.remove(network, *targets)
