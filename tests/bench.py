"""Time a step of ours beside the limit and beside a rival's, on the same weights in one run (no pytest).

    python tests/bench.py                                                              # `tiny`, a minute
    python tests/bench.py --rivals DIR                                                 # DIR holds clones of the rivals
    python tests/bench.py --size full --folder /tmp/full --kinds motion                # a CPU: many minutes, 24 GB
    python tests/bench.py --size full --folder /tmp/full --frames 16 --pixels 256 --device cuda --rivals DIR --json

`--base animatediff` is compared with AnimateDiff-MotionDirector, `--base zeroscope` with MotionDirector; clone both:

    git clone https://github.com/ExponentialML/AnimateDiff-MotionDirector DIR/AnimateDiff-MotionDirector
    git clone https://github.com/showlab/MotionDirector DIR/MotionDirector

Everybody takes turns, REPEATS rounds of one step to warm up and STEPS to be timed, so that what slows the machine down
slows all of them; on a CPU only the time that this process had it is counted, of all its threads. Prints of each: the
median of the rounds in seconds a step; its ratio to the limit and to the rival's step, taken within a round (median,
lowest..highest); and the peak of memory in one step, the U-Net's weights included: what torch allocates on a GPU; on a
CPU the tensors that are alive at once, counted operation by operation, and the memory of the process (RSS).

`limit` is the bare U-Net, forward and backward to the same LoRAs, which are peft's for it too: no dropout, noise, loss
or optimizer; for test-time training with all the passes of its teachers, each with guidance in one batch. `fast`
recomputes nothing, `small` all it can. The rival's step is the mean of its two kinds (see tests/bench_rivals.py).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from customttt_cli import output

MOTION, APPEARANCE, TTT = "motion step", "appearance step", "test-time training"
KINDS = {"motion": MOTION, "appearance": APPEARANCE, "ttt": TTT}
TARGETS = ((MOTION, "fast", "rival", 0.6), (MOTION, "fast", "limit", 1.3), (MOTION, "small", "rival", 1.0))
"""(what, whose, against whose, at most how many times the seconds)."""
MEMORY_TARGET = 0.7
"""Of the rival's peak, for `small`."""
FAST, SMALL = 0, 99
"""Rungs of the ladder in customttt/thrift.py: the lowest, and one above the highest, which is taken for it."""
SIZES = {"tiny": (8, 64), "full": (4, 128)}
"""Frames and pixels where nothing is asked."""


@dataclass(frozen=True)
class Scene:
    """What everybody learns from, and with."""

    backbone: Any
    accelerator: Any
    recipe: Any
    latents: Any
    """(1 c f h w)"""
    embeds: Any
    """(1 l d)"""
    size: int
    steps: int

    @property
    def cuda(self) -> bool:
        return bool(self.backbone.device.type == "cuda")

    def now(self) -> float:
        """Seconds: of the clock once a GPU has done its work; on a CPU those that this process had it for."""
        if not self.cuda:
            return time.process_time()
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    what: str
    who: str
    seconds: Callable[[], float]
    """A step's, in one round."""
    once: Callable[[], object]
    """One step, for its memory."""


# -- ours


def ours(scene: Scene, what: str, who: str, rung: int) -> Contender:
    """The very functions of the program; times are taken where it reports its steps."""
    from customttt import train, ttt

    recipe, common = scene.recipe, (scene.backbone, scene.latents, scene.embeds)

    def run(steps: int) -> list[float]:
        moments: list[float] = []

        def report(progress: Any) -> None:
            if progress.loss is not None:
                moments.append(scene.now())

        if what == MOTION:
            train.learn_motion(*common, recipe.motion.but(steps=steps), scene.accelerator, report, rung=rung)
        elif what == APPEARANCE:
            pictures = scene.latents.transpose(1, 2).flatten(0, 1).unsqueeze(2)
            embeds = scene.embeds.expand(len(pictures), -1, -1)
            config = recipe.appearance.but(steps=steps)
            train.learn_appearance(scene.backbone, pictures, embeds, config, scene.accelerator, report, rung=rung)
        else:
            loras = random_pair(scene)
            prompts = ttt.Prompts(dict.fromkeys(loras, scene.embeds), scene.embeds, scene.embeds)
            sample = recipe.sample.but(num_frames=scene.latents.shape[2], size=scene.size)
            ttt.adapt(
                scene.backbone, loras, prompts, recipe.ttt.but(steps=steps), sample, scene.accelerator,
                report=report, rung=rung,
            )  # fmt: skip
        return moments

    def seconds() -> float:
        moments = run(1 + scene.steps)
        return (moments[-1] - moments[0]) / scene.steps

    return Contender(what, who, seconds, lambda: run(1))


def random_pair(scene: Scene) -> Any:
    """LoRA weights of both kinds."""
    from customttt import lora

    pair = {}
    for kind in ("appearance", "motion"):
        config = getattr(scene.recipe, kind)
        lora.inject(scene.backbone.network, kind, scene.backbone.targets(kind, config.layers), rank=config.rank)
        pair[kind] = lora.state(scene.backbone.network, kind)
        lora.remove(scene.backbone.network, kind)
    return pair


