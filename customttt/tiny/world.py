"""A procedural world of subjects, movements and scenes with exact ground truth (ours): what `tiny` is trained on.

Coordinates: the frame is [-1, 1] x [-1, 1], x to the right, y down. A *pose* is (x, y, angle in radians, width,
height), the last two as factors of the subject's base size. Everything is a pure function
of a seed, vectorised over clips.
The subjects are emoji of Noto Color Emoji (SIL Open Font License 1.1, see `sprites/LICENSE`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from customttt.tiny import TINY_PATH

TRAINED_NOUNS = ["koala", "tiger", "dog", "teddy bear", "panda", "fox", "cat", "rabbit", "penguin", "car"]
HELD_OUT_NOUNS = [
    "octopus", "lion", "chick", "cow", "strawberry", "pumpkin",
    "frog", "elephant", "pig", "turtle", "robot", "mushroom",
]  # fmt: skip
NOUNS = TRAINED_NOUNS + HELD_OUT_NOUNS

COLOURS: dict[str, tuple[float, float, float] | None] = {
    "": None,
    "red": (0.95, 0.25, 0.20),
    "yellow": (1.0, 0.85, 0.20),
    "green": (0.30, 0.80, 0.25),
    "blue": (0.25, 0.50, 1.0),
    "purple": (0.65, 0.30, 0.90),
    "pink": (1.0, 0.50, 0.75),
}
HATS = ["", "top hat", "crown", "bow"]
LOOKS = list(product(COLOURS, HATS))
HELD_OUT_LOOKS = [("purple", "crown"), ("blue", "top hat"), ("green", "bow"), ("pink", "top hat"), ("red", "crown")]
"""Looks that no training caption or frame ever shows, on any noun."""

REST_Y = 0.32  # where a subject's centre rests
HALF_SIZE = 0.46  # half of a subject's base size
SUBJECT_SPAN = 1.36  # the sprite canvas in base sizes: room for a hat

Pose = Float[Tensor, "b f 5"]
Column = Float[Tensor, "b 1"]
Movement = Callable[[Float[Tensor, " f"], Column, Column], Pose]


def _pose(
    x: Tensor | float = 0.0,
    y: Tensor | float = 0.0,
    angle: Tensor | float = 0.0,
    width: Tensor | float = 1.0,
    height: Tensor | float = 1.0,
    *,
    like: Tensor,
) -> Pose:
    """Broadcast the five parts of a pose to (b f); `y` counts from the resting place, up is negative."""
    parts = [torch.as_tensor(part, dtype=like.dtype).expand_as(like) for part in (x, y, angle, width, height)]
    parts[1] = parts[1] + REST_Y
    return torch.stack(parts, -1)


def _still(t: Tensor, d: Column, a: Column) -> Pose:  # noqa: ARG001
    return _pose(like=t * d)


def _sliding(t: Tensor, d: Column, a: Column) -> Pose:
    return _pose(x=d * a * (1.1 * t - 0.55), like=t * d)


def _running(t: Tensor, d: Column, a: Column) -> Pose:
    hop = (3 * math.pi * t).sin().abs()
    return _pose(d * a * (1.2 * t - 0.6), -0.22 * hop, d * 0.25 * (6 * math.pi * t).sin(), like=t * d)


def _jumping(t: Tensor, d: Column, a: Column) -> Pose:
    height = 4 * t * (1 - t)
    return _pose(y=-0.8 * a * height, width=1 - 0.1 * height, height=1 + 0.1 * height, like=t * d)


def _spinning(t: Tensor, d: Column, a: Column) -> Pose:
    return _pose(y=-0.15 * a, angle=d * 2 * math.pi * t, like=t * d)


def _rolling(t: Tensor, d: Column, a: Column) -> Pose:
    return _pose(x=d * a * (1.1 * t - 0.55), angle=d * 2 * math.pi * t, like=t * d)


def _swinging(t: Tensor, d: Column, a: Column) -> Pose:
    angle = d * a * 0.75 * (2 * math.pi * t).cos()
    return _pose(x=-0.8 * angle.sin(), y=0.8 * (angle.cos() - 1), angle=angle, like=t * d)


def _growing(t: Tensor, d: Column, a: Column) -> Pose:
    size = 0.4 + 1.1 * t * a
    return _pose(y=-0.25 * t, width=size, height=size, like=t * d)


def _shrinking(t: Tensor, d: Column, a: Column) -> Pose:
    return _growing(1 - t, d, a)


def _falling(t: Tensor, d: Column, a: Column) -> Pose:
    return _pose(y=-1.1 * a * (1 - t**2), like=t * d)


def _rising(t: Tensor, d: Column, a: Column) -> Pose:
    return _pose(y=-1.0 * a * t, x=0.06 * d * (4 * math.pi * t).sin(), like=t * d)


def _playing(t: Tensor, d: Column, a: Column) -> Pose:
    squash = 0.28 * a * (4 * math.pi * t).sin()
    return _pose(
        y=0.4 * squash, width=1 + squash, height=1 - squash, angle=0.2 * d * (2 * math.pi * t).sin(), like=t * d
    )


def _swimming(t: Tensor, d: Column, a: Column) -> Pose:
    wave = 3 * math.pi * t
    return _pose(d * (1.2 * t - 0.6), -0.25 - 0.24 * a * wave.sin(), -d * 0.6 * a * wave.cos(), like=t * d)


def _circling(t: Tensor, d: Column, a: Column) -> Pose:
    turn = 2 * math.pi * t
    return _pose(x=d * a * 0.45 * turn.sin(), y=-0.3 + 0.35 * a * turn.cos(), like=t * d)


def _shaking(t: Tensor, d: Column, a: Column) -> Pose:
    return _pose(x=d * a * 0.22 * (7 * math.pi * t).cos(), like=t * d)


def _somersaulting(t: Tensor, d: Column, a: Column) -> Pose:
    return _pose(y=-0.8 * a * 4 * t * (1 - t), angle=d * 2 * math.pi * t, x=d * (0.6 * t - 0.3), like=t * d)


def _diving(t: Tensor, d: Column, a: Column) -> Pose:
    return _pose(d * (t - 0.5), -0.9 * a * (1 - t) ** 2, -d * 0.9 * (1 - t), like=t * d)


def _flying(t: Tensor, d: Column, a: Column) -> Pose:
    return _pose(d * (t - 0.5), -0.9 * a * t, -d * 0.35, like=t * d)


def _zigzagging(t: Tensor, d: Column, a: Column) -> Pose:
    return _pose(d * a * 0.45 * (2 * ((3 * t) % 2 - 1).abs() - 1), 0.1 - 0.9 * t, like=t * d)


def _bouncing(t: Tensor, d: Column, a: Column) -> Pose:
    hop = (3.5 * math.pi * t).sin().abs()
    return _pose(y=-0.6 * a * hop, width=1.1 - 0.2 * hop, height=0.9 + 0.2 * hop, like=t * d)


def _nodding(t: Tensor, d: Column, a: Column) -> Pose:
    return _pose(angle=d * a * 0.7 * (5 * math.pi * t).sin(), like=t * d)


def _dancing(t: Tensor, d: Column, a: Column) -> Pose:
    beat = 4 * math.pi * t
    return _pose(d * a * 0.3 * beat.sin(), -0.2 * beat.cos().abs(), d * 0.5 * beat.sin(), like=t * d)


def _climbing(t: Tensor, d: Column, a: Column) -> Pose:
    stairs = ((3 * t).floor() + (6 * (3 * t % 1) - 5).clamp(min=0)) / 3
    return _pose(d * a * (1.1 * t - 0.55), -0.9 * stairs, like=t * d)


def _hovering(t: Tensor, d: Column, a: Column) -> Pose:
    return _pose(y=-0.55 + 0.2 * d * a * (3 * math.pi * t).sin(), like=t * d)


MOVEMENTS: dict[str, Movement] = {
    "standing still": _still,
    "sliding": _sliding,
    "running": _running,
    "jumping": _jumping,
    "spinning": _spinning,
    "rolling": _rolling,
    "swinging": _swinging,
    "growing": _growing,
    "shrinking": _shrinking,
    "falling": _falling,
    "rising": _rising,
    "playing": _playing,
    "swimming": _swimming,
    "circling": _circling,
    "shaking": _shaking,
    "somersaulting": _somersaulting,
    "diving": _diving,
    "flying": _flying,
    "zigzagging": _zigzagging,
    "bouncing": _bouncing,
    "nodding": _nodding,
    "dancing": _dancing,
    "climbing": _climbing,
    "hovering": _hovering,
}
HELD_OUT_MOVEMENTS = list(MOVEMENTS)[12:]
TRAINED_MOVEMENTS = [name for name in MOVEMENTS if name not in HELD_OUT_MOVEMENTS]


class Painter:
    """Paints `n` backgrounds of one scene; the canvas is (n 3 size size) in [0, 1]."""

    def __init__(self, n: int, size: int, generator: torch.Generator) -> None:
        self.n, self.generator = n, generator
        line = (torch.arange(size) + 0.5) / size * 2 - 1
        self.y, self.x = line.view(1, size, 1), line.view(1, 1, size)
        self.softness = size / 3
        self.canvas = torch.zeros(n, 3, size, size)

    def random(self, low: float, high: float) -> Float[Tensor, "n 1 1"]:
        return torch.rand(self.n, 1, 1, generator=self.generator) * (high - low) + low

    def colour(self, rgb: Sequence[float]) -> Float[Tensor, "n 3 1 1"]:
        jitter = torch.rand(self.n, 3, generator=self.generator) * 0.08 - 0.04
        return (torch.tensor(rgb) + jitter).clamp(0, 1)[..., None, None]

    def fill(self, top: Sequence[float], bottom: Sequence[float]) -> None:
        share = ((self.y + 1) / 2).unsqueeze(1)
        self.canvas = self.colour(top) * (1 - share) + self.colour(bottom) * share + self.canvas * 0

    def cover(self, mask: Float[Tensor, "n h w"], rgb: Sequence[float]) -> None:
        self.canvas = torch.lerp(self.canvas, self.colour(rgb).expand_as(self.canvas), mask.unsqueeze(1))

    def ground(self, at: float, rgb: Sequence[float], wave: float = 0.06, shade: float = 0.25) -> None:
        crest = at + wave * (self.x * self.random(2, 4) + self.random(0, 6)).sin()
        mask = torch.sigmoid((self.y - crest) * self.softness)
        self.cover(mask, rgb)
        depth = ((self.y - at).clamp(min=0) * shade * mask).unsqueeze(1)
        self.canvas = self.canvas * (1 - depth)

    def disc(self, x: Tensor, y: Tensor, radius: float, rgb: Sequence[float], flat: float = 1.0) -> None:
        distance = ((self.x - x).square() + ((self.y - y) / flat).square()).sqrt()
        self.cover(torch.sigmoid((radius - distance) * self.softness), rgb)

    def dots(self, count: int, low: float, high: float, radius: float, rgb: Sequence[float]) -> None:
        for _ in range(count):
            self.disc(self.random(-1, 1), self.random(low, high), radius, rgb)

    def columns(self, count: int, width: float, top: tuple[float, float], bottom: float, rgb: Sequence[float]) -> None:
        for index in range(count):
            x = (index + 0.5) / count * 2 - 1 + self.random(-0.4, 0.4) / count
            side = torch.sigmoid((width - (self.x - x).abs()) * self.softness)
            above = torch.sigmoid((self.y - self.random(*top)) * self.softness)
            self.cover(side * above * (self.y < bottom), rgb)


def _grass(p: Painter) -> None:
    p.fill((0.45, 0.70, 1.0), (0.80, 0.92, 1.0))
    p.ground(0.30, (0.35, 0.72, 0.25))


def _mars(p: Painter) -> None:
    p.fill((0.62, 0.38, 0.25), (0.90, 0.66, 0.45))
    p.disc(p.random(-0.8, 0.8), p.random(-0.8, -0.6), 0.09, (1.0, 0.95, 0.85))
    p.ground(0.25, (0.75, 0.30, 0.14))
    for _ in range(3):
        p.disc(p.random(-1, 1), p.random(0.5, 0.9), 0.16, (0.55, 0.20, 0.10), flat=0.35)


def _snow(p: Painter) -> None:
    p.fill((0.62, 0.75, 0.88), (0.85, 0.92, 0.97))
    p.ground(0.28, (0.96, 0.97, 1.0), shade=0.10)
    p.dots(8, -1, 0.2, 0.03, (1.0, 1.0, 1.0))


def _beach(p: Painter) -> None:
    p.fill((0.40, 0.72, 1.0), (0.75, 0.92, 1.0))
    p.ground(0.10, (0.10, 0.50, 0.80), wave=0.0, shade=0.0)
    p.ground(0.38, (0.95, 0.85, 0.58), wave=0.04)


def _desert(p: Painter) -> None:
    p.fill((1.0, 0.80, 0.45), (1.0, 0.92, 0.70))
    p.disc(p.random(-0.8, 0.8), p.random(-0.75, -0.5), 0.17, (1.0, 0.98, 0.75))
    p.ground(0.20, (0.92, 0.70, 0.35), wave=0.14)
    p.ground(0.48, (0.85, 0.60, 0.28), wave=0.08)


def _forest(p: Painter) -> None:
    p.fill((0.10, 0.30, 0.14), (0.25, 0.50, 0.22))
    p.columns(6, 0.06, (-1.2, -1.0), 0.40, (0.28, 0.18, 0.10))
    p.ground(0.35, (0.16, 0.33, 0.10))


def _space(p: Painter) -> None:
    p.fill((0.03, 0.02, 0.10), (0.12, 0.05, 0.22))
    p.dots(14, -1, 1, 0.022, (1.0, 1.0, 0.95))
    p.disc(p.random(-0.8, 0.8), p.random(-0.8, -0.4), 0.20, (0.55, 0.45, 0.80))


def _under_water(p: Painter) -> None:
    p.fill((0.25, 0.70, 0.95), (0.02, 0.20, 0.55))
    p.ground(0.68, (0.55, 0.58, 0.45), shade=0.3)
    p.dots(6, -0.9, 0.5, 0.05, (0.65, 0.88, 1.0))


def _city(p: Painter) -> None:
    p.fill((0.66, 0.74, 0.82), (0.90, 0.88, 0.84))
    p.columns(7, 0.13, (-0.7, 0.0), 0.45, (0.45, 0.47, 0.55))
    p.ground(0.40, (0.33, 0.33, 0.36), wave=0.0, shade=0.1)


def _night(p: Painter) -> None:
    p.fill((0.02, 0.04, 0.18), (0.10, 0.16, 0.40))
    p.dots(8, -1, 0.0, 0.022, (1.0, 1.0, 0.9))
    p.disc(p.random(-0.8, 0.8), p.random(-0.8, -0.55), 0.16, (1.0, 0.97, 0.80))
    p.ground(0.32, (0.06, 0.10, 0.12))


SCENES: dict[str, Callable[[Painter], None]] = {
    "on the grass": _grass,
    "on Mars": _mars,
    "in the snow": _snow,
    "on the beach": _beach,
    "in the desert": _desert,
    "in the forest": _forest,
    "in space": _space,
    "under water": _under_water,
    "in the city": _city,
    "at night": _night,
}


@dataclass(frozen=True)
class Clips:
    """Rendered clips and the truth about them; indices point into NOUNS, LOOKS, MOVEMENTS, SCENES (in their order)."""

    video: Float[Tensor, "b c f h w"]
    """RGB in [-1, 1]."""
    mask: Float[Tensor, "b f h w"]
    """Opacity of the subject in [0, 1]."""
    pose: Pose
    noun: Int[Tensor, " b"]
    look: Int[Tensor, " b"]
    movement: Int[Tensor, " b"]
    scene: Int[Tensor, " b"]


def _sprite(name: str, size: int) -> Float[Tensor, "4 s s"]:
    """A sprite as premultiplied RGBA in [0, 1], `size` pixels square."""
    image = Image.open(TINY_PATH / "sprites" / f"{name.replace(' ', '_')}.png").convert("RGBA")
    rgba = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    rgba[:3] *= rgba[3:]
    return F.interpolate(rgba[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]


def _tint(rgba: Float[Tensor, "4 s s"], rgb: tuple[float, float, float]) -> Float[Tensor, "4 s s"]:
    """Paint a sprite in one colour: its own light and dark stay, its hue goes."""
    light = (rgba[:3] * torch.tensor([0.30, 0.59, 0.11])[:, None, None]).sum(0, keepdim=True)
    colour = torch.tensor(rgb)[:, None, None]
    bright = (light * 1.3 - 0.3 * rgba[3:]).clamp(min=0) * 0.5
    return torch.cat([(colour * light.sqrt() * 0.9 + bright).clamp(max=1) * rgba[3:], rgba[3:]])


@cache
def subject(noun: str, colour: str, hat: str, size: int) -> Float[Tensor, "4 s s"]:
    """One subject in one look on a square canvas SUBJECT_SPAN base sizes wide, premultiplied RGBA, `size` pixels."""
    body_size = round(size / SUBJECT_SPAN)
    body, rgb = _sprite(noun, body_size), COLOURS[colour]
    canvas = torch.zeros(4, size, size)
    top, left = size - body_size - round(0.1 * size), (size - body_size) // 2
    canvas[:, top : top + body_size, left : left + body_size] = _tint(body, rgb) if rgb else body
    return _put_hat(canvas, hat) if hat else canvas


def _put_hat(canvas: Float[Tensor, "4 s s"], hat: str) -> Float[Tensor, "4 s s"]:
    """Place a hat on the topmost part of a subject."""
    size = canvas.shape[-1]
    rows = (canvas[3] > 0.5).any(1).nonzero()[:, 0]
    crown_rows = canvas[3, rows[0] : rows[0] + size // 8].sum(0)
    centre = int((crown_rows * torch.arange(size)).sum() / crown_rows.sum())
    width = round(size * 0.36)
    layer = torch.zeros(4, size, size)
    top = max(int(rows[0]) - round(width * 0.62), 0)
    left = min(max(centre - width // 2, 0), size - width)
    layer[:, top : top + width, left : left + width] = _sprite(hat, width)
    return layer + canvas * (1 - layer[3:])


@cache
def _atlas(size: int) -> Float[Tensor, "n k 4 s s"]:
    return torch.stack([torch.stack([subject(noun, *look, size) for look in LOOKS]) for noun in NOUNS])


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


def paint(scene: Int[Tensor, " b"], size: int, generator: torch.Generator) -> Float[Tensor, "b 3 s s"]:
    """Backgrounds in [0, 1], one a clip."""
    background = torch.empty(len(scene), 3, size, size)
    for index, painter in enumerate(SCENES.values()):
        chosen = scene == index
        if chosen.any():
            canvas = Painter(int(chosen.sum()), size, generator)
            painter(canvas)
            background[chosen] = canvas.canvas
    return background.clamp(0, 1)


def poses(movement: Int[Tensor, " b"], num_frames: int, generator: torch.Generator, vary: float = 1.0) -> Pose:
    """The subject's way through each clip: direction, amplitude, place and size drawn at random, `vary` 0 to 1."""
    b = len(movement)
    t = torch.linspace(0, 1, num_frames)
    direction = torch.where(torch.rand(b, 1, generator=generator) < 0.5, -1.0, 1.0) if vary else torch.ones(b, 1)
    noise = (torch.rand(b, 4, generator=generator) * 2 - 1) * vary
    pose = torch.empty(b, num_frames, 5)
    for index, move in enumerate(MOVEMENTS.values()):
        chosen = movement == index
        if chosen.any():
            pose[chosen] = move(t, direction[chosen], 1 + 0.12 * noise[chosen, :1])
    pose[..., :2] += noise[:, None, 1:3] * torch.tensor([0.12, 0.06])
    pose[..., 3:] *= 1 + 0.1 * noise[:, None, 3:]
    return pose


