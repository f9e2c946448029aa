"""What learning and composing will take, known before they start: they are rehearsed on shapes without numbers.

The very functions that do the work run on torch's meta device, where nothing is computed, and every tensor that comes
and goes is counted. What they would compute, move and start, at the speed that this machine shows, is the time.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from customttt import graphs, lora, machine, sampling, torch_internals, train, ttt
from customttt.backbones import Backbone, computing, precision, sketch
from customttt.concept import Kind
from customttt.config import SampleConfig, TrainConfig, TTTConfig
from customttt.progress import Progress
from customttt.thrift import Rung, rungs

MARGIN = 1.1
"""Of memory that the allocator loses between its blocks and in workspaces (ours)."""
SLOWER = 1.3
"""How much longer a step takes than `Speed` alone says: 1.2 to 1.35 on one core of a CPU, in both precisions, for an
appearance, a motion, and a motion with every block recomputed (LOG.md); nobody has measured it on a GPU yet (ours)."""
META = torch.device("meta")
Sides = tuple[int, int]
_NARROW = {
    F.linear, F.conv2d, F.conv3d, F.conv1d, F.scaled_dot_product_attention, torch.bmm, torch.baddbmm, torch.matmul
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What a piece of work takes on any device."""

    memory: int = 0
    """Bytes at the peak, weights included."""
    flops: float = 0
    moved: float = 0
    """Bytes read and written."""
    calls: float = 0
    """Operations."""
    replayed: float = 0
    """Those of them that a GPU starts by itself (see `graphs`)."""

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        calls = self.calls + other.calls, self.replayed + other.replayed
        return Cost(max(self.memory, other.memory), self.flops + other.flops, self.moved + other.moved, *calls)

    def __mul__(self, times: float) -> Cost:
        calls = self.calls * times, self.replayed * times
        return Cost(self.memory, self.flops * times, self.moved * times, *calls)


@dataclass(frozen=True)
class Speed:
    """How fast a device is, as measured on it."""

    flops: float
    """A second, in a large matrix product."""
    moved: float
    """Bytes read and written a second, in a simple function of every number."""
    calls: float
    """Small operations a second."""
    ahead: bool = False
    """Whether operations are started while earlier ones run, as on a GPU: whichever takes longer is the time."""

    def seconds(self, cost: Cost) -> float:
        working = cost.flops / self.flops + cost.moved / self.moved
        starting = (cost.calls - cost.replayed) / self.calls
        return SLOWER * (max(working, starting) if self.ahead else working + starting)


@dataclass(frozen=True)
class Forecast:
    """What a run will take, and how it saves memory."""

    memory: int
    """Bytes at the peak."""
    free: int
    """Bytes that are free."""
    seconds: float
    position: int
    """On the ladder of `thrift`."""
    rung: Rung

    @property
    def fits(self) -> bool:
        return self.memory <= self.free


@dataclass(frozen=True)
class Adapter:
    """Where a learned LoRA sits, and its rank."""

    kind: Kind
    layers: tuple[int, ...]
    rank: int


def learning(base: str, kind: Kind, config: TrainConfig, frames: int, sides: Sides) -> Forecast:
    """Of learning one concept here from frames of (height, width); encoding is not counted.

    Raises BaseUnavailableError or UsageError.
    """
    device = machine.device()
    ladder = rungs(min(config.layers), config.batch_size, _sketch(base, device).heaviest)

    one = config.but(steps=1, learning_rate=1.0, seed=0)

    def cost(position: int) -> Cost:
        return lesson(base, kind, one, frames, sides, position, device) * config.steps

    return _forecast(cost, ladder, device)


def composing(
    base: str,
    adapters: Mapping[str, Adapter],
    config: TTTConfig,
    sample: SampleConfig,
    videos: int = 1,
    predictions: int | None = None,
) -> Forecast:
    """Of test-time training of LoRAs, given by name, and of rendering videos, with so many predictions a step: two, or
    one without guidance, unless it is given.

    Raises BaseUnavailableError or UsageError.
    """
    device = machine.device()
    sketch = _sketch(base, device)
    sketch.schedule.path(sample.num_inference_steps)  # raises for more than there are
    ladder = rungs(min(min(one.layers) for one in adapters.values()), 1, sketch.heaviest)
    # a step on which one LoRA rests costs less: rehearsed is one on which both act
    one = config.but(steps=1, reference_steps=1, references=0, learning_rate=1.0, motion_rate=1.0, student_rests=False)
    denoising = denoising_step(base, sample, device)
    usual = 1 if sample.guidance_scale == 1 else 2
    steps = sample.num_inference_steps * (predictions or usual) / usual
    rendering = (denoising * steps + decoding(base, sample, device)) * videos
    shown = min(config.references or config.steps, config.steps)

    def cost(position: int) -> Cost:
        if config.steps == 0:
            return rendering
        step = adaptation(base, tuple(adapters.items()), one, sample, position, device)  # each teacher takes one step
        more = config.reference_steps * shown - config.steps
        return step * config.steps + denoising * len(adapters) * more + rendering

    return _forecast(cost, ladder, device)


