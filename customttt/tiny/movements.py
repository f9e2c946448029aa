"""How subjects of the embedded world move (ours): named movements, and smooth paths that have no name.

A *pose* is (x, y, angle in radians, width, height) in the frame [-1, 1] x [-1, 1], x to the right and y down; the
last two are factors of the subject's base size. A movement maps the time t in [0, 1], a direction of -1 or 1, and an
amplitude near 1 to poses.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

REST_Y = 0.32  # where a subject's centre rests

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
    parts = [torch.as_tensor(part, dtype=like.dtype, device=like.device) for part in (x, y, angle, width, height)]
    parts[1] = parts[1] + REST_Y
    return torch.stack([part.expand_as(like) for part in parts], -1)


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
TRAINED_MOVEMENTS = list(MOVEMENTS)[:12]
MOVING = len(MOVEMENTS)
"""The index of a movement without a name: a smooth path drawn at random."""


def poses(movement: Int[Tensor, " b"], num_frames: int, generator: torch.Generator, vary: float = 1.0) -> Pose:
    """The way of each subject: direction, amplitude, place and size drawn at random, `vary` 0 to 1.

    A movement of index MOVING is a path of its own at every draw.
    """
    b, device = len(movement), movement.device
    t = torch.linspace(0, 1, num_frames, device=device)
    chance = torch.rand(b, 1, generator=generator, device=device)
    direction = torch.where(chance < 0.5, -1.0, 1.0) if vary else torch.ones(b, 1, device=device)
    noise = (torch.rand(b, 4, generator=generator, device=device) * 2 - 1) * vary
    pose = torch.empty(b, num_frames, 5, device=device)
    for index in range(MOVING + 1):
        rows = (movement == index).nonzero()[:, 0]
        if len(rows) and index == MOVING:
            pose[rows] = _random_path(t, len(rows), generator)
        elif len(rows):
            pose[rows] = list(MOVEMENTS.values())[index](t, direction[rows], 1 + 0.12 * noise[rows, :1])
    pose[..., :2] += noise[:, None, 1:3] * torch.tensor([0.14, 0.07], device=device)
    pose[..., 3:] *= 1 + 0.15 * noise[:, None, 3:]
    return pose


def _random_path(t: Float[Tensor, " f"], b: int, generator: torch.Generator) -> Pose:
    """Poses on smooth random paths: drifts, waves of up to four cycles, hops, turns and squashes, each often absent."""

    def uniform(low: float = 0.0, high: float = 1.0) -> Column:
        return torch.rand(b, 1, generator=generator, device=t.device) * (high - low) + low

    def often(share: float) -> Column:
        return (uniform() < share).float()

    def wave(drift: float, swing: float, share: float) -> Float[Tensor, "b f"]:
        cycles, phase = 0.4 + 3.8 * uniform() ** 1.5, uniform(0, 2 * math.pi)
        line = drift * uniform(-1, 1) * often(share) * (2 * t - 1)
        return line + swing * uniform(-1, 1) * often(share) * (2 * math.pi * cycles * t + phase).sin()

    hops = 0.55 * uniform() * often(0.3) * (uniform(1, 7) * math.pi * t).sin().abs()
    x = wave(0.65, 0.35, 0.6).clamp(-0.8, 0.8)
    y = (-0.35 * uniform() + wave(0.5, 0.25, 0.5) - hops).clamp(-1.05, 0.15)
    angle = wave(math.pi, 0.7, 0.35) + uniform(-0.2, 0.2) * often(0.3)
    size, squash = wave(0.35, 0.2, 0.25), wave(0.1, 0.25, 0.25)
    return _pose(x, y, angle, 1 + size + squash, 1 + size - squash, like=x)
