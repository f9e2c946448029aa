"""Train an embedded base from its world: `python -m customttt.lab.pretrain --out runs/tiny --start
customttt/tiny/weights --minutes 120`, and a twin of Wan with `--family wan`.

Three stages as in AnimateDiff (arXiv 2307.04725): the codec on crops; the denoising network with the text encoder on
crops of latents and whole pictures, each by itself; then everything on clips, with crops mixed in so that nothing is
forgotten. What only one architecture knows is in its twin (`twins`). Each stage gets its share of `--minutes`, and its
learning rate falls to nothing at its end. The same command resumes after any kill, on a CPU or a GPU; data are made on
the device, and on a GPU every step is one CUDA graph. `--start` goes on from an exported base: without the codec's
stage if its latents are as many as now, and else those of `tiny` are widened. The loss on clips that are never trained
on, by the averaged weights, is logged beside every sheet of samples.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from customttt import diffusion
from customttt.backbones import autocast, precision
from customttt.graphs import recorded
from customttt.lab import codec
from customttt.lab.optimizer import Optimizer
from customttt.lab.twins import Mode, Sizes, Stage, Twin
from customttt.lab.unet_twin import UNetTwin
from customttt.lab.wan_twin import WanTwin
from customttt.tiny import captions, world

TWINS: dict[str, type[Twin]] = {"animatediff": UNetTwin, "wan": WanTwin}
"""By family."""
RATES: dict[Stage, float] = {"codec": Twin.CODEC_RATE, "still": 7e-4, "clip": 7e-4}
CHECKPOINT_SECONDS, SHEET_SECONDS, LOG_SECONDS = 240, 1500, 30
SUBJECT_WEIGHT = 5.0  # how much more a latent under the subject counts
VALIDATION_CLIPS, VALIDATION_BATCHES, VALIDATION_SEED = 64, 8, 1
CROP = 8
"""Latents a side of a crop around a subject."""
VARIANTS = 2
"""Captions a clip."""
EMPTY_SHARE = 0.1
"""How often the prompt is empty, for classifier-free guidance."""
SHEET_STEPS, SHEET_GUIDANCE, SHEET_CLIPS = 15, 3.0, 6
SHEET_PROMPTS = [
    "A koala is running on Mars.", "A tiger is jumping in the snow.", "A blue dog is spinning on the grass.",
    "A teddy bear with a crown is sliding at night.", "A striped pink unicorn is rising at sunset.",
    "A koala and a tiger are sliding on the beach.", "A panda with a top hat is standing still in the city.",
    "A goat is falling and a turkey is jumping on the road.", "A hamburger is rolling on the moon.",
    "An octopus is running in the forest.",
]  # fmt: skip


@dataclass
class Run:
    """All that a resumed run needs: networks, optimizer, and how far each stage has come."""

    folder: Path
    device: torch.device
    twin: Twin
    generator: torch.Generator
    captioner: torch.Generator
    stage: Stage = "codec"
    optimizer: Optimizer | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(Twin.SHARES, 0.0))
    steps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Twin.SHARES, 0))

    @property
    def sizes(self) -> Sizes:
        return self.twin.SIZES[self.device.type]

    def trained(self) -> dict[str, nn.Module]:
        networks = self.twin.networks
        return {name: networks[name] for name in networks if (name == "vae") == (self.stage == "codec")}


def create(
    folder: Path,
    device: torch.device,
    start: Path | None = None,
    seed: int = 0,
    twin: type[Twin] = UNetTwin,
    stage: Stage | None = None,
) -> Run:
    """A new run, of its own or from an exported base, or the state that an earlier one left in `folder`.

    A run from a base begins with `stage`, by default the one after its codec.
    `seed` chooses the clips, captions and noise: another one for each run that goes on from a base.
    """
    words = folder / "tokenizer"  # never built twice: which of two equally frequent pairs comes first is left to chance
    torch.manual_seed(0)
    saved = _read(folder / "state.pt", device)
    if start:
        tokenizer = twin.TOKENIZER.from_pretrained(start / "tokenizer")
        tokenizer.save_pretrained(words)
    elif (words / "tokenizer.json").exists():
        tokenizer = twin.TOKENIZER.from_pretrained(words)
    else:
        tokenizer = twin.build_tokenizer(words)
    generators = torch.Generator(device).manual_seed(seed), torch.Generator().manual_seed(seed)
    run = Run(folder, device, twin(tokenizer), *generators)
    if start:
        after = run.twin.start_from(start)
        run.stage = stage or after
    run.twin.to(device)
    _enter(run, run.stage if saved is None else saved["stage"])
    if saved is not None:
        _restore(run, saved)
    return run


def _enter(run: Run, stage: Stage) -> None:
    """Begin a stage with an optimizer of its own."""
    run.stage = stage
    for network in run.twin.networks.values():
        network.float()
    muon = stage != "codec" or run.twin.CODEC_MUON
    run.optimizer = Optimizer(run.trained(), precision(run.device), muon=muon, outer=run.twin.OUTER)
    if stage != "codec":
        nn.Module.to(run.twin.vae, precision(run.device))


def _leave(run: Run) -> None:
    """Keep what has been averaged as the weights to go on from."""
    assert run.optimizer is not None
    for name, parameter in run.optimizer.live.items():
        parameter.data = run.optimizer.average[name].clone()


def save(run: Run) -> None:
    """Write the whole state aside, then rename it into place."""
    assert run.optimizer is not None
    data = {
        "networks": {name: network.state_dict() for name, network in run.twin.networks.items()},
        "optimizer": run.optimizer.state_dict(),
        "twin": run.twin.state(),
        "generators": [run.generator.get_state(), run.captioner.get_state()],
        **{name: getattr(run, name) for name in ("stage", "seconds", "steps")},
    }
    torch.save(data, run.folder / "state.tmp")
    (run.folder / "state.tmp").replace(run.folder / "state.pt")


def _read(path: Path, device: torch.device) -> dict[str, Any] | None:
    return dict(torch.load(path, map_location=device, weights_only=True)) if path.exists() else None


def _restore(run: Run, saved: dict[str, Any]) -> None:
    assert run.optimizer is not None
    run.twin.restore(saved["twin"], run.stage)
    for name, weights in saved["networks"].items():
        run.twin.networks[name].load_state_dict(weights)
    run.optimizer.load_state_dict(saved["optimizer"])
    for generator, state in zip((run.generator, run.captioner), saved["generators"], strict=True):
        generator.set_state(state.cpu())
    run.seconds, run.steps = saved["seconds"], saved["steps"]


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
    saved = shown = logged = time.monotonic()
    began, counted = _computed(run.device), 0
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
        run.seconds[run.stage] += _computed(run.device) - began
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
        began = _computed(run.device)
    log(run, **work.validate())
    work.sheet()


def _computed(device: torch.device) -> float:
    """Seconds that a GPU, or each thread of a CPU, has been at work: beside other work, a stage learns no less."""
    return time.monotonic() if device.type == "cuda" else time.process_time() / torch.get_num_threads()


def _wait(device: torch.device, step: int) -> None:
    """Let a GPU catch up now and then, so that the clock is true."""
    if device.type == "cuda" and step % 50 == 0:
        torch.cuda.synchronize()


def log(run: Run, **numbers: float) -> None:
    line = {"stage": run.stage, "step": run.steps[run.stage], "minutes": run.seconds[run.stage] / 60, **numbers}
    text = json.dumps({key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()})
    print(text, flush=True)
    with (run.folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(text + "\n")


# --------------------------------------------------------------------------------------------------------- the codec


def codec_work(run: Run) -> Work:
    """Steps on crops."""
    optimizer, sizes, twin = run.optimizer, run.sizes, run.twin
    assert optimizer is not None
    crops = codec.Crops(run.generator, max(sizes.clips // 8, sizes.chunk), sizes.chunk, twin.FRAMES, twin.SPAN)
    images, masks = crops.draw(sizes.codec_batch)
    total = torch.zeros((), device=run.device)

    def compute() -> None:
        with autocast(run.device):
            loss = twin.codec_loss(images, masks)
        optimizer.step(loss)
        total.add_(loss.detach())

    (replayed,) = recorded([compute], run.device) or [compute]
    total.zero_()

    def step() -> None:
        for buffer, new in zip((images, masks), crops.draw(sizes.codec_batch), strict=True):
            buffer.copy_(new)
        replayed()

    def turn(progress: float) -> None:
        twin.turn(progress, optimizer, lambda: torch.split(crops.draw(64 * sizes.codec_batch)[0], sizes.codec_batch))

    def validate() -> dict[str, float]:
        with optimizer.averages():
            return _decibels(run)

    return Work([step], crops.renew, total, validate, between=turn)


def _decibels(run: Run) -> dict[str, float]:
    """How well the codec shows clips that are never trained on, and some of their frames alone; a sheet of the clips,
    each above what the codec makes of it.
    """
    shown = _held_out_clips(run)
    sorts = [("", shown.video, shown.mask)]
    if run.twin.PICTURES:
        frames, masks = (part.unsqueeze(-3) for part in (shown.video[:, :, ::4], shown.mask[:, ::4]))
        sorts.append(("pictures: ", frames.transpose(1, 2).flatten(0, 1), masks.flatten(0, 1)))
    numbers: dict[str, float] = {}
    for name, video, mask in sorts:
        decoded = run.twin.decode(run.twin.encode(video))
        if video is shown.video:
            _write_rows(run, torch.stack([video, decoded], 1)[:SHEET_CLIPS].flatten(0, 1))
        whole, under = codec.decibels(decoded, video, mask)
        numbers |= {f"{name}decibels": float(whole.mean()), f"{name}under the subject": float(under.mean())}
    return numbers


def _held_out_clips(run: Run) -> world.Clips:
    """Every held-out noun as it is, in trained movements and all scenes in turn."""
    count = len(world.HELD_OUT_NOUNS)
    nouns = torch.tensor([[world.NOUNS.index(noun), world.ABSENT] for noun in world.HELD_OUT_NOUNS])
    plain = torch.zeros(count, 2, dtype=torch.long)
    turn = torch.arange(count)
    contents = world.Contents(nouns, plain, plain, plain, turn[:, None].repeat(1, 2), turn)
    generator = torch.Generator(run.device).manual_seed(VALIDATION_SEED)
    return world.render(contents.to(run.device), generator, num_frames=run.twin.FRAMES)


# ----------------------------------------------------------------------------------------------- the denoising network


@torch.no_grad()
def encode_clips(run: Run, count: int, generator: torch.Generator, captioner: torch.Generator) -> dict[str, Tensor]:
    """`count` clips of the world as latents, with weights, the first subjects' centres in latents, in frames that are
    encoded alone and on their paths, and tokens of captions, for crops of the first subject alone.

    Where a clip's latents are not those of its frames, some of its frames are encoded alone, too.
    """
    twin = run.twin
    clips = world.sample(count, generator, num_frames=twin.FRAMES)
    texts = [captions.captions(clips.contents, captioner) for _ in range(VARIANTS)]
    side = twin.latent_shape(1)[-1]
    centre = path = (clips.pose[:, 0, :, :2] + 1) * side / 2
    made = _encoded(run, "clip", clips.video, clips.mask)
    if twin.PICTURES:
        at = torch.rand(count, twin.FRAMES, generator=generator, device=generator.device).argsort(1)[:, : twin.PICTURES]
        row = torch.arange(count, device=at.device)[:, None]
        centre, frames = centre[row, at], clips.video.transpose(1, 2)[row, at].flatten(0, 1).unsqueeze(2)
        pictures = _encoded(run, "picture", frames, clips.mask[row, at].flatten(0, 1).unsqueeze(1))
        made |= {name: part.view(*at.shape, *part.shape[2:]) for name, part in pictures.items()}
    alone = tokenize(run, captions.captions(clips.contents.first(), captioner))
    tokens = torch.stack([tokenize(run, some) for some in texts], 1)
    return made | {"centre": centre, "path": path, "tokens": tokens, "tokens of the first": alone}


def _encoded(run: Run, kind: str, video: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Latents and weights, with the frames before the channels."""
    with autocast(run.device):
        latents = run.twin.encode(video).transpose(1, 2)
    weight = 1 + SUBJECT_WEIGHT * run.twin.pool(mask)
    return {f"{kind} latents": latents.bfloat16().contiguous(), f"{kind} weight": weight.bfloat16()}


