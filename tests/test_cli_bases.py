"""The base models: which there are, which can run here, and getting one from a hub that is not always kind."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from material import assert_one_sentence, run
from standin import Hub, at

from customttt import backbones, machine
from customttt.backbones import choose_base, hub, identify, open_base
from customttt.backbones.animatediff import ADAPTER
from customttt.backbones.survey import survey
from customttt_cli import output

GPU = machine.Gpu("a GPU", 80_000_000_000)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def published(standin: Hub, base: Path, folder: Path) -> Path:
    """A base on the hub, among files that nobody needs."""
    shutil.copytree(base, folder)
    for name in ("README.md", "model.ckpt", "unet/diffusion_pytorch_model.bin", "unet/x.non_ema.safetensors"):
        (folder / name).write_bytes(b"not needed")
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(vae, vae.with_suffix(".fp16.safetensors"))
    standin.repositories["owner/base"] = folder
    return folder


def test_what_is_pulled_is_what_is_needed_once_and_it_works_offline(
    standin: Hub, cache: Path, tiny_random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(standin, tiny_random_base, tmp_path / "base")
    done = run("bases", "pull", "owner/base")
    assert done.exit_code == 0, done.output
    assert "unet/diffusion_pytorch_model.safetensors: 0.0 GB of 0.0 GB are here." in done.stderr
    assert Path(done.stdout.strip()).is_relative_to(cache)
    got = set(standin.downloaded)
    assert {"unet/config.json", "tokenizer/tokenizer.json"} <= got
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in got
    assert "vae/diffusion_pytorch_model.safetensors" not in got
    assert not [name for name in got if "non_ema" in name or not name.endswith((".json", ".txt", ".safetensors"))]
    standin.downloaded.clear()
    assert run("bases", "pull", "owner/base").exit_code == 0
    assert standin.downloaded == []
    offline(monkeypatch)
    backbone = open_base("owner/base", torch.device("cpu"))
    assert backbone.fingerprint == identify("owner/base")


def test_a_broken_pull_goes_on_with_the_file_that_broke(standin: Hub, tiny_random_base: Path, tmp_path: Path) -> None:
    published(standin, tiny_random_base, tmp_path / "base")
    standin.breaks_at = "unet/diffusion_pytorch_model.safetensors"
    assert_one_sentence(run("bases", "pull", "owner/base"), 10, "'owner/base' cannot be downloaded", "once more")
    before = set(standin.downloaded) - {standin.breaks_at}
    standin.breaks_at = None
    standin.downloaded.clear()
    assert run("bases", "pull", "owner/base").exit_code == 0
    assert "unet/diffusion_pytorch_model.safetensors" in standin.downloaded
    assert not before & set(standin.downloaded)


def test_a_pull_that_is_interrupted_says_that_the_same_command_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(backbones, "pull", interrupted)
    done = run("bases", "pull", "zeroscope")
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (130, "Interrupted; the same command goes on.")


def test_an_image_checkpoint_is_pulled_together_with_the_motion_adapter(
    standin: Hub, cache: Path, tiny_random_base: Path, tmp_path: Path
) -> None:
    folder = published(standin, tiny_random_base, tmp_path / "base")
    _architecture("UNet2DConditionModel", cross_attention_dim=768)(standin, folder)
    standin.repositories[ADAPTER.id] = Path(shutil.copytree(folder / "vae", tmp_path / "adapter"))
    done = run("bases", "pull", "owner/base")
    assert done.exit_code == 0, done.output
    assert [Path(line).is_relative_to(cache) for line in done.stdout.splitlines()] == [True, True]
    assert {"config.json", "diffusion_pytorch_model.fp16.safetensors"} <= set(standin.downloaded)
    assert hub.cached(ADAPTER)


def _gated(standin: Hub, _: Path) -> None:
    standin.gated.add("owner/base")


def _missing(standin: Hub, _: Path) -> None:
    standin.repositories.clear()


def _no_unet(_: Hub, folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def _pickles(_: Hub, folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "x.non_ema.safetensors").unlink()


def _architecture(name: str, **changes: object) -> Callable[[Hub, Path], None]:
    def change(_: Hub, folder: Path) -> None:
        (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": name, **changes}))

    return change


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_gated, ("gated", "hf auth login")),
        (_missing, ("There is no 'owner/base' on the hub",)),
        (_no_unet, ("no unet/config.json",)),
        (_pickles, ("unet/*.safetensors", "not read")),
        (_architecture("SD3Transformer2DModel"), ("SD3Transformer2DModel", "UNet3DConditionModel")),
        (_architecture("UNet2DConditionModel", cross_attention_dim=2048), ("2048", "768")),
    ],
)
def test_what_cannot_be_pulled_is_told_in_one_sentence_before_the_weights_come(
    standin: Hub,
    tiny_random_base: Path,
    tmp_path: Path,
    spoil: Callable[[Hub, Path], None],
    words: tuple[str, ...],
) -> None:
    spoil(standin, published(standin, tiny_random_base, tmp_path / "base"))
    assert_one_sentence(run("bases", "pull", "owner/base"), 10, *words)
    assert not [name for name in standin.downloaded if name.endswith(".safetensors")]


def test_a_full_disk_is_told_before_the_weights_come(
    standin: Hub, tiny_random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(standin, tiny_random_base, tmp_path / "base")
    monkeypatch.setattr(machine, "free_disk", lambda _: 1000)
    assert_one_sentence(run("bases", "pull", "owner/base"), 10, "no room", "HF_HOME")
    assert not [name for name in standin.downloaded if name.endswith(".safetensors")]


@pytest.mark.usefixtures("nobody")
def test_without_a_network_the_paper_s_base_is_refused_in_seconds(clip: Path) -> None:
    began = time.monotonic()
    done = run("learn-motion", "swimming", clip, "--base", "animatediff", "--frames", 8)
    assert_one_sentence(done, 10, "does not answer", "--base tiny")
    assert_one_sentence(run("bases", "pull", "zeroscope"), 10, "does not answer")
    assert_one_sentence(run("bases", "pull", "owner/base"), 10, "does not answer")
    assert time.monotonic() - began < 10


def test_a_hub_that_takes_the_call_and_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        began = time.monotonic()
        assert not hub.answers(0.2)
        assert time.monotonic() - began < 2


def test_the_parts_of_a_sharded_base_are_all_needed(tiny_random_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_random_base, tmp_path / "base"))
    assert hub.missing_part(folder) is None
    index = {"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "gone.safetensors"}}
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert hub.missing_part(folder) == "vae/*.safetensors"
    done = run("bases", "pull", folder)
    assert_one_sentence(done, 10, "vae/*.safetensors is missing")


@pytest.mark.usefixtures("nobody")
def test_the_table_tells_what_every_base_needs_and_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", list)
    done = run("bases")
    assert done.exit_code == 0, done.output
    for words in ("tiny", "8 of 128 x 128", "CC-BY-NC-4.0", "3.7 GB", "7 GB", "needs a CUDA GPU with 7 GB"):
        assert words in done.stdout
    assert "Without --base, tiny is used" in done.stderr
    found = {one["name"]: one for one in json.loads(run("bases", "--json").stdout)}
    assert list(found) == ["tiny", "animatediff", "zeroscope", "modelscope", "wan"]
    assert found["tiny"]["runs"]
    assert found["tiny"]["here"]
    assert not found["zeroscope"]["runs"]
    assert found["zeroscope"]["size"] == 384


@pytest.mark.usefixtures("standin")
def test_with_a_large_gpu_and_a_hub_every_base_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [GPU])
    assert [one.obstacle for one in survey()] == [None] * 5
    assert choose_base(None)[0] == "animatediff"
    assert "after 'customttt bases pull zeroscope'" in run("bases").stdout
    monkeypatch.setenv("CUSTOMTTT_BASE", "wan")
    assert choose_base(None) == ("wan", "as CUSTOMTTT_BASE says")
    assert "Without --base, wan is used (as CUSTOMTTT_BASE says)." in run("bases").stderr


@pytest.mark.usefixtures("nobody")
def test_with_a_small_gpu_or_no_hub_some_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("a small one", 6_000_000_000)])
    obstacles = {one.known.name: one.obstacle or "" for one in survey()}
    assert "the model hub does not answer" in obstacles["animatediff"]
    assert "7 GB of GPU memory, and there are 6" in obstacles["zeroscope"]
    assert obstacles["tiny"] == ""


@pytest.mark.usefixtures("nobody")
def test_doctor_tells_what_is_here(home: Path) -> None:
    done = run("doctor")
    assert done.exit_code == 0, done.output
    for words in ("python", "torch", "cores", "available", "0 concepts, intact", "does not answer", "base       tiny"):
        assert words in done.stdout
    found = json.loads(run("doctor", "--json").stdout)
    assert found["library"] == str(home)
    assert found["cores"] >= 1
    assert found["memory_bytes"] >= found["memory_available_bytes"] > 0
    assert not home.exists()


@pytest.mark.usefixtures("nobody")
def test_doctor_finds_a_damaged_library(learned: Path) -> None:
    assert "2 concepts, intact" in run("doctor").stdout
    (learned / "concepts" / "koala" / "lora.safetensors").write_bytes(b"something else")
    done = run("doctor")
    assert_one_sentence(done, 6, "koala", "customttt verify")
    assert "2 concepts, damaged" in done.stdout


def test_doctor_tells_the_rest_where_the_usual_base_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOMTTT_BASE", "/nowhere")
    done = run("doctor")
    assert_one_sentence(done, 10, "No base model in /nowhere")
    assert "/nowhere (as CUSTOMTTT_BASE says)" in done.stdout
    assert "GPU" in done.stdout


def test_doctor_sees_the_hub(standin: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{standin.url}, reachable" in run("doctor").stdout
    offline(monkeypatch)
    assert "HF_HUB_OFFLINE" in run("doctor").stdout


def test_only_what_comes_from_the_hub_is_said_to_be_downloaded(
    tiny_random_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_random_base.parent)
    for base in ("tiny", str(tiny_random_base), tiny_random_base.name):
        with output.loading(base):
            pass
    assert "downloaded" not in capsys.readouterr().err
    with output.loading("wan"):
        pass
    assert "Loading wan; the first time it is downloaded" in capsys.readouterr().err
