"""The AnimateDiff family: a Stable Diffusion 1.5 U-Net with motion modules (arXiv 2307.04725), `tiny` included.

Nine numbered layers: 0-3 `down_blocks.0-3`, 4 `mid_block`, 5-8 `up_blocks.0-3`. Their `attentions` are spatial, their
`motion_modules` temporal; 3 and 5 have no attentions, 4 has motion modules in v2 adapters only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from diffusers.utils import logging
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from customttt import lora
from customttt.backbones import Place, PromptEmbeds, Video, is_local
from customttt.concept import Kind
from customttt.config import Defaults, SampleConfig, TrainConfig, TTTConfig
from customttt.diffusion import Latents, NoiseSchedule, Timesteps
from customttt.errors import BaseUnavailableError, UsageError
from customttt.tiny import TINY_PATH

LAYERS = [*(f"down_blocks.{i}" for i in range(4)), "mid_block", *(f"up_blocks.{i}" for i in range(4))]
BRANCHES = {"appearance": "attentions", "motion": "motion_modules"}
HUB_CHECKPOINT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
HUB_ADAPTER = "guoyww/animatediff-motion-adapter-v1-5-3"

PAPER = Defaults(
    appearance=TrainConfig(layers=(2, 6), learning_rate=1e-5),
    motion=TrainConfig(layers=(2, 5), learning_rate=5e-5),
    ttt=TTTConfig(),
    sample=SampleConfig(),
)
"""The paper's own settings for SD 1.5 + AnimateDiff v3 [S]."""

ANIMATEDIFF_SCHEDULE = {
    "beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012,
    "timestep_spacing": "linspace", "steps_offset": 1,
}  # fmt: skip
"""What AnimateDiff's motion modules were trained with, as diffusers documents it [C]."""

DEFAULTS_FILE = "customttt.json"
"""In a base's folder: its own settings in place of PAPER. `tiny` has one, and any folder may."""


@dataclass
class AnimateDiff:
    """A loaded base of this family; see `Backbone` for what each method promises."""

    name: str
    fingerprint: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    schedule: NoiseSchedule
    defaults: Defaults
    device: torch.device

    @torch.no_grad()
    def encode(self, video: Video) -> Latents:
        b, _, f, _, _ = video.shape
        images = video.transpose(1, 2).flatten(0, 1).to(self.device, self.vae.dtype)
        encoded = self.vae.encode(images)
        mean: Latents = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mode()
        mean = mean * self.vae.config.scaling_factor
        return mean.float().view(b, f, *mean.shape[1:]).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latents: Latents) -> Video:
        b, _, f, _, _ = latents.shape
        frames = latents.transpose(1, 2).flatten(0, 1).to(self.vae.dtype) / self.vae.config.scaling_factor
        images = torch.cat([self.vae.decode(frame).sample for frame in frames.split(1)])
        return images.float().clamp(-1, 1).view(b, f, *images.shape[1:]).transpose(1, 2)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> PromptEmbeds:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        embeds: PromptEmbeds = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state.float()
        return embeds

    def predict(self, noisy_latents: Latents, timesteps: Timesteps, prompt_embeds: PromptEmbeds) -> Latents:
        frames = noisy_latents.shape[2]
        embeds = prompt_embeds.repeat_interleave(frames, 0).to(self.unet.dtype)
        return self.unet(noisy_latents.to(self.unet.dtype), timesteps, embeds).sample.float()  # type: ignore[no-any-return]

    def without_motion(self) -> AbstractContextManager[None]:
        return without_motion(self.unet)

    def targets(self, kind: str, layers: Sequence[int]) -> list[str]:
        if bad := [layer for layer in layers if layer not in range(len(LAYERS))]:
            raise UsageError(f"Layer {bad[0]} does not exist; the layers of {self.name} are 0 to {len(LAYERS) - 1}.")
        names: list[str] = []
        for layer in sorted(set(layers)):
            found = lora.target_names(self.unet, [f"{LAYERS[layer]}.{BRANCHES[kind]}"])
            if not found:
                raise UsageError(f"Layer {layer} of {self.name} has no {BRANCHES[kind].replace('_', ' ')} to learn in.")
            names += found
        return names

    def latent_shape(self, num_frames: int, size: int) -> tuple[int, int, int, int]:
        most = self.unet.config.get("motion_max_seq_length") or num_frames
        if num_frames > most:
            raise UsageError(f"Frames are {num_frames}; the motion modules of {self.name} know at most {most}.")
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.unet.config.in_channels, num_frames, size // factor, size // factor

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        return len(self.tokenizer(prompt).input_ids), self.tokenizer.model_max_length


