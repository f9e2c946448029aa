"""The judge (ours): says what a clip of the embedded world shows, trained on rendered truth alone.

It names subject, movement and scene, or says "unsure"; it finds the subject in each frame; and its identity
embedding tells how much alike two subjects look, as DINO-I does for photographs. It never saw a generated video.
`python -m customttt.tiny.judge --minutes 15` trains it again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from customttt import machine
from customttt.errors import UsageError
from customttt.tiny import TINY_PATH, world

FILE = TINY_PATH / "judge.safetensors"
UNSURE = "unsure"
SURE = 0.5
"""From this calibrated probability on, a name is said."""
IDENTITY_SCALE = 16.0  # of the cosines in the softmax over all subjects in all looks
CHECKPOINT_SECONDS = 120
SPOILED = 0.15  # share of training clips whose subject is warped or missing, and of those whose frames are in disorder
HEADS = {"noun": len(world.NOUNS), "movement": len(world.MOVEMENTS), "scene": len(world.SCENES)}
ORDERED = [
    index for index, name in enumerate(world.MOVEMENTS)
    if name not in ("standing still", "playing", "shaking", "nodding", "dancing", "bouncing", "spinning", "hovering")
]  # fmt: skip
"""Movements that are no movement any more when their frames are in disorder."""


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Opinion:
    """What the judge thinks of b clips; probabilities are calibrated."""

    noun: Float[Tensor, "b n"]
    movement: Float[Tensor, "b m"]
    scene: Float[Tensor, "b s"]
    identity: Float[Tensor, "b d"]
    """Unit vectors; their dot products are identity similarities in [-1, 1]."""
    position: Float[Tensor, "b f 2"]
    """Centre of the subject in [-1, 1], x and y."""

    def names(self, head: str) -> list[str]:
        """The most probable name of each clip, or "unsure"; `head` is noun, movement or scene."""
        probabilities, indices = getattr(self, head).max(-1)
        known = list(getattr(world, f"{head.upper()}S"))
        pairs = zip(probabilities.tolist(), indices.tolist(), strict=True)
        return [known[index] if probability >= SURE else UNSURE for probability, index in pairs]


class Judge(nn.Module):
    """A small convolutional network on each frame, a temporal one on what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Sequential(_convolution(3, 32, 2), _convolution(32, 64, 2), Residual(64), Residual(64))
        self.deep = nn.Sequential(_convolution(64, 128, 2), Residual(128), Residual(128))
        self.where = nn.Sequential(_convolution(64 + 128, 64), nn.Conv2d(64, 1, 1))
        self.describe = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128))
        self.posture = nn.Linear(128, 4)
        self.noun = nn.Linear(128, HEADS["noun"])
        self.scene = nn.Linear(128, HEADS["scene"])
        self.identity = nn.Linear(128, 64)
        self.prototypes = nn.Parameter(torch.randn(len(world.NOUNS) * len(world.LOOKS), 64))
        self.temporal = nn.Sequential(
            nn.Conv1d(2 + 4 + 32, 128, 3, padding=1), nn.ReLU(), nn.Conv1d(128, 128, 3, padding=1), nn.ReLU()
        )
        self.glimpse = nn.Linear(128, 32)
        self.movement = nn.Linear(256, HEADS["movement"])
        self.temperature = nn.ParameterDict({head: nn.Parameter(torch.ones(()), requires_grad=False) for head in HEADS})

    def forward(self, video: Float[Tensor, "b 3 f 64 64"]) -> dict[str, Tensor]:
        """Logits of noun, movement and scene, identity, and per frame position (b f 2) and posture (b f 4)."""
        b, _, f, _, _ = video.shape
        coarse = self.coarse(video.transpose(1, 2).flatten(0, 1))
        deep = self.deep(coarse)
        both = torch.cat([coarse, F.interpolate(deep, scale_factor=2.0, mode="bilinear")], 1)
        heat = self.where(both).float().flatten(1).softmax(-1).view(-1, 16, 16)
        line = (torch.arange(16, device=heat.device) + 0.5) / 8 - 1
        position = torch.stack([(heat.sum(1) * line).sum(-1), (heat.sum(2) * line).sum(-1)], -1)
        attention = F.avg_pool2d(heat, 2) * 4
        seen = self.describe((deep * attention.unsqueeze(1)).sum((2, 3)))
        posture = self.posture(seen)
        path = torch.cat([position.to(seen), posture, self.glimpse(seen)], -1).view(b, f, -1)
        felt = self.temporal(path.transpose(1, 2))
        mean = seen.view(b, f, -1).mean(1)
        return {
            "noun": self.noun(mean),
            "scene": self.scene(deep.mean((2, 3)).view(b, f, -1).mean(1)),
            "movement": self.movement(torch.cat([felt.mean(-1), felt.amax(-1)], -1)),
            "identity": F.normalize(self.identity(mean).float(), dim=-1),
            "position": position.view(b, f, 2),
            "posture": posture.view(b, f, -1),
        }

    @torch.no_grad()
    def look(self, video: Float[Tensor, "b 3 f h w"], batch_size: int = 16) -> Opinion:
        """Judge clips in [-1, 1] of any size, read at 64 x 64; b may be large."""
        parts: list[dict[str, Tensor]] = []
        for clips in torch.split(video.float(), batch_size):
            b, _, f = clips.shape[:3]
            frames = clips.transpose(1, 2).flatten(0, 1)
            if frames.shape[-2:] != (64, 64):
                frames = F.interpolate(frames, (64, 64), mode="bilinear", antialias=True, align_corners=False)
            parts.append(self(frames.view(b, f, 3, 64, 64).transpose(1, 2)))
        whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        heads = {head: (whole[head] / self.temperature[head]).softmax(-1) for head in HEADS}
        return Opinion(**heads, identity=whole["identity"], position=whole["position"])


