"""What this machine has: cores, memory, GPUs, packages. Imports torch only to ask for GPUs."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use."""

    name: str
    memory: int
    """Bytes."""


def gpus() -> list[Gpu]:
    """The CUDA GPUs, the one that is used first."""
    import torch

    if not torch.cuda.is_available():
        return []
    properties = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [Gpu(one.name, one.total_memory) for one in properties]


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16, which halve the time of learning and sampling."""
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def device() -> torch.device:
    """Where models run: the first CUDA GPU, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """(bytes in all, bytes that are free or can be freed at once)."""
    ram = psutil.virtual_memory()
    return int(ram.total), int(ram.available)


def free_memory(device: torch.device) -> int:
    """Bytes that a model can take there."""
    if device.type == "cpu":
        return memory()[1]
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def free_disk(path: Path) -> int:
    """Bytes free where a file or folder is, or would be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def versions() -> dict[str, str]:
    """What a concept or a video was made with."""
    packages = ("customttt", "torch", "diffusers", "transformers", "peft")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
