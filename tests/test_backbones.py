"""Every family: numbered layers, bypassed motion, parameter counts, and bases that cannot be opened."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import published
import pytest
import torch
from diffusers import UNetMotionModel
from diffusers.models import modeling_utils

from customttt import lora, threads
from customttt.backbones import Backbone, defaults, identify, open_base, places
from customttt.backbones.animatediff import PAPER, AnimateDiff
from customttt.backbones.reader import KEPT, TextReader
from customttt.backbones.unet3d import ZEROSCOPE, UNet3D
from customttt.backbones.unets import LAYERS, LINEARS, UNetFamily
from customttt.concept import Kind
from customttt.config import TrainConfig
from customttt.errors import BaseUnavailableError


@pytest.fixture(scope="module")
def backbone(any_base: Path) -> Backbone:
    return open_base(str(any_base), torch.device("cpu"))


def video(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, frames, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(backbone: Backbone, frames: int) -> torch.Tensor:
    """Of so many frames of latents."""
    channels, _, height, width = backbone.latent_shape(1, 64, 64)
    return torch.randn(1, channels, frames, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def predict(backbone: Backbone, latents: torch.Tensor, prompt: str = "A koala.") -> torch.Tensor:
    return backbone.predict(latents, torch.tensor([500]), backbone.embed([prompt]))


def count_lora_parameters(unet: torch.nn.Module, family: type[UNetFamily], kind: str, config: TrainConfig) -> int:
    inside = [f"{LAYERS[layer]}.{family.BRANCHES[kind]}." for layer in config.layers]
    targets = [name for prefix in inside for name in lora.target_names(unet, prefix, LINEARS)]
    linears = [unet.get_submodule(name) for name in targets]
    return sum(config.rank * (linear.in_features + linear.out_features) for linear in linears)


def test_prompts_are_read_once_until_words_mean_something_else(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large text encoder takes seconds to visit a GPU."""
    assert isinstance(backbone, TextReader)
    real, readings = backbone.read, list[tuple[str, ...]]()

    def read(prompts: Sequence[str]) -> torch.Tensor:
        readings.append(tuple(prompts))
        return real(prompts)

    monkeypatch.setattr(backbone, "read", read)
    monkeypatch.setattr(backbone, "_kept", OrderedDict())
    texts = ["A fox.", "A koala."]
    first = backbone.embed(texts)
    first.zero_()  # whoever has it may change it
    assert torch.equal(backbone.embed(texts), real(texts))
    assert readings == [tuple(texts)]
    with backbone.meaning("koala", backbone.word("koala") + 1):
        backbone.embed(texts)
        backbone.embed(texts)
    with threads.using(torch.get_num_threads() + 1):  # the last bits of a video depend on it
        backbone.embed(texts)
    assert readings == [tuple(texts)] * 4
    for number in range(KEPT):
        backbone.embed([str(number)])
    assert len(backbone._kept) == KEPT
    assert torch.equal(backbone.embed(texts), real(texts))
    assert readings[-1] == tuple(texts)


def test_the_paper_s_loras_have_the_paper_s_12_124_160_parameters() -> None:
    with torch.device("meta"):
        unet = UNetMotionModel(cross_attention_dim=768, use_motion_mid_block=False)
    appearance = count_lora_parameters(unet, AnimateDiff, "appearance", PAPER.appearance)
    motion = count_lora_parameters(unet, AnimateDiff, "motion", PAPER.motion)
    assert (appearance, motion) == published.LORAS["animatediff"]
    assert appearance + motion == 12_124_160


def test_zeroscope_and_modelscope_have_1411_million_parameters_and_loras_of_9_7_million() -> None:
    unet = published.on_meta("zeroscope", "unet")
    assert published.count(unet) == 1_411_233_860
    appearance = count_lora_parameters(unet, UNet3D, "appearance", ZEROSCOPE.appearance)
    motion = count_lora_parameters(unet, UNet3D, "motion", ZEROSCOPE.motion)
    assert (appearance, motion) == published.LORAS["zeroscope"] == (6_062_080, 3_686_400)


@pytest.mark.parametrize("base", list(published.LISTED))
def test_the_real_architectures_are_as_large_as_the_hub_lists_them(base: str) -> None:
    for name, (gigabytes, each) in published.LISTED[base].items():
        assert round(published.count(published.on_meta(base, name)) * each / 1e9, 2) == gigabytes


def test_encoding_and_decoding_keep_the_shape(backbone: Backbone) -> None:
    latents = backbone.encode(video(5))
    assert latents.shape == (1, *backbone.latent_shape(5, 64, 64))
    assert backbone.decode(latents).shape == (1, 3, 5, 64, 64)


def test_with_motion_bypassed_frames_do_not_see_each_other(backbone: Backbone) -> None:
    latents = noise(backbone, 4)
    with backbone.framewise():
        together = predict(backbone, latents)
        alone = torch.cat([predict(backbone, frame) for frame in latents.split(1, dim=2)], dim=2)
    assert torch.allclose(together, alone, atol=1e-4)


def test_with_motion_frames_see_each_other(backbone: Backbone) -> None:
    latents = noise(backbone, 4)
    changed = latents.clone()
    changed[:, :, 3] = 0
    assert not torch.allclose(predict(backbone, latents)[:, :, 0], predict(backbone, changed)[:, :, 0])


def test_the_bypass_ends_with_its_context_even_after_an_error(backbone: Backbone) -> None:
    latents = noise(backbone, 4)
    before = predict(backbone, latents)
    with pytest.raises(KeyboardInterrupt), backbone.framewise():
        raise KeyboardInterrupt
    assert torch.equal(predict(backbone, latents), before)


