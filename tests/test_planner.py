"""What is foretold from shapes is what happens; and of what fits, the fastest is chosen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from customttt import lora, machine, planner
from customttt.backbones import computing, defaults, known_bases, open_base, sketch
from customttt.backbones.family import NamedBase
from customttt.backbones.wan import Wan
from customttt.config import SampleConfig, TrainConfig, TTTConfig
from customttt.errors import UsageError
from customttt.planner import Adapter
from customttt.progress import Progress

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIG = TrainConfig(layers=(2,), learning_rate=1.0, steps=1, rank=4, batch_size=4)


def kept_in_reality(base: Path, kind: str) -> int:
    """Bytes that a real forward pass keeps for its backward pass, weights left out."""
    backbone = open_base(str(base), CPU)
    parameters = lora.inject(backbone.network, kind, backbone.targets(kind, CONFIG.layers), rank=CONFIG.rank)
    weights = {one.untyped_storage().data_ptr() for one in backbone.network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    noisy, embeds = torch.randn(4, *backbone.latent_shape(5, 128, 128)), backbone.embed(["A koala."] * 4)
    with lora.trainable(parameters), lora.active(backbone.network, **{kind: 1.0}):
        half = torch.autocast("cpu", computing(CPU), enabled=computing(CPU) != torch.float32)
        with half, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = backbone.predict(noisy, torch.tensor([500] * 4), embeds).square().mean()
        del loss
    return sum(kept.values())


def resident(base: Path) -> int:
    """Bytes of what is always there on a CPU: the network, its VAE, and a text encoder that is large."""
    backbone: Any = open_base(str(base), CPU)
    parts = [backbone.network, backbone.vae, *([backbone.text_encoder] if isinstance(backbone, Wan) else [])]
    return sum(one.nbytes for part in parts for one in part.parameters())


def test_the_memory_of_a_step_is_foretold(any_base: Path) -> None:
    """Within a fifth; what is there beyond the kept is what one operation needs beside them."""
    foretold = planner.lesson(str(any_base), "motion", CONFIG, 5, (128, 128), 0, CPU).memory - resident(any_base)
    assert foretold == pytest.approx(kept_in_reality(any_base, "motion"), rel=0.2)


def test_the_operations_of_a_step_are_foretold(any_base: Path) -> None:
    backbone, sample = open_base(str(any_base), CPU), SampleConfig(num_frames=5, size=128, guidance_scale=1)
    latents, embeds = torch.randn(1, *backbone.latent_shape(5, 128, 128)), torch.randn(1, *backbone.prompt_shape)
    plain = sdpa_kernel(SDPBackend.MATH)  # of the fused one for CPUs the counter knows no operations
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        backbone.predict(latents, torch.tensor([500]), embeds)
    assert planner.denoising_step(str(any_base), sample, CPU).flops == counter.get_total_flops()


def test_recomputing_blocks_needs_less_memory_and_more_work(any_base: Path) -> None:
    step = str(any_base), "motion", CONFIG, 5, (128, 128)
    plain, saving = (planner.lesson(*step, position, CPU) for position in (0, 7))
    assert saving.memory - resident(any_base) < 0.5 * (plain.memory - resident(any_base))
    assert plain.flops < saving.flops < 1.5 * plain.flops


def test_a_gpu_that_waits_for_its_launches_takes_as_long_as_they_do() -> None:
    """And one that does not, as long as the work: the one goes on during the other. A CPU does them in turn."""
    launches, work = planner.Cost(calls=8000), planner.Cost(flops=3e13, moved=2e11)
    gpu, cpu = (planner.Speed(flops=3e14, moved=2e12, calls=1e5, ahead=ahead) for ahead in (True, False))
    assert gpu.seconds(launches + work) == pytest.approx(gpu.seconds(work)) == pytest.approx(planner.SLOWER * 0.2)
    assert gpu.seconds(launches * 10 + work) == pytest.approx(gpu.seconds(launches * 10))
    assert cpu.seconds(launches + work) == pytest.approx(cpu.seconds(launches) + cpu.seconds(work))


def test_what_a_gpu_replays_is_not_waited_for(any_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    step = str(any_base), "motion", CONFIG, 5, (128, 128)
    for device, position, least, most in ((CUDA, 0, 0.8, 0.99), (CUDA, 7, 0, 0), (CPU, 0, 0, 0)):
        cost = planner.lesson(*step, position, device)
        assert least * cost.calls <= cost.replayed <= most * cost.calls
    gpu = planner.Speed(flops=3e14, moved=2e12, calls=1e5, ahead=True)
    assert gpu.seconds(planner.Cost(calls=900, replayed=800)) == pytest.approx(gpu.seconds(planner.Cost(calls=100)))
    both = planner.Cost(calls=900, replayed=800) + planner.Cost(calls=90) * 2
    assert (both.calls, both.replayed) == (1080, 800)


def test_what_is_done_once_a_run_is_no_part_of_a_step() -> None:
    counter = planner.CostCounter([])
    stage = planner.Stage(counter)
    counter.calls = 900  # LoRAs are put in
    assert stage.prepare("optimizer") == "optimizer"
    counter.calls += 30
    stage.report(Progress("learning", 1, 1))
    counter.calls += 300  # and taken out
    assert counter.steps is not None
    assert counter.steps.calls == 30


def test_what_is_remembered_of_operations_changes_nothing(
    tiny_random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            pass

    step = str(tiny_random_base), "motion", CONFIG, 5, (128, 128), 7, CPU
    remembered = planner.lesson(*step)
    monkeypatch.setattr(planner, "_results", Forgetful())
    assert planner.lesson.__wrapped__(*step) == remembered


def test_the_lowest_rung_that_fits_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a ladder whose every rung takes a gigabyte less."""
    rehearsed: list[int] = []

    def lesson(*settings: Any) -> planner.Cost:
        rehearsed.append(settings[5])
        return planner.Cost((20 - settings[5]) * 10**9, flops=1e9)

    monkeypatch.setattr(planner, "lesson", lesson)
    ladder = planner.rungs(2, CONFIG.batch_size, sketch("tiny", CPU).heaviest)

    def chosen(gigabytes: float) -> planner.Forecast:
        monkeypatch.setattr(machine, "free_memory", lambda _: int(gigabytes * planner.MARGIN * 1e9))
        return planner.learning("tiny", "motion", CONFIG.but(steps=10), 4, (128, 128))

    assert [chosen(free).position for free in (30, 20.1, 19.1, 18.5, 12.1)] == [0, 0, 1, 2, 8]
    rehearsed.clear()
    assert chosen(12.1).rung == ladder[8]
    assert len(set(rehearsed)) <= 4  # the ends of the ladder, and the two between which it is decided
    assert chosen(12.1).fits
    rehearsed.clear()
    hopeless = chosen(1)
    assert set(rehearsed) == {0, len(ladder) - 1}
    assert (hopeless.fits, hopeless.rung, hopeless.rung.chunk) == (False, ladder[-1], 1)


