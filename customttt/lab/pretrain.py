"""Train `tiny` from its world: `python -m customttt.lab.pretrain --out runs/tiny --start customttt/tiny/weights
--minutes 120`.

Three stages as in AnimateDiff (arXiv 2307.04725): the codec on crops of frames; the image U-Net with the text encoder
on crops of latents and whole frames, motion modules bypassed; then everything on clips, with crops mixed in so that
nothing is forgotten. Each stage gets its share of `--minutes`, and its learning rate falls to nothing at its end. The
same command resumes after any kill, on a CPU or a GPU; data are made on the device, and on a GPU every step is one
CUDA graph. `--start` goes on from an exported base: without the codec's stage if its latents are as many as now, and
else they are widened. The loss on clips that are never trained on, by the averaged weights, is logged beside every
sheet of samples.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderTiny, UNetMotionModel
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from customttt import diffusion
from customttt.backbones import autocast, precision
from customttt.backbones.animatediff import without_motion
from customttt.backbones.unets import choose_attention
from customttt.errors import UsageError
from customttt.lab import codec
from customttt.lab.optimizer import Optimizer, Replayed
from customttt.tiny import captions, models, world

Stage = Literal["codec", "still", "clip"]
Mode = Literal["crop", "frame", "clip"]
SHARES: dict[Stage, float] = {"codec": 0.15, "still": 0.33, "clip": 0.52}
TURNS: dict[Stage, list[Mode]] = {"still": ["crop", "frame", "crop"], "clip": ["clip", "clip", "clip", "crop"]}
RATES: dict[Stage, float] = {"codec": 1.5e-3, "still": 7e-4, "clip": 7e-4}
SETTLED = 0.3
"""The share of the codec's stage after which its new latents are turned."""
CHECKPOINT_SECONDS, SHEET_SECONDS, LOG_SECONDS = 240, 1500, 30
SUBJECT_WEIGHT = 5.0  # how much more a latent under the subject counts
VALIDATION_CLIPS, VALIDATION_BATCHES, VALIDATION_SEED = 64, 8, 1
CROP = 8
"""Latents a side of a crop around a subject."""
VARIANTS = 2
"""Captions a clip."""
EMPTY_SHARE = 0.1
"""How often the prompt is empty, for classifier-free guidance."""
PARTS: dict[str, tuple[Any, str]] = {
    "vae": (AutoencoderTiny, "vae"), "unet": (UNetMotionModel, "unet"), "text": (CLIPTextModel, "text_encoder")
}  # fmt: skip
"""Networks, and their folders in an exported base."""
SHEET_STEPS, SHEET_GUIDANCE = 15, 3.0
SHEET_PROMPTS = [
    "A koala is running on Mars.", "A tiger is jumping in the snow.", "A blue dog is spinning on the grass.",
    "A teddy bear with a crown is sliding at night.", "A striped pink unicorn is rising at sunset.",
    "A koala and a tiger are sliding on the beach.", "A panda with a top hat is standing still in the city.",
    "A goat is falling and a turkey is jumping on the road.", "A hamburger is rolling on the moon.",
    "An octopus is running in the forest.",
]  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much a step, the cache and the codec's pool of frames hold."""

    batch: Mapping[Mode, int]
    codec_batch: int
    clips: int
    """In the cache of latents, and in the codec's pool an eighth of it."""
    chunk: int
    """Clips that are rendered at once."""
    renew_every: int
    """Steps until a chunk of the cache is made anew."""


SIZES = {
    "cuda": Sizes({"crop": 512, "frame": 192, "clip": 32}, 96, 20480, 256, 20),
    "cpu": Sizes({"crop": 160, "frame": 48, "clip": 6}, 16, 1024, 16, 5),
}
"""By device: a step of clips costs about as much as one of crops or frames."""


@dataclass
class Run:
    """All that a resumed run needs: networks, optimizer, and how far each stage has come."""

    folder: Path
    device: torch.device
    sizes: Sizes
    vae: Any
    unet: Any
    text: Any
    tokenizer: Any
    schedule: diffusion.NoiseSchedule
    generator: torch.Generator
    captioner: torch.Generator
    stage: Stage = "codec"
    optimizer: Optimizer | None = None
    narrow: Any = None
    """The codec that the run started from, while it is widened."""
    settled: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SHARES, 0.0))
    steps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))

    def trained(self) -> dict[str, nn.Module]:
        return {"vae": self.vae} if self.stage == "codec" else {"unet": self.unet, "text": self.text}

    @property
    def scale(self) -> float:
        """What latents are multiplied with for the U-Net."""
        return float(self.vae.config.scaling_factor)