def lora_bytes(base: str, adapter: Adapter) -> int:
    """What a learned LoRA takes on the disk. Raises BaseUnavailableError or UsageError."""
    weights = _weights(base, adapter, machine.device())
    return sum(tensor.nbytes for tensor in weights.values())


def _forecast(cost: Callable[[int], Cost], ladder: Sequence[Rung], device: torch.device) -> Forecast:
    """The lowest rung that fits, for the higher ones take longer; the highest where none does.

    Rehearsals take seconds. From rung to rung about the same is saved, so that the two ends tell where to look.
    """
    free, last = machine.free_memory(device), len(ladder) - 1

    def memory(position: int) -> int:
        return int(cost(position).memory * MARGIN)

    position = 0 if memory(0) <= free else last
    if position > 0 and memory(last) <= free:
        too_low = 0
        while position - too_low > 1:
            saved = (memory(too_low) - free) / (memory(too_low) - memory(position))
            guess = min(too_low + max(1, math.ceil(saved * (position - too_low))), position - 1)
            position, too_low = (guess, too_low) if memory(guess) <= free else (position, guess)
    return Forecast(memory(position), free, speed(device).seconds(cost(position)), position, ladder[position])


@lru_cache
def lesson(
    base: str, kind: Kind, config: TrainConfig, frames: int, sides: Sides, position: int, device: torch.device
) -> Cost:
    """Of as many steps of learning as the configuration says, on a rung of the ladder."""
    backbone = _sketch(base, device)
    count = config.batch_size if kind == "appearance" else 1
    latents = torch.empty(count, *backbone.latent_shape(frames, *sides), device=META)
    learn = train.learn_appearance if kind == "appearance" else train.learn_motion
    embeds = _embeds(backbone, count)

    def work(stage: Stage) -> object:
        return learn(backbone, latents, embeds, config, stage, stage.report, rung=position)

    return _rehearse(backbone, device, work)


@lru_cache
def adaptation(
    base: str,
    adapters: tuple[tuple[str, Adapter], ...],
    config: TTTConfig,
    sample: SampleConfig,
    position: int,
    device: torch.device,
) -> Cost:
    """Of as much test-time training as the configuration says, on a rung of the ladder."""
    backbone = _sketch(base, device)
    loras = {slot: _weights(base, one, device) for slot, one in adapters}
    embeds = _embeds(backbone)
    prompts = ttt.Prompts(teachers=dict.fromkeys(loras, embeds), student=embeds, empty=embeds)

    def work(stage: Stage) -> object:
        return ttt.adapt(backbone, loras, prompts, config, sample, stage, report=stage.report, rung=position)

    return _rehearse(backbone, device, work)


@lru_cache
def denoising_step(base: str, sample: SampleConfig, device: torch.device) -> Cost:
    """Of one step of rendering, without the LoRAs, which add little."""
    backbone = _sketch(base, device)
    noise = torch.empty(1, *backbone.latent_shape(sample.num_frames, *sample.sides), device=META)
    embeds = _embeds(backbone)

    def step(_: Stage) -> object:
        return sampling.denoise(
            backbone, noise, embeds, embeds, guidance_scale=sample.guidance_scale,
            unconditional_scale=sample.unconditional_scale, path=backbone.schedule.path(1),
        )  # fmt: skip

    return _rehearse(backbone, device, step)


@lru_cache
def decoding(base: str, sample: SampleConfig, device: torch.device) -> Cost:
    """Of all frames of one video."""
    backbone = _sketch(base, device)
    latents = torch.empty(1, *backbone.latent_shape(sample.num_frames, *sample.sides), device=META)
    return _rehearse(backbone, device, lambda _: backbone.decode(latents), decoder=True)


