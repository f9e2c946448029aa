"""A step waits for no copy and reads no number while the network works: what a GPU does next is known ahead of it.

Seen on the meta device, which no tensor of the CPU is on, in the place of a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from customttt import planner, torch_internals
from customttt.config import SampleConfig, TrainConfig, TTTConfig

GPU = torch.device("cuda")
CONFIG = TrainConfig(layers=(2,), learning_rate=1.0, steps=1, rank=4, batch_size=2)


class Watch(planner.CostCounter):
    """Notes what reaches the device from the CPU and what the CPU waits for, in turn with products of the network."""

    seen: tuple[str, ...] = ()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = [one for one in args if isinstance(one, Tensor)]
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if torch_internals.reads_number(func) and given[0].is_meta:
            self._see("read")
        elif isinstance(out, Tensor) and out.is_meta and given and not any(one.is_meta for one in given):
            self._see("copy")
        elif any(one.is_meta for one in given) and any(not one.is_meta and one.ndim for one in given):
            self._see("copy")  # an index, say
        elif not given and isinstance(out, Tensor) and not out.is_meta and kwargs and kwargs.get("generator"):
            self._see("draw")
        elif torch_internals.flops(func, args, kwargs or {}, out):
            self._see("work")
        return out

    def _see(self, what: str) -> None:
        if what != "work" or Watch.seen[-1:] != ("work",):
            Watch.seen += (what,)


@pytest.fixture(autouse=True)
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watched is what comes after the optimizer is made: the steps."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(planner, "CostCounter", Watch)
    prepare = planner.Stage.prepare

    def begin(self: planner.Stage, optimizer: Any) -> Any:
        Watch.seen = ()
        return prepare(self, optimizer)

    monkeypatch.setattr(planner.Stage, "prepare", begin)


def warmed(base: Path) -> str:
    """A base whose schedule is on the device."""
    latents = torch.empty(1, 1, 1, 1, 1, device="meta")
    planner._sketch(str(base), GPU).schedule.add_noise(latents, latents, torch.empty(1, device="meta").long())
    return str(base)


def step_of(kind: Any, base: Path) -> tuple[str, ...]:
    planner.lesson.__wrapped__(warmed(base), kind, CONFIG, 1 if kind == "appearance" else 5, (64, 64), 0, GPU)
    assert Watch.seen[-2:] == ("work", "read")
    return Watch.seen


def test_a_step_of_the_motion_brings_its_noise_and_reads_its_loss(any_base: Path) -> None:
    """Drawn are noise, timesteps and anchor; brought are the first two."""
    assert Counter(step_of("motion", any_base)) == {"draw": 3, "copy": 2, "work": 1, "read": 1}


def test_so_does_a_step_of_the_appearance(tiny_random_base: Path) -> None:
    assert Counter(step_of("appearance", tiny_random_base)) == {"draw": 3, "copy": 2, "work": 1, "read": 1}


def test_an_iteration_of_test_time_training_brings_noise_alone(tiny_random_base: Path) -> None:
    adapters = tuple((kind, planner.Adapter(kind, (2,), 4)) for kind in ("appearance", "motion"))
    config, sample = TTTConfig(steps=1, reference_steps=2, references=0), SampleConfig(num_frames=5, size=64)
    planner.adaptation.__wrapped__(warmed(tiny_random_base), adapters, config, sample, 0, GPU)
    assert Watch.seen[-3:] == ("work", "read", "read"), "both losses, when all is done"
    # of each teacher: its noise; noise and timesteps for the student
    assert Counter(Watch.seen) == {"draw": 7, "copy": 6, "work": 4, "read": 2}


def test_a_step_of_denoising_brings_and_reads_nothing(any_base: Path) -> None:
    base = warmed(any_base)
    Watch.seen = ()
    planner.denoising_step.__wrapped__(base, SampleConfig(num_frames=5, size=64), GPU)
    assert Watch.seen == ("work",)
