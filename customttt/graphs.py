"""CUDA graphs: what a GPU does again and again is recorded once, and started as one piece from then on (ours).

A step of learning is thousands of operations, each of which a CPU takes longer to start than a GPU to do. Recorded, a
network's prediction, and the way back through it to the LoRAs, are started as two.

A graph reads and writes memory at fixed addresses and does what was done while it was recorded. So it is recorded for
one *state* of a base: which LoRAs act, what modules do, where weights lie, and the shapes of what goes in. Each call
looks at the state, and one that was not recorded is computed as ever.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from customttt import lora
from customttt.backbones import Backbone, PromptEmbeds
from customttt.diffusion import Latents, Timesteps

Given = tuple[Latents, Timesteps, PromptEmbeds]
Predict = Callable[[Latents, Timesteps, PromptEmbeds], Latents]
WARM = 3
"""How often what is recorded is done before, so that libraries have chosen their kernels."""
AGREEMENT = 0.05
"""By how much of its size a replay may differ from what was computed without it; 16 bits alone make 0.01."""


def recorded(
    functions: Sequence[Callable[[], None]], device: torch.device, pool: Any = None
) -> list[Callable[[], None]] | None:
    """Functions without arguments that work in place, and are called in this order, as CUDA graphs.

    On a CPU they stay as they are; None where CUDA cannot record them, of which a warning tells. What shares a `pool`
    of memory never runs at the same time.
    """
    if device.type != "cuda":
        return list(functions)
    random = torch.cuda.get_rng_state(device)
    try:
        return [graph.replay for graph in _record(functions, pool or torch.cuda.graph_pool_handle())]
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        _warn(f"CUDA cannot record it ({str(error).strip().splitlines()[0]})")
        return None
    finally:
        torch.cuda.set_rng_state(random, device)  # as if nothing had been done to warm up


def _record(functions: Sequence[Callable[[], None]], pool: Any) -> list[torch.cuda.CUDAGraph]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            for function in functions:
                function()
    torch.cuda.current_stream().wait_stream(stream)
    graphs = []
    for function in functions:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            function()
        graphs.append(graph)
    return graphs


def _warn(why: str) -> None:
    warnings.warn(f"Operations are started one by one on this GPU, which takes longer: {why}.", stacklevel=2)


def is_worth_it(backbone: Backbone, device: torch.device) -> bool:
    """Whether predictions of a base are replayed on a device: a CPU is never waited for."""
    return device.type == "cuda" and backbone.recordable


@contextmanager
def replaying(backbone: Backbone) -> Iterator[None]:
    """While this lasts, what a base predicts is replayed on a GPU where the same comes again.

    LoRAs are put in before, and taken out afterwards. Contexts of this kind may be nested.
    """
    if not is_worth_it(backbone, backbone.device):
        yield
        return
    before = vars(backbone).get("predict")
    vars(backbone)["predict"] = Predictions(backbone, before.plain if before else backbone.predict)
    try:
        yield
    finally:
        del vars(backbone)["predict"]
        vars(backbone).update({"predict": before} if before else {})


def is_recomputed(network: nn.Module) -> bool:
    """Whether a part of a network is computed again in the backward pass now, and so is not recorded."""
    return any(_doing(module) is checkpoint for module in network.modules())


def _doing(module: nn.Module) -> Any:
    """What a module does in place of its own forward pass; None where that is what it does."""
    forward = vars(module).get("forward")
    return getattr(forward, "func", forward)


class Predictions:
    """Stands for a base's `predict`: what is new is computed, and what has come before is replayed."""

    def __init__(self, backbone: Backbone, plain: Predict) -> None:
        self.plain, self.network, self.device = plain, backbone.network, backbone.device
        self.modules, self.parameters = list(self.network.modules()), list(self.network.parameters())
        self.places: list[Any] = []
        """Where every weight lies; what was recorded before one moved is of no use."""
        self.seen: set[Any] = set()
        self.recordings: dict[Any, Recording | None] = {}
        """By state; None for one that is not replayed."""
        self.memory = Memory()

    def __call__(self, noisy_latents: Latents, timesteps: Timesteps, prompt_embeds: PromptEmbeds) -> Latents:
        given = noisy_latents, timesteps, prompt_embeds
        recording = None if any(one.requires_grad for one in given) else self._recording(given)
        return recording(given) if recording else self.plain(*given)

    def _recording(self, given: Given) -> Recording | None:
        places = [(one.data_ptr(), one.requires_grad) for one in self.parameters]
        if places != self.places:
            self.places = places
            self.recordings.clear()
            self.seen.clear()
        if (doing := self._state()) is None:
            return None
        if checkpoint in doing:  # memory is short
            self.recordings = {state: one for state, one in self.recordings.items() if one and not one.learning}
            return None
        state = doing, torch.is_grad_enabled(), tuple((one.shape, one.dtype) for one in given)
        if state not in self.seen:  # what comes once is not worth it
            self.seen.add(state)
        elif state not in self.recordings:
            self.recordings[state] = self._recorded(given)
        return self.recordings.get(state)

    def _recorded(self, given: Given) -> Recording | None:
        learning = [one for one in self.parameters if one.requires_grad] if torch.is_grad_enabled() else []
        recording = Recording(self.plain, given, learning, self.memory)
        if not recording.begin(self.device):
            return None
        try:
            if self.network.training or recording.agrees():  # dropout draws anew
                return recording
            _warn("what it replays is not what it computes")
        except torch.OutOfMemoryError:
            _warn("there is not enough memory to hold what it replays against what it computes")
        return None

    def _state(self) -> tuple[Any, ...] | None:
        """What modules do that can change, and which LoRAs act at what scale; None for what is not recorded."""
        doing: list[Any] = [self.network.training]
        for module in self.modules:
            if module._forward_hooks or module._forward_pre_hooks or "masks" in vars(module):
                return None
            if (acting := lora.acting_in(module)) is not None:
                doing.append(acting)
            elif (forward := _doing(module)) is not None:
                doing.append(forward)
        return tuple(doing)


