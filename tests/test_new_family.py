# ruff: noqa: ARG002, ARG003
"""A base of another kind is one file: a toy transformer with a flow, whose LoRAs of both kinds share linears."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from customttt import backbones, compose, learn, planner
from customttt.backbones import Backbone, Place
from customttt.backbones.family import Family
from customttt.config import Defaults, SampleConfig, TrainConfig, TTTConfig
from customttt.media import Clip, Picture
from customttt.recipe import Ingredient, VideoRecipe

CPU = torch.device("cpu")
LEARNING = TrainConfig(layers=(0, 1), learning_rate=1e-2, steps=2, rank=2)
OWN = Defaults(LEARNING, LEARNING, TTTConfig(steps=2, reference_steps=2), SampleConfig(5, 3, size=16))


class Flow:
    def draw(self, count: int, within: tuple[float, float], generator: torch.Generator) -> Tensor:
        return within[0] + (within[1] - within[0]) * torch.rand(count, generator=generator)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return torch.lerp(latents, noise, timesteps.view(-1, 1, 1, 1, 1))

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def path(self, num_inference_steps: int) -> list[float]:
        return list(torch.linspace(1, 0, num_inference_steps + 1).tolist())

    def step(self, prediction: Tensor, noisy_latents: Tensor, timestep: float, following: float) -> Tensor:
        return noisy_latents + (following - timestep) * prediction


@dataclass
class Toy(Family):
    FOLDER, NETWORKS, PARTS, ARCHITECTURES = "transformer", ("Toy",), ("transformer",), {}
    alone = False
    heaviest, prompt_shape = [1, 0], (3, 8)

    @classmethod
    def recipe(cls, config: Any) -> Defaults:
        return OWN

    @classmethod
    def places(cls, config: Any, folder: Path | None, base: str) -> dict[str, Place]:
        return {f"{layer}": Place(None, layer, (8, 8)) for layer in (0, 1)}

    @classmethod
    def load(cls, folder: Path, name: str, fingerprint: str, defaults: Defaults, device: torch.device) -> Any:
        torch.manual_seed(0)
        network = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]).to(device).requires_grad_(False)
        return cls(name, fingerprint, network, nn.Identity(), Flow(), defaults, device)

    @classmethod
    def sketch(cls, config: Any, folder: Path | None, name: str, defaults: Defaults, device: torch.device) -> Any:
        return cls.load(Path(), name, "", defaults, torch.device("meta"))

    @property
    def blocks(self) -> list[list[nn.Module]]:
        return [[layer] for layer in self.network]

    def encode(self, video: Tensor) -> Tensor:
        return torch.cat([video] * 3, 1)[:, :8, ::4, ::4, ::4]

    def decode(self, latents: Tensor) -> Tensor:
        frames = 4 * latents.shape[2] - 3
        return nn.functional.interpolate(latents[:, :3], (frames, 16, 16)).clamp(-1, 1)

    def embed(self, prompts: Sequence[str]) -> Tensor:
        return torch.stack([torch.full((3, 8), len(prompt) / 50) for prompt in prompts])

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        x = noisy_latents.movedim(1, -1) + timesteps.view(-1, 1, 1, 1, 1) + prompt_embeds.mean(1)[:, None, None, None]
        for layer in self.network:
            x = x + layer(x).tanh() + (0 if self.alone else x.mean(1, keepdim=True))
        return x.movedim(-1, 1)

    @contextmanager
    def framewise(self) -> Iterator[None]:
        self.alone = True
        yield
        self.alone = False

    def layers(self, kind: str) -> tuple[int, ...]:
        return 0, 1

    def targets(self, kind: str, layers: Sequence[int]) -> list[str]:
        return [str(layer) for layer in layers]

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        return len(prompt), 100

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return 8, (num_frames - 1) // 4 + 1, height // 4, width // 4


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "Toy"}')
    (tmp_path / "transformer" / "model.safetensors").touch()
    monkeypatch.setattr(backbones, "families", lambda: (Toy,))
    return str(tmp_path)


def test_it_learns_adapts_and_renders(toy: str) -> None:
    base: Backbone = backbones.open_base(toy, CPU)
    accelerator, words = Accelerator(cpu=True), learn.Wording("a", "koala", "A koala.")
    pixels = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
    looks = learn.appearance(base, [Picture("a.png", pixels[0], (), "0" * 64)], words, LEARNING, accelerator)
    moves = learn.motion(base, Clip("a.mp4", pixels, 8, "0" * 64), words, LEARNING, accelerator)
    assert sorted(looks.weights) == sorted(moves.weights)
    koala, swimming = Ingredient("a", "koala", "x"), Ingredient("b", "swimming", "y")
    recipe = VideoRecipe(koala, swimming, "on Mars", toy, base.fingerprint, OWN.ttt, OWN.sample)
    adapted = compose.adapt(base, {"appearance": looks.weights, "motion": moves.weights}, recipe, accelerator)
    assert compose.render(base, adapted, recipe).shape == (5, 16, 16, 3)
    assert not torch.equal(adapted["appearance"]["0.lora_B.weight"], looks.weights["0.lora_B.weight"])


def test_it_is_foretold(toy: str) -> None:
    assert planner.learning(toy, "motion", LEARNING, 5, (16, 16)).memory > 0
    adapters = {kind: planner.Adapter(kind, (0, 1), 2) for kind in ("appearance", "motion")}
    assert planner.composing(toy, adapters, OWN.ttt, OWN.sample).memory > 0
