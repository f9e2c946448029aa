"""Wan: what diffusers' own pipeline and a plain training step of diffusers and PEFT do, and the main job on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import foretold
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from lion_pytorch import Lion
from material import assert_one_sentence, run
from peft import LoraConfig
from standin import Hub
from torch import Tensor
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from customttt import backbones, lora, sampling, train
from customttt.backbones import Backbone, defaults, known_bases, open_base, places
from customttt.backbones.wan import ARCHITECTURE, LINEARS, TEXT, TEXT_PRECISION, Wan
from customttt.errors import BaseUnavailableError, UsageError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def wan(tiny_random_wan_base: Path) -> Backbone:
    return open_base(str(tiny_random_wan_base), CPU)


def noise(backbone: Backbone, frames: int = 9, size: int = 48) -> Tensor:
    return torch.randn(1, *backbone.latent_shape(frames, size, size), generator=torch.Generator().manual_seed(0))


def pipeline(folder: Path) -> Any:
    """Diffusers' own, as its documentation puts it together."""
    pipe = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=TEXT_PRECISION),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        transformer=WanTransformer3DModel.from_pretrained(folder / "transformer"),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative."""
    return float((ours - theirs).norm() / theirs.norm())


def test_diffusers_own_pipeline_draws_the_same_video(wan: Backbone, tiny_random_wan_base: Path) -> None:
    prompt, started = "a koala is swimming on mars", noise(wan)
    options = {
        "prompt": prompt, "negative_prompt": "", "height": 48, "width": 48, "num_frames": 9, "num_inference_steps": 6,
        "guidance_scale": 4.0, "latents": started,
    }  # fmt: skip
    pipe = pipeline(tiny_random_wan_base)
    latents = sampling.denoise(
        wan, started, wan.embed([prompt]), wan.embed([""]), guidance_scale=4.0, path=wan.schedule.path(6)
    )
    assert difference(latents, pipe(**options, output_type="latent").frames) < 1e-5
    frames = pipe(**options, output_type="pt").frames.transpose(1, 2)
    assert difference(wan.decode(latents) / 2 + 0.5, frames) < 1e-4


def test_a_clip_is_encoded_as_the_mean_of_the_posterior_scaled(wan: Backbone, tiny_random_wan_base: Path) -> None:
    video = torch.rand(1, 3, 9, 48, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae: Any = AutoencoderKLWan.from_pretrained(tiny_random_wan_base / "vae")
    mean, std = (torch.tensor(one).view(1, -1, 1, 1, 1) for one in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        expected = (vae.encode(video).latent_dist.mean - mean) / std
    assert torch.allclose(wan.encode(video), expected, atol=1e-5)
    assert torch.allclose(wan.encode(video[:, :, :1]), expected[:, :, :1], atol=1e-5)  # the codec never looks ahead


def learned_plainly(
    folder: Path, kind: str, latents: Tensor, embeds: Tensor, initial: lora.Weights, steps: int
) -> tuple[list[float], list[Tensor], lora.Weights]:
    """Losses, gradients and weights of the same steps in plain diffusers, PEFT and torch."""
    network: Any = WanTransformer3DModel.from_pretrained(folder / "transformer").requires_grad_(False)
    modules = sorted({key.rsplit(".lora_", 1)[0] for key in initial})
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=modules))
    learned = {key.replace(".default", ""): one for key, one in network.named_parameters() if "lora_" in key}
    for key, parameter in learned.items():
        parameter.data.copy_(initial[key])
    optimizer, generator = Lion(learned.values(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1), torch.Generator()
    generator.manual_seed(0)
    losses, gradients = [], []
    for _ in range(steps):
        if kind == "appearance":
            torch.randint(0, 1, (1,), generator=generator)  # which picture
        eps, share = torch.randn(latents.shape, generator=generator), torch.rand(1, generator=generator)
        prediction = network((1 - share) * latents + share * eps, 1000 * share, embeds).sample
        error = prediction - (eps - latents)
        loss = error.square().mean()
        if kind == "motion":
            anchor = int(torch.randint(0, latents.shape[2], (), generator=generator))
            loss = loss + (2**0.5 * error - error[:, :, anchor : anchor + 1]).square().mean()
        loss.backward()
        losses.append(loss.item())
        gradients += [parameter.grad.clone() for parameter in learned.values()]
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients, {key: parameter.detach() for key, parameter in learned.items()}


@pytest.mark.parametrize("kind", ["appearance", "motion"])
def test_learning_is_what_plain_diffusers_and_peft_do(
    wan: Backbone, tiny_random_wan_base: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = getattr(wan.defaults, kind).but(steps=3, dropout=0.0, learning_rate=1e-3)
    latents, embeds = noise(wan, 1 if kind == "appearance" else 9), wan.embed(["A koala."])
    lora.inject(wan.network, "start", wan.targets(kind, config.layers), rank=2, seed=config.seed)
    initial = lora.state(wan.network, "start")
    lora.remove(wan.network, "start")
    expected = learned_plainly(tiny_random_wan_base, kind, latents, embeds, initial, 3)
    gradients: list[Tensor] = []
    step = train.Lion.step

    def watched(self: Any, *arguments: Any) -> Any:
        gradients.extend(one.grad.clone() for group in self.param_groups for one in group["params"])
        return step(self, *arguments)

    monkeypatch.setattr(train.Lion, "step", watched)
    learn = train.learn_appearance if kind == "appearance" else train.learn_motion
    weights, losses = learn(wan, latents, embeds, config, Accelerator(cpu=True))
    assert losses == pytest.approx(expected[0], rel=1e-5)
    assert any(gradient.any() for gradient in gradients)
    for ours, theirs in zip(gradients, expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-7)
    assert weights.keys() == expected[2].keys()


def test_the_published_transformer_and_its_loras_have_the_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.42 B parameters in 5.68 GB of float32; all linears at rank 32 are 43.7 M, half of them of either kind."""
    with torch.device("meta"):
        networks: list[Any] = [
            WanTransformer3DModel.from_config(dict(ARCHITECTURE)),
            UMT5EncoderModel(UMT5Config(**TEXT)),
            AutoencoderKLWan(),
        ]
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert counts == [1_418_996_800, 5_680_910_336, 126_892_531]
    assert round(4 * sum(counts) / 1e9, 1) == round(known_bases()["wan"].download / 1e9, 1)
    monkeypatch.setattr("customttt.backbones._config", lambda _: ARCHITECTURE)
    found = places("wan")
    settings = defaults("wan")
    sizes = [
        sum(32 * sum(place.shape) for place in found.values() if place.layer in config.layers)
        for config in (settings.appearance, settings.motion)
    ]
    assert len(found) == 30 * len(LINEARS)
    assert sizes == [21_872_640, 21_872_640]


