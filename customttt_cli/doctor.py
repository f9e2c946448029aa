"""The command `doctor`: what this machine can do, and what is broken."""

from __future__ import annotations

import json
import platform
from typing import Any

from customttt import __version__
from customttt.errors import CustomTTTError, DamagedError, StoreError
from customttt.library import Library
from customttt_cli import options, output, showing


def doctor(as_json: options.Json = False) -> None:
    """Tell what this machine can do: memory, GPUs, disk, library, model hub, and the base it would use."""
    output.quiet()
    with output.waiting("Looking around"):
        library = Library()
        broken = _broken(library)
        facts = {**_machine(), **_library(library, broken), **_hub()}
        try:
            facts |= _learning(facts["base"])
        except CustomTTTError as error:  # CUSTOMTTT_BASE may say anything
            broken = broken or error
    if as_json:
        output.result(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        for line in showing.machine_lines(facts):
            output.result(line)
    if broken:
        raise broken


def _machine() -> dict[str, Any]:
    import torch

    from customttt import machine

    total, available = machine.memory()
    return {
        "customttt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": machine.cores(),
        "memory_bytes": total,
        "memory_available_bytes": available,
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.memory} for gpu in machine.gpus()],
    }


def _broken(library: Library) -> CustomTTTError | None:
    """What is wrong with the library: damaged files, or a store that cannot be written. None where it is healthy."""
    try:
        if library.root.exists():  # looking around makes nothing
            library.check_writable()
        problems = library.verify()
    except CustomTTTError as error:
        return error
    if problems:
        names = ", ".join(sorted({problem.name for problem in problems}))
        return DamagedError(f"The library is damaged ({names}); 'customttt verify' says what differs.")
    return None


def _library(library: Library, broken: CustomTTTError | None) -> dict[str, Any]:
    from customttt import machine

    return {
        "library": str(library.root),
        "library_free_bytes": machine.free_disk(library.root),
        "library_concepts": _count(library),
        "library_problem": str(broken) if broken else None,
    }


def _count(library: Library) -> int:
    try:
        return len(library.entries())
    except StoreError:  # which `_broken` tells
        return 0


def _hub() -> dict[str, Any]:
    from customttt import backbones
    from customttt.backbones import hub

    base, why = backbones.choose_base(None)
    offline = "offline (HF_HUB_OFFLINE)" if hub.offline() else hub.obstacle()
    state = offline or ("reachable" if hub.answers() else "does not answer")
    return {"hub": hub.address(), "hub_state": state, "base": base, "base_reason": why}


def _learning(base: str) -> dict[str, Any]:
    """What it takes here to learn a motion, the longest lesson."""
    from customttt import backbones, planner

    defaults = backbones.defaults(base)
    forecast = planner.learning(base, "motion", defaults.motion, defaults.sample.num_frames, defaults.sample.sides)
    return {"learning_memory_bytes": forecast.memory, "learning_seconds": round(forecast.seconds, 1)}
