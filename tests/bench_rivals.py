"""One training step of AnimateDiff-MotionDirector and of MotionDirector on our U-Net, for tests/bench.py.

Their LoRA layers, the search for places and for scales are imported from their repositories, which whoever runs the
bench has cloned. Both train in one long `main()`, so the step is put together here from what it does. Numbers are lines
of AnimateDiff-MotionDirector's train.py (at e23a7cd) and of MotionDirector's MotionDirector_train.py (at 0146a50):

    places, LoRAs       `LoraHandler.add_lora_to_model`: `inject_trainable_lora_extended`    641, 681   607, 647
    clear gradients     of both optimizers                                                   745, 748   898, 901
    skip                the spatial pass is left out of one step in five                     755        907
    noise               one for both passes, and one timestep                                795        782
    text                encoded anew at every step                                           808        801
    spatial pass        scales 1 and 0; one frame at random, time bypassed; squared error    815 - 848  821 - 858
    temporal pass       temporal scale 1; the whole clip; error and debiased error           855 - 864  866 - 878
    backward            spatial, whose graph is kept; then temporal, through all LoRAs       868, 880   923, 930

Their published settings: rank 32 in every layer (of the first at 256 x 256), latents cached, autocast to float16 over a
U-Net in float32, VAE and text encoder beside it on a GPU; the first uses Lion and recomputes nothing
(configs/training/motion_director/training.yaml), the second uses AdamW and recomputes every resnet and transformer
(configs/config_single_video.yaml).

What differs from theirs: the U-Net and its attention are diffusers' of today, as for all that is timed; both optimizers
step after both backward passes, which is the one order that torch allows without autocast; on a CPU the precision is
ours.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from lion_pytorch import Lion
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from customttt import losses
from customttt.backbones import Backbone

RANK = 32
SKIPPED = 0.2
"""Share of the steps without a spatial pass."""
PROMPT = "A koala is swimming."


@dataclass(frozen=True)
class Project:
    """Where a rival's LoRA code is in its repository, and how it trains."""

    name: str
    lora: str
    spatial: str
    """Class whose linears and convolutions get a spatial LoRA."""
    temporal: str
    optimizers: Callable[[list[nn.Parameter], list[nn.Parameter]], list[torch.optim.Optimizer]]
    checkpointed: bool


