"""Which bases there are, and which of them can run on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from customttt import machine
from customttt.backbones import defaults, hub, known_bases
from customttt.backbones.family import NamedBase
from customttt.config import SampleConfig


@dataclass(frozen=True)
class BaseStatus:
    """A known base on this machine."""

    known: NamedBase
    sample: SampleConfig
    here: bool
    """Whether all of it is on this machine."""
    obstacle: str | None
    """Why it cannot run here; None where it can, perhaps after its download."""


def survey() -> list[BaseStatus]:
    """Every known base. The hub is asked once at most, and only where its answer decides."""
    answered: list[bool] = []

    def hub_answers() -> bool:
        if not answered:
            answered.append(hub.answers())
        return answered[0]

    statuses = []
    for known in known_bases().values():
        here = all(hub.cached(repository) for repository in known.repositories)
        obstacle = too_large(known, machine.gpus())
        if obstacle is None and not here and not hub_answers():
            obstacle = "not downloaded, and the model hub does not answer"
        statuses.append(BaseStatus(known, defaults(known.name).sample, here, obstacle))
    return statuses


def too_large(known: NamedBase, gpus: list[machine.Gpu]) -> str | None:
    """Why this machine cannot carry a base; None where it can. The first GPU is the one that is used."""
    if known.memory == 0:
        return None
    if not gpus:
        return f"needs a CUDA GPU with {known.memory / 1e9:.0f} GB, and there is none"
    if gpus[0].memory < known.memory:
        return f"needs {known.memory / 1e9:.0f} GB of GPU memory, and there are {gpus[0].memory / 1e9:.0f}"
    return None
