"""Train `tiny` from its world: `python -m customttt.tiny.pretrain --out runs/tiny --minutes 120`.

Three stages as in AnimateDiff (arXiv 2307.04725): the VAE on single frames; the image U-Net with the text
encoder on single frames, motion modules bypassed; then everything on clips, with image steps mixed in so that
nothing is forgotten. The same command resumes after any kill, and runs on a CPU or a GPU. Each stage gets its share
of `--minutes`; asking for more minutes later goes on with the last stage. `--start customttt/tiny/weights` keeps the
VAE and begins the others with the networks of an exported base: so what is shipped can be trained further. The loss on
clips that are never trained on, by the averaged weights, is logged beside every sheet of samples.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderTiny, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from customttt import diffusion
from customttt.backbones.animatediff import without_motion
from customttt.tiny import models, world

SHARES = {"vae": 0.12, "image": 0.27, "clip": 0.61}
LEARNING_RATES = {"vae": 2e-3, "image": 8e-4, "clip": 6e-4}
CHECKPOINT_SECONDS = 240
SHEET_SECONDS = 900
SUBJECT_WEIGHT = 5.0  # how much more a latent under the subject counts
EMA_DECAY, EMA_EVERY = 0.9995, 4  # a step, steps
VALIDATION_CLIPS, VALIDATION_BATCHES, VALIDATION_SEED = 64, 8, 1
LATENT_NOISE = 0.05
COMPILE_MINUTES = 240  # shorter runs are over before compiling pays; a shape may take ten minutes (LOG.md)
Mode = Literal["crop", "image", "clip"]
BATCHES: dict[Mode, int] = {"crop": 256, "image": 64, "clip": 8}
"""What one step sees: 8 x 8 latents around a subject, whole frames, or clips of 8 frames; a step of clips costs 1.2
times one of crops, one of frames 0.8 times."""
CROP = 8
TURNS: dict[str, list[Mode]] = {"image": ["crop", "image"], "clip": ["clip", "clip", "clip", "crop"]}
PARTS: dict[str, tuple[Any, str]] = {
    "vae": (AutoencoderTiny, "vae"), "unet": (UNetMotionModel, "unet"), "text": (CLIPTextModel, "text_encoder")
}  # fmt: skip
"""Networks, and their folders in an exported base."""
SHEET_PROMPTS = [
    "A koala is running on Mars.",
    "A tiger is jumping in the snow.",
    "A blue dog is spinning on the grass.",
    "A teddy bear with a crown is sliding at night.",
    "A penguin is falling in space.",
    "A red car is rolling in the desert.",
    "A frog is growing under water.",
    "A fox is playing in the forest.",
]


@dataclass
class State:
    """All that a resumed run needs: networks, averages, optimizer, and how far each stage has come."""

    folder: Path
    device: torch.device
    vae: Any
    unet: Any
    text: Any
    tokenizer: Any
    schedule: diffusion.NoiseSchedule
    generator: torch.Generator
    average: dict[str, Tensor] = field(default_factory=dict)
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    forward: dict[str, Callable[..., Tensor]] = field(default_factory=dict)
    stage: str = "vae"
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SHARES, 0.0))
    steps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))
    latent_scale: float = 1.0

    def trained(self) -> dict[str, nn.Module]:
        return {"vae": self.vae} if self.stage == "vae" else {"unet": self.unet, "text": self.text}


def corpus() -> list[str]:
    """Every word that a caption may hold, held-out ones too, so that each is one token."""
    words = [*world.NOUNS, *world.COLOURS, *world.HATS, *world.MOVEMENTS, *world.SCENES]
    return [*words, "a an the with is of and on in at something video photo picture ."] * 50


def create(folder: Path, device: torch.device) -> State:
    """A new run, or the state an earlier one left in `folder`."""
    words = folder / "tokenizer"  # never built twice: which of two equally frequent pairs comes first is left to chance
    known = (words / "tokenizer.json").exists()
    tokenizer = CLIPTokenizer.from_pretrained(words) if known else models.build_tokenizer(words, corpus())
    torch.manual_seed(0)
    state = State(
        folder, device, models.build_vae().to(device), models.build_unet().to(device),
        models.build_text_encoder(len(tokenizer)).to(device), tokenizer,
        diffusion.NoiseSchedule.from_config(models.SCHEDULER), torch.Generator().manual_seed(0),
    )  # fmt: skip
    state.unet.set_attn_processor(AttnProcessor())  # several times the speed of fused attention on short sequences
    if (folder / "state.pt").exists():
        restore(state)
    return state


def start_from(state: State, folder: Path) -> None:
    """Take over the networks and the tokenizer of an exported base; the next stage is that of images."""
    for name, (kind, part) in PARTS.items():
        getattr(state, name).load_state_dict(kind.from_pretrained(folder / part).float().state_dict())
    state.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    state.tokenizer.save_pretrained(state.folder / "tokenizer")
    state.stage = "image"


def save(state: State) -> None:
    """Write the whole state aside, then rename it into place."""
    data = {
        "networks": {name: getattr(state, name).state_dict() for name in PARTS},
        "average": state.average,
        "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
        "generator": state.generator.get_state(),
        **{name: getattr(state, name) for name in ("stage", "seconds", "steps", "latent_scale")},
    }
    torch.save(data, state.folder / "state.tmp")
    (state.folder / "state.tmp").replace(state.folder / "state.pt")


def restore(state: State) -> None:
    data = torch.load(state.folder / "state.pt", map_location=state.device, weights_only=True)
    for name, weights in data["networks"].items():
        getattr(state, name).load_state_dict(weights)
    for name in ("stage", "seconds", "steps", "latent_scale", "average"):
        setattr(state, name, data[name])
    state.generator.set_state(data["generator"].cpu())
    if data["optimizers"]:
        state.optimizers = make_optimizers(state)
        for optimizer, saved in zip(state.optimizers, data["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


class Muon(torch.optim.Muon):
    """Muon (Jordan et al. 2024) for convolutions too, each seen as the matrix of its output channels (PyTorch's takes
    matrices alone)."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self.pairs = [(weight, nn.Parameter(weight.data.flatten(1))) for weight in weights]  # shares the memory
        matrices = [matrix for _, matrix in self.pairs]
        super().__init__(matrices, lr=1e-4, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for weight, matrix in self.pairs:
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        super().step(closure)  # type: ignore[no-untyped-call]
        for weight, matrix in self.pairs:
            weight.grad = matrix.grad = None


def make_optimizers(state: State) -> list[torch.optim.Optimizer]:
    """AdamW for the VAE; for the others Muon on all inner matrices, which learned as much in half the time (LOG.md)."""
    named = [pair for module in state.trained().values() for pair in module.named_parameters()]
    outer = [p for name, p in named if p.ndim < 2 or "embed" in name or "conv_in" in name or "conv_out" in name]
    if state.stage == "vae":
        outer = [p for _, p in named]
    skip = {id(p) for p in outer}
    inner = [p for _, p in named if id(p) not in skip]
    adam = torch.optim.AdamW(outer, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    return [adam, Muon(inner)] if inner else [adam]


def names_and_weights(state: State) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in state.trained().items():
        for name, weight in module.state_dict().items():
            yield f"{prefix}.{name}", weight


def update_average(state: State) -> None:
    """Exponential moving average of the weights over EMA_EVERY steps at a time, short at first."""
    steps = state.steps[state.stage]
    if steps % EMA_EVERY:
        return
    decay = min(EMA_DECAY, (1 + steps) / (10 + steps)) ** EMA_EVERY
    for name, weight in names_and_weights(state):
        if name not in state.average or not weight.is_floating_point():
            state.average[name] = weight.detach().clone()
        else:
            state.average[name].lerp_(weight.detach(), 1 - decay)


def averaged(state: State, name: str) -> dict[str, Tensor]:
    """The averaged weights of one network (those in training where there is no average yet)."""
    prefix = f"{name}."
    found = {key.removeprefix(prefix): value for key, value in state.average.items() if key.startswith(prefix)}
    return found or getattr(state, name).state_dict()


@contextmanager
def averages(state: State) -> Iterator[None]:
    """Compute with the averaged weights for a while, and without gradients."""
    training = {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in state.trained().items()}
    for name, network in state.trained().items():
        network.load_state_dict(averaged(state, name))
    try:
        with torch.no_grad(), models.autocast(state.device):
            yield
    finally:
        for name, network in state.trained().items():
            network.load_state_dict(training[name])


Losses = Mapping[str, Callable[[State], Tensor]]


def validate(state: State, losses: Losses) -> dict[str, float]:
    """The mean of each loss, by the averaged weights, over batches and noise that are always the same."""
    found, drawn_from = {}, state.generator
    try:
        with averages(state):
            for name, loss_of in losses.items():
                state.generator = torch.Generator().manual_seed(VALIDATION_SEED)
                each = [loss_of(state).item() for _ in range(VALIDATION_BATCHES)]
                found[f"validation {name}"] = sum(each) / len(each)
    finally:
        state.generator = drawn_from
    return found


def learning_rate(state: State, budget: float) -> float:
    """Warm up over 200 steps, then a cosine down to a tenth over the stage's seconds."""
    progress = min(state.seconds[state.stage] / budget, 1.0)
    warm = min(state.steps[state.stage] / 200, 1.0)
    return LEARNING_RATES[state.stage] * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def run_stage(state: State, budget: float, loss_of: Callable[[State], Tensor], held_out: Losses) -> None:
    """Train until the stage has had `budget` seconds; checkpoints, log lines and sheets on the way, and at the end the
    losses on what is held out."""
    state.optimizers = state.optimizers or make_optimizers(state)
    weights = [weight for module in state.trained().values() for weight in module.parameters()]
    saved = shown = logged = time.monotonic()
    losses: list[float] = []
    while state.seconds[state.stage] < budget:
        began = time.monotonic()
        rate = learning_rate(state, budget)
        for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        with models.autocast(state.device):
            loss = loss_of(state)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        state.steps[state.stage] += 1
        update_average(state)
        losses.append(loss.item())
        now = time.monotonic()
        state.seconds[state.stage] += now - began
        if now - logged > 30:
            log(state, loss=sum(losses) / len(losses), rate=rate, speed=len(losses) / (now - logged))
            logged, losses = now, []
        if now - saved > CHECKPOINT_SECONDS:
            save(state)
            saved = time.monotonic()
        if now - shown > SHEET_SECONDS:
            log(state, **validate(state, held_out))
            if state.stage != "vae":
                write_sheet(state)
            shown = time.monotonic()
    log(state, **validate(state, held_out))


def log(state: State, **numbers: float) -> None:
    line = {
        "stage": state.stage,
        "step": state.steps[state.stage],
        "minutes": state.seconds[state.stage] / 60,
        **numbers,
    }
    text = json.dumps({key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()})
    print(text, flush=True)
    with (state.folder / "log.jsonl").open("a") as file:
        file.write(text + "\n")


class Crops:
    """32 x 32 crops around subjects, where all the detail is, out of a pool of frames that is slowly renewed."""

    def __init__(self, generator: torch.Generator, clips: int = 256) -> None:
        self.generator, self.drawn = generator, 0
        self.parts = [torch.cat(part) for part in zip(*(self._render(32) for _ in range(clips // 32)), strict=True)]

    def _render(self, clips: int) -> tuple[Tensor, Tensor, Tensor]:
        new = world.sample(clips, self.generator)
        masks = new.mask.flatten(0, 1).unsqueeze(1)
        return new.video.transpose(1, 2).flatten(0, 1), masks, new.pose.flatten(0, 1)[:, :2]

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """(images, masks), each (count c 32 32)."""
        if self.drawn % 40 == 0:
            start = 64 * int(torch.randint(0, len(self.parts[0]) // 64, (), generator=self.generator))
            for part, new in zip(self.parts, self._render(8), strict=True):
                part[start : start + 64] = new
        self.drawn += 1
        chosen = torch.randint(0, len(self.parts[0]), (count,), generator=self.generator)
        jitter = torch.randint(-14, 15, (count, 2), generator=self.generator)
        corners = (((self.parts[2][chosen] + 1) * 32).round().long() - 16 + jitter).clamp(0, 32)
        rows, columns = (corners[:, axis, None] + torch.arange(32) for axis in (1, 0))
        pick = chosen[:, None, None], slice(None), rows[:, :, None], columns[:, None]
        images, masks = (part[pick].permute(0, 3, 1, 2) for part in self.parts[:2])
        return images, masks


def vae_loss(state: State, crops: Crops) -> Tensor:
    """Weighted L1 of picture and edges, with noise on the latents; the first three of them are a thumbnail (ours).

    Latents 0-2 must be the mean colours of their 4 x 4 pixels, and what the other five add must be small. So the
    U-Net learns coarse colours first, and where it is not sure of the details, it blurs instead of littering.
    """
    images, masks = (part.to(state.device, memory_format=torch.channels_last) for part in crops.draw(32))
    latents = state.vae.encode(images).latents
    noise = LATENT_NOISE * torch.randn(latents.shape, generator=state.generator).to(latents)
    error = state.vae.decode(latents + noise).sample.float() - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    thumbnail, details = latents.float()[:, :3], latents.float()[:, 3:]
    shape: Tensor = 5 * F.mse_loss(thumbnail, F.avg_pool2d(images, 4)) + 0.02 * details.square().mean()
    loss: Tensor = (error.abs() * (1 + masks)).mean() + 0.5 * edges + shape
    return loss


@torch.no_grad()
def encode_clips(state: State, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """`count` clips of the world as latents, with the truth about them."""
    parts: dict[str, list[Tensor]] = {key: [] for key in ("latents", "weight", "noun", "look", "movement", "scene")}
    for done in range(0, count, 64):
        clips = world.sample(n := min(64, count - done), generator)
        images = clips.video.transpose(1, 2).flatten(0, 1).to(state.device)
        with models.autocast(state.device):
            latents = state.vae.encode(images).latents.float().cpu()
        parts["latents"].append(latents.view(n, 8, models.LATENT_CHANNELS, 16, 16).transpose(1, 2).half())
        parts["weight"].append((1 + SUBJECT_WEIGHT * F.avg_pool2d(clips.mask, 4)).half())
        for key in ("noun", "look", "movement", "scene"):
            parts[key].append(getattr(clips, key).to(torch.uint8))
        if done % 2048 == 0:
            print(f"encoded {done} of {count} clips", flush=True)
    return {key: torch.cat(value) for key, value in parts.items()}


def fill_cache(state: State, count: int) -> dict[str, Tensor]:
    """Encode `count` clips once: the VAE stays out of the loops that follow."""
    path = state.folder / "latents.pt"
    if path.exists():
        return dict(torch.load(path, weights_only=True))
    state.vae.load_state_dict(averaged(state, "vae"))
    cache = encode_clips(state, count, state.generator)
    torch.save(cache, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
    return cache


def encode_text(state: State, texts: list[str]) -> Tensor:
    """(b l d) prompt embeddings, with gradients."""
    tokens = state.tokenizer(
        texts, padding="max_length", truncation=True, max_length=models.MAX_TOKENS, return_tensors="pt"
    )
    embeds: Tensor = state.text(tokens.input_ids.to(state.device)).last_hidden_state
    return embeds


def crop_around(latents: Tensor, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(b c 1 8 8) latents around each subject and (b 1 1 8 8) weights, out of whole frames."""
    heat = weight[:, 0, 0] - 1
    line = torch.arange(heat.shape[-1], dtype=heat.dtype)
    centres = (
        torch.stack([(heat.sum(axis) * line).sum(-1) for axis in (2, 1)], -1)
        / heat.sum((1, 2)).clamp(min=1e-3)[:, None]
    )
    jitter = torch.randint(-3, 4, centres.shape, generator=generator)
    corners = (centres.round().long() - CROP // 2 + jitter).clamp(0, heat.shape[-1] - CROP)
    rows, columns = (corners[:, axis, None] + torch.arange(CROP) for axis in (0, 1))
    pick = torch.arange(len(heat))[:, None, None], slice(None), 0, rows[:, :, None], columns[:, None]
    return latents[pick].permute(0, 3, 1, 2).unsqueeze(2), weight[pick].permute(0, 3, 1, 2).unsqueeze(2)


def diffusion_loss(state: State, cache: dict[str, Tensor], mode: Mode) -> Tensor:
    """Weighted v-prediction error on one batch; on crops and single frames the motion modules are bypassed."""
    b = BATCHES[mode]
    chosen = torch.randint(0, len(cache["latents"]), (b,), generator=state.generator)
    latents, weight = cache["latents"][chosen], cache["weight"][chosen].unsqueeze(1)
    if mode != "clip":
        frame = torch.randint(0, 8, (b,), generator=state.generator)
        rows = torch.arange(b)
        latents, weight = latents[rows, :, frame].unsqueeze(2), weight[rows, :, frame].unsqueeze(2)
    latents, weight = latents.float(), weight.float()
    if mode == "crop":
        latents, weight = crop_around(latents, weight, state.generator)
    truth = {key: cache[key][chosen].long() for key in ("noun", "look", "movement", "scene")}
    texts = world.captions(truth, state.generator)
    latents, weight = (latents * state.latent_scale).to(state.device), weight.to(state.device)
    noise = torch.randn(latents.shape, generator=state.generator).to(state.device)
    timesteps = torch.randint(0, 1000, (b,), generator=state.generator)
    if mode == "clip":  # half of them where tracks are decided, and details are not
        timesteps[: b // 2] = 500 + timesteps[: b // 2] // 2
    timesteps = timesteps.to(state.device)
    noisy = diffusion.add_noise(state.schedule, latents, noise, timesteps)
    prediction = predict(state, noisy, timesteps, encode_text(state, texts))
    goal = diffusion.target(state.schedule, latents, noise, timesteps)
    return ((prediction.float() - goal).square() * weight).sum() / (weight.sum() * latents.shape[1])


def compile_forward(state: State) -> None:
    """Compile the U-Net without and with motion modules; a mode's shape is compiled when it is first met."""

    def image_forward(noisy: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        return state.unet(noisy, timesteps, embeds).sample  # type: ignore[no-any-return]

    def clip_forward(noisy: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        return state.unet(noisy, timesteps, embeds).sample  # type: ignore[no-any-return]

    image, clip = (torch.compile(forward, dynamic=False) for forward in (image_forward, clip_forward))
    state.forward = {"image": image, "clip": clip}


def predict(state: State, noisy: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
    """The U-Net's output; a clip of one frame bypasses the motion modules."""
    frames = noisy.shape[2]
    compiled = state.forward if torch.is_grad_enabled() else {}
    embeds = embeds.repeat_interleave(frames, 0)
    with without_motion(state.unet) if frames == 1 else nullcontext():
        if forward := compiled.get("image" if frames == 1 else "clip"):
            return forward(noisy, timesteps, embeds)
        return state.unet(noisy, timesteps, embeds).sample  # type: ignore[no-any-return]


def write_sheet(state: State, guidance_scale: float = 5.0) -> None:
    """Sample SHEET_PROMPTS with the averaged weights into `sheet-STAGE-STEP.png`, a clip a row."""
    frames = 1 if state.stage == "image" else 8
    count = len(SHEET_PROMPTS)
    noisy = torch.randn(count, models.LATENT_CHANNELS, frames, 16, 16, generator=torch.Generator().manual_seed(0)).to(
        state.device
    )
    with averages(state):
        embeds = encode_text(state, SHEET_PROMPTS + [""] * count)
        steps = diffusion.inference_timesteps(state.schedule, 25).tolist()
        for step, after in zip(steps, [*steps[1:], -1], strict=True):
            batch = torch.full((2 * count,), step, device=state.device)
            wanted, free = predict(state, torch.cat([noisy, noisy]), batch, embeds).float().chunk(2)
            noisy = diffusion.ddim_step(
                state.schedule, diffusion.guide(wanted, free, guidance_scale), noisy, step, after
            )
        images = state.vae.decode((noisy / state.latent_scale).transpose(1, 2).flatten(0, 1)).sample.float()
    grid = images.view(count, frames, 3, 64, 64).permute(0, 3, 1, 4, 2).reshape(count * 64, frames * 64, 3)
    pixels = ((grid.clamp(-1, 1) + 1) * 127.5).byte().cpu().numpy()
    Image.fromarray(pixels).save(state.folder / f"sheet-{state.stage}-{state.steps[state.stage]:06d}.png")


def next_stage(state: State, stage: str) -> None:
    """Enter `stage` with a new optimizer, keeping what has been averaged as the weights to go on from."""
    if state.stage != stage:
        for name in state.trained():
            getattr(state, name).load_state_dict(averaged(state, name))
        state.stage, state.optimizers = stage, []
        save(state)


def train(state: State, minutes: float, num_clips: int) -> None:
    """All stages, each up to its share of `minutes`."""
    if state.stage == "vae":
        crops = Crops(state.generator)
        run_stage(
            state, 60 * minutes * SHARES["vae"], lambda state: vae_loss(state, crops),
            {"crop": lambda state: vae_loss(state, Crops(state.generator, 32))},
        )  # fmt: skip
        next_stage(state, "image")
    cache = fill_cache(state, num_clips)
    state.latent_scale = 1 / cache["latents"].float().std().item()
    held_out = encode_clips(state, VALIDATION_CLIPS, torch.Generator().manual_seed(VALIDATION_SEED))
    if minutes >= COMPILE_MINUTES:
        compile_forward(state)

    def in_turn(state: State) -> Tensor:
        turns = TURNS[state.stage]
        return diffusion_loss(state, cache, turns[state.steps[state.stage] % len(turns)])

    def checked(stage: str) -> Losses:
        return {mode: partial(diffusion_loss, cache=held_out, mode=mode) for mode in dict.fromkeys(TURNS[stage])}

    if state.stage == "image":
        run_stage(state, 60 * minutes * SHARES["image"], in_turn, checked("image"))
        write_sheet(state)
        next_stage(state, "clip")
    run_stage(state, 60 * minutes * SHARES["clip"], in_turn, checked("clip"))
    save(state)
    write_sheet(state)


def export(state: State, folder: Path) -> None:
    """Write the averaged networks as plain diffusers folders in half precision."""
    for name, (_, part) in PARTS.items():
        network = getattr(state, name)
        network.load_state_dict(averaged(state, name))
        if name == "vae":
            network.register_to_config(scaling_factor=state.latent_scale)
        network.half().save_pretrained(folder / part, max_shard_size="14MB")  # small enough for any git host
    state.tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(models.SCHEDULER, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m customttt.tiny.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: state, log, sheets")
    parser.add_argument("--minutes", type=float, default=120, help="training time over all stages")
    parser.add_argument("--clips", type=int, default=12288, help="how many clips are rendered and encoded")
    parser.add_argument("--start", type=Path, help="an exported base, for a new run to begin with")
    parser.add_argument("--export", type=Path, help="write the averaged model here and stop")
    arguments = parser.parse_args()
    if arguments.start and not all((arguments.start / part / "config.json").is_file() for _, part in PARTS.values()):
        parser.error(f"{arguments.start} holds no exported base (vae, unet and text_encoder)")
    arguments.out.mkdir(parents=True, exist_ok=True)
    state = create(arguments.out, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if arguments.start and not (arguments.out / "state.pt").exists():
        start_from(state, arguments.start)
    if arguments.export:
        export(state, arguments.export)
        return
    print(f"pid {os.getpid()}, {state.stage} stage, {state.seconds}", flush=True)
    train(state, arguments.minutes, arguments.clips)


if __name__ == "__main__":
    main()
