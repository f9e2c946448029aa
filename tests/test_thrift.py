"""Saving memory changes no gradient; running out of it climbs the ladder and changes no result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from customttt import checkpoint, lora, thrift, train, ttt
from customttt.backbones import Backbone, open_base, unets, wan
from customttt.config import SampleConfig, TrainConfig, TTTConfig
from customttt.errors import OutOfMemoryError
from customttt.progress import silent
from customttt.thrift import Rung, rungs

KINDS = ["appearance", "motion", "ttt"]
Gradients = list[Tensor]


@pytest.fixture(scope="module")
def backbone(any_base: Path) -> Backbone:
    return open_base(str(any_base), torch.device("cpu"))


def run(backbone: Backbone, kind: str, rung: int = 0, report: Any = silent, **options: Any) -> Any:
    """Learn or adapt for two steps: (weights, losses)."""
    accelerator = Accelerator(cpu=True)
    if kind == "ttt":
        return adapt(backbone, rung, report, **options)
    settings = getattr(backbone.defaults, kind)
    config = settings.but(**{"steps": 2, "batch_size": 2, "dropout": 0.3, **options})
    count, frames = (3, 1) if kind == "appearance" else (1, backbone.defaults.sample.num_frames)
    latents = torch.randn(count, *backbone.latent_shape(frames, 32, 32), generator=torch.Generator().manual_seed(0))
    learn = train.learn_appearance if kind == "appearance" else train.learn_motion
    return learn(backbone, latents, backbone.embed(["A koala."] * count), config, accelerator, report, rung=rung)


def adapt(backbone: Backbone, rung: int, report: Any, **options: Any) -> Any:
    def fresh(kind: str) -> lora.Weights:
        lora.inject(backbone.network, kind, backbone.targets(kind, getattr(backbone.defaults, kind).layers), rank=2)
        weights = lora.state(backbone.network, kind)
        lora.remove(backbone.network, kind)
        generator = torch.Generator().manual_seed(1)
        return {key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in weights.items()}

    running, swimming, *read = [
        backbone.embed([text]) for text in ("A koala is running.", "A dog is swimming.", "A koala.", "")
    ]
    prompts = ttt.Prompts({"appearance": running, "motion": swimming}, *read)
    config = TTTConfig(**{"steps": 2, "learning_rate": 1e-3, "reference_steps": 1, **options})
    sample = SampleConfig(num_frames=backbone.defaults.sample.num_frames, size=64)
    loras, losses = ttt.adapt(
        backbone, {kind: fresh(kind) for kind in prompts.teachers}, prompts, config, sample, Accelerator(cpu=True),
        report=report, rung=rung,
    )  # fmt: skip
    return lora.join(loras), losses


@contextmanager
def gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gradients]:
    """The gradients of every step, as the optimizer sees them."""
    seen: Gradients = []
    step = train.Lion.step

    def watched(self: Any, *arguments: Any) -> Any:
        seen.extend(one.grad.clone() for group in self.param_groups for one in group["params"])
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train.Lion, "step", watched)
        yield seen


def top(backbone: Backbone, kind: str, batch_size: int) -> int:
    """The highest rung that recomputes and does not divide the batch."""
    first = backbone.defaults.motion if kind == "motion" else backbone.defaults.appearance
    return max(
        index
        for index, rung in enumerate(rungs(min(first.layers), batch_size, backbone.heaviest))
        if rung.chunk is None
    )


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) > 0 and all(map(torch.equal, first, second))


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_gradients_are_the_same_bit_for_bit(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With dropout, with the motion modules bypassed in one term, and with two LoRAs at work."""
    used: list[Any] = []
    checkpointing = thrift.checkpoint

    def counted(*arguments: Any, **options: Any) -> Any:
        used.append(arguments)
        return checkpointing(*arguments, **options)

    with gradients(monkeypatch) as plain:
        run(backbone, kind)
    monkeypatch.setattr(thrift, "checkpoint", counted)
    with gradients(monkeypatch) as saving:
        run(backbone, kind, top(backbone, kind, 2))
    assert same(plain, saving)
    assert any(gradient.any() for gradient in plain)
    assert used


