"""The loop: what moves, what is repeated exactly, and what stops it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from lion_pytorch import Lion
from torch import Tensor

from customttt import lora, train
from customttt.backbones import Backbone, open_base
from customttt.config import TrainConfig
from customttt.diffusion import NoiseSchedule
from customttt.errors import DivergedError
from customttt.progress import Progress

APPEARANCE = TrainConfig(layers=(2, 6), learning_rate=1e-3, steps=3, batch_size=2, rank=2)
MOTION = TrainConfig(layers=(2, 5), learning_rate=1e-3, steps=3, rank=2)


@pytest.fixture(scope="module")
def backbone(tiny_random_base: Path) -> Backbone:
    return open_base(str(tiny_random_base), torch.device("cpu"))


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def learn(backbone: Backbone, accelerator: Accelerator, kind: str, **options: object) -> lora.Weights:
    count, frames = (3, 1) if kind == "appearance" else (1, 4)
    latents = torch.randn(count, *backbone.latent_shape(frames, 32, 32), generator=torch.Generator().manual_seed(0))
    embeds = backbone.embed(["A koala."] * count)
    if kind == "appearance":
        return train.learn_appearance(backbone, latents, embeds, APPEARANCE.but(**options), accelerator)[0]
    return train.learn_motion(backbone, latents, embeds, MOTION.but(**options), accelerator)[0]


@pytest.mark.parametrize("kind", ["appearance", "motion"])
def test_learning_moves_the_adapter_and_only_the_adapter(
    backbone: Backbone, accelerator: Accelerator, kind: str
) -> None:
    before = {name: weight.clone() for name, weight in backbone.network.state_dict().items()}
    weights = learn(backbone, accelerator, kind)
    assert any(value.any() for key, value in weights.items() if "lora_B" in key)
    after = backbone.network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", ["appearance", "motion"])
def test_the_same_seed_learns_the_same_weights_bit_for_bit(
    backbone: Backbone, accelerator: Accelerator, kind: str
) -> None:
    first = learn(backbone, accelerator, kind, seed=5)
    torch.manual_seed(99)  # the world outside does not matter
    second, other = learn(backbone, accelerator, kind, seed=5), learn(backbone, accelerator, kind, seed=6)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_learning_an_appearance_lowers_its_loss(backbone: Backbone, accelerator: Accelerator) -> None:
    latents = torch.zeros(1, *backbone.latent_shape(1, 32, 32))

    def losses(learning_rate: float) -> list[float]:
        config = APPEARANCE.but(steps=40, learning_rate=learning_rate, dropout=0.0, rank=8)
        return train.learn_appearance(backbone, latents, backbone.embed(["A koala."]), config, accelerator)[1]

    still, learned = losses(1e-9), losses(2e-3)  # on the same noise at the same timesteps
    assert still[0] == learned[0]
    assert sum(learned[20:]) < sum(still[20:])


def test_only_the_linears_of_the_configuration_get_a_lora(backbone: Backbone, accelerator: Accelerator) -> None:
    latents = torch.zeros(1, *backbone.latent_shape(1, 32, 32))
    config = APPEARANCE.but(steps=1, linears=("to_q", "ff.net.2"))
    weights, _ = train.learn_appearance(backbone, latents, backbone.embed(["A koala."]), config, accelerator)
    assert {key.rsplit(".lora_", 1)[0].endswith(config.linears) for key in weights} == {True}
    assert len(weights) < len(backbone.targets("appearance", config.layers)) * 2


def test_nothing_holds_what_was_learned_afterwards(backbone: Backbone, accelerator: Accelerator) -> None:
    """A process may learn all night."""
    latents = torch.zeros(1, *backbone.latent_shape(1, 32, 32))
    train.learn_appearance(backbone, latents, backbone.embed(["A koala."]), APPEARANCE.but(steps=1), accelerator)
    assert accelerator._optimizers == []


def test_a_loss_that_is_not_a_number_stops_the_run_and_leaves_the_base_clean(
    backbone: Backbone, accelerator: Accelerator
) -> None:
    modules = [name for name, _ in backbone.network.named_modules()]
    latents = torch.full((1, *backbone.latent_shape(1, 32, 32)), float("nan"))
    with pytest.raises(DivergedError, match="step 1"):
        train.learn_appearance(backbone, latents, backbone.embed(["A koala."]), APPEARANCE, accelerator)
    assert [name for name, _ in backbone.network.named_modules()] == modules


def test_an_interrupted_run_leaves_the_base_clean(backbone: Backbone, accelerator: Accelerator) -> None:
    modules = [name for name, _ in backbone.network.named_modules()]

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    latents = torch.zeros(1, *backbone.latent_shape(4, 32, 32))
    with pytest.raises(KeyboardInterrupt):
        train.learn_motion(backbone, latents, backbone.embed(["A koala."]), MOTION, accelerator, interrupt)
    assert [name for name, _ in backbone.network.named_modules()] == modules
    assert not backbone.network.training


def test_progress_is_reported_after_every_step(backbone: Backbone, accelerator: Accelerator) -> None:
    seen: list[Progress] = []
    latents = torch.zeros(1, *backbone.latent_shape(4, 32, 32))
    train.learn_motion(backbone, latents, backbone.embed(["A koala."]), MOTION, accelerator, seen.append)
    assert [(progress.step, progress.total) for progress in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(progress.loss is not None for progress in seen)


def test_checkpointed_blocks_over_a_frozen_base_still_give_gradients(backbone: Backbone) -> None:
    lora.inject(backbone.network, "a", backbone.targets("motion", (2, 5)), rank=2)
    backbone.network.train()
    backbone.network.enable_gradient_checkpointing()
    try:
        parameters = lora.parameters(backbone.network, "a")
        with lora.trainable(parameters), lora.active(backbone.network, a=1.0):
            noisy = torch.randn(1, *backbone.latent_shape(4, 32, 32))
            backbone.predict(noisy, torch.tensor([500]), backbone.embed([""])).square().mean().backward()
        ups = [parameter for name, parameter in backbone.network.named_parameters() if ".lora_B.a." in name]
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in ups)
    finally:
        backbone.network.disable_gradient_checkpointing()
        backbone.network.eval()
        lora.remove(backbone.network, "a")


@pytest.mark.parametrize("kind", ["appearance", "motion"])
def test_a_lora_is_learned_at_the_noise_that_it_is_asked_to(
    backbone: Backbone, accelerator: Accelerator, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    add_noise = NoiseSchedule.add_noise

    def noted(schedule: NoiseSchedule, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        seen.extend(timesteps.tolist())
        return add_noise(schedule, latents, noise, timesteps)

    monkeypatch.setattr(NoiseSchedule, "add_noise", noted)
    learn(backbone, accelerator, kind, noise=(0.4, 0.6), steps=10, batch_size=2)
    assert len(seen) == 20
    assert 400 <= min(seen) < max(seen) < 600


def test_a_falling_learning_rate_ends_at_nothing(
    backbone: Backbone, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    class Noted(Lion):
        def step(self, *args: object) -> None:
            seen.append(self.param_groups[0]["lr"])
            super().step(*args)

    monkeypatch.setattr(train, "Lion", Noted)
    learn(backbone, accelerator, "appearance", falling=True, learning_rate=1e-3, steps=4)
    assert seen == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    seen.clear()
    learn(backbone, accelerator, "appearance", learning_rate=1e-3, steps=2)
    assert seen == [1e-3, 1e-3]
