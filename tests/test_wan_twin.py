"""The twin of Wan in training: what it exports is what it was, and pictures are learned alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from small_wan import SmallWan

from customttt import backbones
from customttt.backbones import Backbone, hub, open_base
from customttt.backbones.family import NamedBase
from customttt.backbones.survey import survey
from customttt.backbones.wan import Wan
from customttt.errors import UsageError
from customttt.lab import codec, lessons, pretrain, score
from customttt.lab.wan_twin import WanTwin, decode_unclamped
from customttt.tiny import captions, known, wan_models, world

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pretrain.Run:
    run = pretrain.create(tmp_path_factory.mktemp("twin"), CPU, twin=SmallWan)
    with torch.no_grad():
        run.twin.measure_scale(run.twin.encode(clips().video))
    return run


@pytest.fixture(scope="module")
def exported(run: pretrain.Run) -> Path:
    pretrain.export(run, run.folder / "base")
    for network in run.twin.networks.values():
        network.float()
    return run.folder / "base"


@pytest.fixture(scope="module")
def backbone(exported: Path) -> Backbone:
    return open_base(str(exported), CPU)


def clips() -> world.Clips:
    return world.sample(2, torch.Generator().manual_seed(0), num_frames=5)


@torch.no_grad()
def test_an_exported_base_is_what_was_trained(run: pretrain.Run, backbone: Backbone) -> None:
    video, texts = clips().video, ["A koala is running.", "A kaluba."]
    latents = run.twin.scaled(run.twin.encode(video))
    torch.testing.assert_close(backbone.encode(video), latents, rtol=0, atol=1e-3)
    assert latents.mean((0, 2, 3, 4)).abs().max() < 2e-3
    assert latents.std() == pytest.approx(1, abs=0.01)
    spread = latents.std((0, 2, 3, 4))
    assert spread[:3].tolist() == pytest.approx([spread[0].item()] * 3, rel=0.01)
    assert (spread[3:] / spread[0]).tolist() == pytest.approx([codec.DETAIL] * 13, rel=0.01)
    embeds = run.twin.embed(pretrain.tokenize(run, texts))
    read = backbone.embed(texts)  # in bfloat16, as Wan reads
    assert read.shape == embeds.shape == (2, *backbone.prompt_shape)
    assert (read - embeds).norm() < 0.02 * embeds.norm()
    timesteps = torch.tensor([100.0, 900.0])
    torch.testing.assert_close(
        backbone.predict(latents, timesteps, embeds), run.twin.predict(latents, timesteps, embeds), rtol=0, atol=1e-3
    )
    assert backbone.defaults.sample.num_frames == wan_models.FRAMES
    decoded = run.twin.decode(run.twin.unscaled(latents))
    torch.testing.assert_close(backbone.decode(latents), decoded, rtol=0, atol=1e-3)


def test_it_can_be_a_base_with_a_name(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = NamedBase("tiny-wan", "a transformer", "Apache-2.0, OFL-1.1", folder=exported, square=True, subjects=2)
    monkeypatch.setattr(Wan, "NAMED", (*Wan.NAMED, own))
    monkeypatch.setattr(hub, "answers", lambda: False)
    assert backbones.identify("tiny-wan") == backbones.identify(str(exported))
    assert open_base("tiny-wan", CPU).latent_shape(17, 128, 128) == (16, 5, 16, 16)
    assert known.draws("tiny-wan")
    assert [status.here for status in survey() if status.known is own] == [True]
    with pytest.raises(UsageError, match="knows squares alone"):
        backbones.sketch("tiny-wan", CPU).latent_shape(17, 128, 192)
    with pytest.raises(UsageError, match="3 subjects"):
        backbones.check_subjects("tiny-wan", 3)


def test_a_prompt_is_planned_with_as_many_tokens_as_are_read(exported: Path, backbone: Backbone) -> None:
    assert backbones.sketch(str(exported), CPU).prompt_shape == backbone.prompt_shape == (32, 128)
    assert backbone.count_tokens("a koala")[1] == 32


def test_diffusers_own_pipeline_opens_it(exported: Path, backbone: Backbone) -> None:
    pipe = WanPipeline.from_pretrained(exported)
    embeds, _ = pipe.encode_prompt("a koala", do_classifier_free_guidance=False, max_sequence_length=32)
    ours = backbone.embed(["a koala"])
    assert (embeds - ours).norm() < 0.02 * ours.norm()


def test_what_is_too_light_keeps_its_gradient_and_nothing_else_differs(run: pretrain.Run) -> None:
    latents = 3 * torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        free = decode_unclamped(run.twin.vae, latents)
        assert torch.equal(free.clamp(-1, 1), run.twin.vae.decode(latents).sample)
    assert free.shape == (1, 3, 5, 32, 32)


@torch.no_grad()
def test_pictures_are_encoded_alone(run: pretrain.Run) -> None:
    """The first frame of a clip is, too: the codec never looks ahead."""
    video = clips().video
    whole = run.twin.encode(video)
    torch.testing.assert_close(whole[:, :, :1], run.twin.encode(video[:, :, :1]))
    made = pretrain.encode_clips(run, 2, torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
    assert made["clip latents"].shape == (2, 2, 16, 16, 16)
    assert made["picture latents"].shape == (2, 2, 16, 16, 16)
    torch.testing.assert_close(made["clip latents"], whole.transpose(1, 2).bfloat16(), rtol=0, atol=0.01)


def test_pictures_lie_where_their_subjects_are(run: pretrain.Run) -> None:
    made = pretrain.encode_clips(run, 2, torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
    weight, line = made["picture weight"].float() - 1, torch.arange(16) + 0.5
    seen = torch.stack([(weight.sum(2) * line).sum(-1), (weight.sum(3) * line).sum(-1)], -1)
    inside = ((made["centre"] > 2) & (made["centre"] < 14)).all(-1)
    assert inside.any()
    assert (seen / weight.sum((2, 3))[..., None] - made["centre"])[inside].abs().max() < 2


def test_weights_are_means_of_the_frames_of_each_latent() -> None:
    frames = torch.arange(9.0)[None, :, None, None].expand(1, 9, 128, 128)
    pooled = WanTwin.pool(object.__new__(WanTwin), frames)
    assert pooled[0, :, 0, 0].tolist() == [0.0, 2.5, 6.5]
    assert pooled.shape == (1, 3, 16, 16)


def test_a_base_is_scored_and_taught_at_its_own_frame_rate(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "HELD_OUT_NOUNS", ["octopus"])
    assert all(0 < row["value"] < 40 for row in score.score_codec(backbone).values())
    clip = lessons.clip("swimming", num_frames=17, fps=16)
    assert (len(clip.frames), clip.fps) == (17, 16)


def test_clips_are_learned_in_more_noise_than_pictures(run: pretrain.Run) -> None:
    generator = torch.Generator().manual_seed(0)
    shares = {mode: run.twin.timesteps(mode, 4000, generator) / 1000 for mode in ("frame", "clip")}  # type: ignore[arg-type]
    assert shares["frame"].median() == pytest.approx(0.5, abs=0.03)
    assert shares["clip"].median() == pytest.approx(0.75, abs=0.03)


def test_crops_of_clips_follow_time() -> None:
    crops = codec.Crops(torch.Generator().manual_seed(0), clips=2, chunk=2, frames=9, span=5)
    numbers = torch.arange(9, dtype=torch.uint8)[None, :, None, None, None]
    crops.parts[0] = numbers.expand(2, 9, 3, 128, 128).contiguous()
    images, masks = crops.draw(8)
    assert images.shape == (8, 3, 5, codec.CROP, codec.CROP)
    assert masks.shape == (8, 1, 5, codec.CROP, codec.CROP)
    times = ((images[:, 0, :, 0, 0] + 1) * 127.5).round()
    assert (times.diff(dim=1) == 1).all()
    assert set(times[:, 0].tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_the_same_words_are_the_same_tokens_and_every_caption_fits(tmp_path: Path) -> None:
    words = WanTwin.build_tokenizer(tmp_path / "a")
    assert words.get_vocab() == WanTwin.build_tokenizer(tmp_path / "b").get_vocab()
    texts = captions.captions(world.draw(400, torch.Generator().manual_seed(0), pairs=0.5), torch.Generator())
    assert max(len(words(text).input_ids) for text in texts) <= wan_models.MAX_TOKENS
    assert len(words("koala octopus", add_special_tokens=False).input_ids) == 2
    assert words.unk_token_id not in words("A bazingo").input_ids
