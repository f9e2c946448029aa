"""An interrupted run of learning goes on and ends bit-equal; what it goes on from is checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from material import assert_one_sentence, run, snapshot

from customttt import checkpoint, lora, train
from customttt.backbones import Backbone, open_base
from customttt.config import TrainConfig
from customttt.errors import DamagedError, DivergedError
from customttt.library import Library
from customttt.progress import Progress

CONFIG = TrainConfig(layers=(2,), learning_rate=1e-3, steps=6, batch_size=2, rank=2, dropout=0.3, falling=True)
LEARN = {"appearance": (train.learn_appearance, (3, 1)), "motion": (train.learn_motion, (1, 4))}


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture(autouse=True)
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)


@pytest.fixture(scope="module")
def backbone(tiny_random_base: Path) -> Backbone:
    return open_base(str(tiny_random_base), torch.device("cpu"))


def learn(
    backbone: Backbone, kind: str, keeper: checkpoint.Keeper, killed_after: int = 99, config: TrainConfig = CONFIG
) -> tuple[lora.Weights, list[float]]:
    function, (count, frames) = LEARN[kind]
    latents = torch.randn(count, *backbone.latent_shape(frames, 32, 32), generator=torch.Generator().manual_seed(0))

    def report(progress: Progress) -> None:
        if progress.step == killed_after:
            raise KilledError

    embeds = backbone.embed(["A koala."] * count)
    return function(backbone, latents, embeds, config, Accelerator(cpu=True), report, keeper)


def into(path: Path) -> Callable[[Callable[[Path], object]], object]:
    return lambda write: write(path)


@pytest.mark.parametrize("kind", ["appearance", "motion"])
@pytest.mark.parametrize("killed_after", [2, 5])
def test_a_resumed_run_ends_bit_equal(backbone: Backbone, tmp_path: Path, kind: str, killed_after: int) -> None:
    whole, losses = learn(backbone, kind, checkpoint.FORGETFUL)
    kept = tmp_path / "kept.safetensors"
    with pytest.raises(KilledError):
        learn(backbone, kind, checkpoint.Keeper(keep=into(kept)), killed_after)
    assert len(checkpoint.read_header(kept).losses) == killed_after - 1  # kept before each step whose loss is known
    torch.manual_seed(99)  # the world outside does not matter
    resumed, all_losses = learn(backbone, kind, checkpoint.Keeper(kept))
    assert all_losses == losses
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_what_is_kept_before_a_loss_that_is_no_number_is_good(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, calls = tmp_path / "kept.safetensors", 0
    denoising = train.losses.denoising

    def diverging(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return denoising(*arguments) * (float("nan") if calls == 4 else 1.0)

    monkeypatch.setattr(train.losses, "denoising", diverging)
    with pytest.raises(DivergedError, match=r"at step 4 .* step 2 is kept: go on from it with --resume"):
        learn(backbone, "appearance", checkpoint.Keeper(keep=into(kept), settings={"steps": 4}))
    calls = 0
    with pytest.raises(DivergedError, match=r"at step 4 .*; learn with a smaller --learning-rate"):  # as a rival does
        learn(backbone, "appearance", checkpoint.Keeper(keep=into(kept)))
    monkeypatch.undo()
    whole, _ = learn(backbone, "appearance", checkpoint.FORGETFUL)
    resumed, _ = learn(backbone, "appearance", checkpoint.Keeper(kept))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_file_that_is_no_checkpoint_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no safetensors at all")
    with pytest.raises(DamagedError, match="delete it to start anew"):
        learn(backbone, "motion", checkpoint.Keeper(bad))


def test_a_checkpoint_of_another_shape_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    kept = tmp_path / "kept.safetensors"
    learn(backbone, "motion", checkpoint.Keeper(keep=into(kept)), config=CONFIG.but(rank=3))
    with pytest.raises(DamagedError):
        learn(backbone, "motion", checkpoint.Keeper(kept))


# -- on the command line


@pytest.fixture
def interrupted(home: Path, tiny_random_base: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A command that was killed in the middle of learning."""
    command = ("learn-appearance", "bear", str(pictures), "--base", str(tiny_random_base))
    state = lora.state

    def interrupting(unet: torch.nn.Module, adapter: str) -> lora.Weights:
        """Ctrl-C when the last step is done; not in the rehearsal of the planner."""
        return state(unet, adapter) if next(unet.parameters()).is_meta else os.kill(os.getpid(), 2) or {}

    with monkeypatch.context() as patch:
        patch.setattr(train.lora, "state", interrupting)
        assert run(*command).exit_code == 130
    assert len(list((home / "unfinished").iterdir())) == 1
    assert Library().entries() == []
    return command


def test_the_same_command_goes_on_and_ends_in_the_same_weights(
    home: Path, interrupted: tuple[str, ...], tmp_path: Path
) -> None:
    done = run(*interrupted)
    assert done.exit_code == 0, done.output
    assert "An interrupted run goes on after step 2 of 3." in done.stderr
    assert list((home / "unfinished").iterdir()) == []
    fresh = tmp_path / "fresh"
    run(*interrupted, env={"CUSTOMTTT_HOME": str(fresh)})
    files = Library(fresh).get("bear").files
    assert files == Library().get("bear").files
    assert Library().verify() == []


def test_another_learning_rate_goes_on_only_when_told_to(home: Path, interrupted: tuple[str, ...]) -> None:
    dry = run(*interrupted, "--learning-rate", 1e-5, "--dry-run")
    assert "--resume goes on from it; this one starts anew." in dry.stdout
    before = snapshot(home)
    refused = run(*interrupted, "--resume", "--steps", 2)
    assert_one_sentence(refused, 2, "give more --steps than 2")
    assert snapshot(home) == before
    done = run(*interrupted, "--learning-rate", 1e-5, "--steps", 4, "--resume")
    assert done.exit_code == 0, done.output
    assert "Learning the appearance: step 4 of 4" in done.stderr
    assert Library().get("bear").learning_rate == 1e-5


def test_there_must_be_something_to_resume(home: Path, tiny_random_base: Path, pictures: Path) -> None:
    refused = run("learn-appearance", "bear", pictures, "--base", tiny_random_base, "--resume")
    assert_one_sentence(refused, 2, "no unfinished run of this to --resume")
    assert not home.exists()


def test_a_damaged_checkpoint_is_as_none(home: Path, interrupted: tuple[str, ...]) -> None:
    (kept,) = (home / "unfinished").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert [problem.name for problem in Library().verify()] == [f"unfinished/{kept.name}"]
    done = run(*interrupted)
    assert done.exit_code == 0, done.output
    assert "goes on" not in done.stderr