def test_a_prediction_asks_for_the_precision_no_more_often_than_the_network_itself(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks through all modules each time: 5 ms in Stable Diffusion's."""
    predict(backbone, noise(backbone, 2))
    asked, get = [], modeling_utils.get_parameter_dtype
    monkeypatch.setattr(modeling_utils, "get_parameter_dtype", lambda one: asked.append(one) or get(one))  # type: ignore[func-returns-value]
    predict(backbone, noise(backbone, 2))
    assert len(asked) <= 1


def test_the_prompt_is_read(backbone: Backbone) -> None:
    latents = noise(backbone, 2)
    assert not torch.allclose(predict(backbone, latents, "A koala."), predict(backbone, latents, "A tiger."))


def test_the_fingerprint_changes_with_the_weights_alone(tiny_random_base: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "base"
    shutil.copytree(tiny_random_base, copy)
    (copy / "customttt.json").write_text("{}")
    assert identify(str(copy)) == identify(str(tiny_random_base))
    weights = next((copy / "unet").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert identify(str(copy)) != identify(str(tiny_random_base))


def test_a_folder_without_a_base_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(BaseUnavailableError, match=r"unet/config\.json"):
        defaults(str(tmp_path))


def test_without_a_hub_the_paper_s_base_is_unavailable_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseUnavailableError, match="--base tiny"):
        open_base("animatediff", torch.device("cpu"))


def test_an_epsilon_and_a_v_base_both_load(tiny_random_base: Path, tmp_path: Path) -> None:
    import json
    import shutil

    copy = tmp_path / "base"
    shutil.copytree(tiny_random_base, copy)
    path = copy / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "prediction_type": "epsilon", "rescale_betas_zero_snr": False}))
    assert open_base(str(tiny_random_base), torch.device("cpu")).schedule.prediction_type == "v_prediction"
    assert open_base(str(copy), torch.device("cpu")).schedule.prediction_type == "epsilon"


def test_a_base_in_half_precision_and_in_several_files_loads(tiny_random_base: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "base"
    shutil.copytree(tiny_random_base, copy)
    shutil.rmtree(copy / "unet")
    whole = open_base(str(tiny_random_base), torch.device("cpu"))
    cast(UNetMotionModel, whole.network).save_pretrained(copy / "unet", max_shard_size="2MB", variant="fp16")
    assert len(list((copy / "unet").glob("*.fp16-*.safetensors"))) > 1
    loaded = open_base(str(copy), torch.device("cpu"))
    weights, expected = loaded.network.state_dict(), whole.network.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    latents = torch.zeros(1, *loaded.latent_shape(2, 64, 64))
    torch.testing.assert_close(predict(loaded, latents), predict(whole, latents))  # other addresses, other kernels


def test_an_image_unet_with_a_motion_adapter_loads(tiny_random_base: Path, tmp_path: Path) -> None:
    import shutil

    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    copy = tmp_path / "base"
    shutil.copytree(tiny_random_base, copy)
    shutil.rmtree(copy / "unet")
    channels = (32, 32, 32, 32)
    image = UNet2DConditionModel(
        sample_size=16, in_channels=16, out_channels=16, block_out_channels=channels, layers_per_block=1,
        norm_num_groups=16, cross_attention_dim=128, attention_head_dim=4,
    )  # fmt: skip
    image.save_pretrained(copy / "unet")
    adapter = MotionAdapter(
        block_out_channels=channels, motion_layers_per_block=1, motion_num_attention_heads=4, motion_norm_num_groups=16,
        use_motion_mid_block=False,
    )  # fmt: skip
    adapter.save_pretrained(copy / "motion_adapter")
    loaded = open_base(str(copy), torch.device("cpu"))
    theirs, ours = UNetMotionModel.from_unet2d(image, adapter).state_dict(), loaded.network.state_dict()
    assert list(theirs) == list(ours)
    assert all(map(torch.equal, theirs.values(), ours.values()))
    assert predict(loaded, torch.zeros(1, *loaded.latent_shape(2, 64, 64))).shape == (1, 16, 2, 8, 8)
    assert_places_are_the_modules(loaded)


def assert_places_are_the_modules(backbone: Backbone) -> None:
    """What is read without weights is what is there with them."""
    found = places(backbone.name)
    for name, place in found.items():
        assert tuple(backbone.network.get_submodule(name).weight.shape) == place.shape
    for kind, layers in LAYERS_OF[type(backbone).__name__].items():
        assert backbone.layers(kind) == layers
        targets = backbone.targets(kind, layers)
        assert {found[name].layer for name in targets} == set(layers)
        assert {found[name].kind for name in targets} <= {kind, None}


LAYERS_OF: dict[str, dict[Kind, tuple[int, ...]]] = {
    "AnimateDiff": {"appearance": (0, 1, 2, 4, 6, 7, 8), "motion": (0, 1, 2, 3, 5, 6, 7, 8)},
    "UNet3D": {"appearance": (0, 1, 2, 4, 6, 7, 8), "motion": (0, 1, 2, 4, 6, 7, 8)},
    "Wan": {"appearance": tuple(range(9)), "motion": tuple(range(9))},
}


def test_the_places_of_a_lora_are_known_without_loading_the_base(backbone: Backbone) -> None:
    assert_places_are_the_modules(backbone)


def test_the_places_of_a_base_that_is_not_here_are_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseUnavailableError, match="--base tiny"):
        places("animatediff")