def test_test_time_training_and_rendering_are_foretold(tiny_random_base: Path) -> None:
    adapters = {"appearance": Adapter("appearance", (2, 6), 2), "motion": Adapter("motion", (2, 5), 2)}
    sample = SampleConfig(num_frames=4, size=128, num_inference_steps=5)

    def composing(config: TTTConfig, videos: int = 1) -> planner.Forecast:
        return planner.composing(str(tiny_random_base), adapters, config, sample, videos)

    rendering = composing(TTTConfig(steps=0))
    assert composing(TTTConfig(steps=0), 3).seconds == pytest.approx(3 * rendering.seconds)
    several = adapters | {f"{slot}2": one for slot, one in adapters.items()}
    thrice, adapting = TTTConfig(steps=30, references=3), composing(TTTConfig(steps=30))
    more = planner.composing(str(tiny_random_base), several, thrice, sample)
    growth = (more.seconds - rendering.seconds) / (composing(thrice).seconds - rendering.seconds)
    assert 1.9 < growth < 2.6, "the cost grows with the number of teachers, and a little with the LoRAs that all have"
    assert adapting.memory > rendering.memory
    assert adapting.seconds > composing(TTTConfig(steps=30, references=3)).seconds > rendering.seconds


def test_what_cannot_be_learned_is_told_before_anything_is_loaded(tiny_random_base: Path) -> None:
    with pytest.raises(UsageError, match="Layer 3"):
        planner.learning(str(tiny_random_base), "appearance", CONFIG.but(layers=(3,)), 1, (64, 64))
    with pytest.raises(UsageError, match="at most 32"):
        planner.learning(str(tiny_random_base), "motion", CONFIG, 33, (64, 64))


@pytest.mark.parametrize("name", ["animatediff", "wan"])
def test_the_gpu_that_a_known_base_needs_is_what_the_planner_says(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The least that its largest step can do with, and what CUDA takes for itself, in whole gigabytes."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    known, settings = known_bases()[name], defaults(name)
    named = ("appearance", settings.appearance), ("motion", settings.motion)
    adapters = tuple((kind, Adapter(kind, one.layers, one.rank)) for kind, one in named)
    config, top = settings.ttt.but(steps=1, reference_steps=1), len(planner.rungs(0, 1, sketch(name, CPU).heaviest)) - 1
    step = planner.adaptation(name, adapters, config, settings.sample, top, CUDA)
    least = max(step.memory, planner.decoding(name, settings.sample, CUDA).memory)
    assert isinstance(known, NamedBase)
    assert known.memory == math.ceil(least * planner.MARGIN / 1e9 + 1) * 10**9