def _identity(hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return hidden_states


@contextmanager
def without_motion(unet: nn.Module) -> Iterator[None]:
    """Turn every motion module into the identity while this lasts; passing one frame through them is not that."""
    modules = [module for module in unet.modules() if isinstance(module, AnimateDiffTransformer3D)]
    for module in modules:
        module.forward = _identity
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def locate(base: str) -> Path | None:
    """The folder a base name means, None for what must come from the hub. Raises BaseUnavailableError."""
    if base == "tiny":
        folder = TINY_PATH / "weights"
    elif base == "animatediff" or (not is_local(base) and "/" in base):
        return None
    elif not is_local(base):
        raise BaseUnavailableError(
            f"There is no base {base!r}; give tiny, animatediff, a diffusers folder, or a hub id as owner/name."
        )
    else:
        folder = Path(base).expanduser()
    if not (folder / "unet" / "config.json").is_file():
        raise BaseUnavailableError(f"No base model in {folder}: unet/config.json is missing; give a diffusers folder.")
    return folder


def fingerprint(folder: Path | None, base: str) -> str:
    """A digest of a folder's configurations and of head, tail and size of its weights: whole files take minutes."""
    digest = hashlib.sha256()
    if folder is None:
        checkpoint = HUB_CHECKPOINT if base == "animatediff" else base
        digest.update(f"{checkpoint} {HUB_ADAPTER}".encode())
        return digest.hexdigest()[:16]
    for path in sorted(path for path in folder.rglob("*") if path.suffix in {".json", ".txt", ".safetensors"}):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(path.stat().st_size - 2**20, 0))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def load(base: str, device: torch.device) -> AnimateDiff:
    """Load `tiny`, a local diffusers folder, or SD 1.5 + adapter from the hub. Raises BaseUnavailableError."""
    folder = locate(base)
    logging.disable_progress_bar()  # of reading shards: this package prints nothing
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    with _unavailable(base):
        parts = _load_parts(_checkpoint(base, folder), folder, dtype)
    for network in ("unet", "vae", "text_encoder"):
        parts[network].requires_grad_(False).eval().to(device)
    if device.type == "cpu":
        parts["unet"].set_attn_processor(AttnProcessor())  # on sequences of a few frames a third faster than SDPA
    digest = fingerprint(folder, base)
    return AnimateDiff(name=base, fingerprint=digest, defaults=defaults(base), device=device, **parts)


def _checkpoint(base: str, folder: Path | None) -> str:
    return str(folder or (HUB_CHECKPOINT if base == "animatediff" else base))


@contextmanager
def _unavailable(base: str) -> Iterator[None]:
    """Turn what is raised over a base that cannot be had into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseUnavailableError(
            f"Base {base!r} cannot be loaded ({reason}). Where no model hub can be reached, use --base tiny."
        ) from error


def _load_parts(checkpoint: str, folder: Path | None, dtype: torch.dtype) -> dict[str, Any]:
    def part(cls: Any, subfolder: str, **options: Any) -> Any:
        return cls.from_pretrained(checkpoint, subfolder=subfolder, **options)

    weights: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True}
    return {
        "unet": _load_unet(checkpoint, folder, weights),
        "vae": part(_vae_class(folder), "vae", torch_dtype=torch.float32, use_safetensors=True),
        "text_encoder": part(CLIPTextModel, "text_encoder", use_safetensors=True).float(),
        "tokenizer": part(CLIPTokenizer, "tokenizer"),
        "schedule": NoiseSchedule.from_config(_scheduler_config(folder)),
    }


def _class_name(folder: Path, part: str) -> str:
    return str(json.loads((folder / part / "config.json").read_text()).get("_class_name"))


def _vae_class(folder: Path | None) -> Any:
    tiny = folder is not None and _class_name(folder, "vae") == "AutoencoderTiny"
    return AutoencoderTiny if tiny else AutoencoderKL


def _load_unet(checkpoint: str, folder: Path | None, weights: dict[str, Any]) -> UNetMotionModel:
    """A whole motion U-Net, or an image U-Net with the motion adapter put in."""
    if folder and _class_name(folder, "unet") == "UNetMotionModel":
        return UNetMotionModel.from_pretrained(checkpoint, subfolder="unet", **weights)
    adapter = MotionAdapter.from_pretrained(_adapter(folder), **weights)
    image_unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet", **weights)
    return UNetMotionModel.from_unet2d(image_unet, adapter).to(weights["torch_dtype"])


def _adapter(folder: Path | None) -> str:
    own = folder / "motion_adapter" if folder else None
    return str(own) if own and own.is_dir() else HUB_ADAPTER


def places(base: str) -> dict[str, Place]:
    """The linears and convolutions of all attentions and motion modules, by name, in the order of the network.

    Only configurations are read: the U-Net is built without weights. Raises BaseUnavailableError.
    """
    folder = locate(base)
    with _unavailable(base), torch.device("meta"):
        unet = _bare_unet(_checkpoint(base, folder), folder)
    kinds: tuple[Kind, ...] = ("appearance", "motion")
    branches = {f"{block}.{BRANCHES[kind]}.": (kind, layer) for layer, block in enumerate(LAYERS) for kind in kinds}
    return {
        name: Place(*branch, shape=tuple(module.weight.shape))
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for prefix, branch in branches.items()
        if name.startswith(prefix)
    }


def _bare_unet(checkpoint: str, folder: Path | None) -> UNetMotionModel:
    config = UNetMotionModel.load_config(checkpoint, subfolder="unet")
    if folder and _class_name(folder, "unet") == "UNetMotionModel":
        return UNetMotionModel.from_config(config)
    adapter = MotionAdapter.from_config(MotionAdapter.load_config(_adapter(folder)))
    return UNetMotionModel.from_unet2d(UNet2DConditionModel.from_config(config), adapter, load_weights=False)


def _scheduler_config(folder: Path | None) -> dict[str, Any]:
    """A motion U-Net's own schedule; an image checkpoint's does not fit the motion modules put into it."""
    if folder and _class_name(folder, "unet") == "UNetMotionModel":
        path = folder / "scheduler" / "scheduler_config.json"
        if path.is_file():
            return dict(json.loads(path.read_text()))
    return ANIMATEDIFF_SCHEDULE


def defaults(base: str) -> Defaults:
    """A base's own settings, read without loading it. Raises BaseUnavailableError.

    An adapter with motion modules in the middle (v2) learns motion on 2 and 4, as the paper analyses [P].
    """
    folder = locate(base)
    if folder is None:
        return PAPER
    if (folder / DEFAULTS_FILE).is_file():
        return Defaults.from_dict(json.loads((folder / DEFAULTS_FILE).read_text()))
    if not json.loads((folder / "unet" / "config.json").read_text()).get("use_motion_mid_block", False):
        return PAPER
    return replace(PAPER, motion=PAPER.motion.but(layers=(2, 4)))
