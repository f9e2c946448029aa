"""Trains the judge on fresh renders: `python -m customttt.lab.judge_training --minutes 45`, on one core.

First it learns to find subjects, then to name what is cut out, then how subjects move; each part by itself.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from customttt import machine
from customttt.lab.optimizer import Optimizer
from customttt.lab.spoil import augment, warp
from customttt.tiny import world
from customttt.tiny.judge import FILE, LOOKS, SIZE, Judge, cut
from customttt.tiny.movements import MOVEMENTS, MOVING
from customttt.tiny.scenes import SCENES, paint

PAIRS = 0.3
"""Share of the clips that show two subjects."""
SPOILED = 0.12
"""Share of training clips whose subjects are warped or missing, and of those whose frames are in disorder."""
TURNED, AUGMENTED = 0.25, 0.6
"""Shares of the cutouts that are turned by any angle, and that may be blurred, noisy, compressed or tinged."""
UNKNOWN = -100
"""A label of what cannot be named."""
IDENTITY_SCALE = 16.0  # of the cosines in the softmax over the other clips of a batch
LEARNING_RATE, CHECKPOINT_SECONDS = 5e-3, 120
KEPT, REPEATED = 512, 4
"""How many batches of watched clips are kept, and how often is learned from them before there is a new one."""
ORDERED = [
    index for index, name in enumerate(MOVEMENTS)
    if name not in ("standing still", "playing", "shaking", "nodding", "dancing", "bouncing", "spinning", "hovering")
]  # fmt: skip
"""Movements that are no movement any more when their frames are in disorder."""
DISORDER = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])


# ------------------------------------------------------------------------------------------------------------ clips


def random_contents(b: int, generator: torch.Generator, pairs: float = PAIRS) -> world.Contents:
    """Everything there is in the world, what `tiny` never saw included."""

    def below(n: int) -> Int[Tensor, "b s"]:
        return torch.randint(0, n, (b, 2), generator=generator)

    def share(of: float) -> Tensor:
        return torch.rand(b, 2, generator=generator) < of

    noun, movement = below(len(world.NOUNS)), below(MOVING + 1)
    noun[:, 1] = torch.where(share(pairs)[:, 1], noun[:, 1], world.ABSENT)
    movement[:, 1] = torch.where(share(0.3)[:, 1], movement[:, 0], movement[:, 1])
    colour, hat, pattern = (
        torch.where(share(plain), 0, below(n))
        for n, plain in ((len(world.COLOURS), 0.4), (len(world.HATS), 0.4), (len(world.PATTERNS), 0.7))
    )
    return world.Contents(noun, colour, hat, pattern, movement, below(len(SCENES))[:, 0])


def render(contents: world.Contents, generator: torch.Generator, num_frames: int = world.FRAMES) -> world.Clips:
    """Clips at the judge's size, whose subjects are told from left to right."""
    clips = world.render(contents, generator, num_frames=num_frames, size=SIZE)
    places = clips.pose[..., 0].mean(2)
    swapped = (contents.noun[:, 1] != world.ABSENT) & (places[:, 0] > places[:, 1])

    def ordered(part: Tensor) -> Tensor:
        return torch.where(swapped.view(-1, *[1] * (part.ndim - 1)), part.flip(1), part)

    subjects = {name: ordered(part) for name, part in vars(contents).items() if name != "scene"}
    return replace(clips, contents=world.Contents(**subjects, scene=contents.scene), pose=ordered(clips.pose))


def random_clips(b: int, generator: torch.Generator, pairs: float = PAIRS) -> world.Clips:
    return render(random_contents(b, generator, pairs), generator)


def _still(contents: world.Contents, generator: torch.Generator) -> world.Contents:
    """The same for single frames: half of them at a pose of their own, not at the first of a named movement."""
    free = torch.rand(len(contents), 1, generator=generator) < 0.5
    return replace(contents, movement=torch.where(free, MOVING, contents.movement))


def _empty(video: Float[Tensor, "b 3 f h w"], rows: Tensor, scene: Tensor, generator: torch.Generator) -> None:
    """Take everybody out of some clips."""
    if rows.any():
        video[rows] = (paint(scene[rows], SIZE, generator) * 2 - 1).unsqueeze(2).expand(-1, -1, video.shape[2], -1, -1)


