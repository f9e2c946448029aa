"""The judge (ours): says what a clip of the embedded world shows, trained on rendered truth alone.

It finds up to two subjects in each frame, cuts them out and names them, their looks and movements, and the scene, or
says "unsure"; and its identity embedding tells how much alike two subjects look, as DINO-I does for photographs. It
never saw a generated video. `judge_training.py` trains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from statistics import fmean
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from customttt.errors import UsageError
from customttt.tiny import TINY_PATH, captions, world
from customttt.tiny.movements import MOVEMENTS
from customttt.tiny.scenes import SCENES

FILE = TINY_PATH / "judge.safetensors"
UNSURE = "unsure"
SURE, SURE_OF_COLOUR = 0.5, 0.7
"""From this calibrated probability on, a name is said; of colours more is asked, as some subjects have one anyway."""
SIZE, CROP = 64, 48
"""Pixels a side of the frames that are read, and of what is cut out of them."""
MARGIN = 1.15
"""How much wider a cutout is than the subject's canvas."""
LOOKS = {
    "noun": world.NOUNS,
    "colour": [colour for colour in world.COLOURS if colour != "strange"],
    "hat": world.HATS,
    "pattern": world.PATTERNS,
}
"""What is read from cutouts of a subject. A strange colour is none that could be named."""
NAMES = LOOKS | {"movement": [*MOVEMENTS, captions.UNNAMED], "scene": list(SCENES)}
"""What can be said, by head."""


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


# --------------------------------------------------------------------------------------------------------- opinions


def sure(head: str) -> float:
    """From which probability on a name is said."""
    return SURE_OF_COLOUR if head == "colour" else SURE


@dataclass(frozen=True)
class Seen:
    """What the judge thinks of one subject in each of b clips; probabilities are calibrated."""

    noun: Float[Tensor, "b n"]
    colour: Float[Tensor, "b c"]
    hat: Float[Tensor, "b k"]
    pattern: Float[Tensor, "b p"]
    movement: Float[Tensor, "b m"]
    """The last is a movement without a name."""
    identity: Float[Tensor, "b d"]
    """Unit vectors; their dot products are identity similarities in [-1, 1]."""
    position: Float[Tensor, "b f 2"]
    """Centre of the subject in [-1, 1], x and y."""

    def names(self, head: str) -> list[str]:
        """The most probable name of each clip, or "unsure"; `head` is one of NAMES. An empty name: no hat, or none
        of the colours and patterns."""
        probabilities, indices = getattr(self, head).max(-1)
        pairs = zip(probabilities.tolist(), indices.tolist(), strict=True)
        return [NAMES[head][index] if probability >= sure(head) else UNSURE for probability, index in pairs]


@dataclass(frozen=True)
class Opinion(Seen):
    """What the judge thinks of b clips: of the only or leftmost subject in each, the scene, and a second subject."""

    scene: Float[Tensor, "b s"]
    two: Float[Tensor, " b"]
    """How probable it is that there are two subjects."""
    second: Seen
    """The other subject; it means nothing where there is none."""

    def in_order(self, nouns: Sequence[tuple[int, ...]]) -> tuple[Seen, Seen]:
        """Both subjects of each clip, first the one that is rather the first of the clip's two `nouns`."""
        clip, (first, other) = torch.arange(len(nouns)), torch.tensor(nouns).T
        straight = self.noun[clip, first] + self.second.noun[clip, other]
        crossed = self.noun[clip, other] + self.second.noun[clip, first]
        return self._where(straight >= crossed), self._where(straight < crossed)

    def _where(self, leftmost: Bool[Tensor, " b"]) -> Seen:
        """The leftmost subject of some clips, and the other one of the rest."""
        parts = {}
        for field in fields(Seen):
            mine, others = getattr(self, field.name), getattr(self.second, field.name)
            parts[field.name] = torch.where(leftmost.view(-1, *[1] * (mine.ndim - 1)), mine, others)
        return Seen(**parts)


# --------------------------------------------------------------------------------------------------------- networks


class Located(NamedTuple):
    """What is found in n frames."""

    position: Float[Tensor, "n 2 2"]
    size: Float[Tensor, "n 2"]
    """Logarithms of factors of the base size."""
    scene: Float[Tensor, "n s"]
    two: Float[Tensor, " n"]


