"""How a learning step saves memory, and the ladder that it climbs when memory runs out. Knows no losses.

Time is saved, too: LoRAs that learn nothing are merged on a GPU.

What a backward pass needs of a block can be kept, or computed a second time when it is needed (arXiv 1604.06174); a
batch can go through in chunks, whose gradients add up to the same. Every rung needs less memory and more time.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from customttt import lora
from customttt.backbones import Backbone, autocast
from customttt.errors import is_out_of_memory
from customttt.patch import replaced

MAX_STAGES = 9
"""Rungs on which more and more blocks are recomputed: each is tried in turn, and rehearsed by the planner."""
Terms = Generator[Float[Tensor, ""], None, None]
"""The terms of one step's loss, each given while the network is still in the state that made it."""


@dataclass(frozen=True)
class Rung:
    """One way to save memory."""

    recomputed: tuple[int, ...] = ()
    """Numbers of the blocks whose activations are computed again in the backward pass."""
    chunk: int | None = None
    """How many clips or pictures go through at once; None: the whole batch."""

    def __str__(self) -> str:
        """What is done to save memory: "recomputing blocks 6, 7 and 8, 2 at a time"."""
        if not self.recomputed:
            return "recomputing nothing"
        *most, last = map(str, sorted(self.recomputed))
        blocks = f"blocks {', '.join(most)} and {last}" if most else f"block {last}"
        return f"recomputing {blocks}" + (f", {self.chunk} at a time" if self.chunk else "")


def rungs(first: int, batch_size: int, heaviest: Sequence[int]) -> list[Rung]:
    """From nothing saved up, for LoRAs that begin in block `first`: the blocks below it keep nothing anyway.

    Those that keep the most, the `heaviest`, are recomputed first, several at once where there are many; then the
    batch is halved, again and again.
    """
    order = [block for block in heaviest if block >= first]
    stages = min(len(order), MAX_STAGES)
    counts = [round(len(order) * stage / stages) for stage in range(1, stages + 1)]
    ladder = [Rung(tuple(order[:count])) for count in (0, *counts)]
    while batch_size > 1:
        batch_size = (batch_size + 1) // 2
        ladder.append(Rung(tuple(order), batch_size))
    return ladder


class Ladder:
    """The rungs for the LoRAs in a base, and the one on which a run of learning stands."""

    def __init__(self, backbone: Backbone, batch_size: int = 1, start: int = 0) -> None:
        self.blocks, self.heaviest, self.device = backbone.blocks, backbone.heaviest, backbone.device
        self.batch_size, self.position = batch_size, start

    @cached_property
    def rungs(self) -> list[Rung]:
        """Known as soon as the LoRAs are in their places."""
        learning = [any(map(_learns, block)) for block in self.blocks]
        first = learning.index(True) if any(learning) else 0  # without LoRAs a word is learned, which all blocks read
        return rungs(first, self.batch_size, self.heaviest)

    @property
    def rung(self) -> Rung:
        return self.rungs[min(self.position, len(self.rungs) - 1)]

    def climb(self) -> bool:
        """Go one rung up; False where there is none."""
        self.position += 1
        return self.position < len(self.rungs)

    def parts(self) -> Iterator[tuple[slice, float]]:
        """(which of a batch, their share of it), one chunk after the other."""
        chunk = self.rung.chunk or self.batch_size
        for start in range(0, self.batch_size, chunk):
            stop = min(start + chunk, self.batch_size)
            yield slice(start, stop), (stop - start) / self.batch_size

    def back_up(self, terms: Terms, accelerator: Accelerator) -> float | None:
        """Back up every term of a loss before the next is computed. Returns the loss, or None where memory ran out."""

        def forward() -> Tensor | None:
            with autocast(self.device):
                return next(terms, None)

        units = [unit for block in self.rung.recomputed for unit in self.blocks[block]]
        try:
            with recomputed(units), closing(terms):
                backed_up = []
                while (term := forward()) is not None:
                    accelerator.backward(term)
                    backed_up.append(term.detach())
            return float(sum(term.item() for term in backed_up))  # a GPU is waited for once a step
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()  # nothing where there is no GPU
        return None


def _learns(module: nn.Module) -> bool:
    return any(".lora_" in name for name, _ in module.named_parameters())


def frozen(backbone: Backbone, unconditional_scale: float = 1.0, **scales: float) -> AbstractContextManager[None]:
    """Let LoRAs act that learn nothing now: on a GPU, whose networks are narrow, as part of the weights.

    On a CPU beside them, as ever, so that videos stay the same to the bit; and so where they act differently in places
    or in the unconditional half of guidance, or where weights come and go, as those of experts.
    """
    network = backbone.network
    alike = unconditional_scale == 1 and not lora.is_masked(network) and backbone.recordable
    return lora.merged(network, **scales) if alike and lora.is_narrow(network) else lora.active(network, **scales)


def recomputed(modules: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """Let modules keep only what goes into them, and compute the rest again in the backward pass.

    The backward pass must come while this lasts, with the same adapters acting. Not reentrant: over a frozen base the
    reentrant kind silently gives no gradients.
    """
    return replaced(modules, lambda module: partial(checkpoint, module.forward, use_reentrant=False))