def _bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=machine.multiplies_bfloat16())


# ----------------------------------------------------------------------------------------------------------- losses


def locating_loss(judge: Judge, generator: torch.Generator) -> Tensor:
    """Where the subjects are, how large they are, whether there are two, and the scene: in two frames of each clip."""
    clips = render(_still(random_contents(64, generator), generator), generator, num_frames=3)
    bare = torch.rand(64, generator=generator) < SPOILED / 2
    _empty(clips.video, bare, clips.contents.scene, generator)
    first = int(torch.randint(0, 2, (), generator=generator))
    video, pose = augment(clips.video[:, :, first : first + 2], generator), clips.pose[:, :, first : first + 2]
    with _bfloat16():
        located = judge.locator(video.transpose(1, 2).flatten(0, 1))
    present = (clips.contents.noun != world.ABSENT) & ~bare[:, None]
    pose = pose.transpose(1, 2).flatten(0, 1)
    there = (pose[..., :2].abs().amax(-1) < 0.95) & present.repeat_interleave(2, 0)
    loss = F.cross_entropy(located.scene, clips.contents.scene.repeat_interleave(2))
    loss = loss + F.binary_cross_entropy_with_logits(located.two, present[:, 1].float().repeat_interleave(2))
    loss = loss + 12 * (located.position - pose[..., :2])[there].abs().mean()
    total: Tensor = loss + 3 * (located.size - pose[..., 3:].log().mean(-1))[there].abs().mean()
    return total


class Cast(NamedTuple):
    """Frames in which one subject is to be named; the other one, where there is any, is there to disturb."""

    clips: world.Clips
    which: Int[Tensor, " b"]
    """Of the two subjects."""