@pytest.mark.parametrize("kind", ["appearance", "motion"])
def test_a_batch_in_chunks_gives_the_same_gradients(any_base: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Without dropout, whose draws differ chunk by chunk; in double precision, as random networks magnify rounding."""
    double = open_base(str(any_base), torch.device("cpu"))
    double.network.double()
    for module in double.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # temporal convolutions have some of their own
    options = {"steps": 1, "dropout": 0.0, "batch_size": 3}
    with gradients(monkeypatch) as whole:
        run(double, kind, **options)
    with gradients(monkeypatch) as parts:
        run(double, kind, 99, **options)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["appearance", "motion"])
def test_nothing_below_the_first_lora_layer_is_kept_for_the_backward_pass(backbone: Backbone, kind: str) -> None:
    layers = getattr(backbone.defaults, kind).layers
    parameters = lora.inject(backbone.network, "a", backbone.targets(kind, layers), rank=2)
    kept, after = 0, {}

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    hooks = [
        unit.register_forward_hook(lambda *_, index=index: after.update({index: kept}))
        for index, block in enumerate(backbone.blocks)
        for unit in block
    ]
    try:
        with lora.trainable(parameters), lora.active(backbone.network, a=1.0):
            noisy = torch.randn(1, *backbone.latent_shape(backbone.defaults.sample.num_frames, 32, 32))
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                backbone.predict(noisy, torch.tensor([500]), backbone.embed([""]))
    finally:
        lora.remove(backbone.network, "a")
        for hook in hooks:
            hook.remove()
    assert all(after[index] == 0 for index in range(min(layers)))
    assert all(after[index] > 0 for index in range(min(layers), 9))


def failing(times: int, error: Exception, after: int = 3) -> Callable[..., Any]:
    """`Accelerator.backward` that has no memory for a while, from one of its calls on."""
    backward, calls = Accelerator.backward, 0

    def maybe(self: Accelerator, loss: Tensor) -> None:
        nonlocal calls
        calls += 1
        if after < calls <= after + times:
            raise error
        backward(self, loss)

    return maybe


@pytest.fixture(scope="module")
def undisturbed(backbone: Backbone) -> Callable[[str], Any]:
    """What four steps of each kind come to where memory is enough, worked out once."""
    return lru_cache(lambda kind: run(backbone, kind, **FOUR_STEPS[kind]))


FOUR_STEPS: dict[str, dict[str, int]] = {
    "appearance": {"steps": 4, "batch_size": 1}, "motion": {"steps": 4, "batch_size": 1},
    "ttt": {"steps": 4, "references": 2},
}  # fmt: skip
ERRORS = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", ERRORS, ids=["GPU", "CPU"])
def test_a_step_without_memory_starts_again_on_the_next_rung_and_ends_bit_equal(
    backbone: Backbone,
    undisturbed: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    error: Exception,
) -> None:
    weights, losses = undisturbed(kind)
    notes: list[str] = []
    monkeypatch.setattr(Accelerator, "backward", failing(2, error))
    again, same_losses = run(
        backbone, kind, report=lambda progress: progress.note and notes.append(progress.note), **FOUR_STEPS[kind]
    )
    step = 2 if kind == "ttt" else 4
    assert [note.partition(";")[0] for note in notes] == [f"Memory ran out at step {step}"] * 2
    assert "now recomputing block 8." in notes[0]
    assert same_losses == losses
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_on_the_last_rung_the_state_is_kept_and_the_run_goes_on_from_it(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.safetensors"
    settings = TrainConfig(layers=(2, 6), learning_rate=1e-3, steps=5, rank=2)
    latents, embeds = torch.randn(3, *backbone.latent_shape(1, 32, 32)), backbone.embed(["A koala."] * 3)

    def learn(keeper: checkpoint.Keeper) -> tuple[lora.Weights, list[float]]:
        return train.learn_appearance(backbone, latents, embeds, settings, Accelerator(cpu=True), keeper=keeper)

    whole, losses = learn(checkpoint.FORGETFUL)
    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "backward", failing(99, ERRORS[0]))
        with pytest.raises(OutOfMemoryError, match=r"step 4 of learning the appearance.* step 3 is kept: the same"):
            learn(checkpoint.Keeper(keep=lambda write: write(kept)))
    resumed, all_losses = learn(checkpoint.Keeper(kept))
    assert all_losses == losses
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_where_nothing_is_kept_the_sentence_says_so(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "backward", failing(99, MemoryError(), after=0))
    modules = [name for name, _ in backbone.network.named_modules()]
    with pytest.raises(OutOfMemoryError, match="nothing was saved; close other programs"):
        run(backbone, "motion")
    assert [name for name, _ in backbone.network.named_modules()] == modules


def test_another_error_is_not_taken_for_a_lack_of_memory(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "backward", failing(1, RuntimeError("shapes differ"), after=0))
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(backbone, "motion")


def test_the_ladder_recomputes_the_outermost_blocks_first_and_then_halves_the_batch(
    backbone: Backbone,
) -> None:
    ladder = rungs(2, 3, backbone.heaviest)
    assert ladder[0] == Rung()
    assert [str(rung) for rung in ladder[1:3]] == ["recomputing block 8", "recomputing blocks 7 and 8"]
    assert [rung.chunk for rung in ladder[-3:]] == [None, 2, 1]
    assert sorted(ladder[-1].recomputed) == [2, 3, 4, 5, 6, 7, 8]
    assert str(ladder[-1]).endswith("7 and 8, 1 at a time")


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_in_half_precision_learns_loras_in_full(
    any_base: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As on a GPU: bfloat16 throughout, float32 in what learns; recomputed or not."""
    half = open_base(str(any_base), torch.device("cpu"))
    half.network.to(torch.bfloat16)
    one = {} if kind == "ttt" else {"batch_size": 1}  # a CPU that only imitates bfloat16 takes its time
    for rung in (0, top(half, kind, 1)):
        with gradients(monkeypatch) as seen:
            weights, losses = run(half, kind, rung, **one)
        assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in seen)
        assert any(gradient.any() for gradient in seen)
        assert torch.tensor(losses).isfinite().all()
        assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)
    assert {parameter.dtype for parameter in half.network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("base", ["tiny", "wan"])
def test_a_base_in_half_precision_learns_what_one_in_full_does(
    tiny_random_wan_base: Path, monkeypatch: pytest.MonkeyPatch, base: str, kind: str
) -> None:
    """Losses of some steps and the gradients of the first, but for bfloat16's own grain, 2^-8.

    Of trained weights: the random U-Net of these tests has gradients below that grain, under autocast, too.
    """
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        opened = open_base("tiny" if base == "tiny" else str(tiny_random_wan_base), torch.device("cpu"))
        opened.network.to(dtype)
        with gradients(monkeypatch) as seen:
            _, losses = run(opened, kind, steps=4, dropout=0.0)
        found.append((torch.tensor(losses), torch.cat([one.flatten() for one in seen[: len(seen) // 4]])))
    (whole, wide), (half, narrow) = found
    assert torch.allclose(half, whole, rtol=0.004)
    assert torch.cosine_similarity(wide, narrow, dim=0) > 0.999
    assert narrow.norm() / wide.norm() == pytest.approx(1, abs=0.01)


def with_lora(base: Path) -> Backbone:
    one = open_base(str(base), torch.device("cpu"))
    lora.inject(one.network, "motion", one.targets("motion", one.defaults.motion.layers), rank=2)
    return one


def test_loras_that_learn_nothing_are_merged_where_the_base_is_narrow_alone(
    any_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded narrow, Wan keeps its first parameter, among others, in float32."""
    asked: list[tuple[str, dict[str, float]]] = []

    def noted(name: str) -> Any:
        def note(_: Any, **scales: float) -> Any:
            asked.append((name, scales))
            return nullcontext()

        return note

    for name in ("active", "merged"):
        monkeypatch.setattr(lora, name, noted(name))
    thrift.frozen(with_lora(any_base), motion=0.5)
    for family in (unets, wan):
        monkeypatch.setattr(family, "precision", lambda _: torch.bfloat16)
    narrow = with_lora(any_base)
    thrift.frozen(narrow, motion=0.5)
    thrift.frozen(narrow, 0.25, motion=0.5)
    monkeypatch.setattr(lora, "is_masked", lambda _: True)
    thrift.frozen(narrow, motion=0.5)
    assert asked == [(name, {"motion": 0.5}) for name in ("active", "merged", "active", "active")]


def test_teachers_whose_loras_are_merged_teach_the_same(
    tiny_random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, uses = open_base(str(tiny_random_base), torch.device("cpu")), []

    def merged(backbone: Backbone, _: float, **scales: float) -> Any:
        uses.append(scales)
        return lora.merged(backbone.network, **scales)

    options = {"steps": 1, "reference_guidance": 1.0}
    _, expected = adapt(one, 0, silent, **options)
    monkeypatch.setattr(ttt, "frozen", merged)
    assert adapt(one, 0, silent, **options)[1] == pytest.approx(expected, rel=1e-4)
    assert uses == [{"appearance_teacher": 1.0}, {"motion_teacher": 1.0}]
