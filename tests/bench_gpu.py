"""Time the bases at full size on one GPU: `python tests/bench_gpu.py`; `--small` tries the script on a CPU.

`--count` needs no GPU: it tells what a step would start, move and hold there, by the planner, and the bare network
beside it.

Random weights of the published architectures, so nothing is downloaded, and no text encoder: prompts are random
embeddings. Every result is a line of JSON, in the file that `--out` names, too: seconds of opening, seconds a step
(median, the first left out) and peak memory of what customttt does, beside the bare network on the same latents. What
does not begin within `--deadline` seconds is left out.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, AutoencoderKLWan, MotionAdapter, UNet2DConditionModel, WanTransformer3DModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from customttt import backbones, graphs, lora, planner, sampling, train, ttt
from customttt.backbones.animatediff import PAPER, AnimateDiff
from customttt.backbones.family import load_part
from customttt.backbones.interface import autocast, precision
from customttt.backbones.unets import STABLE_DIFFUSION_VAE, choose_attention
from customttt.backbones.wan import ARCHITECTURE, Wan, _narrow_norms, recipe
from customttt.diffusion import FlowSchedule, NoiseSchedule
from customttt.errors import is_out_of_memory
from customttt.progress import Progress
from customttt.thrift import MAX_STAGES, recomputed

BEGAN = time.monotonic()
SMALL_UNET = {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 768, "attention_head_dim": 8}
SMALL_ADAPTER = {"block_out_channels": (32, 64, 64, 64), "motion_num_attention_heads": 4}
SMALL_VAE = {**STABLE_DIFFUSION_VAE, "block_out_channels": [32] * 4, "layers_per_block": 1}
SMALL_WAN = {"num_attention_heads": 2, "attention_head_dim": 12, "freq_dim": 16, "ffn_dim": 32, "num_layers": 9}
SMALL_WAN_VAE = {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
Shape = tuple[int, int, int]
"""Frames, height and width of latents."""


class Bench:
    """Runs one thing after the other, and says what each took."""

    def __init__(self, device: torch.device, small: bool, deadline: float, out: Path | None) -> None:
        self.device, self.small, self.deadline, self.out = device, small, deadline, out
        self.on_gpu = device.type == "cuda"
        self.accelerator = Accelerator(mixed_precision="bf16" if self.on_gpu else "no", cpu=not self.on_gpu)
        name = torch.cuda.get_device_name() if self.on_gpu else "cpu"
        self.say("machine", device=name, torch=torch.__version__, small=small)

    def say(self, what: str, **numbers: Any) -> None:
        kept = {key: round(value, 4) if isinstance(value, float) else value for key, value in numbers.items()}
        line = json.dumps({"what": what, "at": round(time.monotonic() - BEGAN, 1), **kept})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        if self.out:
            with self.out.open("a") as file:
                file.write(line + "\n")

    def attempt(self, what: str, work: Callable[..., Mapping[str, Any]], *given: Any) -> None:
        """Say what `work` found and the memory it took at most, or why it failed."""
        if time.monotonic() - BEGAN > self.deadline:
            self.say(what, left_out=True)
            return
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            found = dict(work(*given))
            if self.on_gpu:
                found["peak_GB"] = torch.cuda.max_memory_allocated() / 1e9
            self.say(what, **found)
        except Exception as error:
            if not is_out_of_memory(error):
                traceback.print_exc()
            self.say(what, error=f"{type(error).__name__}: {str(error)[:200]}")

    def twice(self, what: str, work: Callable[..., Mapping[str, Any]], *given: Any) -> None:
        """Replayed as CUDA graphs, and with every operation started by itself."""
        self.attempt(what, work, *given)
        with one_by_one():
            self.attempt(f"{what}, one by one", work, *given)

    def now(self) -> float:
        """When all that was asked for so far is done."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, work: Callable[[], object], times: int = 5) -> dict[str, float]:
        """Median seconds after one call that is not counted."""
        work()
        moments = [self.now()]
        for _ in range(times):
            work()
            moments.append(self.now())
        return {"seconds": statistics.median(b - a for a, b in pairwise(moments))}

    def steps(self, learn: Callable[[Callable[[Progress], None]], object]) -> dict[str, float]:
        """Median seconds between the reports of steps."""
        moments = [self.now()]

        def report(progress: Progress) -> None:
            if progress.note:
                self.say(progress.note)
            else:
                moments.append(self.now())

        learn(report)
        first, *others = (b - a for a, b in pairwise(moments))
        return {"seconds": statistics.median(others), "first": first}

    # -- the bases

    def animatediff(self) -> None:
        """Stable Diffusion 1.5 and AnimateDiff v3, 16 frames of 256 x 256 as in the paper."""
        unet, adapter = (SMALL_UNET, SMALL_ADAPTER) if self.small else ({"cross_attention_dim": 768}, {})
        parts = {
            "unet": partial(UNet2DConditionModel, sample_size=64, **unet),
            "motion_adapter": partial(MotionAdapter, use_motion_mid_block=False, **adapter),
        }

        def opened(folder: Path) -> Any:
            return suit_network(AnimateDiff.load_unet(folder, precision(self.device)))

        def suit_network(network: Any) -> Any:
            choose_attention(network.to(self.device).requires_grad_(False), self.device)
            return network

        def whole(network: Any) -> AnimateDiff:
            vae = AutoencoderKL(**(SMALL_VAE if self.small else STABLE_DIFFUSION_VAE))
            schedule = NoiseSchedule.from_config({"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012})
            return AnimateDiff(
                name="random", fingerprint="", network=network, vae=vae.to(self.device), text_encoder=None,
                tokenizer=None, schedule=schedule, defaults=PAPER, device=self.device,
            )  # fmt: skip

        side = 8 if self.small else 32
        self.base("animatediff", parts, opened, whole, {"16x256x256": (16, side, side)}, (16, 8 * side))

    def wan(self) -> None:
        """Wan 2.1's 1.3B, two and five seconds of 480 x 832; test-time training at 33 x 480 x 480."""
        config = SMALL_WAN if self.small else {name: value for name, value in ARCHITECTURE.items() if name[0] != "_"}
        parts = {"transformer": partial(WanTransformer3DModel, **config)}

        def opened(folder: Path) -> Any:
            network = load_part(WanTransformer3DModel, folder / "transformer", precision(self.device))
            _narrow_norms(network.to(self.device), self.device)
            return network

        def whole(network: Any) -> Wan:
            vae = AutoencoderKLWan(**(SMALL_WAN_VAE if self.small else {}))
            return Wan(
                name="random", fingerprint="", network=network, vae=vae.to(self.device), text_encoder=None,
                tokenizer=None, tokens=512, schedule=FlowSchedule(shift=3.0), defaults=recipe(len(network.blocks), 16),
                device=self.device,
            )  # fmt: skip

        shapes = {"33x480x832": (9, 60, 104), "81x480x832": (21, 60, 104)}
        small = {"5x32x32": (2, 4, 4)}
        self.base("wan", parts, opened, whole, small if self.small else shapes, (5, 32) if self.small else (33, 480))

    def base(
        self,
        name: str,
        parts: Mapping[str, Callable[[], Any]],
        opened: Callable[[Path], Any],
        whole: Callable[[Any], Any],
        shapes: Mapping[str, Shape],
        adapted: tuple[int, int],
    ) -> None:
        """All that is timed of one base; test-time training with `adapted` frames of a size."""
        held: list[Any] = []

        def opening() -> dict[str, float]:
            with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as home:
                torch.manual_seed(0)
                torch.set_default_dtype(precision(self.device))
                with self.device:
                    for part, make in parts.items():
                        make().save_pretrained(Path(home) / part)
                torch.set_default_dtype(torch.float32)
                began = self.now()
                network = opened(Path(home))
                took = self.now() - began
            held.append(whole(network.requires_grad_(False).eval()))
            held[0].vae.requires_grad_(False).eval()
            return {"seconds": took, "parameters": sum(one.numel() for one in network.parameters())}

        self.attempt(f"{name}: open", opening)
        if not held:
            return
        work = Work(self, held[0])
        first = next(iter(shapes))
        for shape, latents in shapes.items():
            self.attempt(f"{name}: {shape}, bare forward", work.forward, latents)
            self.attempt(
                f"{name}: {shape}, bare forward and backward, nothing recomputed", work.backward, latents, False
            )
            self.attempt(f"{name}: {shape}, bare forward and backward, all recomputed", work.backward, latents, True)
            self.twice(f"{name}: {shape}, a denoising step with guidance", work.denoise, latents)
            self.attempt(f"{name}: {shape}, a step of the motion, all recomputed", work.motion, latents, MAX_STAGES)
            self.twice(f"{name}: {shape}, a step of the motion, nothing recomputed", work.motion, latents, 0)
        self.twice(f"{name}: a step of the appearance", work.appearance, shapes[first])
        self.twice(f"{name}: an iteration of test-time training as published", work.adapt, *adapted)
        self.attempt(f"{name}: losses of the motion, replayed and one by one", work.differ, shapes[first])
        for shape, latents in shapes.items():
            self.attempt(f"{name}: {shape}, decode", work.decode, latents)


def one_by_one() -> AbstractContextManager[object]:
    """While this lasts, nothing is replayed."""
    return mock.patch.object(graphs, "is_worth_it", return_value=False)


class Work:
    """What is timed with one base."""

    def __init__(self, bench: Bench, backbone: Any) -> None:
        self.bench, self.backbone, self.device = bench, backbone, bench.device
        self.embeds = torch.randn(1, *backbone.prompt_shape, device=self.device)

    def latents(self, shape: Shape, count: int = 1) -> Tensor:
        return torch.randn(count, self.backbone.network.config.in_channels, *shape, device=self.device)

    def _predict(self, latents: Tensor) -> Tensor:
        timesteps = torch.full((len(latents),), 500, device=self.device)
        with autocast(self.device):
            found: Tensor = self.backbone.predict(latents, timesteps, self.embeds.expand(len(latents), -1, -1))
        return found

    def forward(self, shape: Shape) -> dict[str, float]:
        with torch.no_grad():
            return self.bench.timed(partial(self._predict, self.latents(shape)))

    def backward(self, shape: Shape, again: bool) -> dict[str, float]:
        latents = self.latents(shape).requires_grad_(True)
        units = [unit for block in self.backbone.blocks for unit in block] if again else []

        def step() -> None:
            with recomputed(units):
                torch.autograd.grad(self._predict(latents).square().mean(), latents)

        return self.bench.timed(step)

    def motion(self, shape: Shape, rung: int) -> dict[str, float]:
        config = self.backbone.defaults.motion.but(steps=6)
        given = self.backbone, self.latents(shape), self.embeds, config, self.bench.accelerator
        return self.bench.steps(lambda report: train.learn_motion(*given, report, rung=rung))

    def differ(self, shape: Shape) -> dict[str, float]:
        """The largest difference, as a share, of losses that are to be the same but for the order of sums."""
        config = self.backbone.defaults.motion.but(steps=6, dropout=0.0)
        torch.manual_seed(0)
        given = self.backbone, self.latents(shape), self.embeds, config, self.bench.accelerator
        _, replayed = train.learn_motion(*given)
        with one_by_one():
            _, plain = train.learn_motion(*given)
        return {"difference": max(abs(a - b) / a for a, b in zip(plain, replayed, strict=True))}

    def appearance(self, shape: Shape) -> dict[str, float]:
        config = self.backbone.defaults.appearance.but(steps=8)
        latents, embeds = self.latents((1, *shape[1:]), 4), self.embeds.expand(4, -1, -1)
        given = self.backbone, latents, embeds, config, self.bench.accelerator
        return self.bench.steps(lambda report: train.learn_appearance(*given, report))

    def denoise(self, shape: Shape) -> dict[str, float]:
        sample = self.backbone.defaults.sample.but(num_inference_steps=5)
        scales: dict[str, float] = {}
        given = self.backbone, self.latents(shape), self.embeds, self.embeds, sample, scales

        def work(report: Callable[[Progress], None]) -> None:
            with torch.no_grad(), autocast(self.device):
                sampling.denoise_in_phases(*given, report)

        return self.bench.steps(work)

    def adapt(self, frames: int, size: int) -> dict[str, float]:
        defaults, four = self.backbone.defaults, self.embeds.expand(4, -1, -1)
        config = defaults.ttt.as_published(defaults.sample.guidance_scale).but(steps=5)
        loras = {kind: self._lora(kind) for kind in ("appearance", "motion")}
        prompts = ttt.Prompts(teachers=dict.fromkeys(loras, four), student=self.embeds, empty=self.embeds)
        given = prompts, config, defaults.sample.but(num_frames=frames, size=size), self.bench.accelerator
        return self.bench.steps(lambda report: ttt.adapt(self.backbone, loras, *given, report=report))

    def _lora(self, kind: Any) -> lora.Weights:
        """A LoRA of random weights, as learning leaves it."""
        network, config = self.backbone.network, getattr(self.backbone.defaults, kind)
        lora.inject(network, kind, train.target_linears(self.backbone, kind, config), rank=config.rank)
        weights = {name: torch.randn_like(one) * 1e-3 for name, one in lora.state(network, kind).items()}
        lora.remove(network, kind)
        return weights

    def decode(self, shape: Shape) -> dict[str, float]:
        return self.bench.timed(partial(self.backbone.decode, self.latents(shape)), 1)


def count() -> None:
    """Operations, bytes and memory of a step of each kind of AnimateDiff on a GPU, 16 frames of 256 x 256."""
    base, device = "animatediff", torch.device("cuda")
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    pair = (
        ("appearance", planner.Adapter("appearance", PAPER.appearance.layers, PAPER.appearance.rank)),
        ("motion", planner.Adapter("motion", PAPER.motion.layers, PAPER.motion.rank)),
    )
    sample, side = PAPER.sample.but(num_frames=16, size=256), (256, 256)

    def second(work: Callable[[int], planner.Cost]) -> planner.Cost:
        """Of the second step: the first makes the optimizer's state."""
        one, two = work(1), work(2)
        calls = two.calls - one.calls, two.replayed - one.replayed
        return planner.Cost(two.memory, two.flops - one.flops, two.moved - one.moved, *calls)

    def learn(kind: Any, frames: int) -> planner.Cost:
        config = getattr(PAPER, kind)
        return second(lambda steps: planner.lesson(base, kind, config.but(steps=steps), frames, side, 0, device))

    def adapt(steps: int) -> planner.Cost:
        config = PAPER.ttt.as_published(sample.guidance_scale).but(steps=steps)
        return planner.adaptation(base, pair, config, sample, 0, device)

    costs = {
        "a step of the appearance": learn("appearance", 1),
        "a step of the motion": learn("motion", 16),
        "an iteration of test-time training": second(adapt),
        "a denoising step": planner.denoising_step(base, sample, device),
        "bare, a picture, forward and back to the first layer that learns": bare(1, "down_blocks.2.resnets.0"),
        "bare, a clip, forward and back to the first layer that learns": bare(16, "down_blocks.2.resnets.0"),
        "bare, a clip, forward": bare(16),
    }
    for what, cost in costs.items():
        moved, held = f"{cost.moved / 1e9:.1f} GB moved", f"{cost.memory / 1e9:.2f} GB held"
        alone = f"{cost.calls - cost.replayed:,} of them not replayed"
        sys.stdout.write(
            f"{what}: {cost.calls:,} operations, {alone}, {moved}, {held}, {cost.flops / 1e12:.2f} Tflop\n"
        )


def bare(frames: int, back_to: str = "") -> planner.Cost:
    """Of the U-Net alone, as diffusers gives it, without motion modules for one frame; back to what a module gives."""
    device = torch.device("cuda")
    backbone: Any = backbones.sketch("animatediff", device)
    backbone.network.set_attn_processor(AttnProcessor2_0())
    latents = torch.empty(1, *backbone.latent_shape(frames, 256, 256), device="meta")
    timesteps, embeds = torch.full((1,), 500, device="meta"), torch.empty(1, *backbone.prompt_shape, device="meta")

    def begin(_: Any, __: Any, states: Tensor) -> Tensor:
        return states.detach().requires_grad_()

    def work(stage: planner.Stage) -> None:
        with torch.set_grad_enabled(bool(back_to)), backbone.framewise() if frames == 1 else nullcontext():
            predicted = backbone.predict(latents, timesteps, embeds)
            if back_to:
                stage.backward(predicted.square().mean())

    with ExitStack() as hooks:
        if back_to:
            hooks.callback(backbone.network.get_submodule(back_to).register_forward_hook(begin).remove)
        return planner._rehearse(backbone, device, work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bases", nargs="*", default=["animatediff", "wan"], help="animatediff, wan")
    parser.add_argument("--small", action="store_true", help="tiny networks and videos, to try the script")
    parser.add_argument("--deadline", type=float, default=480, help="seconds after which nothing new begins")
    parser.add_argument("--out", type=Path, help="file for the results")
    parser.add_argument("--count", action="store_true", help="only count what a step would take")
    given = parser.parse_args()
    if given.count:
        count()
        return
    on_gpu = torch.cuda.is_available() and not given.small
    bench = Bench(torch.device("cuda" if on_gpu else "cpu"), given.small, given.deadline, given.out)
    for base in given.bases:
        getattr(bench, base)()


if __name__ == "__main__":
    main()