def cast(nouns: int, generator: torch.Generator) -> Cast:
    """Every noun in two looks, each in two frames: frames 2k and 2k + 1 show the same subject."""
    contents = _still(random_contents(4 * nouns, generator), generator)
    which = torch.where(contents.noun[:, 1] == world.ABSENT, 0, torch.randint(0, 2, (4 * nouns,), generator=generator))
    row = torch.arange(4 * nouns)
    for name, every in (("noun", 4), ("colour", 2), ("hat", 2), ("pattern", 2)):
        part = getattr(contents, name)
        part[row, which] = part[row // every * every, 0]
    return Cast(world.render(contents, generator, num_frames=1, size=SIZE), which)


def naming_loss(judge: Judge, generator: torch.Generator) -> Tensor:
    """Names of what is cut out at about the right place, its posture, and its identity."""
    clips, which = cast(32, generator)
    b = len(which)
    warped = torch.rand(b, generator=generator) < SPOILED
    clips.video[warped] = warp(clips.video[warped], generator)
    pose = clips.pose[torch.arange(b), which, 0]
    there = (pose[:, :2].abs().amax(-1) < 0.95) & ~warped
    place = pose[:, :2] + 0.06 * torch.randn(b, 2, generator=generator)
    size = pose[:, 3:].log().mean(-1) + 0.12 * torch.randn(b, generator=generator)
    turned = torch.rand(b, generator=generator) < TURNED
    turn = torch.where(turned, (torch.rand(b, generator=generator) * 2 - 1) * torch.pi, 0.0)
    blurred = torch.rand(b, generator=generator) < AUGMENTED
    clips.video[blurred] = augment(clips.video[blurred], generator)
    cutouts = cut(clips.video[:, :, 0], place, size, turn)
    with _bfloat16():
        features = judge.namer(cutouts)
        logits, posture = judge.namer.named(features), judge.namer.posture(features).float()
    labels = {head: getattr(clips.contents, head)[torch.arange(b), which] for head in LOOKS}
    angle = (pose[:, 2] - turn)[:, None]
    wanted = torch.cat([angle.sin(), angle.cos(), pose[:, 3:].log() - size[:, None]], -1)
    loss = names_loss(logits, labels, there) + (posture - wanted)[there].square().mean()
    loss = loss + identity_loss(logits["identity"], there & (labels["colour"] != world.STRANGE))
    total: Tensor = loss + _doubt(logits["noun"][warped], b)
    return total


def names_loss(logits: dict[str, Tensor], labels: dict[str, Tensor], there: Bool[Tensor, " b"]) -> Tensor:
    """Cross-entropy of all names of those who are there; a strange colour has none."""
    total = torch.zeros(())
    for head, label in labels.items():
        known = there & (label != world.STRANGE) if head == "colour" else there
        total = total + F.cross_entropy(logits[head][known], label[known])
    return total


def identity_loss(identity: Float[Tensor, "b d"], counted: Bool[Tensor, " b"]) -> Tensor:
    """InfoNCE over the batch (van den Oord et al. 2018): each is nearest to the other frame of the same subject.

    Frames 2k and 2k + 1 show the same subject.
    """
    cosines = (IDENTITY_SCALE * identity @ identity.T).fill_diagonal_(float("-inf"))
    other = torch.arange(len(identity)) ^ 1
    return F.cross_entropy(cosines[counted], other[counted])


class Watching:
    """Movements of what the two other parts, which do not change any more, see in whole clips.

    What they saw last is kept, to be learned from again.
    """

    def __init__(self) -> None:
        self.kept: deque[Watched] = deque(maxlen=KEPT)

    def __call__(self, judge: Judge, generator: torch.Generator) -> Tensor:
        if not self.kept or torch.rand((), generator=generator) < 1 / REPEATED:
            self.kept.append(watch(judge, generator))
        drawn = torch.randint(0, len(self.kept), (8,), generator=generator)
        path, features, movement = (torch.cat(parts) for parts in zip(*(self.kept[i] for i in drawn), strict=True))
        with _bfloat16():
            logits = judge.mover(path, features).float()
        known = movement != UNKNOWN
        loss: Tensor = F.cross_entropy(logits[known], movement[known]) + _doubt(logits[~known], len(known))
        return loss


class Watched(NamedTuple):
    """What is seen of n subjects, and how they move; UNKNOWN where that cannot be told."""

    path: Float[Tensor, "n f 7"]
    features: Float[Tensor, "n f 256"]
    movement: Int[Tensor, " n"]


@torch.no_grad()
def watch(judge: Judge, generator: torch.Generator) -> Watched:
    """See some new clips; in a few of them nobody is there, or the frames are in disorder."""
    clips = random_clips(16, generator, pairs=0.4)
    movement, present = clips.contents.movement, clips.contents.noun != world.ABSENT
    chance = torch.rand(len(movement), generator=generator)
    bare = chance < SPOILED / 2
    _empty(clips.video, bare, clips.contents.scene, generator)
    disordered = (chance > 1 - SPOILED) & (torch.isin(movement, torch.tensor(ORDERED)) | ~present).all(1)
    clips.video[disordered] = clips.video[disordered][:, :, DISORDER]
    spoiled = augment(clips.video, generator)
    with _bfloat16():
        path, features, _, _ = judge.follow(spoiled)
    labels = torch.where((bare | disordered)[:, None], UNKNOWN, movement)
    rows = present.flatten()
    return Watched(path[rows], features[rows], labels[present])


def _doubt(logits: Float[Tensor, "k n"], of: int) -> Tensor:
    """Cross-entropy of knowing nothing about k of so many subjects, a mean over all of them."""
    return -logits.log_softmax(-1).mean(-1).sum() / of


# --------------------------------------------------------------------------------------------------------- training


Loss = Callable[[Judge, torch.Generator], Tensor]


class Part(NamedTuple):
    """A part of the judge that is trained by itself."""

    name: str
    loss: Callable[[], Loss]
    """Makes what is to be made small."""
    share: float
    """Of the time."""


PARTS = [
    Part("locator", lambda: locating_loss, 0.15),
    Part("namer", lambda: naming_loss, 0.65),
    Part("mover", Watching, 0.2),
]


@dataclass
class JudgeTraining:
    """A training that is under way, and goes on from its checkpoint where it was killed."""

    judge: Judge
    generator: torch.Generator
    checkpoint: Path
    part: int = 0
    step: int = 0
    spent: float = 0.0
    """Seconds on this part."""

    def __post_init__(self) -> None:
        saved = torch.load(self.checkpoint, weights_only=True) if self.checkpoint.exists() else None
        if saved:
            self.part, self.step, self.spent = saved["part"], saved["step"], saved["spent"]
            self.judge.load_state_dict(saved["judge"])
            self.generator.manual_seed(self.step)
        self._begin()
        if saved:
            self.optimizer.load_state_dict(saved["optimizer"])

    def _begin(self) -> None:
        """With the part whose turn it is."""
        part = PARTS[self.part]
        network = getattr(self.judge, part.name)
        self.judge.eval()
        network.train()
        self.loss, self.optimizer = part.loss(), Optimizer({part.name: network}, torch.float32)

    def save(self) -> None:
        state = {
            "judge": self.judge.state_dict(), "optimizer": self.optimizer.state_dict(),
            "part": self.part, "step": self.step, "spent": self.spent,
        }  # fmt: skip
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        self.checkpoint.with_suffix(".tmp").replace(self.checkpoint)

    def train(self, seconds: float) -> None:
        """Train this part until it took `seconds`, and go on to the next."""
        saved_at = logged = time.monotonic()
        while self.spent < seconds:
            began = time.monotonic()
            loss = self._step(self.spent / seconds)
            self.spent += time.monotonic() - began
            if time.monotonic() - logged > 20:
                logged = time.monotonic()
                line = {"part": PARTS[self.part].name, "step": self.step, "loss": round(loss, 3)}
                print(json.dumps(line | {"minutes left": round((seconds - self.spent) / 60, 1)}), flush=True)
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                saved_at = time.monotonic()
                self.save()
        self.part, self.spent = self.part + 1, 0.0
        if self.part < len(PARTS):
            self._begin()
            self.save()

    def _step(self, progress: float) -> float:
        falling = 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2
        loss = self.loss(self.judge, self.generator)
        self.optimizer.prepare(LEARNING_RATE * min(1, 50 * progress) * falling)
        self.optimizer.step(loss)
        self.step += 1
        return loss.item()


def calibrate(judge: Judge, clips: int, generator: torch.Generator) -> None:
    """Set each head's temperature to the one of least cross-entropy on augmented clips it has not seen."""
    logits: dict[str, list[Tensor]] = {head: [] for head in judge.temperature}
    labels: dict[str, list[Tensor]] = {head: [] for head in judge.temperature}
    for _ in range(clips // 32):
        new = random_clips(32, generator)
        with torch.no_grad():
            guesses = judge(augment(new.video, generator))
        for head, label in truth(new.contents).items():
            known = label != UNKNOWN
            logits[head].append(guesses[head][known])
            labels[head].append(label[known])
    for head in judge.temperature:
        values, right = torch.cat(logits[head]), torch.cat(labels[head])
        if head == "two":  # one logit against nothing
            values = torch.stack([torch.zeros_like(values), values], -1)
        temperatures = torch.logspace(-0.7, 0.7, 57)
        losses = torch.stack([F.cross_entropy(values / temperature, right) for temperature in temperatures])
        judge.temperature[head].data.copy_(temperatures[losses.argmin()])


def truth(contents: world.Contents) -> dict[str, Tensor]:
    """Labels by head, both subjects' or the clips'; UNKNOWN for those of nobody, and for a strange colour."""
    present = contents.noun != world.ABSENT
    labels = {head: torch.where(present, getattr(contents, head), UNKNOWN) for head in (*LOOKS, "movement")}
    labels["colour"] = torch.where(labels["colour"] == world.STRANGE, UNKNOWN, labels["colour"])
    return labels | {"scene": contents.scene, "two": present[:, 1].long()}


def train(minutes: float, out: Path, seed: int = 0) -> None:
    """Train for `minutes` with checkpoints, then calibrate and write `out` in half precision."""
    torch.manual_seed(seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    run = JudgeTraining(Judge(), torch.Generator().manual_seed(seed), out.with_suffix(".state"))
    while run.part < len(PARTS):
        run.train(60 * minutes * PARTS[run.part].share)
    run.judge.eval()
    calibrate(run.judge, 1024, torch.Generator().manual_seed(seed + 1))
    save_file({name: value.half().contiguous() for name, value in run.judge.state_dict().items()}, out)
    run.checkpoint.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m customttt.lab.judge_training", description=__doc__)
    parser.add_argument("--minutes", type=float, default=45, help="training time")
    parser.add_argument("--out", type=Path, default=FILE, help="where the weights go")
    arguments = parser.parse_args()
    train(arguments.minutes, arguments.out)


if __name__ == "__main__":
    main()