# -- the limit


def limit(scene: Scene, what: str) -> Contender:
    ready = partial(bare, scene, what)
    return Contender(what, "limit", partial(_timed, scene, ready), partial(_once, ready))


@contextmanager
def bare(scene: Scene, what: str) -> Iterator[Callable[[], None]]:
    """Gives the bare U-Net's step."""
    import torch

    from customttt import lora
    from customttt.backbones import autocast

    backbone, unet = scene.backbone, scene.backbone.network
    kinds = {MOTION: ("motion",), APPEARANCE: ("appearance",), TTT: ("appearance", "motion")}[what]
    parameters = []
    for kind in kinds:
        config = getattr(scene.recipe, kind)
        parameters += lora.inject(unet, kind, backbone.targets(kind, config.layers), rank=config.rank)
    timesteps = torch.full((1,), 500, device=backbone.device)

    def forward(latents: Any) -> Any:
        count = len(latents)
        return backbone.predict(latents, timesteps.expand(count), scene.embeds.expand(count, -1, -1))

    def backward(latents: Any) -> None:
        with autocast(scene.backbone.device):
            output = forward(latents)
        output.mean().backward()
        for parameter in parameters:
            parameter.grad = None

    def teach(kind: str) -> None:
        two = scene.latents.expand(2, -1, -1, -1, -1)
        still = backbone.framewise() if kind == "appearance" else nullcontext()
        with torch.no_grad(), autocast(scene.backbone.device), still, lora.active(unet, **{kind: 1.0}):
            for _ in range(scene.recipe.ttt.reference_steps):
                forward(two)

    def step() -> None:
        if what == TTT:
            for kind in ("appearance", "motion"):
                teach(kind)
        with lora.active(unet, **dict.fromkeys(kinds, 1.0)):
            if what != MOTION:
                with backbone.framewise():
                    backward(scene.latents if what == TTT else scene.latents[:, :, :1])
            if what != APPEARANCE:
                backward(scene.latents)

    try:
        with lora.trainable(parameters):
            yield step
    finally:
        lora.remove(unet, *kinds)


# -- the rival


def rival(scene: Scene, base: str, folder: Path) -> Contender:
    import bench_rivals

    from customttt.backbones import autocast

    project = bench_rivals.PROJECTS[base]
    them = bench_rivals.Rival(project, folder, scene.backbone, scene.latents)
    temporal, spatial = them.parameters()
    sys.stderr.write(f"{project.name}: LoRAs of {spatial:,} + {temporal:,} = {spatial + temporal:,} parameters\n")

    @contextmanager
    def ready(spatial: bool) -> Iterator[Callable[[], None]]:
        with them.ready(partial(autocast, scene.backbone.device)) as step:
            yield partial(step, spatial)

    def seconds() -> float:
        both, temporal_only = (_timed(scene, partial(ready, spatial)) for spatial in (True, False))
        return (1 - bench_rivals.SKIPPED) * both + bench_rivals.SKIPPED * temporal_only

    return Contender(MOTION, "rival", seconds, partial(_once, partial(ready, True)))


# -- measuring


def _once(ready: Callable[[], Any]) -> None:
    with ready() as step:
        step()


def _timed(scene: Scene, ready: Callable[[], Any]) -> float:
    """Seconds a step, after one that is not counted."""
    with ready() as step:
        step()
        began = scene.now()
        for _ in range(scene.steps):
            step()
        return (scene.now() - began) / scene.steps