@lru_cache
def speed(device: torch.device) -> Speed:
    """Measured in a moment, in the precision that a U-Net has there."""
    side, length = (1024, 2**22) if device.type == "cpu" else (8192, 2**28)
    matrix = torch.ones(side, side, dtype=computing(device), device=device)
    large, small = torch.ones(length, dtype=computing(device), device=device), torch.ones(8, device=device)
    return Speed(
        flops=2 * side**3 / _seconds(lambda: matrix @ matrix, device),
        moved=2 * large.nbytes / _seconds(lambda: F.silu(large), device),
        calls=1000 / _seconds(lambda: [small + 1 for _ in range(1000)], device),
        ahead=device.type == "cuda",
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest of a few tries, after one to warm up."""
    tries = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        tries.append(time.perf_counter() - began)
    return min(tries[1:])


# -- the stage on which everything is rehearsed


class Stage(Accelerator):  # type: ignore[misc]
    """An accelerator where there are no numbers to scale; the real one is made once a process, and not here.

    It says when the first step begins, and is told when one has ended: LoRAs are put in and taken out once a run.
    """

    def __init__(self, counter: CostCounter) -> None:
        self.counter = counter
        self._optimizers: list[Any] = []

    def prepare(self, optimizer: Any) -> Any:
        self.counter.flops = self.counter.moved = self.counter.calls = self.counter.replayed = 0
        return optimizer

    def report(self, _: Progress) -> None:
        self.counter.steps = self.counter.cost()

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()` switches `Kernels` off, under which blocks must be recomputed; this does not."""
        with self.counter.replaying(self.counter.recorded):
            torch_internals.backward(loss)


@lru_cache
def _sketch(base: str, device: torch.device) -> Backbone:
    return sketch(base, device)


def _embeds(backbone: Backbone, count: int = 1) -> Tensor:
    return torch.empty(count, *backbone.prompt_shape, device=META)


@lru_cache
def _weights(base: str, adapter: Adapter, device: torch.device) -> lora.Weights:
    """Those of a LoRA that was learned there."""
    backbone, kind = _sketch(base, device), adapter.kind
    lora.inject(backbone.network, kind, backbone.targets(kind, adapter.layers), rank=adapter.rank)
    named = [(name, parameter) for name, parameter in backbone.network.named_parameters() if ".lora_" in name]
    weights = {name.replace(f".{kind}.", "."): parameter.detach() for name, parameter in named}
    lora.remove(backbone.network, kind)
    return weights


def _rehearse(backbone: Backbone, device: torch.device, work: Callable[[Stage], object], decoder: bool = False) -> Cost:
    """What `work` on a sketch would take; where it is made of steps, those alone."""
    everything = [backbone.network, backbone.vae, getattr(backbone, "text_encoder", None)]
    resident = everything if device.type == "cpu" else backbone.on_gpu(decoder)
    counter = CostCounter([module for module in resident if module is not None])
    widened = decoder or computing(device) == precision(device)  # the decoder works in full precision
    with Kernels(device, None if widened else computing(device)), counter, counter.watching(backbone, device):
        work(Stage(counter))
    return counter.steps or counter.cost()


class CostCounter(torch_internals.DispatchMode):  # type: ignore[no-untyped-call]
    """Counts what operations on the meta device would take, and the memory of the tensors that are alive."""

    def __init__(self, resident: Sequence[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, int] = {}
        self.now = self.peak = self.flops = self.moved = self.calls = self.replayed = 0
        self.recorded = self.replays = False
        """Whether the last prediction is one that a GPU replays, and whether it, or the way back from it, is now."""
        self.steps: Cost | None = None
        for module in resident:
            for parameter in module.parameters():
                self._note(parameter)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given, kwargs = list(_on_meta(args)), dict(kwargs or {})
        if given and torch_internals.reads_number(func):
            return 0.5  # any number will do
        if given and torch_internals.copies(func) and kwargs.get("device", META).type == "cpu":
            kwargs["device"] = META
        out, flops = _result(func, args, kwargs)
        made = sum(self._note(tensor) for tensor in _on_meta(out))
        if made or torch_internals.is_mutable(func):  # else it is a view
            self.moved += made + sum(tensor.nbytes for tensor in given)
        self.flops += flops
        counted = not torch_internals.detaches(func)  # nearly all of which the counting itself makes
        self.calls += counted
        self.replayed += counted and self.replays
        return out

    @contextmanager
    def replaying(self, recorded: bool) -> Iterator[None]:
        self.replays = recorded
        try:
            yield
        finally:
            self.replays = False

    @contextmanager
    def watching(self, backbone: Backbone, device: torch.device) -> Iterator[None]:
        """While this lasts, predictions of a sketch count as those that are replayed on `device`."""
        plain = backbone.predict

        def predict(*given: Tensor) -> Tensor:
            self.recorded = graphs.is_worth_it(backbone, device) and not graphs.is_recomputed(backbone.network)
            with self.replaying(self.recorded):
                return plain(*given)

        vars(backbone)["predict"] = predict
        try:
            yield
        finally:
            del vars(backbone)["predict"]

    def cost(self) -> Cost:
        """Of what was done so far."""
        return Cost(self.peak, self.flops, self.moved, self.calls, self.replayed)

    def _note(self, tensor: Tensor) -> int:
        """Bytes of a tensor's memory, 0 where it is known."""
        storage, key = torch_internals.storage_of(tensor)
        size = storage.nbytes()
        if key in self.alive:
            return 0
        self.alive[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)
        return size

    def _forget(self, key: int) -> None:
        self.now -= self.alive.pop(key)


class Layout(NamedTuple):
    """All that there is to a tensor on the meta device."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Constant(NamedTuple):
    """What is no tensor; 1 and 1.0 are equal, but give other tensors."""

    kind: type
    value: Any


_results: dict[Any, tuple[Any, int]] = {}
"""Layouts of what operations make, and their flops, by operation and the layouts of what it was given."""


def _result(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, int]:
    """What an operation gives on the meta device, and its flops.

    The blocks of a network repeat each other, and so do the rungs of a ladder: new tensors are worked out once.
    """
    key = func, _layouts(args), _layouts((*kwargs.items(),))
    if key in _results:
        layouts, flops = _results[key]
        return _empty(layouts)[0], flops
    out = func(*args, **kwargs)
    flops = torch_internals.flops(func, args, kwargs, out)
    made, given = ({torch_internals.storage_of(one)[1] for one in _on_meta(some)} for some in (out, args))
    if made and not made & given and not torch_internals.is_mutable(func) and isinstance(out, Tensor | tuple):
        _results[key] = _layouts((out,)), flops
    return out, flops


def _layouts(values: Any) -> tuple[Any, ...]:
    """Equal for equal constants and for tensors of which an operation makes equal ones."""
    return tuple(
        Layout(value.shape, value.stride(), value.dtype, value.device) if isinstance(value, Tensor)
        else _layouts(value) if isinstance(value, tuple | list)
        else Constant(type(value), value)
        for value in values
    )  # fmt: skip


def _empty(layouts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Tensors of these layouts, and the constants."""
    return tuple(
        torch.empty_strided(one.shape, one.stride, dtype=one.dtype, device=one.device) if isinstance(one, Layout)
        else one.value if isinstance(one, Constant)
        else _empty(one)
        for one in layouts
    )  # fmt: skip


def _on_meta(values: Any) -> Iterator[Tensor]:
    """The tensors in arguments or results; they are nested in lists and tuples only."""
    for value in values if isinstance(values, tuple | list) else (values,):
        if isinstance(value, Tensor):
            if value.is_meta:
                yield value
        elif isinstance(value, tuple | list):
            yield from _on_meta(value)


class Kernels(TorchFunctionMode):
    """What a device runs for the operations that our networks use: nothing chooses a kernel for the meta device.

    On a CPU, what `torch.autocast` does, of which torch has none for shapes [C]; fused attention everywhere, and on a
    GPU dropout in one kernel.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtypes = dict.fromkeys(_NARROW, dtype) if dtype else {}
        self.drops = device.type == "cuda"

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if dtype := self.dtypes.get(func):
            args = tuple(_cast(value, dtype) for value in args)
            kwargs = {name: _cast(value, dtype) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            return _fused(*args, **kwargs)
        if func is F.dropout and self.drops:
            return _dropped(*args, **kwargs)
        return func(*args, **kwargs)


def _fused(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
    """Attention that never holds all of its weights at once."""
    if not query.is_meta:
        return F.scaled_dot_product_attention(query, key, value)
    return torch_internals.attend(query, key, value)


def _dropped(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: ARG001
    """Dropout in one kernel; none where nothing is dropped."""
    return torch.native_dropout(values, p, True)[0] if training and p else values


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() and value.is_meta else value