def _lions(spatial: list[nn.Parameter], temporal: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    return [
        Lion(spatial, lr=1e-5, betas=(0.9, 0.999), weight_decay=0.1),
        Lion(temporal, lr=5e-5, betas=(0.9, 0.999), weight_decay=0.1),
    ]


def _adams(spatial: list[nn.Parameter], temporal: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(some, lr=5e-4, weight_decay=1e-2) for some in (spatial, temporal)]


PROJECTS = {
    "animatediff": Project(
        "AnimateDiff-MotionDirector", "animatediff/utils/lora.py", "Transformer3DModel", "TemporalTransformerBlock",
        _lions, checkpointed=False,
    ),
    "zeroscope": Project(
        "MotionDirector", "utils/lora.py", "Transformer2DModel", "TransformerTemporalModel", _adams, checkpointed=True
    ),
}  # fmt: skip
"""Base -> who trains on it."""


class Transformer3DModel(Transformer2DModel):  # type: ignore[misc]
    """What AnimateDiff's own code calls it."""


class TemporalTransformerBlock(BasicTransformerBlock):  # type: ignore[misc]
    """What AnimateDiff's own code calls those in its motion modules."""


def load_lora(project: Project, folder: Path) -> Any:
    """Their module of LoRA layers."""
    path = folder / project.name / project.lora
    spec = importlib.util.spec_from_file_location(f"rival_{project.name.replace('-', '_')}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"{path} is not there; clone {project.name} into {folder}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Rival:
    """One project's training on a base."""

    def __init__(self, project: Project, folder: Path, backbone: Backbone, latents: Tensor) -> None:
        self.project, self.code = project, load_lora(project, folder)
        self.backbone: Any = backbone
        self.network: Any = backbone.network
        self.latents = latents
        self.cuda = backbone.device.type == "cuda"

    @contextmanager
    def ready(self, autocast: Callable[[], AbstractContextManager[Any]]) -> Iterator[Callable[[bool], None]]:
        """Gives its step, to which is said whether the spatial pass is in it; then all is as it was."""
        with self._hosted():
            temporal, spatial = ([*chain(*self._inject(kind))] for kind in ("temporal", "spatial"))
            optimizers = self.project.optimizers(spatial, temporal)
            scaler = torch.amp.GradScaler("cuda", enabled=self.cuda)
            within = partial(torch.autocast, "cuda", torch.float16) if self.cuda else autocast
            self.network.train()
            yield partial(self._step, optimizers, scaler, within)

    def parameters(self) -> list[int]:
        """Of its temporal and of its spatial LoRA."""
        with self._hosted():
            return [sum(one.numel() for one in chain(*self._inject(kind))) for kind in ("temporal", "spatial")]

    def _inject(self, kind: str) -> list[Iterator[nn.Parameter]]:
        target = {getattr(self.project, kind)}
        found: list[Iterator[nn.Parameter]] = self.code.inject_trainable_lora_extended(self.network, target, r=RANK)[0]
        return found

    def _scale(self, kind: str, scale: float) -> None:
        for layer in self.code.extract_lora_child_module(self.network, [getattr(self.project, kind)]):
            layer.scale = scale

    def _step(
        self,
        optimizers: list[torch.optim.Optimizer],
        scaler: Any,
        within: Callable[[], AbstractContextManager[Any]],
        spatial: bool,
    ) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        embeds, schedule = self._read(), self.backbone.schedule
        noise = torch.randn_like(self.latents)
        timesteps = schedule.draw(1, (0.0, 1.0), torch.default_generator).to(self.latents.device)
        noisy = schedule.add_noise(self.latents, noise, timesteps)
        passes = []
        with within():
            self._scale("spatial", float(spatial))
            if spatial:
                self._scale("temporal", 0.0)
                frame = slice(index := int(torch.randint(0, noisy.shape[2], ())), index + 1)
                prediction = self.backbone.predict(noisy[:, :, frame], timesteps, embeds)
                passes.append(losses.denoising(prediction, noise[:, :, frame]))
            self._scale("temporal", 1.0)
            prediction = self.backbone.predict(noisy, timesteps, embeds)
            anchor = int(torch.randint(0, noisy.shape[2], ()))
            passes.append(losses.motion(prediction, noise, anchor))
        for loss in passes:
            scaler.scale(loss).backward(retain_graph=loss is not passes[-1])
        for optimizer in optimizers[0 if spatial else 1 :]:
            scaler.step(optimizer)
        scaler.update()
        passes[-1].item()

    @torch.no_grad()
    def _read(self) -> Tensor:
        tokenizer, encoder = self.backbone.tokenizer, self.backbone.text_encoder
        length = tokenizer.model_max_length
        tokens = tokenizer([PROMPT], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        embeds: Tensor = encoder(tokens.input_ids.to(self.backbone.device)).last_hidden_state
        return embeds

    @contextmanager
    def _hosted(self) -> Iterator[None]:
        """The U-Net as their code expects it; afterwards every module, class and precision is the one before."""
        unet, dtype = self.network, self.network.dtype
        children = [(module, dict(module._modules)) for module in unet.modules()]
        classes = [(module, type(module)) for module in unet.modules()]
        beside = [network for network in (self.backbone.vae, self.backbone.text_encoder) if self.cuda]
        homes = [next(network.parameters()).device for network in beside]
        for network in beside:
            network.to(self.backbone.device)
        if self.cuda:
            unet.float()
        _rename(unet)
        with _adapted(unet, self.project.checkpointed):
            try:
                yield
            finally:
                for module, before in children:
                    module._modules.clear()
                    module._modules.update(before)
                for module, kind in classes:
                    module.__class__ = kind
                unet.eval()
                if self.cuda:
                    unet.to(dtype)
                for network, home in zip(beside, homes, strict=True):
                    network.to(home)


def _rename(unet: nn.Module) -> None:
    """Classes by which AnimateDiff-MotionDirector finds its places."""
    blocks = [module for module in unet.modules() if isinstance(module, AnimateDiffTransformer3D)]
    if not blocks:
        return
    for module in unet.modules():
        if type(module) is Transformer2DModel:
            module.__class__ = Transformer3DModel
    for block in blocks:
        for module in block.transformer_blocks:
            module.__class__ = TemporalTransformerBlock


@contextmanager
def _adapted(unet: nn.Module, checkpointed: bool) -> Iterator[None]:
    """Time is bypassed where there is one frame only, and blocks are recomputed, as their U-Nets do it."""
    timely = AnimateDiffTransformer3D | TransformerTemporalModel | TemporalConvLayer
    changed = []
    for module in unet.modules():
        if isinstance(module, timely):
            changed.append(module)
            module.forward = partial(_unless_alone, module.forward)
        if checkpointed and isinstance(module, timely | Transformer2DModel | ResnetBlock2D):
            changed.append(module)
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    try:
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def _unless_alone(forward: Any, hidden_states: Tensor, *arguments: Any, num_frames: int, **named: Any) -> Any:
    """`use_temporal` of the one project, `VanillaTemporalModule.forward` of the other."""
    if num_frames > 1:
        return forward(hidden_states, *arguments, num_frames=num_frames, **named)
    return hidden_states if named.get("return_dict") is None else (hidden_states,)