@cache
def load() -> Judge:
    """The judge that ships with the package, on the CPU."""
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(FILE).items()})
    return judge.eval()


def named(prompt: str) -> dict[str, int]:
    """Which noun, movement and scene of the world a prompt names, as indices; what it does not name is left out."""
    found: dict[str, int] = {}
    for head in HEADS:
        names = list(getattr(world, f"{head.upper()}S"))
        said = [name for name in names if re.search(rf"\b{re.escape(name)}\b", prompt, re.IGNORECASE)]
        if said:
            found[head] = names.index(max(said, key=len))
    return found


def chances(opinion: Opinion, prompt: str) -> dict[str, list[float]]:
    """How probable the noun, movement and scene are that a prompt names, one number a clip; others are left out."""
    return {head: getattr(opinion, head)[:, index].tolist() for head, index in named(prompt).items()}


def new_words(prompt: str, starred: str) -> dict[str, int]:
    """What `starred` names and `prompt` does not, as `named`. Raises UsageError where there is nothing of the kind."""
    before = named(prompt)
    if not (new := {head: index for head, index in named(starred).items() if before.get(head) != index}):
        raise UsageError(
            f"{starred!r} names no subject, movement or scene that {prompt!r} does not; tiny's model card lists them."
        )
    return new


def shows(video: Float[Tensor, "b 3 f h w"], prompt: str, starred: str) -> list[float]:
    """Mean probability of the `new_words`, one a clip (an `influence.Scorer`). Raises UsageError."""
    opinion = load().look(video)
    parts = [getattr(opinion, head)[:, index] for head, index in new_words(prompt, starred).items()]
    return [float(value) for value in torch.stack(parts).mean(0)]


# ---------------------------------------------------------------------------------------------------------- training


def random_clips(b: int, generator: torch.Generator) -> world.Clips:
    """Clips of everything there is in the world, what `tiny` never saw included."""

    counts = (len(world.NOUNS), len(world.LOOKS), len(world.MOVEMENTS), len(world.SCENES))
    noun, look, movement, scene = (torch.randint(0, count, (b,), generator=generator) for count in counts)
    return world.render(noun, look, movement, scene, generator)


