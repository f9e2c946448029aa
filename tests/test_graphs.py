"""Replayed predictions are those that would be computed, and only where the same comes again.

On a CPU nothing is recorded, and what stands for a replay is computed at the addresses of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from customttt import graphs, lora, sampling, thrift, train, ttt
from customttt.backbones import Backbone, open_base
from customttt.config import SampleConfig, TrainConfig, TTTConfig

CPU = torch.device("cpu")
FRAMES, SIDE = 5, 64
CONFIG = TrainConfig(layers=(2,), learning_rate=1e-3, steps=4, rank=4, batch_size=2, dropout=0.0)
SAMPLE = SampleConfig(num_frames=FRAMES, size=SIDE, num_inference_steps=4, guidance_scale=2.0)


@pytest.fixture
def backbone(any_base: Path) -> Backbone:
    return open_base(str(any_base), CPU)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """As on a GPU; the shape of every prediction that is replayed."""
    noted: list[tuple[int, ...]] = []
    call = graphs.Recording.__call__

    def note(self: graphs.Recording, given: graphs.Given) -> Tensor:
        noted.append(tuple(given[0].shape))
        return call(self, given)

    monkeypatch.setattr(graphs, "is_worth_it", lambda *_: True)
    monkeypatch.setattr(graphs.Recording, "__call__", note)
    return noted


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(backbone: Backbone, frames: int = FRAMES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Latents of one clip, and embeddings of one prompt."""
    shape = backbone.latent_shape(frames, SIDE, SIDE)
    return drawn(1, *shape, seed=seed), drawn(1, *backbone.prompt_shape, seed=seed + 1)


def learn(kind: str, backbone: Backbone, config: TrainConfig) -> tuple[lora.Weights, list[float]]:
    latents, embeds = inputs(backbone, 1 if kind == "appearance" else FRAMES)
    function: Any = train.learn_appearance if kind == "appearance" else train.learn_motion
    return function(backbone, latents, embeds, config, Accelerator(cpu=True))  # type: ignore[no-any-return]


