"""Pretraining: all stages run, a kill costs nothing, and what is exported is a base."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from customttt.backbones import open_base
from customttt.tiny import pretrain

CPU = torch.device("cpu")
CLIPS = 8


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sheets, a checkpoint after every step, a stage that is one step long, and few clips to a step."""
    monkeypatch.setattr(pretrain, "write_sheet", lambda *_: None)
    monkeypatch.setattr(pretrain, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(pretrain, "EMA_EVERY", 1)
    monkeypatch.setattr(pretrain, "VALIDATION_BATCHES", 1)
    monkeypatch.setattr(pretrain, "VALIDATION_CLIPS", CLIPS)
    monkeypatch.setattr(pretrain, "BATCHES", {"crop": 8, "image": 4, "clip": 2})
    monkeypatch.setattr(pretrain, "SHARES", {"vae": 1e-9, "image": 1e-9, "clip": 1e-9})


@pytest.mark.usefixtures("quick")
def test_a_killed_run_goes_on_where_it_was_and_ends_in_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = pretrain.create(tmp_path, CPU)
    whole_stage = pretrain.run_stage

    def killed(state: pretrain.State, *arguments: object) -> None:
        if state.stage == "image":
            raise KeyboardInterrupt
        whole_stage(state, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pretrain, "run_stage", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(state, 1.0, CLIPS)
    again = pretrain.create(tmp_path, CPU)
    assert (again.stage, again.steps["vae"]) == ("image", 1)
    assert all(torch.equal(a, b) for a, b in zip(again.vae.parameters(), state.vae.parameters(), strict=True))
    assert again.average.keys() == state.average.keys()
    assert all(torch.equal(again.average[name], value) for name, value in state.average.items())

    monkeypatch.setattr(pretrain, "run_stage", whole_stage)
    pretrain.train(again, 1.0, CLIPS)
    assert again.steps == {"vae": 1, "image": 1, "clip": 1}
    pretrain.export(again, tmp_path / "base")
    assert open_base(str(tmp_path / "base"), CPU).latent_shape(8, 64) == (8, 8, 16, 16)


@pytest.mark.usefixtures("quick")
def test_a_run_can_begin_with_what_another_exported(tmp_path: Path) -> None:
    first = pretrain.create(tmp_path / "first", CPU)
    with torch.no_grad():
        first.unet.conv_in.bias.fill_(0.5)
    pretrain.export(first, tmp_path / "base")
    second = pretrain.create(tmp_path / "second", CPU)
    pretrain.start_from(second, tmp_path / "base")
    assert second.stage == "image"
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert pretrain.create(second.folder, CPU).tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert torch.equal(second.unet.conv_in.bias, first.unet.conv_in.bias.float())
    assert {one.dtype for one in second.unet.parameters()} == {torch.float32}
    pretrain.train(second, 1.0, CLIPS)
    assert second.steps == {"vae": 0, "image": 1, "clip": 1}


@pytest.mark.usefixtures("quick")
def test_the_validation_loss_is_of_the_averaged_weights_and_always_the_same(tmp_path: Path) -> None:
    state = pretrain.create(tmp_path, CPU)
    state.stage = "clip"
    held_out = pretrain.encode_clips(state, CLIPS, torch.Generator().manual_seed(1))
    losses = {"clip": partial(pretrain.diffusion_loss, cache=held_out, mode="clip")}
    drawn = state.generator.get_state()
    first = pretrain.validate(state, losses)
    assert torch.equal(state.generator.get_state(), drawn)
    pretrain.update_average(state)
    with torch.no_grad():
        state.unet.conv_out.bias.fill_(1.0)
    assert pretrain.validate(state, losses) == first
    assert (state.unet.conv_out.bias == 1).all()
    state.average.clear()
    assert pretrain.validate(state, losses)["validation clip"] > first["validation clip"]


def test_crops_lie_on_the_subjects() -> None:
    crops = pretrain.Crops(torch.Generator().manual_seed(0), clips=32)
    images, masks = crops.draw(64)
    assert images.shape == (64, 3, 32, 32)
    assert (masks.amax((1, 2, 3)) > 0.5).float().mean() > 0.9


def test_the_learning_rate_warms_up_and_then_falls(tmp_path: Path) -> None:
    state = pretrain.create(tmp_path, CPU)
    rates = []
    for steps, seconds in ((0, 0.0), (100, 10.0), (200, 20.0), (5000, 50.0), (9000, 100.0)):
        state.steps["vae"], state.seconds["vae"] = steps, seconds
        rates.append(pretrain.learning_rate(state, 100.0))
    assert rates[0] == 0
    assert rates[1] < rates[2] > rates[3] > rates[4] > 0


def test_crops_of_latents_hold_the_subject() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.ones(64, 1, 1, 16, 16)
    places = torch.randint(0, 16, (64, 2), generator=generator)
    weight[torch.arange(64), 0, 0, places[:, 0], places[:, 1]] = 6.0
    latents, cut = pretrain.crop_around(weight.repeat(1, 3, 1, 1, 1), weight, generator)
    assert latents.shape == (64, 3, 1, 8, 8)
    assert torch.equal(latents[:, :1], cut)
    assert (cut.amax((1, 2, 3, 4)) == 6).all()


def test_muon_moves_a_convolution_by_an_orthogonal_step() -> None:
    convolution = torch.nn.Conv2d(4, 6, 3)
    before = convolution.weight.detach().clone()
    convolution(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    optimizer = pretrain.Muon([convolution.weight])
    optimizer.param_groups[0].update(lr=1.0, weight_decay=0.0)
    optimizer.step()
    moved = torch.linalg.svdvals((convolution.weight - before).detach().flatten(1))
    assert moved.max() / moved.min() < 2.0
    assert convolution.weight.grad is None
