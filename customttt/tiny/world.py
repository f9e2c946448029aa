"""A procedural world of subjects, movements and scenes with exact ground truth (ours): what `tiny` is trained on.

Everything is a pure function of a generator, on its device and in batches; `movements.py` says what a pose is. One or
two subjects a clip: what belongs to a subject has an axis `s` of two, and the second is absent where its noun is
ABSENT. The subjects are emoji of Noto Color Emoji (SIL Open Font License 1.1, see `sprites/LICENSE`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from customttt.tiny import TINY_PATH
from customttt.tiny.movements import MOVING, TRAINED_MOVEMENTS, Pose, poses
from customttt.tiny.scenes import SCENES, paint

FIRST_NOUNS = ["koala", "tiger", "dog", "teddy bear", "panda", "fox", "cat", "rabbit", "penguin", "car"]
"""A quarter of the subjects are drawn from these alone."""
TRAINED_NOUNS = [
    *FIRST_NOUNS,
    "monkey", "gorilla", "wolf", "horse", "unicorn", "zebra", "deer", "goat", "sheep", "camel", "llama", "giraffe",
    "rhinoceros", "hippopotamus", "mouse", "hamster", "squirrel", "hedgehog", "bear", "sloth", "otter", "skunk",
    "kangaroo", "badger", "turkey", "rooster", "bird", "eagle", "duck", "swan", "owl", "flamingo", "peacock",
    "parrot", "crocodile", "lizard", "snake", "dragon", "dinosaur", "whale", "dolphin", "seal", "fish", "blowfish",
    "shark", "snail", "butterfly", "caterpillar", "ant", "bee", "ladybug", "crab", "lobster", "shrimp", "squid",
    "raccoon", "leopard", "poodle", "apple", "pear", "orange", "lemon", "watermelon", "cherry", "pineapple",
    "carrot", "corn", "hamburger", "pizza", "donut", "cake", "football", "basketball", "balloon", "gift", "lamp",
    "guitar", "cactus", "tree", "sunflower", "bus", "taxi", "truck", "train", "sailboat", "rocket", "ufo", "house",
    "castle", "snowman", "ghost", "alien", "star", "moon",
]  # fmt: skip
HELD_OUT_NOUNS = [
    "octopus", "lion", "chick", "cow", "strawberry", "pumpkin",
    "frog", "elephant", "pig", "turtle", "robot", "mushroom",
]  # fmt: skip
NOUNS = TRAINED_NOUNS + HELD_OUT_NOUNS
ABSENT = -1
"""The noun of a subject that is not there."""

COLOURS: dict[str, tuple[float, float, float] | None] = {
    "": None,
    "red": (0.95, 0.25, 0.20),
    "yellow": (1.0, 0.85, 0.20),
    "green": (0.30, 0.80, 0.25),
    "blue": (0.25, 0.50, 1.0),
    "purple": (0.65, 0.30, 0.90),
    "pink": (1.0, 0.50, 0.75),
    "orange": (1.0, 0.55, 0.12),
    "brown": (0.55, 0.36, 0.20),
    "white": (1.0, 1.0, 1.0),
    "black": (0.22, 0.22, 0.26),
    "strange": None,
}
"""A subject's paint; a strange one has a colour of its own in every clip."""
STRANGE = list(COLOURS).index("strange")
PATTERNS = ["", "striped", "spotted", "checkered"]
HATS = ["", "top hat", "crown", "bow", "cap", "straw hat", "graduation cap", "flower"]


class Look(NamedTuple):
    """How a subject is dressed; all empty: as it is."""

    colour: str = ""
    hat: str = ""
    pattern: str = ""


PLAIN = Look()
HELD_OUT_LOOKS = [
    Look("purple", "crown"),
    Look("blue", "top hat"),
    Look("green", "bow"),
    Look("pink", "top hat"),
    Look("red", "crown"),
]  # fmt: skip """Pairs of colour and hat that no training caption or frame ever shows, on any noun."""

SIZE, FRAMES = 128, 8
"""Pixels a side and frames of the clips that `tiny` is made for."""
HALF_SIZE = 0.46  # half of a subject's base size
SUBJECT_SPAN = 1.36  # the sprite canvas in base sizes: room for a hat
PAIR_SCALE, PAIR_PATH, PAIR_APART = 0.72, 0.5, 0.44
"""Of two subjects in one clip: their size, how far each goes, and how far each is from the middle."""