class Locator(nn.Module):
    """Where up to two subjects are in a frame, how large they are, and what is around them."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Sequential(_convolution(3, 32, 2), _convolution(32, 48, 2), Residual(48))
        self.deep = nn.Sequential(_convolution(48, 96, 2), Residual(96), Residual(96))
        self.heat = nn.Sequential(_convolution(48 + 96, 48), nn.Conv2d(48, 2, 1))
        self.size = nn.Linear(96, 1)
        self.scene = nn.Linear(2 * 96, len(SCENES))
        self.two = nn.Linear(2 * 96, 1)

    def forward(self, frames: Float[Tensor, "n 3 64 64"]) -> Located:
        coarse = self.coarse(frames)
        deep = self.deep(coarse)
        both = torch.cat([coarse, F.interpolate(deep, scale_factor=2.0, mode="bilinear")], 1)
        heat = self.heat(both).float().flatten(2).softmax(-1).view(-1, 2, 16, 16)
        line = (torch.arange(16, device=heat.device) + 0.5) / 8 - 1
        position = torch.stack([(heat.sum(2) * line).sum(-1), (heat.sum(3) * line).sum(-1)], -1)
        there = torch.einsum("nkhw,nchw->nkc", F.avg_pool2d(heat, 2) * 4, deep.float())
        whole = torch.cat([deep.mean((2, 3)), deep.amax((2, 3))], -1)
        return Located(
            position, self.size(there)[..., 0].float(), self.scene(whole).float(), self.two(whole)[:, 0].float()
        )


class Namer(nn.Module):
    """Who is in a cutout, and in what posture."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Sequential(
            _convolution(3, 32, 2), _convolution(32, 64, 2), Residual(64),
            _convolution(64, 128, 2), Residual(128), Residual(128), nn.Conv2d(128, 40, 1), nn.Flatten(),
            nn.Linear(40 * (CROP // 8) ** 2, 256), nn.ReLU(),
        )  # fmt: skip
        self.identity = nn.Linear(256, 64)
        self.posture = nn.Linear(256, 4)
        self.heads = nn.ModuleDict({head: nn.Linear(256, len(names)) for head, names in LOOKS.items()})

    def forward(self, cutouts: Float[Tensor, "n 3 48 48"]) -> Float[Tensor, "n 256"]:
        return self.see(cutouts)  # type: ignore[no-any-return]

    def named(self, seen: Float[Tensor, "n 256"]) -> dict[str, Tensor]:
        """Logits by head, and unit vectors of identity."""
        logits = {head: layer(seen).float() for head, layer in self.heads.items()}
        return logits | {"identity": F.normalize(self.identity(seen).float(), dim=-1)}


class Mover(nn.Module):
    """How a subject moves, by where it is, how it is turned, and what it looks like in each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.glimpse = nn.Linear(256, 16)
        self.temporal = nn.Sequential(
            nn.Conv1d(7 + 16, 128, 3, padding=1), nn.ReLU(), nn.Conv1d(128, 128, 3, padding=1), nn.ReLU(),
            nn.Conv1d(128, 128, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.movement = nn.Linear(256, len(NAMES["movement"]))

    def forward(self, path: Float[Tensor, "n f 7"], seen: Float[Tensor, "n f 256"]) -> Float[Tensor, "n m"]:
        felt = self.temporal(torch.cat([path, self.glimpse(seen)], -1).transpose(1, 2))
        return self.movement(torch.cat([felt.mean(-1), felt.amax(-1)], -1))  # type: ignore[no-any-return]


def cut(
    frames: Float[Tensor, "n 3 h w"],
    position: Float[Tensor, "n 2"],
    size: Float[Tensor, " n"],
    turn: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "n 3 48 48"]:
    """Squares around subjects, so wide that those of every size fill them alike, and turned by angles."""
    angle = torch.zeros_like(size) if turn is None else turn
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    half = size.exp() * world.HALF_SIZE * world.SUBJECT_SPAN * MARGIN
    theta = torch.cat([turned * half[:, None, None], position.unsqueeze(-1)], -1)
    grid = F.affine_grid(theta, [len(frames), 3, CROP, CROP], align_corners=False)
    return F.grid_sample(frames, grid, padding_mode="border", align_corners=False)


class Followed(NamedTuple):
    """What is seen of b clips: of both subjects, in rows 2k and 2k + 1, and of the whole frame."""

    path: Float[Tensor, "b2 f 7"]
    """Position, size and posture."""
    seen: Float[Tensor, "b2 f 256"]
    scene: Float[Tensor, "b s"]
    two: Float[Tensor, " b"]


class Judge(nn.Module):
    """Finds the subjects in each frame, names what it cuts out, and follows how it moves."""

    def __init__(self) -> None:
        super().__init__()
        self.locator, self.namer, self.mover = Locator(), Namer(), Mover()
        self.temperature = nn.ParameterDict(
            {head: nn.Parameter(torch.ones(()), requires_grad=False) for head in (*NAMES, "two")}
        )

    def follow(self, video: Float[Tensor, "b 3 f 64 64"]) -> Followed:
        """What the locator and the namer see in each frame."""
        b, _, f, _, _ = video.shape
        frames = video.transpose(1, 2).flatten(0, 1)
        located = self.locator(frames)
        place, size = located.position.flatten(0, 1), located.size.flatten()
        seen = self.namer(cut(frames.repeat_interleave(2, 0), place, size))
        path = torch.cat([place, size[:, None], self.namer.posture(seen).float()], -1)
        path, seen = (part.view(b, f, 2, -1).transpose(1, 2).flatten(0, 1) for part in (path, seen))
        return Followed(path, seen, located.scene.view(b, f, -1).mean(1), located.two.view(b, f).mean(1))

    def forward(self, video: Float[Tensor, "b 3 f 64 64"]) -> dict[str, Tensor]:
        """Logits of scene (b s) and `two` (b); of both subjects the logits by head (b 2 n), identity and position."""
        path, seen, scene, two = self.follow(video)
        told = moments(path.shape[1])
        movement = self.mover(path[:, told], seen[:, told]).float()
        logits = self.namer.named(seen.mean(1)) | {"movement": movement}
        both = {key: value.view(-1, 2, *value.shape[1:]) for key, value in logits.items()}
        return both | {"position": path[..., :2].view(-1, 2, path.shape[1], 2), "scene": scene, "two": two}

    @torch.no_grad()
    def look(self, video: Float[Tensor, "b 3 f h w"], batch_size: int = 16) -> Opinion:
        """Judge clips in [-1, 1] of any size, read at 64 x 64; b may be large."""
        parts = [self(read(clips)) for clips in torch.split(video, batch_size)]
        whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        for head in NAMES:
            whole[head] = (whole[head] / self.temperature[head]).softmax(-1)
        two = (whole["two"] / self.temperature["two"]).sigmoid()
        first, second = (
            {key: whole[key][:, slot] for key in (*LOOKS, "movement", "identity", "position")} for slot in (0, 1)
        )
        return Opinion(**first, scene=whole["scene"], two=two, second=Seen(**second))


def moments(frames: int) -> list[int]:
    """By which frames a movement is told: all, or as many as the judge was trained on, evenly apart."""
    if frames <= world.FRAMES:
        return list(range(frames))
    return [round(index * (frames - 1) / (world.FRAMES - 1)) for index in range(world.FRAMES)]


def read(video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b 3 f 64 64"]:
    """Clips at the size at which they are judged."""
    if video.shape[-2:] == (SIZE, SIZE):
        return video
    frames = video.transpose(1, 2).flatten(0, 1)
    small = F.interpolate(frames, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    return small.view(len(video), -1, 3, SIZE, SIZE).transpose(1, 2)


@cache
def load() -> Judge:
    """The judge that ships with the package, on the CPU."""
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(FILE).items()})
    return judge.eval()


# ---------------------------------------------------------------------------------------------------------- prompts


def named(prompt: str) -> dict[str, tuple[int, ...]]:
    """What a prompt names of the world, as indices by head: one for each subject, and one of the scene.

    What it does not name is left out; a movement that the subjects share is that of each. So are movements that are not
    said of each subject, or of which one makes several after another: what is told is that of a whole clip.
    """
    said = captions.read(prompt)
    words = {"noun": said.nouns, "movement": captions.doings(prompt), "scene": [said.scene] if said.scene else []}
    for head in ("colour", "hat", "pattern"):
        looks = [getattr(look, head) for look in said.looks]
        if any(look in NAMES[head] and look for look in looks):
            words[head] = [look if look in NAMES[head] else "" for look in looks]
    return {head: tuple(NAMES[head].index(name) for name in names) for head, names in words.items() if names}


def chances(opinion: Opinion, prompt: str) -> dict[str, list[float]]:
    """How probable it is by head what a prompt names, one number a clip; of two subjects their mean."""
    names = named(prompt)
    nouns = names.get("noun", ())
    both = opinion.in_order([nouns[:2]] * len(opinion.two)) if len(nouns) > 1 else (opinion,)
    return {head: _chance(opinion, both, head, indices).tolist() for head, indices in names.items()}


def _chance(opinion: Opinion, subjects: Sequence[Seen], head: str, indices: tuple[int, ...]) -> Float[Tensor, " b"]:
    """How probable what one head is asked for is; a second subject must be there to be anything."""
    if head == "scene":
        return opinion.scene[:, indices[0]]
    parts = [getattr(seen, head)[:, index] for seen, index in zip(subjects, indices, strict=False)]
    mean = torch.stack(parts).mean(0)
    return mean * opinion.two if len(parts) > 1 else mean


def new_words(prompt: str, starred: str) -> dict[str, tuple[int, ...]]:
    """What `starred` names and `prompt` does not, as `named`. Raises UsageError where there is nothing of the kind."""
    before = named(prompt)
    if not (new := {head: indices for head, indices in named(starred).items() if before.get(head) != indices}):
        raise UsageError(
            f"{starred!r} names no subject, look, movement or scene that {prompt!r} does not; tiny's model card lists "
            "them."
        )
    return new


def shows(video: Float[Tensor, "b 3 f h w"], prompt: str, starred: str) -> list[float]:
    """Mean probability of the `new_words`, one a clip (an `influence.Scorer`). Raises UsageError."""
    new = new_words(prompt, starred)
    probable = chances(load().look(video), starred)
    return [fmean(values) for values in zip(*(probable[head] for head in new), strict=True)]