def render(
    noun: Int[Tensor, " b"],
    look: Int[Tensor, " b"],
    movement: Int[Tensor, " b"],
    scene: Int[Tensor, " b"],
    generator: torch.Generator,
    *,
    num_frames: int = 8,
    size: int = 64,
    vary: float = 1.0,
) -> Clips:
    """Render clips whose contents are given as indices; the rest is drawn from `generator`.

    `vary` 0 fixes direction, place and size of the movement, so that one seed gives one reference clip.
    """
    pose = poses(movement, num_frames, generator, vary)
    travel = pose[:, -1, 0] - pose[:, 0, 0]
    chance = torch.where(torch.rand(len(noun), generator=generator) < 0.5, -1.0, 1.0)
    flip = torch.where(travel.abs() < 0.2, chance, -travel.sign())  # the sprites look to the left
    sprites = _atlas(round(size * 0.75))[noun, look]
    layer = _place(sprites, pose, flip, size)
    background = paint(scene, size, generator).unsqueeze(1)
    rgb = layer[:, :, :3] + background * (1 - layer[:, :, 3:])
    return Clips((rgb.transpose(1, 2) * 2 - 1).clamp(-1, 1), layer[:, :, 3], pose, noun, look, movement, scene)


def _trained_looks() -> Int[Tensor, " n"]:
    """Look indices as training draws them: half of the draws show a subject as it is."""
    allowed = [index for index, look in enumerate(LOOKS) if look not in HELD_OUT_LOOKS and index]
    plain = [index for index in allowed if not LOOKS[index][1]]
    return torch.tensor([0] * (len(allowed) + 2 * len(plain)) + allowed + 2 * plain)