@pytest.mark.parametrize(
    ("parts", "counts"),
    [(foretold.FIVE_B, (4_999_787_712, 704_688_668)), (foretold.A14B, (2 * 14_288_491_584, 126_892_531))],
    ids=["5B", "A14B"],
)
def test_wan_2_2_has_the_published_sizes(
    tmp_path: Path, parts: dict[str, dict[str, Any]], counts: tuple[int, int]
) -> None:
    sketch = backbones.sketch(foretold.write(tmp_path / "base", parts), CPU)
    assert tuple(sum(one.numel() for one in part.parameters()) for part in (sketch.network, sketch.vae)) == counts


def test_the_text_encoder_visits_layer_by_layer_and_is_read_alike(wan: Backbone) -> None:
    """Whole on the device, as while a word is learned, or not."""
    alone = wan.embed(["A koala."])
    with wan.meaning("koala", wan.word("koala")):
        assert torch.equal(wan.embed(["A koala."]), alone)
    with wan.meaning("koala", wan.word("mars")):
        assert not torch.equal(wan.embed(["A koala."]), alone)
    assert torch.equal(wan.embed(["A koala."]), alone)


def test_a_learned_word_gets_its_gradient_through_the_text_encoder(wan: Backbone) -> None:
    word = wan.word("koala").requires_grad_()
    with wan.meaning("koala", word):
        wan.predict(noise(wan), torch.tensor([500.0]), wan.embed(["A koala."])).square().mean().backward()
    assert word.grad is not None
    assert word.grad.any()


