"""Open a base on the best device here, in one process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from customttt import machine
from customttt.backbones import Backbone, computing, open_base
from customttt.errors import OutOfMemoryError

LAUNCHER = re.compile(
    "(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$|MASTER_(ADDR|PORT)$|ACCELERATE_|OMPI_|PMI_|MPI_|MV2_|MPIRUN_|TORCHELASTIC_"
)
"""Names of the variables by which launchers tell a process that it is one of many."""


def open_accelerated(base: str) -> tuple[Backbone, Accelerator]:
    """A base on the best device here, in half precision where the device has it. Raises BaseUnavailableError."""
    device = machine.device()
    half = {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}[computing(device)]
    with alone():
        accelerator = Accelerator(mixed_precision=half, cpu=device.type == "cpu")
    try:
        return open_base(base, accelerator.device), accelerator
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"Base {base!r} does not fit into this GPU's memory; use --base tiny.") from error


@contextmanager
def alone() -> Iterator[None]:
    """While this lasts, the environment knows no launcher: this is one process, whoever has started it.

    accelerate would wait for the others that LOCAL_RANK or WORLD_SIZE speak of.
    """
    launched = {name: value for name, value in os.environ.items() if LAUNCHER.match(name)}
    for name in launched:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(launched)