class Pool:
    """Rendered clips kept as bytes, a few of them renewed at every draw."""

    def __init__(self, clips: int, generator: torch.Generator) -> None:
        self.generator = generator
        parts = [self._render(32) for _ in range(clips // 32)]
        self.parts = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _render(self, count: int) -> dict[str, Tensor]:
        new = random_clips(count, self.generator)
        labels = {key: getattr(new, key) for key in ("noun", "look", "movement", "scene", "pose")}
        return {"video": ((new.video + 1) * 127.5).round().byte(), **labels}

    def draw(self, count: int, renewed: int = 4) -> dict[str, Tensor]:
        size = len(self.parts["noun"])
        start = int(torch.randint(0, size - renewed, (), generator=self.generator))
        for key, value in self._render(renewed).items():
            self.parts[key][start : start + renewed] = value
        chosen = torch.randint(0, size, (count,), generator=self.generator)
        batch = {key: value[chosen] for key, value in self.parts.items()}
        batch["video"] = batch["video"].float() / 127.5 - 1
        return batch


def warp(video: Float[Tensor, "b 3 f h w"], generator: torch.Generator) -> Float[Tensor, "b 3 f h w"]:
    """Move the pixels so far that no subject can be told; colours and the rough path stay."""
    b, _, f, h, w = video.shape
    shifts = torch.randn(b * f, 2, 7, 7, generator=generator) * 0.2
    shifts = F.interpolate(shifts, (h, w), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    still = F.affine_grid(torch.eye(2, 3).expand(b * f, 2, 3), [b * f, 3, h, w], align_corners=False)
    frames = video.transpose(1, 2).flatten(0, 1)
    moved = F.grid_sample(frames, still + shifts, padding_mode="reflection", align_corners=False)
    return moved.view(b, f, 3, h, w).transpose(1, 2)


@cache
def _cosines() -> Float[Tensor, "8 8"]:
    """The orthonormal DCT-II of JPEG's 8 x 8 blocks."""
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)
    matrix = (math.pi / 8 * (n + 0.5) * k).cos() * 0.5
    matrix[0] /= math.sqrt(2)
    return matrix


def compress(video: Float[Tensor, "b 3 f h w"], step: Float[Tensor, " b"]) -> Float[Tensor, "b 3 f h w"]:
    """Quantise the 8 x 8 cosine coefficients in steps of `step`, as a codec does."""
    dct = _cosines()
    h, w = video.shape[-2:]
    blocks = video.reshape(*video.shape[:3], h // 8, 8, w // 8, 8).transpose(-3, -2)
    step = step.view(-1, *[1] * (blocks.ndim - 1))
    blocks = dct.T @ (((dct @ blocks @ dct.T) / step).round() * step) @ dct
    return blocks.transpose(-3, -2).reshape(video.shape)


def augment(video: Float[Tensor, "b 3 f h w"], generator: torch.Generator) -> Float[Tensor, "b 3 f h w"]:
    """Blur, noise, compression and shifts of colour, each of a random strength a clip; half of the clips stay sharp."""
    b = len(video)

    def strength(high: float) -> Tensor:
        drawn = torch.rand(b, generator=generator) * 2 - 1
        return drawn.clamp(min=0) * high

    sigma = strength(1.4).clamp(min=0.05)
    kernel = (-torch.arange(-3.0, 4.0).square() / (2 * sigma[:, None] ** 2)).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    frames = video.transpose(1, 2).transpose(0, 1).flatten(1, 2)  # one group of channels a clip, frames as the batch
    frames = F.conv2d(frames, kernel.unsqueeze(-1), padding=(3, 0), groups=3 * b)
    frames = F.conv2d(frames, kernel.unsqueeze(-2), padding=(0, 3), groups=3 * b)
    video = frames.view(len(frames), b, 3, *frames.shape[-2:]).permute(1, 2, 0, 3, 4)
    video = compress(video, strength(0.5).clamp(min=1e-3))
    gain = 1 + 0.12 * torch.randn(b, 3, 1, 1, 1, generator=generator)
    shift = 0.06 * torch.randn(b, 3, 1, 1, 1, generator=generator)
    noise = torch.randn(video.shape, generator=generator) * strength(0.25).view(-1, 1, 1, 1, 1)
    return (video * gain + shift + noise).clamp(-1, 1)


def _smooth(labels: Int[Tensor, " b"], classes: int, spoiled: Tensor) -> Float[Tensor, "b n"]:
    """One-hot targets; where a clip is spoiled, every class is as likely."""
    targets = F.one_hot(labels, classes).float()
    return torch.where(spoiled[:, None], torch.full_like(targets, 1 / classes), targets)


def loss_of(judge: Judge, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Cross-entropy of all names, the subject's place and posture, and a softmax over cosines for the identity."""
    video, b = batch["video"], len(batch["noun"])
    chance = torch.rand(b, generator=generator)
    warped, bare = chance < SPOILED, chance < SPOILED / 3
    if warped.any():
        video[warped] = warp(video[warped], generator)
    if bare.any():  # nobody is there
        scenes = world.paint(batch["scene"][bare], 64, generator) * 2 - 1
        video[bare] = scenes.unsqueeze(2).expand(-1, -1, video.shape[2], -1, -1)
    disordered = (chance > 1 - SPOILED) & torch.isin(batch["movement"], torch.tensor(ORDERED))
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    video[disordered] = video[disordered][:, :, order]
    pose = batch["pose"].clone()
    pose[disordered] = pose[disordered][:, order]
    with torch.autocast("cpu", torch.bfloat16, enabled=machine.multiplies_bfloat16()):
        seen = judge(augment(video, generator))
    nothing = torch.zeros_like(warped)
    loss = F.cross_entropy(seen["noun"].float(), _smooth(batch["noun"], HEADS["noun"], warped))
    loss = loss + F.cross_entropy(
        seen["movement"].float(), _smooth(batch["movement"], HEADS["movement"], bare | disordered)
    )
    loss = loss + F.cross_entropy(seen["scene"].float(), _smooth(batch["scene"], HEADS["scene"], nothing))
    cosines = seen["identity"] @ F.normalize(judge.prototypes, dim=-1).T
    subject = batch["noun"] * len(world.LOOKS) + batch["look"]
    loss = loss + F.cross_entropy(IDENTITY_SCALE * cosines[~warped], subject[~warped])
    there = (pose[..., :2].abs().amax(-1) < 0.95) & ~warped[:, None]
    loss = loss + 12 * (seen["position"] - pose[..., :2])[there].abs().mean()
    posture = torch.cat([pose[..., 2:3].sin(), pose[..., 2:3].cos(), pose[..., 3:]], -1)
    total: Tensor = loss + 0.3 * (seen["posture"].float() - posture)[there].square().mean()
    return total


def calibrate(judge: Judge, clips: int, generator: torch.Generator) -> None:
    """Set each head's temperature to the one of least cross-entropy on augmented clips it has not seen."""
    logits: dict[str, list[Tensor]] = {head: [] for head in HEADS}
    labels: dict[str, list[Tensor]] = {head: [] for head in HEADS}
    with torch.no_grad():
        for _ in range(clips // 32):
            new = random_clips(32, generator)
            seen = judge(augment(new.video, generator))
            for head in HEADS:
                logits[head].append(seen[head])
                labels[head].append(getattr(new, head))
    for head in HEADS:
        values, truth = torch.cat(logits[head]), torch.cat(labels[head])
        temperatures = torch.logspace(-0.7, 0.7, 57)
        losses = torch.stack([F.cross_entropy(values / temperature, truth) for temperature in temperatures])
        judge.temperature[head].data.copy_(temperatures[losses.argmin()])


def train(minutes: float, out: Path, seed: int = 0) -> None:
    """Train for `minutes` with checkpoints, then calibrate and write `out` in half precision."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge, spent, step = Judge(), 0.0, 0
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    checkpoint = out.with_suffix(".state")
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        judge.load_state_dict(saved["judge"])
        optimizer.load_state_dict(saved["optimizer"])
        spent, step = saved["spent"], saved["step"]
        generator.manual_seed(seed + step)
    out.parent.mkdir(parents=True, exist_ok=True)
    pool = Pool(1024, generator)
    logged = saved_at = time.monotonic()
    while spent < 60 * minutes:
        began = time.monotonic()
        progress = spent / (60 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, step / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
        loss = loss_of(judge, pool.draw(24), generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(judge.parameters(), 5.0)
        optimizer.step()
        step += 1
        spent += time.monotonic() - began
        if time.monotonic() - logged > 20:
            logged = time.monotonic()
            left = minutes - spent / 60
            print(json.dumps({"step": step, "loss": round(loss.item(), 3), "minutes left": round(left, 1)}), flush=True)
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            saved_at = time.monotonic()
            state = {"judge": judge.state_dict(), "optimizer": optimizer.state_dict(), "spent": spent, "step": step}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    judge.eval()
    calibrate(judge, 512, torch.Generator().manual_seed(seed + 1))
    save_file({name: value.half().contiguous() for name, value in judge.state_dict().items()}, out)
    checkpoint.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m customttt.tiny.judge", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15, help="training time")
    parser.add_argument("--out", type=Path, default=FILE, help="where the weights go")
    arguments = parser.parse_args()
    train(arguments.minutes, arguments.out)


if __name__ == "__main__":
    main()
