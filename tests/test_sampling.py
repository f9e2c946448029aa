"""Sampling: guidance, which LoRAs act when and how strongly, and what is told of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from test_new_family import CPU, OWN, Toy
from torch import Tensor

from customttt import lora
from customttt.backbones import Backbone
from customttt.config import SampleConfig
from customttt.progress import Progress
from customttt.sampling import Area, Turn, denoise, denoise_in_phases, phases

SCALE, PATH = 3.0, [1.0, 0.5, 0.0]
SAMPLE = SampleConfig(num_frames=5, size=16, num_inference_steps=4, guidance_scale=SCALE)
BOTH = {"appearance": 0.8, "motion": 0.5}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """The toy, with an appearance LoRA and a motion LoRA that can be seen."""
    made: Backbone = Toy.load(Path(), "toy", "f00d", OWN, CPU)
    generator = torch.Generator().manual_seed(1)
    for kind in BOTH:
        for matrix in lora.inject(made.network, kind, ["0", "1"], rank=2):
            matrix.data = 0.3 * torch.randn(matrix.shape, generator=generator)
    return made


def noise(backbone: Backbone) -> Tensor:
    return torch.randn(1, *backbone.latent_shape(5, 16, 16), generator=torch.Generator().manual_seed(0))


def sampled(backbone: Backbone, unconditional_scale: float, adapted: bool = True) -> Tensor:
    embeds = backbone.embed(["A koala."]), backbone.embed([""])
    with lora.active(backbone.network, **({"appearance": 0.8} if adapted else {})):
        return denoise(
            backbone, noise(backbone), *embeds, guidance_scale=SCALE, unconditional_scale=unconditional_scale,
            path=PATH,
        )  # fmt: skip


@pytest.mark.parametrize("unconditional_scale", [0.0, 0.5, 1.0])
def test_the_unconditional_half_has_the_loras_at_its_own_scale(backbone: Backbone, unconditional_scale: float) -> None:
    latents = noise(backbone)
    with torch.no_grad():
        for step, following in pairwise(PATH):
            at = torch.tensor([step])
            with lora.active(backbone.network, appearance=0.8):
                adapted = backbone.predict(latents, at, backbone.embed(["A koala."]))
            with lora.active(backbone.network, appearance=0.8 * unconditional_scale):
                weaker = backbone.predict(latents, at, backbone.embed([""]))
            guided = weaker + SCALE * (adapted - weaker)
            latents = backbone.schedule.step(guided, latents, step, following)
    assert torch.allclose(sampled(backbone, unconditional_scale), latents, atol=1e-5)


def test_each_scale_makes_another_video(backbone: Backbone) -> None:
    weak, half, whole = (sampled(backbone, scale) for scale in (0.0, 0.5, 1.0))
    assert not torch.allclose(weak, half, atol=1e-2)
    assert not torch.allclose(half, whole, atol=1e-2)


def test_where_no_lora_acts_the_scale_is_nothing(backbone: Backbone) -> None:
    usual, ours = (sampled(backbone, scale, adapted=False) for scale in (1.0, 0.5))
    assert torch.allclose(usual, ours, atol=1e-4)


def test_guidance_of_one_reads_the_prompt_alone(backbone: Backbone) -> None:
    prompt, one, other = (backbone.embed([words]) for words in ("A koala.", "", "A dog."))
    videos = [denoise(backbone, noise(backbone), prompt, empty, guidance_scale=1, path=PATH) for empty in (one, other)]
    assert torch.equal(*videos)
    predicted = backbone.predict(noise(backbone), torch.tensor([0.5]), prompt)
    step = backbone.schedule.step(predicted, noise(backbone), 0.5, 0.0)
    assert torch.allclose(denoise(backbone, noise(backbone), prompt, one, guidance_scale=1, path=PATH[1:]), step)


@pytest.mark.parametrize("guidance", [1.0, SCALE])
def test_frames_of_a_turn_are_predicted_by_its_own_loras_and_prompt(backbone: Backbone, guidance: float) -> None:
    prompt, empty, own = (backbone.embed([words]) for words in ("A koala and a dog.", "", "A dog."))
    latents, path = noise(backbone), {"guidance_scale": guidance, "path": PATH[1:]}
    early = (torch.arange(latents.shape[2]) < 1).float()[:, None, None]
    turns = [Turn(early, own, frozenset({"motion"})), Turn(1 - early, prompt, frozenset({"appearance"}))]
    with torch.no_grad(), lora.active(backbone.network, **BOTH):
        drawn = denoise(backbone, latents, prompt, empty, **path, turns=turns)
        alone = []
        for name, read in (("motion", own), ("appearance", prompt)):
            with lora.active(backbone.network, **{name: BOTH[name]}):
                alone.append(denoise(backbone, latents, read, empty, **path))
    expected = torch.cat([alone[0][:, :, :1], alone[1][:, :, 1:]], 2)
    assert torch.allclose(drawn, expected, atol=1e-5)
    assert not torch.allclose(*alone, atol=1e-3)


@pytest.mark.parametrize("guidance", [1.0, SCALE])
def test_a_part_is_led_towards_its_own_prediction(backbone: Backbone, guidance: float) -> None:
    """Of its own prompt and LoRA, in a frame that is moved."""
    prompt, empty, own = (backbone.embed([words]) for words in ("A koala and a dog.", "", "A dog."))
    latents, at, half = noise(backbone), torch.tensor([0.5]), noise(backbone).shape[-1] // 2
    share = torch.zeros(latents.shape[2:])
    share[..., half:] = 0.25
    path = {"guidance_scale": guidance, "path": PATH[1:]}
    with torch.no_grad(), lora.active(backbone.network, **BOTH):
        joint, blank = (backbone.predict(latents, at, read) for read in (prompt, empty))
        plain = denoise(backbone, latents, prompt, empty, **path)
        drawn = denoise(
            backbone, latents, prompt, empty, **path, areas=[Area(share, own, frozenset({"motion", "motion2"}), 1)]
        )  # fmt: skip
        with lora.active(backbone.network, motion=BOTH["motion"]):
            apart = backbone.predict(latents.roll(1, -1), at, own).roll(-1, -1)
    blended = (1 - share) * joint + share * apart
    step = backbone.schedule.step(blank + guidance * (blended - blank), latents, 0.5, 0.0)
    assert torch.allclose(drawn, step, atol=1e-5)
    assert torch.allclose(drawn[..., :half], plain[..., :half], atol=1e-5)
    assert not torch.allclose(drawn[..., half:], plain[..., half:], atol=1e-2)


@pytest.mark.parametrize("unconditional_scale", [0.5, 1.0])
def test_videos_of_a_batch_are_those_of_each_alone(backbone: Backbone, unconditional_scale: float) -> None:
    prompts, empty = backbone.embed(["A koala.", "A dog.", "An owl is here."]), backbone.embed(["", "A man.", "A"])
    noises = torch.cat([noise(backbone), noise(backbone).flip(-1), -noise(backbone)])

    def video(chosen: slice) -> Tensor:
        return denoise(
            backbone, noises[chosen], prompts[chosen], empty[chosen], guidance_scale=SCALE, path=PATH,
            unconditional_scale=unconditional_scale,
        )  # fmt: skip

    with lora.active(backbone.network, **BOTH):
        alone = [video(slice(one, one + 1)) for one in range(3)]
        assert torch.allclose(video(slice(3)), torch.cat(alone), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, SCALE])
def test_where_parts_cover_the_frame_each_is_its_own_and_the_prompt_is_not_read(
    backbone: Backbone, guidance: float
) -> None:
    texts = {text: backbone.embed([text]) for text in ("A koala.", "A dog.", "A koala and a dog.", "mars", "")}
    latents, path = noise(backbone), {"guidance_scale": guidance, "path": PATH[1:]}
    left = torch.zeros(latents.shape[2:])
    left[..., : latents.shape[-1] // 2] = 1
    areas = [
        Area(left, texts["A koala."], frozenset({"appearance"}), 0),
        Area(1 - left, texts["A dog."], frozenset({"motion"}), 0),
    ]
    with lora.active(backbone.network, **BOTH):
        one, other = (
            denoise(backbone, latents, texts[text], texts[""], **path, areas=areas)
            for text in ("A koala and a dog.", "mars")
        )
        empty, at = backbone.predict(latents, torch.tensor([0.5]), texts[""]), torch.tensor([0.5])
    assert torch.equal(one, other)
    halves = []
    for name, text in (("appearance", "A koala."), ("motion", "A dog.")):
        with lora.active(backbone.network, **{name: BOTH[name]}):
            halves.append(backbone.predict(latents, at, texts[text]))
    conditional = left * halves[0] + (1 - left) * halves[1]
    expected = backbone.schedule.step(empty + guidance * (conditional - empty), latents, 0.5, 0.0)
    assert torch.allclose(one, expected, atol=1e-5)


def test_nothing_of_sampling_is_kept_for_a_backward_pass(backbone: Backbone) -> None:
    with lora.active(backbone.network, **BOTH), lora.trainable(lora.parameters(backbone.network, "motion")):
        video = in_phases(backbone, SAMPLE)
    assert not video.requires_grad


def in_phases(backbone: Backbone, sample: SampleConfig, told: list[Progress] | None = None, **parts: Any) -> Tensor:
    embeds = backbone.embed(["A koala is swimming."]), backbone.embed([""])
    report = [].append if told is None else told.append
    return denoise_in_phases(backbone, noise(backbone), *embeds, sample, BOTH, report, **parts)


def test_areas_and_turns_have_their_say_in_every_phase(backbone: Backbone) -> None:
    whole, kinds = torch.ones(noise(backbone).shape[2:]), frozenset(BOTH)
    dog = backbone.embed(["A dog is here."])
    plain = in_phases(backbone, SAMPLE)
    area, turn = Area(whole, dog, kinds, 0), Turn(whole[:, :1, :1], dog, kinds)
    drawn = [in_phases(backbone, SAMPLE, areas=[area]), in_phases(backbone, SAMPLE, turns=[turn])]
    assert torch.allclose(*drawn, atol=1e-4)
    assert not torch.allclose(drawn[0], plain, atol=1e-3)
    with lora.active(backbone.network, **BOTH):
        alone = denoise(
            backbone, noise(backbone), dog, backbone.embed([""]), guidance_scale=SCALE,
            path=backbone.schedule.path(SAMPLE.num_inference_steps),
        )  # fmt: skip
    assert torch.allclose(drawn[0], alone, atol=1e-4)


def test_a_video_in_phases_is_its_parts_one_after_the_other(backbone: Backbone) -> None:
    rests = SAMPLE.but(appearance_from=0.25, motion_until=0.75, unconditional_scale=0.5)
    path, embeds = backbone.schedule.path(4), (backbone.embed(["A koala is swimming."]), backbone.embed([""]))
    latents = noise(backbone)
    for acting, part in (({"motion": 0.5}, path[:2]), (BOTH, path[1:4]), ({"appearance": 0.8}, path[3:])):
        with lora.active(backbone.network, **acting):
            latents = denoise(
                backbone, latents, *embeds, guidance_scale=SCALE, unconditional_scale=0.5, path=part
            )  # fmt: skip
    assert torch.equal(in_phases(backbone, rests), latents)
    assert not torch.allclose(in_phases(backbone, SAMPLE), latents, atol=1e-2)


@pytest.mark.parametrize("appearance_from", [0.0, 0.5])
def test_every_step_of_the_whole_path_is_told_once(backbone: Backbone, appearance_from: float) -> None:
    told: list[Progress] = []
    in_phases(backbone, SAMPLE.but(appearance_from=appearance_from), told)
    assert told == [Progress("denoising", step, 4) for step in (1, 2, 3, 4)]


def test_every_step_of_a_part_is_told_once(backbone: Backbone) -> None:
    told: list[Progress] = []
    embeds = backbone.embed(["A koala."]), backbone.embed([""])
    denoise(backbone, noise(backbone), *embeds, guidance_scale=SCALE, path=PATH, report=told.append)
    assert told == [Progress("denoising", 1, 2), Progress("denoising", 2, 2)]


def test_an_appearance_waits_for_a_motion_only() -> None:
    waits, path = SampleConfig(appearance_from=0.5), [900, 700, 500, 300, -1]
    assert phases(waits, BOTH, path) == [({"motion": 0.5}, path[:3]), (BOTH, path[2:])]
    for alone in ({"appearance": 0.8}, {"appearance": 0.8, "motion": 0.0}):
        assert phases(waits, alone, path) == [(alone, path)]


def test_less_than_a_step_is_no_phase() -> None:
    path = [900, 700, 500, 300, -1]
    assert phases(SampleConfig(appearance_from=0.2), BOTH, path) == [(BOTH, path)]
    assert phases(SampleConfig(appearance_from=0.45), BOTH, path) == [({"motion": 0.5}, path[:2]), (BOTH, path[1:])]