@dataclass(frozen=True)
class Contents:
    """What b clips show, as indices into NOUNS, COLOURS, HATS, PATTERNS, MOVEMENTS (and MOVING) and SCENES in their
    order.
    """

    noun: Int[Tensor, "b s"]
    colour: Int[Tensor, "b s"]
    hat: Int[Tensor, "b s"]
    pattern: Int[Tensor, "b s"]
    movement: Int[Tensor, "b s"]
    scene: Int[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.scene)

    def __getitem__(self, rows: Tensor | slice) -> Contents:
        return Contents(*(part[rows] for part in vars(self).values()))

    def subjects(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Nouns, colours, hats and patterns, each (b s)."""
        return self.noun, self.colour, self.hat, self.pattern

    def first(self) -> Contents:
        """The same clips as if the second subject were not there."""
        noun = torch.stack([self.noun[:, 0], torch.full_like(self.noun[:, 1], ABSENT)], 1)
        return replace(self, noun=noun)

    def to(self, device: torch.device | str) -> Contents:
        return Contents(*(part.to(device) for part in vars(self).values()))


@dataclass(frozen=True)
class Clips:
    """Rendered clips and the truth about them."""

    contents: Contents
    video: Float[Tensor, "b c f h w"]
    """RGB in [-1, 1]."""
    mask: Float[Tensor, "b f h w"]
    """Opacity of the subjects in [0, 1]."""
    pose: Float[Tensor, "b s f 5"]
    """Of each subject; of one that is absent it means nothing."""


# --------------------------------------------------------------------------------------------------------- subjects


def _sprite(name: str, size: int) -> Float[Tensor, "4 s s"]:
    """A sprite as premultiplied RGBA in [0, 1], `size` pixels square."""
    image = Image.open(TINY_PATH / "sprites" / f"{name.replace(' ', '_')}.png").convert("RGBA")
    rgba = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    rgba[:3] *= rgba[3:]
    return F.interpolate(rgba[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]


class _Wardrobe(NamedTuple):
    """All that subjects are dressed from, on one device."""

    bodies: Float[Tensor, "n 4 s s"]
    hats: Float[Tensor, "k 4 w w"]
    corner: Int[Tensor, "n 2"]
    """Row and column of a hat's upper left corner on each body's canvas."""
    colours: Float[Tensor, "c 3"]
    patterns: Float[Tensor, "p s s"]
    """Where the paint is darker."""


@cache
def _wardrobe(size: int, device: torch.device) -> _Wardrobe:
    body_size, width = round(size / SUBJECT_SPAN), round(size * 0.36)
    bodies = torch.zeros(len(NOUNS), 4, size, size)
    top, left = size - body_size - round(0.1 * size), (size - body_size) // 2
    for body, noun in zip(bodies, NOUNS, strict=True):
        body[:, top : top + body_size, left : left + body_size] = _sprite(noun, body_size)
    hats = torch.stack([torch.zeros(4, width, width), *(_sprite(hat, width) for hat in HATS if hat)])
    corner = torch.stack([_hat_corner(body[3], width) for body in bodies])
    colours = torch.tensor([rgb or (0.0, 0.0, 0.0) for rgb in COLOURS.values()])
    return _Wardrobe(*(part.to(device) for part in (bodies, hats, corner, colours, _patterns(size))))


def _hat_corner(alpha: Float[Tensor, "s s"], width: int) -> Int[Tensor, "2"]:
    """Where a hat of `width` pixels sits on the topmost part of a body."""
    size = len(alpha)
    top = int((alpha > 0.5).any(1).nonzero()[0, 0])
    head = alpha[top : top + size // 8].sum(0)
    centre = int((head * torch.arange(size)).sum() / head.sum())
    corner = max(top - round(width * 0.62), 0), min(max(centre - width // 2, 0), size - width)
    return torch.tensor(corner)


def _patterns(size: int) -> Float[Tensor, "p s s"]:
    line = (torch.arange(size) + 0.5) / size
    u, v = line[None, :], line[:, None]
    stripes = torch.sigmoid(24 * (2 * math.pi * 6 * (u + 0.35 * v)).sin())
    shifted = (u * 8 + ((v * 8).floor() % 2) * 0.5) % 1 - 0.5, (v * 8 % 1 - 0.5).expand(size, size)
    spots = torch.sigmoid(24 * (0.30 - (shifted[0].square() + shifted[1].square()).sqrt()))
    checks = ((u * 8).floor() + (v * 8).floor()) % 2
    return torch.stack([torch.zeros(size, size), stripes, spots, checks])


def _tint(
    body: Float[Tensor, "b 4 s s"], rgb: Float[Tensor, "b 3"], painted: Float[Tensor, "b 1 1 1"]
) -> Float[Tensor, "b 3 s s"]:
    """Paint bodies in one colour each where `painted` is 1: their own light and dark stay, their hue goes."""
    alpha = body[:, 3:]
    weights = torch.tensor([0.30, 0.59, 0.11], device=body.device)[:, None, None]
    light = (body[:, :3] * weights).sum(1, keepdim=True)
    bright = (light * 1.3 - 0.3 * alpha).clamp(min=0) * 0.5
    tinted = (rgb[..., None, None] * light.sqrt() * 0.9 + bright).clamp(max=1) * alpha
    return torch.where(painted > 0, tinted, body[:, :3])


def dress(
    noun: Int[Tensor, " b"],
    colour: Int[Tensor, " b"],
    hat: Int[Tensor, " b"],
    pattern: Int[Tensor, " b"],
    strange: Float[Tensor, "b 3"],
    size: int,
) -> Float[Tensor, "b 4 s s"]:
    """Subjects in their looks on square canvases SUBJECT_SPAN base sizes wide, premultiplied RGBA, `size` pixels.

    `strange` is the colour of those that are strange.
    """
    wardrobe = _wardrobe(size, noun.device)
    body = wardrobe.bodies[noun]
    rgb = torch.where((colour == STRANGE)[:, None], strange, wardrobe.colours[colour])
    paint = _tint(body, rgb, (colour > 0)[:, None, None, None].float())
    paint = paint * (1 - 0.5 * wardrobe.patterns[pattern]).unsqueeze(1)
    hats = wardrobe.hats[hat]
    line = torch.arange(hats.shape[-1], device=noun.device)
    rows, columns = (wardrobe.corner[noun][:, axis, None] + line for axis in (0, 1))
    layer = torch.zeros_like(body)
    clip = torch.arange(len(noun), device=noun.device)[:, None, None]
    layer[clip, :, rows[:, :, None], columns[:, None]] = hats.permute(0, 2, 3, 1)
    return layer + torch.cat([paint, body[:, 3:]], 1) * (1 - layer[:, 3:])


# -------------------------------------------------------------------------------------------------------- rendering


def _place(sprites: Float[Tensor, "b 4 s s"], pose: Pose, flip: Float[Tensor, " b"], size: int) -> Tensor:
    """Draw each clip's sprite at each frame's pose: (b f 4 size size), premultiplied RGBA."""
    b, f, _ = pose.shape
    x, y, angle, width, height = pose.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    half = HALF_SIZE * SUBJECT_SPAN
    rows_x = torch.stack([cos, sin, -(cos * x + sin * y)], -1) / (half * width)[..., None] * flip[:, None, None]
    rows_y = torch.stack([-sin, cos, sin * x - cos * y], -1) / (half * height)[..., None]
    theta = torch.stack([rows_x, rows_y], -2).flatten(0, 1)
    grid = F.affine_grid(theta, [b * f, 4, size, size], align_corners=False)
    repeated = sprites.repeat_interleave(f, 0)
    return F.grid_sample(repeated, grid, align_corners=False).view(b, f, 4, size, size)


def _ways(contents: Contents, num_frames: int, generator: torch.Generator, vary: float) -> Float[Tensor, "b s f 5"]:
    """The poses of both subjects: two that move alike move together, and two in one clip keep to their sides."""
    first = poses(contents.movement[:, 0], num_frames, generator, vary)
    alone = poses(contents.movement[:, 1], num_frames, generator, vary)
    together = (contents.movement[:, 0] == contents.movement[:, 1])[:, None, None]
    pose = torch.stack([first, torch.where(together, first, alone)], 1)
    chance = torch.rand(len(contents), generator=generator, device=generator.device)
    side = torch.where(chance < 0.5, -PAIR_APART, PAIR_APART)
    shared = pose.clone()
    shared[..., 0] = pose[..., 0] * PAIR_PATH + torch.stack([side, -side], 1)[..., None]
    shared[..., 3:] = pose[..., 3:] * PAIR_SCALE
    return torch.where((contents.noun[:, 1] == ABSENT)[:, None, None, None], pose, shared)


def render(
    contents: Contents,
    generator: torch.Generator,
    *,
    num_frames: int = FRAMES,
    size: int = SIZE,
    vary: float = 1.0,
) -> Clips:
    """Render clips of these contents; the rest is drawn from `generator`, on whose device `contents` are.

    `vary` 0 fixes direction, place and size of the movement, so that one seed gives one reference clip.
    """
    b, device = len(contents), generator.device
    pose = _ways(contents, num_frames, generator, vary)
    travel = pose[:, :, -1, 0] - pose[:, :, 0, 0]
    chance = torch.where(torch.rand(b, 1, generator=generator, device=device) < 0.5, -1.0, 1.0)
    flip = torch.where(travel.abs() < 0.2, chance, -travel.sign())  # the sprites look to the left
    strange = torch.rand(b, 2, 3, generator=generator, device=device) * 0.85 + 0.15
    frames = paint(contents.scene, size, generator).unsqueeze(1).repeat(1, num_frames, 1, 1, 1)
    mask = torch.zeros(b, num_frames, size, size, device=device)
    for s in (1, 0):  # the first is before the second
        rows = (contents.noun[:, s] != ABSENT).nonzero()[:, 0]
        if not len(rows):
            continue
        noun, colour, hat, pattern = (part[rows, s] for part in contents.subjects())
        sprites = dress(noun, colour, hat, pattern, strange[rows, s], round(size * 0.75))
        layer = _place(sprites, pose[rows, s], flip[rows, s], size)
        frames[rows] = layer[:, :, :3] + frames[rows] * (1 - layer[:, :, 3:])
        mask[rows] = torch.maximum(mask[rows], layer[:, :, 3])
    return Clips(contents, (frames.transpose(1, 2) * 2 - 1).clamp(-1, 1), mask, pose)


# ---------------------------------------------------------------------------------------------------------- drawing


def draw(b: int, generator: torch.Generator, pairs: float = 0.2) -> Contents:
    """What training sees: nothing held out ever appears.

    Half of the subjects have no colour, half no hat, three quarters no pattern; a third of the movements have no name;
    a share of `pairs` of the clips has two subjects, half of which move each in its own way.
    """

    def below(n: int) -> Int[Tensor, "b s"]:
        return torch.randint(0, n, (b, 2), generator=generator, device=generator.device)

    def share(of: float) -> Tensor:
        return torch.rand(b, 2, generator=generator, device=generator.device) < of

    noun = torch.where(share(0.25), below(len(FIRST_NOUNS)), below(len(TRAINED_NOUNS)))
    colour = torch.where(share(0.5), 0, below(len(COLOURS)))
    hat = torch.where(share(0.5), 0, below(len(HATS)))
    for look in HELD_OUT_LOOKS:
        hat = torch.where((colour == list(COLOURS).index(look.colour)) & (hat == HATS.index(look.hat)), 0, hat)
    pattern = torch.where(share(0.67), 0, below(len(PATTERNS)))
    movement = torch.where(share(0.35), MOVING, below(len(TRAINED_MOVEMENTS)))
    movement[:, 1] = torch.where(share(0.5)[:, 0], movement[:, 0], movement[:, 1])
    noun[:, 1] = torch.where(share(pairs)[:, 0], noun[:, 1], ABSENT)
    return Contents(noun, colour, hat, pattern, movement, below(len(SCENES))[:, 0])


def sample(b: int, generator: torch.Generator, *, num_frames: int = FRAMES, size: int = SIZE) -> Clips:
    """Clips as training sees them."""
    return render(draw(b, generator), generator, num_frames=num_frames, size=size)