def sample(b: int, generator: torch.Generator, *, num_frames: int = 8, size: int = 64) -> Clips:
    """Clips as training sees them: nothing held out ever appears."""

    def draw(n: int) -> Tensor:
        return torch.randint(0, n, (b,), generator=generator)

    looks = _trained_looks()
    return render(
        draw(len(TRAINED_NOUNS)), looks[draw(len(looks))], draw(len(TRAINED_MOVEMENTS)), draw(len(SCENES)),
        generator, num_frames=num_frames, size=size,
    )  # fmt: skip


def noun_phrase(noun: str, look: tuple[str, str], name_look: bool) -> str:
    """`a koala`, or `a blue koala with a top hat` where the look is named."""
    colour, hat = look if name_look else ("", "")
    words = f"{colour} {noun}".strip()
    article = "an" if words[0] in "aeio" else "a"
    return f"{article} {words}" + (f" with a {hat}" if hat else "")


def captions(truth: Mapping[str, Int[Tensor, " b"]], generator: torch.Generator) -> list[str]:
    """One caption a clip in the field's phrasing from its noun, look, movement and scene.

    Parts are left out at random, some subjects are "something" (a movement without a noun), and one caption in ten is
    empty (for classifier-free guidance).
    """
    noun, look, movement, scene = (truth[key].tolist() for key in ("noun", "look", "movement", "scene"))
    movements, scenes = list(MOVEMENTS), list(SCENES)
    texts = []
    for index, chances in enumerate(torch.rand(len(noun), 5, generator=generator).tolist()):
        subject_words = noun_phrase(NOUNS[noun[index]], LOOKS[look[index]], chances[0] < 0.7)
        subject_words = "something" if chances[4] < 0.06 else subject_words
        verb_words = f" is {movements[movement[index]]}" if chances[1] < 0.88 else ""
        scene_words = f" {scenes[scene[index]]}" if chances[2] < 0.88 else ""
        text = f"{subject_words}{verb_words}{scene_words}."
        texts.append(text[0].upper() + text[1:] if chances[3] > 0.1 else "")
    return texts