def create(folder: Path, device: torch.device, start: Path | None = None, seed: int = 0) -> Run:
    """A new run, of its own or from an exported base, or the state that an earlier one left in `folder`.

    `seed` chooses the clips, captions and noise: another one for each run that goes on from a base.
    """
    words = folder / "tokenizer"  # never built twice: which of two equally frequent pairs comes first is left to chance
    torch.manual_seed(0)
    saved = _read(folder / "state.pt", device)
    if start:
        tokenizer = CLIPTokenizer.from_pretrained(start / "tokenizer")
        tokenizer.save_pretrained(words)
    elif (words / "tokenizer.json").exists():
        tokenizer = CLIPTokenizer.from_pretrained(words)
    else:
        tokenizer = models.build_tokenizer(words, captions.corpus())
    run = Run(
        folder, device, SIZES[device.type], models.build_vae(), models.build_unet(),
        models.build_text_encoder(len(tokenizer)), tokenizer, diffusion.NoiseSchedule.from_config(models.SCHEDULER),
        torch.Generator(device).manual_seed(seed), torch.Generator().manual_seed(seed),
    )  # fmt: skip
    if start:
        _start_from(run, start)
    for network in (run.vae, run.unet, run.text, *([run.narrow] if run.narrow else [])):
        nn.Module.to(network, device).requires_grad_(True)
    choose_attention(run.unet, device)
    _enter(run, run.stage if saved is None else saved["stage"])
    if saved is not None:
        _restore(run, saved)
    return run


def _start_from(run: Run, folder: Path) -> None:
    """Take over the networks of an exported base; the codec's stage is for one that has fewer latents."""
    vae, unet, text = (kind.from_pretrained(folder / part).float() for kind, part in PARTS.values())
    run.text, run.stage = text, "still"
    if vae.config.latent_channels < models.LATENT_CHANNELS:
        run.stage, run.narrow = "codec", vae
        vae, unet = codec.widen(vae), codec.widen_unet(unet)
    run.vae.load_state_dict(vae.state_dict())
    run.vae.register_to_config(scaling_factor=vae.config.scaling_factor)
    run.unet.load_state_dict(unet.state_dict())


def _enter(run: Run, stage: Stage) -> None:
    """Begin a stage with an optimizer of its own."""
    run.stage = stage
    for network in (run.vae, run.unet, run.text):
        network.float()
    run.optimizer = Optimizer(run.trained(), precision(run.device), muon=stage != "codec")
    if stage != "codec":
        nn.Module.to(run.vae, precision(run.device))


def _leave(run: Run) -> None:
    """Keep what has been averaged as the weights to go on from."""
    assert run.optimizer is not None
    for name, parameter in run.optimizer.live.items():
        parameter.data = run.optimizer.average[name].clone()


def save(run: Run) -> None:
    """Write the whole state aside, then rename it into place."""
    assert run.optimizer is not None
    data = {
        "networks": {name: getattr(run, name).state_dict() for name in PARTS},
        "optimizer": run.optimizer.state_dict(),
        "scale": run.scale,
        "widens": run.narrow is not None,
        "generators": [run.generator.get_state(), run.captioner.get_state()],
        **{name: getattr(run, name) for name in ("stage", "settled", "seconds", "steps")},
    }
    torch.save(data, run.folder / "state.tmp")
    (run.folder / "state.tmp").replace(run.folder / "state.pt")


def _read(path: Path, device: torch.device) -> dict[str, Any] | None:
    return dict(torch.load(path, map_location=device, weights_only=True)) if path.exists() else None


def _restore(run: Run, saved: dict[str, Any]) -> None:
    assert run.optimizer is not None
    if run.stage == "codec" and saved["widens"] and run.narrow is None:
        raise UsageError(f"{run.folder} widens the codec of another base; give it again as --start.")
    for name, weights in saved["networks"].items():
        getattr(run, name).load_state_dict(weights)
    run.optimizer.load_state_dict(saved["optimizer"])
    run.vae.register_to_config(scaling_factor=saved["scale"])
    for generator, state in zip((run.generator, run.captioner), saved["generators"], strict=True):
        generator.set_state(state.cpu())
    for name in ("settled", "seconds", "steps"):
        setattr(run, name, saved[name])


