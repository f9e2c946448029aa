"""Pretraining: all stages run, a kill costs nothing, and what is exported is a base."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_wan import SmallWan

from customttt.backbones import open_base
from customttt.errors import UsageError
from customttt.lab import codec, pretrain
from customttt.lab.twins import Sizes, Twin
from customttt.lab.unet_twin import UNetTwin
from customttt.tiny import captions, models, world

CPU = torch.device("cpu")
MOMENT = 1e-9
"""Minutes: a stage is one step long."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sheets, a checkpoint after every step, few clips to a step, a narrow U-Net, and one noun for the codec."""
    monkeypatch.setattr(pretrain, "write_sheet", lambda *_: None)
    monkeypatch.setattr(pretrain, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(pretrain, "VALIDATION_BATCHES", 1)
    monkeypatch.setattr(pretrain, "VALIDATION_CLIPS", 2)
    sizes = Sizes({"crop": 4, "frame": 2, "clip": 1}, 2, clips=2, chunk=2, renew_every=1)
    monkeypatch.setattr(UNetTwin, "SIZES", {"cpu": sizes})
    monkeypatch.setattr(models, "build_unet", partial(models.build_unet, (16, 32, 48, 48)))
    monkeypatch.setattr(world, "HELD_OUT_NOUNS", ["octopus"])


def narrow_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exported base with half as many latents as now."""
    with monkeypatch.context() as patch:
        patch.setattr(models, "LATENT_CHANNELS", 8)
        run = pretrain.create(folder / "narrow", CPU)
        run.twin.vae.register_to_config(scaling_factor=2.5)
        pretrain.export(run, folder / "base")
    return folder / "base"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("twin", "shape"), [(UNetTwin, (16, 8, 16, 16)), (SmallWan, (16, 5, 16, 16))])
def test_a_killed_run_goes_on_where_it_was_and_ends_in_a_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twin: type[Twin], shape: tuple[int, ...]
) -> None:
    run = pretrain.create(tmp_path, CPU, twin=twin)
    unscaled, whole_stage = run.twin.scale(), pretrain.run_stage

    def killed(run: pretrain.Run, *arguments: object) -> None:
        if run.stage == "still":
            raise KeyboardInterrupt
        whole_stage(run, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pretrain, "run_stage", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(run, MOMENT)
    again = pretrain.create(tmp_path, CPU, twin=twin)
    assert (again.stage, again.steps["codec"]) == ("still", 1)
    assert again.twin.scale() == run.twin.scale() != unscaled
    assert all(torch.equal(a, b) for a, b in zip(again.twin.vae.parameters(), run.twin.vae.parameters(), strict=True))
    assert again.optimizer is not None
    assert run.optimizer is not None
    assert all(torch.equal(again.optimizer.average[name], value) for name, value in run.optimizer.average.items())

    monkeypatch.setattr(pretrain, "run_stage", whole_stage)
    pretrain.train(again, MOMENT)
    assert again.steps == {"codec": 1, "still": 1, "clip": 1}
    assert (tmp_path / "sheet-codec-000001.png").is_file()
    pretrain.export(again, tmp_path / "base")
    frames = 8 if twin is UNetTwin else 17
    assert open_base(str(tmp_path / "base"), CPU).latent_shape(frames, 128, 128) == shape


@pytest.mark.usefixtures("quick")
def test_a_run_can_begin_with_what_another_exported(tmp_path: Path) -> None:
    first = pretrain.create(tmp_path / "first", CPU)
    with torch.no_grad():
        first.twin.network.conv_in.bias.fill_(0.5)
    assert first.optimizer is not None
    first.optimizer.take_over(first.trained())
    pretrain.export(first, tmp_path / "base")
    second = pretrain.create(tmp_path / "second", CPU, tmp_path / "base")
    assert second.stage == "still"
    assert second.twin.tokenizer.get_vocab() == first.twin.tokenizer.get_vocab()
    assert pretrain.create(second.folder, CPU).twin.tokenizer.get_vocab() == first.twin.tokenizer.get_vocab()
    assert torch.equal(second.twin.network.conv_in.bias, first.twin.network.conv_in.bias.float())
    pretrain.train(second, MOMENT)
    assert second.steps == {"codec": 0, "still": 1, "clip": 1}
    third = pretrain.create(tmp_path / "third", CPU, tmp_path / "base", stage="codec")
    assert (third.stage, [*third.trained()]) == ("codec", ["vae"])


@pytest.mark.usefixtures("quick")
def test_a_base_of_fewer_latents_is_widened_and_what_it_knew_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = narrow_base(tmp_path, monkeypatch)
    old = open_base(str(base), CPU)
    run = pretrain.create(tmp_path / "wide", CPU, base)
    assert (run.stage, run.twin.scale()) == ("codec", {"scaling_factor": 2.5})
    video = world.sample(1, torch.Generator().manual_seed(0), num_frames=2).video
    latents = run.twin.vae.encode(video[0].transpose(0, 1)).latents * 2.5
    assert torch.allclose(latents[:, :8], old.encode(video)[0].transpose(0, 1), atol=2e-3)
    timesteps, embeds = torch.tensor([500]), torch.zeros(1, 32, 128)
    wide = run.twin.predict(latents.transpose(0, 1)[None], timesteps, embeds)
    assert torch.allclose(wide[:, :8], old.predict(old.encode(video), timesteps, embeds), atol=2e-2)
    assert not wide[:, 8:].any()
    pretrain.train(run, MOMENT)
    assert run.steps == {"codec": 1, "still": 1, "clip": 1}
    assert run.twin.scale() == {"scaling_factor": 2.5}


@pytest.mark.usefixtures("quick")
def test_widening_is_not_gone_on_with_without_the_base_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pretrain.create(tmp_path / "wide", CPU, narrow_base(tmp_path, monkeypatch))
    pretrain.save(run)
    with pytest.raises(UsageError, match="--start"):
        pretrain.create(tmp_path / "wide", CPU)


def test_settled_latents_are_uncorrelated_and_pictures_stay() -> None:
    torch.manual_seed(0)
    whole = models.build_vae()
    with torch.no_grad():
        whole.encoder.layers[-1].weight.mul_(0.1)  # where the decoder's bound on latents does not bend them yet
    frames = world.sample(4, torch.Generator().manual_seed(0), num_frames=4).video.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        latents = whole.encoder(frames)
        before = whole.decoder(latents)
        codec.settle(whole, latents, 8)
        settled = whole.encoder(frames)
        after = whole.decoder(settled)
    assert torch.allclose(settled[:, :8], latents[:, :8], atol=1e-5)
    rows = settled.transpose(0, 1).flatten(1)
    related = torch.corrcoef(rows)[8:]
    related[:, 8:] -= torch.eye(8)
    assert related.abs().max() < 0.02
    usual = (rows[:8] - rows[:8].mean(1, keepdim=True)).std()
    assert torch.allclose(rows[8:].std(1), codec.DETAIL * usual, rtol=0.05)
    assert (before - after).abs().mean() < 0.05 * before.std()


@pytest.mark.usefixtures("quick")
def test_the_validation_loss_is_of_the_averaged_weights_and_always_the_same(tmp_path: Path) -> None:
    run = pretrain.create(tmp_path, CPU)
    pretrain._enter(run, "clip")
    assert run.optimizer is not None
    work = pretrain.denoising_work(run)
    first = work.validate()
    with torch.no_grad():
        run.optimizer.weight["unet.conv_out.bias"].fill_(1.0)
        run.twin.network.conv_out.bias.fill_(1.0)
    assert work.validate() == first
    assert (run.twin.network.conv_out.bias == 1).all()
    run.optimizer.average["unet.conv_out.bias"].fill_(1.0)
    assert work.validate()["validation clip"] > first["validation clip"]


def test_crops_lie_on_the_subjects() -> None:
    crops = codec.Crops(torch.Generator().manual_seed(0), clips=16, chunk=8, frames=8)
    images, masks = crops.draw(64)
    assert images.shape == (64, 3, 1, codec.CROP, codec.CROP)
    assert (masks.amax((1, 2, 3, 4)) > 0.5).float().mean() > 0.9


def test_the_learning_rate_warms_up_stays_and_falls_to_nothing() -> None:
    rates = [
        pretrain.learning_rate(p, n, 1.0) for p, n in ((0.0, 0), (0.1, 100), (0.4, 900), (0.75, 2000), (1.0, 3000))
    ]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


def test_crops_of_latents_hold_the_subject() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.ones(64, 1, 1, 16, 16)
    places = torch.randint(0, 16, (64, 2), generator=generator)
    weight[torch.arange(64), 0, 0, places[:, 1], places[:, 0]] = 6.0
    latents, cut = pretrain.crop_around(weight.repeat(1, 3, 1, 1, 1), weight, places.float(), generator)
    assert latents.shape == (64, 3, 1, 8, 8)
    assert torch.equal(latents[:, :1], cut)
    assert (cut.amax((1, 2, 3, 4)) == 6).all()


def test_a_caption_fits_into_the_tokens_that_are_read(tmp_path: Path) -> None:
    words = models.build_tokenizer(tmp_path, captions.corpus())
    texts = captions.captions(world.draw(400, torch.Generator().manual_seed(0), pairs=0.5), torch.Generator())
    assert max(len(words(text).input_ids) for text in texts) <= models.MAX_TOKENS


@pytest.mark.usefixtures("quick")
def test_a_crop_of_two_subjects_is_called_by_the_one_that_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "draw", partial(world.draw, pairs=1.0))
    monkeypatch.setattr(captions, "UNKNOWN_SHARE", 0.0)
    run = pretrain.create(tmp_path, CPU)
    cache = pretrain.Cache(run, 4, run.generator, run.captioner)

    def named(mode: Any) -> set[int]:
        texts = run.twin.tokenizer.batch_decode(cache.draw(mode, 32)["tokens"], skip_special_tokens=True)
        return {len(captions.read(text).nouns) for text in texts if text}

    assert (named("crop"), named("frame"), named("clip")) == ({1}, {2}, {2})


def test_half_of_the_clips_are_seen_where_tracks_are_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UNetTwin, "SIZES", {"cpu": replace(UNetTwin.SIZES["cpu"], clips=4, chunk=4)})
    run = pretrain.create(tmp_path, CPU)
    cache = pretrain.Cache(run, 4, run.generator, run.captioner)
    noisy = sum(int((cache.draw("clip", 8)["timesteps"] >= 500).sum()) for _ in range(50)) / 400
    assert noisy == pytest.approx(0.75, abs=0.05)
    assert cache.draw("crop", 8)["latents"].shape == (8, 16, 1, 8, 8)
    window = cache.draw("window", 8)
    assert window["latents"].shape == (8, 16, world.FRAMES, 8, 8)
    assert window["weight"].shape == (8, 1, world.FRAMES, 8, 8)


def test_a_window_is_cut_out_of_its_clip_where_its_subject_is_at_some_time() -> None:
    latents = torch.arange(2 * 3 * 5 * 16 * 16).view(2, 3, 5, 16, 16).float()
    weight, centre = latents[:, :1] / 7, torch.tensor([[12.0, 3.0], [8.0, 8.0]])
    cut, weights = pretrain.crop_around(latents, weight, centre, torch.Generator().manual_seed(0))
    for number, (x, y) in enumerate(centre.long().tolist()):
        row, column = divmod(int(cut[number, 0, 0, 0, 0]) - int(latents[number, 0, 0, 0, 0]), 16)
        for place, middle in ((row, y), (column, x)):
            assert abs(place - (middle - 4)) <= 3 or place in (0, 8), "near it, inside of the frame"
        assert torch.equal(cut[number], latents[number, :, :, row : row + 8, column : column + 8])
        assert torch.equal(weights[number], weight[number, :, :, row : row + 8, column : column + 8])
