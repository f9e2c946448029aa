"""Where a run of training stands, kept so that a killed one goes on and ends bit-equal to one that was not.

One safetensors file holds the LoRA, the optimizer's state and the state of every random generator; its metadata are
the losses so far and the settings that a run may change when it goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from customttt import lora, threads
from customttt.errors import CustomTTTError, DamagedError, LockedError, StoreError
from customttt.limits import MAX_MANIFEST
from customttt.progress import StoppedError, never
from customttt.text import parsed

EVERY_SECONDS = 10.0
_METADATA = "customttt"


@dataclass(frozen=True)
class Header:
    """What is known of a kept run without reading its tensors."""

    losses: list[float]
    """One a step; as many as there are steps done."""
    settings: dict[str, Any]
    """What may change when the run goes on, such as the learning rate."""
    threads: int = 0
    """Of the CPU, which decide the last bits; 0: as many as torch takes by itself."""


@dataclass
class Keeper:
    """Keeps one run: `kept` is the file to go on from, `keep` stores what a function writes at the path it is given."""

    kept: Path | None = None
    keep: Callable[[Callable[[Path], object]], object] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    failed: Callable[[CustomTTTError], object] = lambda error: None  # noqa: ARG005
    """Told why a state could not be kept."""
    stop: Callable[[], bool] = never
    """Asked before every step whether to end here."""
    saved: float = field(default_factory=time.monotonic)
    steps: int = 0
    """Steps that are safe on the disk."""

    def restore(self, parameters: list[nn.Parameter], optimizer: Any, generator: torch.Generator) -> list[float]:
        """Put everything back as it was; returns the losses so far, none for a new run. Raises DamagedError."""
        if self.kept is None:
            return []
        known = read_header(self.kept)
        try:
            with safe_open(self.kept, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            for index, parameter in enumerate(parameters):
                parameter.data.copy_(tensors[f"parameter.{index}"])
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith("optimizer."):
                    _, index, key = name.split(".")
                    state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            set_randomness(tensors, generator)
            threads.use(known.threads)
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            raise DamagedError(
                f"{self.kept} cannot be read ({error}), so this run cannot go on; delete it to start anew."
            ) from error
        self.steps = len(known.losses)
        return known.losses

    def offer(
        self, parameters: list[nn.Parameter], optimizer: Any, randomness: Mapping[str, Tensor], losses: list[float]
    ) -> None:
        """Keep the state before a step whose loss is known to be finite, if the last was kept long enough ago.

        Raises StoppedError, once it is kept, where it was asked to stop.
        """
        if self.stop():
            self.save(parameters, optimizer, randomness, losses)
            raise StoppedError
        if time.monotonic() - self.saved >= EVERY_SECONDS:
            self.save(parameters, optimizer, randomness, losses)

    def save(
        self, parameters: list[nn.Parameter], optimizer: Any, randomness: Mapping[str, Tensor], losses: list[float]
    ) -> None:
        """Keep the state before a step now; a keeper that keeps nothing does not."""
        if self.keep is None:
            return
        tensors = {f"parameter.{index}": parameter.detach() for index, parameter in enumerate(parameters)}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
        tensors |= randomness
        known = {"losses": losses, "settings": dict(self.settings), "threads": threads.number()}
        metadata = {_METADATA: json.dumps(known)}
        whole = {name: value.cpu().clone().contiguous() for name, value in tensors.items()}
        self.saved = time.monotonic()
        try:
            self.keep(lambda path: lora.write(whole, path, metadata))
        except (StoreError, LockedError) as error:  # a full disk costs the checkpoint, not what is being learned
            self.failed(error)
        else:
            self.steps = len(losses)


FORGETFUL = Keeper()
"""Keeps nothing."""


def read_header(path: Path) -> Header:
    """How far the run kept at `path` has come. Raises DamagedError."""
    try:
        with safe_open(path, framework="pt") as file:
            return Header(**parsed(file.metadata()[_METADATA], MAX_MANIFEST))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{path} cannot be read ({error}), so this run cannot go on; delete it to start anew."
        ) from error


def randomness(generator: torch.Generator) -> dict[str, Tensor]:
    """The state of the run's own generator and of torch's global ones (dropout)."""
    states = {"random.cpu": torch.get_rng_state(), "random.own": generator.get_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def set_randomness(states: Mapping[str, Tensor], generator: torch.Generator) -> None:
    """Put back what `randomness` returned."""
    torch.set_rng_state(states["random.cpu"])
    generator.set_state(states["random.own"])
    if torch.cuda.is_available() and "random.cuda" in states:
        torch.cuda.set_rng_state(states["random.cuda"])