# ---------------------------------------------------------------------------------------------------------- the loop


def learning_rate(progress: float, steps: int, highest: float) -> float:
    """Warm up over 200 steps, stay until half of the stage is over, then fall to nothing in a line."""
    return highest * min(steps / 200, 1.0) * min(2 * (1 - min(progress, 1.0)), 1.0)


@dataclass
class Work:
    """What a stage does: its steps in turn, how each is filled with data, what is made anew now and then."""

    steps: list[Callable[[], None]]
    renew: Callable[[], None]
    total: Tensor
    """Where the steps add up their losses."""
    validate: Callable[[], dict[str, float]]
    sheet: Callable[[], None] = lambda: None
    between: Callable[[float], None] = lambda progress: None  # noqa: ARG005


def run_stage(run: Run, budget: float, rate: float, work: Work) -> None:
    """Train until the stage has had `budget` seconds; checkpoints, log lines and sheets on the way."""
    assert run.optimizer is not None
    saved = shown = logged = began = time.monotonic()
    counted = 0
    while run.seconds[run.stage] < budget:
        progress, n = run.seconds[run.stage] / budget, run.steps[run.stage]
        run.optimizer.prepare(learning_rate(progress, n, rate))
        work.between(progress)
        work.steps[n % len(work.steps)]()
        if n % run.sizes.renew_every == run.sizes.renew_every - 1:
            work.renew()
        run.steps[run.stage] += 1
        counted += 1
        _wait(run.device, counted)
        now = time.monotonic()
        run.seconds[run.stage] += now - began
        if now - logged > LOG_SECONDS:
            mean, speed = float(work.total) / counted, counted / (now - logged)
            log(run, loss=mean, speed=speed, left=(budget - run.seconds[run.stage]) / 60)
            work.total.zero_()
            logged, counted = now, 0
        if now - saved > CHECKPOINT_SECONDS:
            save(run)
            saved = now
        if now - shown > SHEET_SECONDS:
            log(run, **work.validate())
            work.sheet()
            shown = now
        began = time.monotonic()
    log(run, **work.validate())
    work.sheet()


def _wait(device: torch.device, step: int) -> None:
    """Let a GPU catch up now and then, so that the clock is true."""
    if device.type == "cuda" and step % 50 == 0:
        torch.cuda.synchronize()


def log(run: Run, **numbers: float) -> None:
    line = {"stage": run.stage, "step": run.steps[run.stage], "minutes": run.seconds[run.stage] / 60, **numbers}
    text = json.dumps({key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()})
    print(text, flush=True)
    with (run.folder / "log.jsonl").open("a") as file:
        file.write(text + "\n")


# --------------------------------------------------------------------------------------------------------- the codec