def assert_equal(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["appearance", "motion"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_learning_is_the_same_to_the_bit(
    kind: str, dropout: float, backbone: Backbone, replays: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.but(dropout=dropout)
    replayed = learn(kind, backbone, config)
    assert len(replays) == config.steps - 1, "the first is computed"
    monkeypatch.undo()
    assert_equal(replayed, learn(kind, backbone, config))


def adapt(backbone: Backbone, loras: lora.Loras) -> tuple[lora.Loras, list[float]]:
    _, embeds = inputs(backbone)
    prompts = ttt.Prompts(dict.fromkeys(loras, embeds), embeds, torch.zeros_like(embeds))
    config = TTTConfig(steps=4, learning_rate=1e-3, reference_steps=2, references=2, reference_guidance=2.0)
    return ttt.adapt(backbone, loras, prompts, config, SAMPLE, Accelerator(cpu=True))


def two(backbone: Backbone) -> lora.Loras:
    """Two LoRAs of each kind, of which none is zero."""
    learned = {kind: learn(kind, backbone, CONFIG)[0] for kind in ("appearance", "motion")}
    return learned | {f"{kind}2": {key: 0.5 * one for key, one in some.items()} for kind, some in learned.items()}


def test_so_is_test_time_training_where_two_teachers_of_a_kind_share_what_is_recorded(
    backbone: Backbone, replays: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loras = two(backbone)
    replays.clear()
    replayed = adapt(backbone, loras)
    # eight references of two steps, and a prediction of the student for each of four teachers in four steps; of each
    # kind the first is computed
    assert 24 <= len(replays) <= 30
    monkeypatch.undo()
    assert_equal(replayed, adapt(backbone, loras))


def test_so_is_sampling_with_a_lora_that_rests_for_a_part(
    backbone: Backbone, replays: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loras = {kind: some for kind, some in two(backbone).items() if "2" not in kind}
    latents, embeds = inputs(backbone)
    for slot, weights in loras.items():
        lora.restore(backbone.network, slot, weights)

    def render() -> Tensor:
        sample = SAMPLE.but(appearance_from=0.5, num_inference_steps=8)
        scales = dict.fromkeys(loras, 1.0)
        return sampling.denoise_in_phases(backbone, latents, embeds, torch.zeros_like(embeds), sample, scales)

    replays.clear()
    replayed = render()
    assert len(replays) == 6, "two phases of four steps"
    monkeypatch.undo()
    assert_equal(replayed, render())
    assert "predict" not in vars(backbone)


def states(backbone: Backbone) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    network = backbone.network
    (place,) = {name for name in lora.wrapped(network) if backbone.spread(name, torch.ones(FRAMES, 4, 4)) is not None}
    return {
        "plain": nullcontext,
        "weak": lambda: lora.active(network, motion=0.5),
        "strong": lambda: lora.active(network, motion=2.0),
        "alone": lambda: lora.active(network),
        "merged": lambda: lora.merged(network, motion=2.0),
        "framewise": backbone.framewise,
        "masked": lambda: lora.masked(network, {place: {"motion": torch.zeros(1, 1, 1)}}),
        "recomputed": lambda: thrift.recomputed([unit for block in backbone.blocks for unit in block]),
    }


@pytest.fixture
def with_a_motion(backbone: Backbone) -> Backbone:
    """A LoRA in one linear."""
    weights, _ = learn("motion", backbone, CONFIG)
    first = next(iter(weights)).split(".lora_")[0]
    lora.restore(backbone.network, "motion", {key: 50 * one for key, one in weights.items() if key.startswith(first)})
    return backbone


@pytest.mark.usefixtures("replays")
def test_every_state_of_a_base_has_predictions_of_its_own(with_a_motion: Backbone) -> None:
    backbone = with_a_motion
    latents, embeds = inputs(backbone)
    time = torch.full((1,), 500)
    plain = {}
    for name, state in states(backbone).items():
        with state(), torch.no_grad():
            plain[name] = backbone.predict(latents, time, embeds)
    assert sum(torch.equal(plain["plain"], one) for one in plain.values()) == 2, "it, and what is recomputed"
    with graphs.replaying(backbone), torch.no_grad():
        for _ in range(3):
            for name, state in states(backbone).items():
                with state():
                    assert_equal(backbone.predict(latents, time, embeds), plain[name])


def test_what_is_recorded_is_of_shapes_states_and_places(
    with_a_motion: Backbone, replays: list[tuple[int, ...]]
) -> None:
    backbone = with_a_motion
    latents, embeds = inputs(backbone)
    time = torch.full((1,), 500)

    def replayed(times: int = 1) -> int:
        replays.clear()
        for _ in range(times):
            backbone.predict(latents, time, embeds)
        return len(replays)

    with torch.no_grad(), graphs.replaying(backbone):
        assert replayed(3) == 2
        assert replayed() == 1
        for state in ("weak", "framewise"):
            with states(backbone)[state]():
                assert replayed() == 0
            with states(backbone)[state]():
                assert replayed() == 1
        for state in ("masked", "recomputed"):
            with states(backbone)[state]():
                assert replayed(3) == 0
        handle = backbone.network.register_forward_hook(lambda *_: None)
        assert replayed(3) == 0
        handle.remove()
        assert replayed() == 1
        latents = torch.cat([latents, latents])
        time, embeds = torch.cat([time, time]), torch.cat([embeds, embeds])
        assert replayed(2) == 1
        weight = next(backbone.network.parameters())
        weight.data = weight.data.clone()
        assert replayed(2) == 1, "a weight has moved"
        with graphs.replaying(backbone):
            assert replayed(2) == 1, "of its own"
        assert replayed() == 1
    with torch.enable_grad(), graphs.replaying(backbone):
        embeds.requires_grad_()
        assert replayed(3) == 0, "a word is learned"


@pytest.mark.usefixtures("replays")
def test_a_loss_of_two_replays_is_refused_and_never_wrong(with_a_motion: Backbone) -> None:
    backbone = with_a_motion
    latents, embeds = inputs(backbone)
    time = torch.full((1,), 500)
    with lora.trainable(lora.parameters(backbone.network, "motion")), graphs.replaying(backbone):
        backbone.predict(latents, time, embeds)
        both = backbone.predict(latents, time, embeds) + backbone.predict(2 * latents, time, embeds)
        with pytest.raises(RuntimeError, match="before the loss of this one was backed up"):
            both.sum().backward()


@pytest.mark.usefixtures("replays")
@pytest.mark.parametrize("learning", [True, False])
def test_what_does_not_agree_is_computed_as_ever_with_one_warning(
    learning: bool, with_a_motion: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = with_a_motion
    latents, embeds = inputs(backbone)
    time = torch.full((1,), 500)

    def broken(self: graphs.Recording) -> None:
        self.prediction, self.gradients = torch.zeros_like(self.given[0]), tuple(map(torch.zeros_like, self.learning))

    with torch.set_grad_enabled(learning), lora.trainable(lora.parameters(backbone.network, "motion"), learning):
        plain = backbone.predict(latents, time, embeds)
        with graphs.replaying(backbone), warnings.catch_warnings(record=True) as warned:
            backbone.predict(latents, time, embeds)
            for part in ("_forward", "_backward"):
                monkeypatch.setattr(graphs.Recording, part, broken)
            for _ in range(3):
                assert_equal(backbone.predict(latents, time, embeds), plain)
    assert [str(one.message) for one in warned if "one by one" in str(one.message)] == [
        "Operations are started one by one on this GPU, which takes longer: what it replays is not what it computes."
    ]


@pytest.mark.usefixtures("replays")
def test_where_memory_is_too_short_to_compare_it_is_computed_as_ever(
    with_a_motion: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: graphs.Recording) -> bool:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs.Recording, "agrees", full)
    (latents, embeds), time = inputs(with_a_motion), torch.full((1,), 500)
    with torch.no_grad():
        plain = with_a_motion.predict(latents, time, embeds)
        with graphs.replaying(with_a_motion), warnings.catch_warnings(record=True) as warned:
            for _ in range(3):
                assert_equal(with_a_motion.predict(latents, time, embeds), plain)
    assert len([one for one in warned if "not enough memory to hold what it replays" in str(one.message)]) == 1


def test_functions_stay_as_they_are_where_there_is_no_cuda_and_are_computed_where_it_cannot_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing() -> None: ...

    def refused(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    assert graphs.recorded([nothing], CPU) == [nothing]
    restored: list[Any] = []
    monkeypatch.setattr(graphs, "_record", refused)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: "before")
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *given: restored.append(given))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    with pytest.warns(UserWarning, match="CUDA cannot record it .operation not permitted when stream is capturing"):
        assert graphs.recorded([nothing], torch.device("cuda"), "pool") is None
    assert restored == [("before", torch.device("cuda"))]


def test_a_base_whose_experts_take_turns_is_not_recorded(tiny_random_experts_base: Path, any_base: Path) -> None:
    assert not open_base(str(tiny_random_experts_base), CPU).recordable
    assert open_base(str(any_base), CPU).recordable