@torch.no_grad()
def test_layers_that_read_something_else_read_it(wan: Backbone) -> None:
    """All of them: as if it were the prompt; some: neither; and only in the rows that are starred."""
    noisy, (koala, mars) = noise(wan).expand(2, -1, -1, -1, -1), (wan.embed([text]) for text in ("a koala.", "mars"))
    at = torch.tensor([500.0, 500.0])
    plain, other = (wan.predict(noisy, at, one.expand(2, -1, -1)) for one in (koala, mars))
    read = {}
    for name, layers in (("all", frozenset(range(9))), ("some", frozenset({2, 5}))):
        with wan.reading([layers], mars, 9):
            read[name] = wan.predict(noisy, at, koala.expand(2, -1, -1))
    assert torch.allclose(read["all"][0], other[0], atol=1e-6)
    assert torch.equal(read["all"][1], plain[1])
    assert not torch.allclose(read["some"][0], plain[0])
    assert not torch.allclose(read["some"][0], other[0])
    assert torch.equal(wan.predict(noisy, at, koala.expand(2, -1, -1)), plain)


def test_the_whole_main_job_runs_on_a_transformer(
    tiny_random_wan_base: Path, pictures: Path, clip: Path, tmp_path: Path
) -> None:
    for command in (["learn-appearance", "koala", str(pictures)], ["learn-motion", "swimming", str(clip)]):
        done = run(*command, "--base", str(tiny_random_wan_base))
        assert done.exit_code == 0, done.output
    done = run("compose", "koala", "swimming", "on Mars", "-o", str(tmp_path / "out.mp4"))
    assert done.exit_code == 0, done.output
    shown = json.loads(run("show", str(tmp_path / "out.mp4"), "--json").stdout)
    assert (shown["sample"]["num_frames"], shown["sample"]["fps"]) == (5, 16)


@pytest.fixture
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wan, "load", lambda *_: pytest.fail("it was loaded"))


@pytest.mark.usefixtures("_nothing_is_loaded")
@pytest.mark.parametrize(("frames", "words"), [("4", "1 or 5"), ("7", "5 or 9")])
def test_frames_that_the_codec_would_drop_are_refused(
    tiny_random_wan_base: Path, clip: Path, frames: str, words: str
) -> None:
    done = run("learn-motion", "swimming", str(clip), "--base", str(tiny_random_wan_base), "--frames", frames)
    assert_one_sentence(done, 2, f"Frames are {frames}", f"such as {words}")


@pytest.mark.usefixtures("_nothing_is_loaded")
def test_sides_that_the_network_would_cut_are_refused(
    tiny_random_wan_base: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_random_wan_base, tmp_path / "base"))
    own = json.loads((folder / "customttt.json").read_text())
    (folder / "customttt.json").write_text(json.dumps({**own, "sample": {**own["sample"], "size": 40}}))
    done = run("learn-appearance", "koala", str(pictures), "--base", str(folder))
    assert_one_sentence(done, 2, "A side is 40 pixels", "multiples of 16, such as 32 or 48")


def test_a_clip_that_would_be_cut_is_never_encoded(wan: Backbone) -> None:
    for frames, width in ((6, 32), (5, 40)):
        with pytest.raises(UsageError, match="such as"):
            wan.encode(torch.zeros(1, 3, frames, 32, width))


def test_other_kinds_of_wan_are_refused_in_one_sentence(tiny_random_wan_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_random_wan_base, tmp_path / "base"))
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps({**config, "in_channels": 36}))
    for ask in (places, lambda base: open_base(base, CPU)):
        with pytest.raises(BaseUnavailableError, match="makes videos of a picture"):
            ask(str(folder))


def test_a_transformer_is_pulled_by_its_hub_id(
    standin: Hub, cache: Path, tiny_random_wan_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin.repositories["owner/wan"] = tiny_random_wan_base
    done = run("bases", "pull", "owner/wan")
    assert done.exit_code == 0, done.output
    assert Path(done.stdout.strip()).is_relative_to(cache)
    assert {"transformer/config.json", "scheduler/scheduler_config.json"} <= set(standin.downloaded)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert isinstance(open_base("owner/wan", CPU), Wan)