def codec_work(run: Run) -> Work:
    """Steps on crops of frames; once, the latents that a wider codec has more are settled."""
    optimizer, sizes = run.optimizer, run.sizes
    assert optimizer is not None
    crops = codec.Crops(run.generator, max(sizes.clips // 8, sizes.chunk), sizes.chunk)
    images, masks = crops.draw(sizes.codec_batch)
    total = torch.zeros((), device=run.device)

    def compute() -> None:
        with autocast(run.device):
            loss = codec.loss(run.vae, images, masks, run.narrow)
        optimizer.step(loss)
        total.add_(loss.detach())

    replayed = Replayed(compute, run.device.type == "cuda")
    total.zero_()

    def step() -> None:
        for buffer, new in zip((images, masks), crops.draw(sizes.codec_batch), strict=True):
            buffer.copy_(new)
        replayed()

    def settle(progress: float) -> None:
        if run.narrow is None or run.settled or progress < SETTLED:
            return
        turned = models.build_vae().to(run.device)
        turned.load_state_dict({name.removeprefix("vae."): value for name, value in optimizer.average.items()})
        frames = torch.split(crops.draw(64 * sizes.codec_batch)[0], sizes.codec_batch)
        with torch.no_grad():
            latents = torch.cat([turned.encoder(some) for some in frames])
        codec.settle(turned, latents, run.narrow.config.latent_channels)
        optimizer.take_over({"vae": turned})
        run.settled = True

    def validate() -> dict[str, float]:
        shown = _held_out_clips(run.device)
        with optimizer.averages():
            whole, under = codec.decibels(run.vae, shown.video, shown.mask)
        return {"decibels": float(whole.mean()), "under the subject": float(under.mean())}

    return Work([step], crops.renew, total, validate, between=settle)


def _held_out_clips(device: torch.device) -> world.Clips:
    """Every held-out noun as it is, in trained movements and all scenes in turn."""
    count = len(world.HELD_OUT_NOUNS)
    nouns = torch.tensor([[world.NOUNS.index(noun), world.ABSENT] for noun in world.HELD_OUT_NOUNS])
    plain = torch.zeros(count, 2, dtype=torch.long)
    turn = torch.arange(count)
    contents = world.Contents(nouns, plain, plain, plain, turn[:, None].repeat(1, 2), turn)
    return world.render(contents.to(device), torch.Generator(device).manual_seed(VALIDATION_SEED))


# --------------------------------------------------------------------------------------------------------- the U-Net


@torch.no_grad()
def encode_clips(run: Run, count: int, generator: torch.Generator, captioner: torch.Generator) -> dict[str, Tensor]:
    """`count` clips of the world as latents, with weights, the subjects' centres in latents, and tokens of captions."""
    clips = world.sample(count, generator)
    frames = clips.video.transpose(1, 2).flatten(0, 1).to(run.vae.dtype)
    with autocast(run.device):
        latents = torch.cat([run.vae.encode(some).latents for some in torch.split(frames, run.sizes.codec_batch)])
    texts = [captions.captions(clips.contents, captioner) for _ in range(VARIANTS)]
    return {
        "latents": latents.view(count, world.FRAMES, *latents.shape[1:]).transpose(1, 2).bfloat16().contiguous(),
        "weight": (1 + SUBJECT_WEIGHT * F.avg_pool2d(clips.mask, world.SIZE // models.LATENT_SIZE)).bfloat16(),
        "centre": (clips.pose[:, 0, :, :2] + 1) * models.LATENT_SIZE / 2,
        "tokens": torch.stack([tokenize(run, some) for some in texts], 1),
    }


def tokenize(run: Run, texts: list[str]) -> Tensor:
    """(b l) tokens on the run's device."""
    tokens = run.tokenizer(
        texts, padding="max_length", truncation=True, max_length=models.MAX_TOKENS, return_tensors="pt"
    )
    return tokens.input_ids.to(run.device)  # type: ignore[no-any-return]


class Cache:
    """Encoded clips, the oldest of which are replaced now and then: the codec stays out of the steps."""

    def __init__(self, run: Run, count: int, generator: torch.Generator, captioner: torch.Generator) -> None:
        self.run, self.generator, self.captioner, self.place = run, generator, captioner, 0
        chunk = min(run.sizes.chunk, count)
        made = [encode_clips(run, chunk, generator, captioner) for _ in range(count // chunk)]
        self.parts = {name: torch.cat([part[name] for part in made]) for name in made[0]}
        self.empty = tokenize(run, [""])

    def renew(self) -> None:
        chunk = self.run.sizes.chunk
        for name, new in encode_clips(self.run, chunk, self.generator, self.captioner).items():
            self.parts[name][self.place : self.place + chunk] = new
        self.place = (self.place + chunk) % len(self.parts["latents"])

    def draw(self, mode: Mode, count: int) -> dict[str, Tensor]:
        """Scaled latents (b c f h w), their weights (b 1 f h w), tokens (b l) and timesteps (b)."""
        generator, device, steps = self.generator, self.generator.device, len(self.run.schedule.alphas_cumprod)
        pick = torch.randint(0, len(self.parts["latents"]), (count,), generator=generator, device=device)
        latents, weight = self.parts["latents"][pick], self.parts["weight"][pick].unsqueeze(1)
        if mode != "clip":
            frame = torch.randint(0, world.FRAMES, (count,), generator=generator, device=device)
            rows = torch.arange(count, device=device)
            latents, weight = latents[rows, :, frame].unsqueeze(2), weight[rows, :, frame].unsqueeze(2)
            if mode == "crop":
                latents, weight = crop_around(latents, weight, self.parts["centre"][pick, frame], generator)
        variant = torch.randint(0, VARIANTS, (count,), generator=generator, device=device)
        without = torch.rand(count, 1, generator=generator, device=device) < EMPTY_SHARE
        timesteps = torch.randint(0, steps, (count,), generator=generator, device=device)
        if mode == "clip":  # half of them where tracks are decided, and details are not
            half = steps // 2
            timesteps[: count // 2] = half + timesteps[: count // 2] // 2
        tokens = torch.where(without, self.empty, self.parts["tokens"][pick, variant])
        return {
            "latents": latents.float() * self.run.scale, "weight": weight.float(), "tokens": tokens,
            "timesteps": timesteps, "noise": torch.randn(latents.shape, generator=generator, device=device),
        }  # fmt: skip


def crop_around(latents: Tensor, weight: Tensor, centre: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(b c 1 8 8) latents around each subject's centre (b 2) and (b 1 1 8 8) weights, out of whole frames."""
    jitter = torch.randint(-3, 4, centre.shape, generator=generator, device=centre.device)
    corners = (centre.round().long() - CROP // 2 + jitter).clamp(0, latents.shape[-1] - CROP)
    line = torch.arange(CROP, device=centre.device)
    rows, columns = (corners[:, axis, None] + line for axis in (1, 0))
    at = torch.arange(len(latents), device=centre.device)[:, None, None], rows[:, :, None], columns[:, None]
    cut = (part[at[0], :, 0, at[1], at[2]].permute(0, 3, 1, 2).unsqueeze(2) for part in (latents, weight))
    return next(cut), next(cut)


def diffusion_loss(run: Run, batch: Mapping[str, Tensor]) -> Tensor:
    """Weighted v-prediction error; on clips of one frame the motion modules are bypassed."""
    latents, weight, noise, timesteps = (batch[name] for name in ("latents", "weight", "noise", "timesteps"))
    noisy, goal = run.schedule.add_noise(latents, noise, timesteps), run.schedule.target(latents, noise, timesteps)
    error = (predict(run, noisy, timesteps, encode_text(run, batch["tokens"])) - goal).square()
    return (error * weight).sum() / (weight.sum() * latents.shape[1])


def encode_text(run: Run, tokens: Tensor) -> Tensor:
    """(b l d) prompt embeddings, with gradients."""
    embeds: Tensor = run.text(tokens).last_hidden_state
    return embeds


def predict(run: Run, noisy: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
    """The U-Net's output in full precision; a clip of one frame bypasses the motion modules."""
    frames = noisy.shape[2]
    with without_motion(run.unet) if frames == 1 else nullcontext():
        sample: Tensor = run.unet(noisy.to(run.unet.dtype), timesteps, embeds.repeat_interleave(frames, 0)).sample
    return sample.float()


def unet_work(run: Run) -> Work:
    """Steps on crops, frames and clips out of a cache of latents."""
    run.schedule = diffusion.NoiseSchedule(
        run.schedule.alphas_cumprod.to(run.device), run.schedule.prediction_type, run.schedule.spacing
    )
    cache = Cache(run, run.sizes.clips, run.generator, run.captioner)
    seeds = torch.Generator(run.device).manual_seed(VALIDATION_SEED), torch.Generator().manual_seed(VALIDATION_SEED)
    held_out = Cache(run, VALIDATION_CLIPS, *seeds)
    total = torch.zeros((), device=run.device)
    turns = TURNS[run.stage]
    steps = {mode: _unet_step(run, cache, mode, total) for mode in dict.fromkeys(turns)}
    total.zero_()

    def validate() -> dict[str, float]:
        return _validate(run, held_out, list(steps))

    return Work([steps[mode] for mode in turns], cache.renew, total, validate, sheet=lambda: write_sheet(run))


def _unet_step(run: Run, cache: Cache, mode: Mode, total: Tensor) -> Callable[[], None]:
    optimizer, count = run.optimizer, run.sizes.batch[mode]
    assert optimizer is not None
    buffers = cache.draw(mode, count)

    def compute() -> None:
        with autocast(run.device):
            loss = diffusion_loss(run, buffers)
        optimizer.step(loss)
        total.add_(loss.detach())

    replayed = Replayed(compute, run.device.type == "cuda")

    def step() -> None:
        for name, new in cache.draw(mode, count).items():
            buffers[name].copy_(new)
        replayed()

    return step


def _validate(run: Run, held_out: Cache, modes: list[Mode]) -> dict[str, float]:
    """The mean of each mode's loss, by the averaged weights, over batches and noise that are always the same."""
    assert run.optimizer is not None
    means = {}
    with run.optimizer.averages(), autocast(run.device):
        for mode in modes:
            held_out.generator.manual_seed(VALIDATION_SEED)
            batches = [held_out.draw(mode, SIZES["cpu"].batch[mode]) for _ in range(VALIDATION_BATCHES)]
            losses = [diffusion_loss(run, batch).item() for batch in batches]
            means[f"validation {mode}"] = sum(losses) / len(losses)
    return means


def write_sheet(run: Run) -> None:
    """Sample SHEET_PROMPTS with the averaged weights into `sheet-STAGE-STEP.png`, a clip a row."""
    assert run.optimizer is not None
    frames, count = 1 if run.stage == "still" else world.FRAMES, len(SHEET_PROMPTS)
    shape = (count, models.LATENT_CHANNELS, frames, models.LATENT_SIZE, models.LATENT_SIZE)
    noisy = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(run.device)
    with run.optimizer.averages(), autocast(run.device):
        embeds = encode_text(run, tokenize(run, SHEET_PROMPTS + [""] * count))
        for step, following in pairwise(run.schedule.path(SHEET_STEPS)):
            batch = torch.full((2 * count,), step, device=run.device)
            wanted, free = predict(run, torch.cat([noisy, noisy]), batch, embeds).chunk(2)
            noisy = run.schedule.step(diffusion.guide(wanted, free, SHEET_GUIDANCE), noisy, step, following)
        latents = (noisy / run.scale).transpose(1, 2).flatten(0, 1).to(run.vae.dtype)
        images = torch.cat([run.vae.decode(some).sample.float() for some in torch.split(latents, 64)])
    grid = images.view(count, frames, 3, world.SIZE, world.SIZE).permute(0, 3, 1, 4, 2)
    pixels = ((grid.clamp(-1, 1) + 1) * 127.5).byte().cpu().numpy()
    pixels = pixels.reshape(count * world.SIZE, frames * world.SIZE, 3)
    Image.fromarray(pixels).save(run.folder / f"sheet-{run.stage}-{run.steps[run.stage]:06d}.png")


# ------------------------------------------------------------------------------------------------------- the stages


def train(run: Run, minutes: float, rates: Mapping[Stage, float] = RATES) -> None:
    """The stages from the run's own on, each up to its share of `minutes`; a stage that is skipped leaves its share."""
    order = list(SHARES)
    left = order[order.index(run.stage) :]
    whole = sum(SHARES[stage] for stage in order if run.seconds[stage] or stage in left)
    for stage in left:
        if stage != run.stage:
            _leave(run)
            _enter(run, stage)
            save(run)
        work = codec_work(run) if stage == "codec" else unet_work(run)
        run_stage(run, 60 * minutes * SHARES[stage] / whole, rates[stage], work)
        if stage == "codec":
            _set_scale(run)
    save(run)


def _set_scale(run: Run) -> None:
    """Scale the latents of a new codec to unit variance; a widened one keeps the scale of the one it was."""
    if run.narrow is not None:
        return
    with torch.no_grad():
        video = _held_out_clips(run.device).video.transpose(1, 2).flatten(0, 1)
        latents = run.vae.float().encode(video).latents
    run.vae.register_to_config(scaling_factor=1 / latents.std().item())


def export(run: Run, folder: Path) -> None:
    """Write the averaged networks as plain diffusers folders in half precision."""
    _leave(run)
    for name, (_, part) in PARTS.items():
        getattr(run, name).half().save_pretrained(folder / part, max_shard_size="14MB")  # small enough for any git host
    run.tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(models.SCHEDULER, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m customttt.lab.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: state, log, sheets")
    parser.add_argument("--minutes", type=float, default=120, help="training time over all stages")
    parser.add_argument("--start", type=Path, help="an exported base, for a new run to begin with")
    parser.add_argument("--rate", type=float, default=RATES["clip"], help="highest learning rate of the U-Net")
    parser.add_argument("--seed", type=int, default=0, help="of clips and noise: another one for each --start")
    parser.add_argument("--export", type=Path, help="write the averaged model here and stop")
    arguments = parser.parse_args()
    if arguments.start and not all((arguments.start / part / "config.json").is_file() for _, part in PARTS.values()):
        parser.error(f"{arguments.start} holds no exported base (vae, unet and text_encoder)")
    if arguments.seed == VALIDATION_SEED:
        parser.error(f"seed {VALIDATION_SEED} is that of the clips that are never trained on")
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = create(arguments.out, device, arguments.start, arguments.seed)
    if arguments.export:
        export(run, arguments.export)
        return
    print(f"pid {os.getpid()}, {run.stage} stage, {run.seconds}", flush=True)
    train(run, arguments.minutes, {**RATES, "still": arguments.rate, "clip": arguments.rate})


if __name__ == "__main__":
    main()