@dataclass
class Memory:
    """What all recordings of a base share, one after the other."""

    pools: dict[bool, Any] = field(default_factory=dict)
    """Of what learns, and of what does not: where memory is short, the first kind is given up, and its memory is free.
    """
    turn: int = 0
    """Counts predictions: the way back from one must come before the next."""


class Recording:
    """One prediction, and the way back from it to the parameters that learn, if any do, at fixed addresses."""

    forward: Callable[[], None]
    backward: Callable[[], None]

    def __init__(self, predict: Predict, given: Given, learning: list[nn.Parameter], memory: Memory) -> None:
        self.predict, self.learning, self.memory = predict, learning, memory
        self.given = tuple(one.detach().clone() for one in given)
        self.prediction, self.error = self.given[0], torch.ones_like(self.given[0])  # predictions have latents' shape
        self.gradients: tuple[Tensor | None, ...] = ()

    def begin(self, device: torch.device) -> bool:
        """Record it; False where that cannot be."""
        learns = bool(self.learning)
        if learns not in self.memory.pools and device.type == "cuda":
            self.memory.pools[learns] = torch.cuda.graph_pool_handle()
        functions = [self._forward, self._backward] if learns else [self._forward]
        replays = recorded(functions, device, self.memory.pools.get(learns))
        if replays:
            self.forward, self.backward = replays[0], replays[-1]
        return replays is not None

    def _forward(self) -> None:
        with torch.set_grad_enabled(bool(self.learning)):
            self.prediction = self.predict(*self.given)

    def _backward(self) -> None:
        self.gradients = torch.autograd.grad(self.prediction, self.learning, self.error, allow_unused=True)

    def __call__(self, given: Given) -> Latents:
        for place, one in zip(self.given, given, strict=True):
            place.copy_(one)
        self.memory.turn += 1
        if self.learning:
            return Replay.apply(self, *self.learning)  # type: ignore[no-any-return, no-untyped-call]
        self.forward()
        return self.prediction.clone()

    def agrees(self) -> bool:
        """Whether a replay gives what is computed without it, about."""
        with torch.set_grad_enabled(bool(self.learning)):
            plain = [self.predict(*self.given)]
            if self.learning:
                gradients = torch.autograd.grad(plain[0], self.learning, self.error, allow_unused=True)
                plain += [one for one in gradients if one is not None]
        self.forward()
        replayed = [self.prediction]
        if self.learning:
            self.backward()
            replayed += [one for one in self.gradients if one is not None]
        differ = [(one.detach() - other.detach()).norm() for one, other in zip(plain, replayed, strict=True)]
        return bool(torch.stack(differ).norm() <= AGREEMENT * torch.stack([one.norm() for one in plain]).norm())


class Replay(torch.autograd.Function):
    """A recorded prediction as autograd sees it: of the parameters that learn."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, *_: Tensor) -> Tensor:
        ctx.recording, ctx.turn = recording, recording.memory.turn
        recording.forward()
        return recording.prediction.detach().clone()

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        recording: Recording = ctx.recording
        if ctx.turn != recording.memory.turn:
            raise RuntimeError("Another prediction was replayed before the loss of this one was backed up.")
        recording.error.copy_(error)
        recording.backward()
        copies = iter(torch._foreach_mul([one for one in recording.gradients if one is not None], 1.0))
        return None, *(None if one is None else next(copies) for one in recording.gradients)
