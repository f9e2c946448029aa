"""Wan's two experts: sampled as diffusers' own pipeline does, each with the LoRA of its kind, which travels."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import WanPipeline, WanTransformer3DModel
from material import assert_one_sentence, run
from safetensors import safe_open
from standin import Hub
from test_wan import difference, noise, pipeline
from torch import Tensor
from travel import safetensors

from customttt import backbones, lora, planner, sampling, thrift, train, ttt
from customttt.backbones import Backbone, open_base, places
from customttt.backbones import wan as wan_family
from customttt.backbones.experts import EXPERTS
from customttt.backbones.wan import Wan
from customttt.concept import Kind
from customttt.config import TTTConfig
from customttt.errors import BaseUnavailableError, UsageError
from customttt.library import WEIGHTS, Library

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def wan(tiny_random_experts_base: Path) -> Backbone:
    return open_base(str(tiny_random_experts_base), CPU)


def weights_for(backbone: Backbone, kind: Kind) -> lora.Weights:
    """A LoRA that can be seen."""
    lora.inject(backbone.network, "new", backbone.targets(kind, (2, 5)), rank=2)
    empty = lora.state(backbone.network, "new")
    lora.remove(backbone.network, "new")
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(weight.shape, generator=generator) * 0.2 for key, weight in empty.items()}


@torch.no_grad()
def test_diffusers_own_pipeline_draws_the_same_video(wan: Backbone, tiny_random_experts_base: Path) -> None:
    """It changes the expert after half of these steps."""
    prompt, started = "a koala is swimming on mars", noise(wan)
    theirs: Any = pipeline(tiny_random_experts_base)
    second = WanTransformer3DModel.from_pretrained(tiny_random_experts_base / "transformer_2")
    pipe = WanPipeline(**theirs.components | {"transformer_2": second}, boundary_ratio=0.875)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt=prompt, negative_prompt="", height=48, width=48, num_frames=9, num_inference_steps=6, guidance_scale=4.0,
        latents=started, output_type="latent",
    ).frames  # fmt: skip
    path = wan.schedule.path(6)
    assert 1 < sum(timestep >= 875 for timestep in path) < 6
    embeds = wan.embed([prompt]), wan.embed([""])
    assert difference(sampling.denoise(wan, started, *embeds, guidance_scale=4.0, path=path), expected) < 1e-5


@torch.no_grad()
def test_a_batch_may_be_of_both_sides_of_the_boundary(wan: Backbone) -> None:
    timesteps = torch.tensor([100.0, 900.0, 875.0, 500.0])
    noisy = torch.randn(4, *wan.latent_shape(5, 32, 32), generator=torch.Generator().manual_seed(0))
    embeds = wan.embed(["A koala.", "mars", "A man.", "running"])
    alone = [wan.predict(noisy[[row]], timesteps[[row]], embeds[[row]]) for row in range(4)]
    torch.testing.assert_close(wan.predict(noisy, timesteps, embeds), torch.cat(alone))


def test_each_kind_has_an_expert_and_acts_at_its_noise_alone(wan: Backbone, tiny_random_experts_base: Path) -> None:
    one = places(str(tiny_random_experts_base))
    for kind, expert in EXPERTS.items():
        names = wan.targets(kind, wan.layers(kind))
        assert names == [name for name, place in one.items() if place.kind == kind]
        assert {name.split(".")[0] for name in names} == {expert}
        lora.restore(wan.network, kind, weights_for(wan, kind))
        try:
            for timestep in (100.0, 874.0, 875.0, 1000.0):
                at, noisy, embeds = torch.tensor([timestep]), noise(wan), wan.embed(["A koala."])
                with torch.no_grad(), lora.active(wan.network):
                    without = wan.predict(noisy, at, embeds)
                with torch.no_grad(), lora.active(wan.network, **{kind: 1.0}):
                    changed = not torch.equal(wan.predict(noisy, at, embeds), without)
                assert changed == ((timestep >= 875) == (kind == "motion"))
        finally:
            lora.remove(wan.network, kind)


@pytest.mark.parametrize("kind", EXPERTS)
def test_learning_stays_at_the_noise_of_the_expert(wan: Backbone, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    predict = type(wan).predict

    def watched(self: Any, noisy: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        drawn.extend(timesteps.tolist())
        return predict(self, noisy, timesteps, embeds)  # type: ignore[no-any-return]

    monkeypatch.setattr(type(wan), "predict", watched)
    learn = train.learn_appearance if kind == "appearance" else train.learn_motion
    config = getattr(wan.defaults, kind).but(steps=6, batch_size=2)
    latents, embeds = noise(wan, 1 if kind == "appearance" else 5, 32), wan.embed(["A koala."])
    weights, _ = learn(wan, latents, embeds, config, Accelerator(cpu=True))
    assert len(drawn) == 12
    assert all((timestep >= 875) == (kind == "motion") for timestep in drawn)
    assert all(weight.any() for key, weight in weights.items() if "lora_B" in key)
    other = (0.0, 0.5) if kind == "motion" else (0.9, 1.0)
    with pytest.raises(UsageError, match="its LoRA acts from"):
        learn(wan, latents, embeds, config.but(noise=other), Accelerator(cpu=True))


@torch.no_grad()
def test_the_prompt_is_heard_in_the_expert_that_works(wan: Backbone) -> None:
    """So that, of subjects kept apart by their words, motions keep to theirs, too."""
    heard: list[str] = []
    embeds, noisy = wan.embed(["A koala."]), noise(wan)
    with wan.attending(lambda linear, *_: heard.append(linear)):
        for timestep, expert in ((900.0, EXPERTS["motion"]), (100.0, EXPERTS["appearance"])):
            heard.clear()
            wan.predict(noisy, torch.tensor([timestep]), embeds)
            assert {linear.split(".")[0] for linear in heard} == {expert}


@torch.no_grad()
def test_what_blocks_read_instead_is_asked_of_an_expert_while_it_works(wan: Backbone) -> None:
    """It may be in main memory until then."""
    asked: list[str] = []
    network: Any = wan.network
    embeds = wan.embed(["A koala."])
    hooks = [
        getattr(network, name).condition_embedder.text_embedder.register_forward_hook(
            lambda *_, name=name: asked.append(name)
        )
        for name in EXPERTS.values()
    ]
    with wan.reading([frozenset({2})], wan.embed(["A man."]), 9):
        assert asked == []
        wan.predict(noise(wan), torch.tensor([900.0]), embeds)
        assert {*asked} == {EXPERTS["motion"]}
    for hook in hooks:
        hook.remove()


def test_nothing_is_merged_into_weights_that_come_and_go(
    tiny_random_experts_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wan_family, "precision", lambda _: torch.bfloat16)
    narrow = open_base(str(tiny_random_experts_base), CPU)
    lora.inject(narrow.network, "motion", narrow.targets("motion", (2,)), rank=2)
    assert lora.is_narrow(narrow.network)
    monkeypatch.setattr(lora, "merged", None)
    with thrift.frozen(narrow, motion=0.5):
        assert lora.acting(narrow.network) == {"motion": 0.5}


def test_test_time_training_teaches_each_expert_its_own(wan: Backbone) -> None:
    """Pictures only where the appearance acts, clips at all noise: here where the motion does."""
    loras = {kind: weights_for(wan, kind) for kind in EXPERTS}
    embeds = wan.embed(["A koala is swimming."])
    prompts = ttt.Prompts(teachers=dict.fromkeys(loras, embeds), student=embeds, empty=embeds)
    config = TTTConfig(
        steps=2, learning_rate=1e-3, reference_steps=1, reference_guidance=1.0, renoise_motion=(0.9, 1.0)
    )
    adapt = partial(ttt.adapt, wan, loras, prompts, sample=wan.defaults.sample, accelerator=Accelerator(cpu=True))
    adapted, _ = adapt(config=config)
    for kind, before in loras.items():
        assert before.keys() == adapted[kind].keys()
        assert not any(torch.equal(before[key], adapted[kind][key]) for key in before)
    with pytest.raises(UsageError, match=r"that is from 0 to 0\.875"):
        adapt(config=config.but(renoise_appearance=(0.9, 1.0)))


def test_the_whole_main_job_runs_on_two_experts_and_its_concepts_travel(
    tiny_random_experts_base: Path, pictures: Path, clip: Path, tmp_path: Path
) -> None:
    """Into plain diffusers' two networks, and back."""
    base = str(tiny_random_experts_base)
    for command in (["learn-appearance", "koala", str(pictures)], ["learn-motion", "swimming", str(clip)]):
        done = run(*command, "--base", base)
        assert done.exit_code == 0, done.output
    done = run("compose", "koala", "swimming", "on Mars", "-o", tmp_path / "out.mp4")
    assert done.exit_code == 0, done.output
    library = Library()
    for name, kind in (("koala", "appearance"), ("swimming", "motion")):
        own = lora.load(library.weights(name))
        assert {key.split(".")[0] for key in own} == {EXPERTS[kind]}  # type: ignore[index]
        for form in ("diffusers", "kohya"):
            file = tmp_path / f"{name}-{form}.safetensors"
            assert run("export", name, "--format", form, "-o", file).exit_code == 0
            done = run("import", file, "--base", base, "--name", f"{name}-{form}")
            assert done.exit_code == 0, done.output
            back = lora.load(library.weights(f"{name}-{form}"))
            assert all(torch.equal(back[key], own[key]) for key in own)
            with safe_open(file, framework="pt") as opened:
                assert f"in {EXPERTS[kind]} of its two experts" in opened.metadata()["modelspec.description"]  # type: ignore[index]
        plain: Any = WanTransformer3DModel.from_pretrained(tiny_random_experts_base / EXPERTS[kind])  # type: ignore[index]
        state = WanPipeline.lora_state_dict(tmp_path / f"{name}-diffusers.safetensors")
        WanPipeline.load_lora_into_transformer(state, transformer=plain, adapter_name=name)
        assert sum(".lora_A." in key for key, _ in plain.named_parameters()) == len(own) / 2