def tokenize(run: Run, texts: list[str]) -> Tensor:
    """(b l) tokens on the run's device."""
    tokens = run.twin.tokenizer(
        texts, padding="max_length", truncation=True, max_length=run.twin.MAX_TOKENS, return_tensors="pt"
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
        self.place = (self.place + chunk) % len(self.parts["tokens"])

    def draw(self, mode: Mode, count: int) -> dict[str, Tensor]:
        """Scaled latents (b c f h w), their weights (b 1 f h w), tokens (b l) and timesteps (b)."""
        generator, device, twin = self.generator, self.generator.device, self.run.twin
        pick = torch.randint(0, len(self.parts["tokens"]), (count,), generator=generator, device=device)
        moving, cropped = mode in ("clip", "window"), mode in ("crop", "window")
        kind, centre = ("clip", "path") if moving or not twin.PICTURES else ("picture", "centre")
        latents, weight, centres = (self.parts[name] for name in (f"{kind} latents", f"{kind} weight", centre))
        if mode != "clip":
            frame = torch.randint(0, centres.shape[1], (count,), generator=generator, device=device)
        if moving:
            latents, weight = latents[pick].transpose(1, 2), weight[pick].unsqueeze(1)
        else:
            latents, weight = latents[pick, frame].unsqueeze(2), weight[pick, frame][:, None, None]
        if cropped:
            latents, weight = crop_around(latents, weight, centres[pick, frame], generator)
        variant = torch.randint(0, VARIANTS, (count,), generator=generator, device=device)
        without = torch.rand(count, 1, generator=generator, device=device) < EMPTY_SHARE
        timesteps = twin.timesteps(mode, count, generator)
        captioned = self.parts["tokens of the first"][pick] if cropped else self.parts["tokens"][pick, variant]
        tokens = torch.where(without, self.empty, captioned)
        return {
            "latents": twin.scaled(latents.float()), "weight": weight.float(), "tokens": tokens,
            "timesteps": timesteps, "noise": torch.randn(latents.shape, generator=generator, device=device),
        }  # fmt: skip


def crop_around(latents: Tensor, weight: Tensor, centre: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(b c f 8 8) latents around each subject's centre (b 2) and (b 1 f 8 8) weights, out of whole frames."""
    jitter = torch.randint(-3, 4, centre.shape, generator=generator, device=centre.device)
    corners = (centre.round().long() - CROP // 2 + jitter).clamp(0, latents.shape[-1] - CROP)
    line = torch.arange(CROP, device=centre.device)
    rows, columns = (corners[:, axis, None] + line for axis in (1, 0))
    at = torch.arange(len(latents), device=centre.device)[:, None, None], rows[:, :, None], columns[:, None]
    cut = (part.permute(0, 3, 4, 1, 2)[at].permute(0, 3, 4, 1, 2) for part in (latents, weight))
    return next(cut), next(cut)


def diffusion_loss(run: Run, batch: Mapping[str, Tensor]) -> Tensor:
    """Weighted error of the prediction."""
    latents, weight, noise, timesteps = (batch[name] for name in ("latents", "weight", "noise", "timesteps"))
    twin, schedule = run.twin, run.twin.schedule
    noisy, goal = schedule.add_noise(latents, noise, timesteps), schedule.target(latents, noise, timesteps)
    error = (twin.predict(noisy, timesteps, twin.embed(batch["tokens"])) - goal).square()
    return (error * weight).sum() / (weight.sum() * latents.shape[1])


def denoising_work(run: Run) -> Work:
    """Steps on crops, frames and clips out of a cache of latents."""
    cache = Cache(run, run.sizes.clips, run.generator, run.captioner)
    seeds = torch.Generator(run.device).manual_seed(VALIDATION_SEED), torch.Generator().manual_seed(VALIDATION_SEED)
    held_out = Cache(run, VALIDATION_CLIPS, *seeds)
    total = torch.zeros((), device=run.device)
    turns = run.twin.TURNS[run.stage]
    steps = {mode: _denoising_step(run, cache, mode, total) for mode in dict.fromkeys(turns)}
    total.zero_()

    def validate() -> dict[str, float]:
        return _validate(run, held_out, list(steps))

    return Work([steps[mode] for mode in turns], cache.renew, total, validate, sheet=lambda: write_sheet(run))


def _denoising_step(run: Run, cache: Cache, mode: Mode, total: Tensor) -> Callable[[], None]:
    optimizer, count = run.optimizer, run.sizes.batch[mode]
    assert optimizer is not None
    buffers = cache.draw(mode, count)

    def compute() -> None:
        with autocast(run.device):
            loss = diffusion_loss(run, buffers)
        optimizer.step(loss)
        total.add_(loss.detach())

    (replayed,) = recorded([compute], run.device) or [compute]

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
            batches = [held_out.draw(mode, run.twin.SIZES["cpu"].batch[mode]) for _ in range(VALIDATION_BATCHES)]
            losses = [diffusion_loss(run, batch).item() for batch in batches]
            means[f"validation {mode}"] = sum(losses) / len(losses)
    return means


def write_sheet(run: Run) -> None:
    """Sample SHEET_PROMPTS with the averaged weights into `sheet-STAGE-STEP.png`."""
    assert run.optimizer is not None
    twin, schedule, count = run.twin, run.twin.schedule, len(SHEET_PROMPTS)
    shape = (count, *twin.latent_shape(1 if run.stage == "still" else twin.FRAMES))
    noisy = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(run.device)
    with run.optimizer.averages(), autocast(run.device):
        embeds = twin.embed(tokenize(run, SHEET_PROMPTS + [""] * count))
        for step, following in pairwise(schedule.path(SHEET_STEPS)):
            batch = torch.full((2 * count,), step, device=run.device)
            wanted, free = twin.predict(torch.cat([noisy, noisy]), batch, embeds).chunk(2)
            noisy = schedule.step(diffusion.guide(wanted, free, SHEET_GUIDANCE), noisy, step, following)
        video = twin.decode(twin.unscaled(noisy))
    _write_rows(run, video)


def _write_rows(run: Run, video: Tensor) -> None:
    """A sheet of clips (b 3 f h w), one a row, about eight frames of each."""
    shown = video[:, :, :: max(video.shape[2] // 8, 1)].permute(0, 3, 2, 4, 1)
    pixels = ((shown.clamp(-1, 1) + 1) * 127.5).byte().cpu().numpy()
    pixels = pixels.reshape(len(video) * world.SIZE, -1, 3)
    Image.fromarray(pixels).save(run.folder / f"sheet-{run.stage}-{run.steps[run.stage]:06d}.png")


# ------------------------------------------------------------------------------------------------------- the stages


def train(run: Run, minutes: float, rates: Mapping[Stage, float] = RATES) -> None:
    """The stages from the run's own on, each up to its share of `minutes`; a stage that is skipped leaves its share."""
    shares = run.twin.SHARES
    order = list(shares)
    left = order[order.index(run.stage) :]
    whole = sum(shares[stage] for stage in order if run.seconds[stage] or stage in left)
    for stage in left:
        if stage != run.stage:
            _leave(run)
            _enter(run, stage)
            save(run)
        work = codec_work(run) if stage == "codec" else denoising_work(run)
        run_stage(run, 60 * minutes * shares[stage] / whole, rates[stage], work)
        if stage == "codec":
            _measure_scale(run)
    save(run)


def _measure_scale(run: Run) -> None:
    with torch.no_grad():
        run.twin.vae.float()
        run.twin.measure_scale(run.twin.encode(_held_out_clips(run).video))


def export(run: Run, folder: Path) -> None:
    """Write the averaged networks as plain diffusers folders in half precision."""
    _leave(run)
    twin = run.twin
    for name, (_, part) in twin.PARTS.items():
        network = twin.networks[name].half()
        network.save_pretrained(folder / part, max_shard_size="14MB")  # small enough for any git host
    twin.tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(dict(twin.SCHEDULER), indent=2) + "\n", encoding="utf-8"
    )
    twin.write_more(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m customttt.lab.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: state, log, sheets")
    parser.add_argument("--family", choices=[*TWINS], default="animatediff", help="the architecture")
    parser.add_argument("--minutes", type=float, default=120, help="of computing, over all stages")
    parser.add_argument("--start", type=Path, help="an exported base, for a new run to begin with")
    parser.add_argument("--stage", choices=[*Twin.SHARES], help="where a new run from --start begins")
    parser.add_argument("--rate", type=float, default=RATES["clip"], help="highest learning rate but the codec's")
    parser.add_argument("--seed", type=int, default=0, help="of clips and noise: another one for each --start")
    parser.add_argument("--export", type=Path, help="write the averaged model here and stop")
    arguments = parser.parse_args()
    twin = TWINS[arguments.family]
    folders = [part for _, part in twin.PARTS.values()]
    if arguments.start and not all((arguments.start / part / "config.json").is_file() for part in folders):
        parser.error(f"{arguments.start} holds no exported base ({', '.join(folders)})")
    if arguments.stage and not arguments.start:
        parser.error("--stage is where a run from --start begins; without it all stages are gone through")
    if arguments.seed == VALIDATION_SEED:
        parser.error(f"seed {VALIDATION_SEED} is that of the clips that are never trained on")
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = create(arguments.out, device, arguments.start, arguments.seed, twin, arguments.stage)
    if arguments.export:
        export(run, arguments.export)
        return
    print(f"pid {os.getpid()}, {run.stage} stage, {run.seconds}", flush=True)
    train(run, arguments.minutes, {"codec": twin.CODEC_RATE, "still": arguments.rate, "clip": arguments.rate})


if __name__ == "__main__":
    main()