def peak(scene: Scene, once: Callable[[], object]) -> tuple[int, int | None]:
    """(bytes of tensors, bytes of the process) at the peak of one step."""
    import torch

    torch.manual_seed(0)
    gc.collect()
    if scene.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        once()
        return torch.cuda.max_memory_allocated(), None
    if sys.platform == "linux":  # elsewhere the peak of the process is that of all steps so far
        ctypes.CDLL(None).malloc_trim(0)  # what earlier steps took and gave back is not this one's
        Path("/proc/self/clear_refs").write_text("5")
    unet = scene.backbone.network
    resident = sum(tensor.nbytes for tensor in (*unet.parameters(), *unet.buffers()))
    with living() as tally:
        once()
    return resident + tally["peak"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def living() -> Iterator[dict[str, int]]:
    """Counts the bytes of all tensors that are made while this lasts, as long as they live, and keeps the peak."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    tally, known = {"now": 0, "peak": 0}, set()

    def gone(key: int, size: int) -> None:
        known.discard(key)
        tally["now"] -= size

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            made = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(made):
                if isinstance(leaf, Tensor) and (storage := _storage(leaf))._cdata not in given | known:
                    known.add(storage._cdata)
                    tally["now"] += storage.nbytes()
                    tally["peak"] = max(tally.values())
                    weakref.finalize(storage, gone, storage._cdata, storage.nbytes())
            return made

    with Counting():  # type: ignore[no-untyped-call]
        yield tally


def _storage(tensor: Any) -> Any:
    return tensor.untyped_storage()


# -- the run


def contenders(scene: Scene, base: str, rivals: Path | None, kinds: list[str]) -> list[Contender]:
    """In the order of their turns."""
    found = [rival(scene, base, rivals)] if rivals else []
    for what in (KINDS[kind] for kind in kinds):
        found += [limit(scene, what), ours(scene, what, "fast", FAST), ours(scene, what, "small", SMALL)]
    return found


def scene_of(asked: argparse.Namespace, folder: Path) -> Scene:
    output.quiet()
    import published
    import torch
    from bases import build_tiny_random

    if asked.size == "full":
        base = folder / asked.base
        if not base.exists():
            published.write_base(asked.base, base)
    else:
        base = "tiny" if asked.base == "animatediff" else build_tiny_random(folder / "tiny-3d", three_d=True)
    from customttt import opening
    from customttt.video import to_video

    backbone, accelerator = opening.open_accelerated(str(base))
    torch.manual_seed(0)
    frames = np.random.default_rng(0).integers(0, 256, (asked.frames, asked.pixels, asked.pixels, 3), dtype=np.uint8)
    return Scene(
        backbone, accelerator, published.RECIPES[asked.base], backbone.encode(to_video(frames)),
        backbone.embed(["A koala is swimming."]), asked.pixels, asked.steps,
    )  # fmt: skip


def measure(scene: Scene, everybody: list[Contender], repeats: int) -> list[dict[str, Any]]:
    """Rows: what, who, seconds of every round, bytes."""
    rows: list[dict[str, Any]] = []
    for one in everybody:
        tensors, process = peak(scene, one.once)
        rows.append({"what": one.what, "who": one.who, "seconds": [], "bytes": tensors, "rss": process})
    for round_ in range(repeats):
        for one, row in zip(everybody, rows, strict=True):
            row["seconds"].append(one.seconds())
            said = f"round {round_ + 1} of {repeats}: {one.what}, {one.who}: {row['seconds'][-1]:.3f} s"
            print(said, file=sys.stderr, flush=True)
    return rows


def ratios(rows: list[dict[str, Any]], row: dict[str, Any], who: str) -> tuple[float, float, float] | None:
    """(median, lowest, highest) of a row's seconds over those of another, round by round."""
    for other in rows:
        if other["what"] == row["what"] and other["who"] == who:
            each = [mine / theirs for mine, theirs in zip(row["seconds"], other["seconds"], strict=True)]
            return statistics.median(each), min(each), max(each)
    return None


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{'':20}{'':8}{'s a step':>9}  {'of the limit':>20}  {'of the rival':>20}  {'peak GB':>8}  {'RSS GB':>7}"
    for row in rows:
        beside = (f"{_spread(ratios(rows, row, who)):>20}" for who in ("limit", "rival"))
        process = f"{row['rss'] / 1e9:7.2f}" if row["rss"] else ""
        seconds = statistics.median(row["seconds"])
        yield f"{row['what']:20}{row['who']:8}{seconds:9.3f}  {'  '.join(beside)}  {row['bytes'] / 1e9:8.3f}  {process}"


def _spread(found: tuple[float, float, float] | None) -> str:
    return "{:.2f} ({:.2f}..{:.2f})".format(*found) if found else ""


def verdicts(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Every target, and whether it is met by the median."""
    by = {(row["what"], row["who"]): row for row in rows}
    for what, who, against, most in TARGETS:
        if (what, who) in by and (found := ratios(rows, by[what, who], against)):
            yield f"{what}, {who}: {_spread(found)} of the {against}, at most {most}: {_met(found[0] <= most)}"
    if (MOTION, "small") in by and (MOTION, "rival") in by:
        share = by[MOTION, "small"]["bytes"] / by[MOTION, "rival"]["bytes"]
        met = _met(share <= MEMORY_TARGET)
        yield f"{MOTION}, small: {share:.2f} of the rival's memory, at most {MEMORY_TARGET}: {met}"


def _met(met: bool) -> str:
    return "met" if met else "NOT met"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "full"], default="tiny")
    parser.add_argument("--base", choices=["animatediff", "zeroscope"], default="animatediff")
    parser.add_argument("--folder", type=Path, help="where the full-size base is, or is written to")
    parser.add_argument("--rivals", type=Path, help="a folder with clones of the rivals")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="by default all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--pixels", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="timed steps a turn")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    asked = parser.parse_args()
    if asked.size == "full" and asked.folder is None:
        parser.error("--size full needs --folder")
    if asked.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    asked.frames, asked.pixels = asked.frames or SIZES[asked.size][0], asked.pixels or SIZES[asked.size][1]
    with tempfile.TemporaryDirectory() as name:
        scene = scene_of(asked, asked.folder or Path(name))
        everybody = contenders(scene, asked.base, asked.rivals, asked.kinds)
        rows = measure(scene, everybody, asked.repeats)
    if asked.json:
        print(json.dumps({"asked": {key: str(value) for key, value in vars(asked).items()}, "rows": rows}, indent=2))
        return
    print("\n".join([*table(rows), "", *verdicts(rows)]))


if __name__ == "__main__":
    main()