def test_a_stranger_s_file_goes_to_the_expert_of_the_kind_that_is_told(
    wan: Backbone, tiny_random_experts_base: Path, tmp_path: Path
) -> None:
    weights = weights_for(wan, "appearance")
    theirs = {Wan.comfyui(key, "motion"): weight for key, weight in weights.items()}
    (tmp_path / "sloth.safetensors").write_bytes(safetensors(theirs))
    told = "import", tmp_path / "sloth.safetensors", "--base", tiny_random_experts_base
    assert_one_sentence(run(*told), 2, "--kind appearance or --kind motion")
    for kind, expert in EXPERTS.items():
        done = run(*told, "--kind", kind, "--name", f"{kind}-sloth")
        assert done.exit_code == 0, done.output
        assert {key.split(".")[0] for key in lora.load(Library().weights(f"{kind}-sloth"))} == {expert}
    assert WEIGHTS in Library().get("motion-sloth").files


def test_only_the_expert_that_works_counts_on_a_gpu(tiny_random_experts_base: Path, tiny_random_wan_base: Path) -> None:
    both, one = (backbones.sketch(str(base), CPU) for base in (tiny_random_experts_base, tiny_random_wan_base))
    assert len(list(both.network.parameters())) == 2 * len(list(one.network.parameters()))
    (working,), (alone,) = both.on_gpu(), one.on_gpu()
    assert len(list(working.parameters())) == len(list(alone.parameters()))
    assert both.on_gpu(decoding=True) == [both.vae]
    config = both.defaults.appearance.but(steps=1)
    costs = [
        planner.lesson(str(base), "appearance", config, 1, (32, 32), 0, CPU).flops
        for base in (tiny_random_experts_base, tiny_random_wan_base)
    ]
    assert costs[0] == costs[1]


def test_two_experts_are_pulled_by_their_hub_id_and_half_of_them_is_not_taken(
    standin: Hub, cache: Path, tiny_random_experts_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin.repositories["owner/experts"] = tiny_random_experts_base
    assert len(places("owner/experts")) == len(places(str(tiny_random_experts_base)))  # from configurations alone
    assert not [name for name in standin.downloaded if name.endswith(".safetensors")]
    done = run("bases", "pull", "owner/experts")
    assert done.exit_code == 0, done.output
    assert Path(done.stdout.strip()).is_relative_to(cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert len(open_base("owner/experts", CPU).blocks[0]) == 2
    half = Path(shutil.copytree(tiny_random_experts_base, tmp_path / "half"))
    shutil.rmtree(half / "transformer_2")
    with pytest.raises(BaseUnavailableError, match=r"transformer_2/config\.json is missing"):
        open_base(str(half), CPU)
