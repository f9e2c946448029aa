"""Where subjects of the embedded world are (ours): sixteen scenes, each painted a little differently every time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rgb = tuple[float, float, float]
Spot = Float[Tensor, "n 1 1"] | float


class Painter:
    """Paints `n` backgrounds of one scene; the canvas is (n 3 size size) in [0, 1], on the generator's device."""

    def __init__(self, n: int, size: int, generator: torch.Generator) -> None:
        self.n, self.generator, self.device = n, generator, generator.device
        line = (torch.arange(size, device=self.device) + 0.5) / size * 2 - 1
        self.y, self.x = line.view(1, size, 1), line.view(1, 1, size)
        self.softness = size / 3
        self.canvas = torch.zeros(n, 3, size, size, device=self.device)

    def random(self, low: float, high: float) -> Float[Tensor, "n 1 1"]:
        return torch.rand(self.n, 1, 1, generator=self.generator, device=self.device) * (high - low) + low

    def colour(self, rgb: Rgb) -> Float[Tensor, "n 3 1 1"]:
        jitter = torch.rand(self.n, 3, generator=self.generator, device=self.device) * 0.1 - 0.05
        return (torch.tensor(rgb, device=self.device) + jitter).clamp(0, 1)[..., None, None]

    def fill(self, top: Rgb, bottom: Rgb) -> None:
        share = ((self.y + 1) / 2).unsqueeze(1)
        self.canvas = self.colour(top) * (1 - share) + self.colour(bottom) * share + self.canvas * 0

    def cover(self, mask: Tensor, rgb: Rgb) -> None:
        self.canvas = torch.lerp(self.canvas, self.colour(rgb).expand_as(self.canvas), mask.unsqueeze(1))

    def ground(self, at: float, rgb: Rgb, wave: float = 0.06, shade: float = 0.25) -> None:
        level = at + self.random(-0.06, 0.06)
        crest = level + wave * (self.x * self.random(2, 4) + self.random(0, 6)).sin()
        mask = torch.sigmoid((self.y - crest) * self.softness)
        self.cover(mask, rgb)
        self.canvas = self.canvas * (1 - ((self.y - level).clamp(min=0) * shade * mask).unsqueeze(1))

    def disc(self, x: Spot, y: Spot, radius: float, rgb: Rgb, flat: float = 1.0) -> None:
        distance = ((self.x - x).square() + ((self.y - y) / flat).square()).sqrt()
        self.cover(torch.sigmoid((radius - distance) * self.softness), rgb)

    def dots(self, count: int, low: float, high: float, radius: float, rgb: Rgb) -> None:
        for _ in range(count):
            self.disc(self.random(-1, 1), self.random(low, high), radius, rgb)

    def sun(self, low: float, high: float, radius: float, rgb: Rgb) -> None:
        self.disc(self.random(-0.8, 0.8), self.random(low, high), radius, rgb)

    def cloud(self, low: float, high: float) -> None:
        x, y = self.random(-0.9, 0.9), self.random(low, high)
        for aside, radius in ((-0.16, 0.09), (0.0, 0.13), (0.16, 0.10)):
            self.disc(x + aside, y, radius, (1.0, 1.0, 1.0), flat=0.6)

    def box(self, x: Spot, y: Spot, half: float, rgb: Rgb) -> None:
        self.cover((((self.x - x).abs() < half) & ((self.y - y).abs() < half)).float(), rgb)

    def columns(
        self, count: int, width: float, top: tuple[float, float], bottom: float, rgb: Rgb, panes: Rgb | None = None
    ) -> None:
        """Trunks, or houses where `panes` has the colour of their windows."""
        for index in range(count):
            x, edge = (index + 0.5) / count * 2 - 1 + self.random(-0.4, 0.4) / count, self.random(*top)
            side = torch.sigmoid((width - (self.x - x).abs()) * self.softness)
            above = torch.sigmoid((self.y - edge) * self.softness)
            body = side * above * (self.y < bottom)
            self.cover(body, rgb)
            if panes:
                across, down = (self.x - x) / width * 1.5, (self.y - edge) * 9
                inside = [(line - line.floor() - 0.5).abs() < 0.26 for line in (across, down)]
                self.cover(body * (body > 0.9) * inside[0] * inside[1] * (down > 0.4), panes)

    def peaks(self, count: int, low: float, high: float, rgb: Rgb, snow: Rgb) -> None:
        for index in range(count):
            x, top = (index + 0.5) / count * 2 - 1 + self.random(-0.25, 0.25), self.random(low, high)
            slope = self.random(1.0, 1.6)
            rock = torch.sigmoid((self.y - top - slope * (self.x - x).abs()) * self.softness)
            self.cover(rock, rgb)
            self.cover(rock * torch.sigmoid((top + 0.22 - self.y) * self.softness), snow)


def _grass(p: Painter) -> None:
    p.fill((0.45, 0.70, 1.0), (0.80, 0.92, 1.0))
    p.cloud(-0.85, -0.5)
    p.ground(0.30, (0.35, 0.72, 0.25))


def _mars(p: Painter) -> None:
    p.fill((0.62, 0.38, 0.25), (0.90, 0.66, 0.45))
    p.sun(-0.8, -0.6, 0.09, (1.0, 0.95, 0.85))
    p.ground(0.25, (0.75, 0.30, 0.14))
    for _ in range(3):
        p.disc(p.random(-1, 1), p.random(0.5, 0.9), 0.16, (0.55, 0.20, 0.10), flat=0.35)


def _snow(p: Painter) -> None:
    p.fill((0.62, 0.75, 0.88), (0.85, 0.92, 0.97))
    p.ground(0.28, (0.96, 0.97, 1.0), shade=0.10)
    p.dots(10, -1, 0.2, 0.03, (1.0, 1.0, 1.0))


def _beach(p: Painter) -> None:
    p.fill((0.40, 0.72, 1.0), (0.75, 0.92, 1.0))
    p.sun(-0.8, -0.6, 0.13, (1.0, 0.95, 0.55))
    p.ground(0.10, (0.10, 0.50, 0.80), wave=0.0, shade=0.0)
    p.ground(0.38, (0.95, 0.85, 0.58), wave=0.04)


def _desert(p: Painter) -> None:
    p.fill((1.0, 0.80, 0.45), (1.0, 0.92, 0.70))
    p.sun(-0.75, -0.5, 0.17, (1.0, 0.98, 0.75))
    p.ground(0.20, (0.92, 0.70, 0.35), wave=0.14)
    p.ground(0.48, (0.85, 0.60, 0.28), wave=0.08)


def _forest(p: Painter) -> None:
    p.fill((0.10, 0.30, 0.14), (0.25, 0.50, 0.22))
    p.columns(6, 0.06, (-1.2, -1.0), 0.40, (0.28, 0.18, 0.10))
    for _ in range(7):
        p.disc(p.random(-1, 1), p.random(-1.05, -0.75), 0.26, (0.14, 0.42, 0.16), flat=0.7)
    p.ground(0.35, (0.16, 0.33, 0.10))


def _space(p: Painter) -> None:
    p.fill((0.03, 0.02, 0.10), (0.12, 0.05, 0.22))
    p.dots(16, -1, 1, 0.018, (1.0, 1.0, 0.95))
    p.sun(-0.8, -0.4, 0.20, (0.55, 0.45, 0.80))


def _under_water(p: Painter) -> None:
    p.fill((0.25, 0.70, 0.95), (0.02, 0.20, 0.55))
    p.ground(0.68, (0.55, 0.58, 0.45), shade=0.3)
    p.dots(7, -0.9, 0.5, 0.045, (0.65, 0.88, 1.0))


def _city(p: Painter) -> None:
    p.fill((0.66, 0.74, 0.82), (0.90, 0.88, 0.84))
    p.columns(7, 0.13, (-0.7, 0.0), 0.45, (0.45, 0.47, 0.55), panes=(0.75, 0.80, 0.85))
    p.ground(0.40, (0.33, 0.33, 0.36), wave=0.0, shade=0.1)


def _night(p: Painter) -> None:
    p.fill((0.02, 0.04, 0.18), (0.10, 0.16, 0.40))
    p.dots(10, -1, 0.0, 0.018, (1.0, 1.0, 0.9))
    p.sun(-0.8, -0.55, 0.16, (1.0, 0.97, 0.80))
    p.ground(0.32, (0.06, 0.10, 0.12))


def _moon(p: Painter) -> None:
    p.fill((0.02, 0.02, 0.05), (0.06, 0.06, 0.12))
    p.dots(10, -1, 0.1, 0.018, (1.0, 1.0, 1.0))
    p.sun(-0.75, -0.45, 0.18, (0.25, 0.50, 0.90))
    p.ground(0.28, (0.62, 0.62, 0.64), wave=0.08)
    for _ in range(4):
        p.disc(p.random(-1, 1), p.random(0.45, 0.95), 0.13, (0.46, 0.46, 0.48), flat=0.35)


def _mountains(p: Painter) -> None:
    p.fill((0.50, 0.72, 0.95), (0.86, 0.92, 0.97))
    p.peaks(4, -0.75, -0.35, (0.48, 0.50, 0.58), snow=(0.97, 0.97, 1.0))
    p.ground(0.34, (0.42, 0.60, 0.34))


def _room(p: Painter) -> None:
    p.fill((0.92, 0.80, 0.66), (0.95, 0.86, 0.74))
    x, y = p.random(-0.7, 0.7), p.random(-0.6, -0.4)
    p.box(x, y, 0.24, (0.98, 0.98, 0.98))
    p.box(x, y, 0.20, (0.55, 0.78, 0.98))
    p.ground(0.36, (0.60, 0.40, 0.25), wave=0.0, shade=0.3)


def _road(p: Painter) -> None:
    p.fill((0.50, 0.76, 1.0), (0.84, 0.93, 1.0))
    p.cloud(-0.85, -0.5)
    p.ground(0.18, (0.40, 0.68, 0.30), wave=0.04)
    p.ground(0.46, (0.30, 0.30, 0.33), wave=0.0, shade=0.05)
    along = (p.x + p.random(0, 1)) * 2.5
    p.cover((((along - along.floor()) < 0.5) & ((p.y - 0.74).abs() < 0.025)).float(), (0.98, 0.95, 0.80))


def _sunset(p: Painter) -> None:
    p.fill((0.35, 0.20, 0.48), (1.0, 0.55, 0.25))
    p.disc(p.random(-0.6, 0.6), p.random(0.05, 0.2), 0.26, (1.0, 0.85, 0.40))
    p.ground(0.30, (0.20, 0.13, 0.24))


def _sky(p: Painter) -> None:
    p.fill((0.28, 0.56, 0.95), (0.70, 0.87, 1.0))
    for _ in range(4):
        p.cloud(-0.9, 0.9)


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
    "on the moon": _moon,
    "in the mountains": _mountains,
    "in a room": _room,
    "on the road": _road,
    "at sunset": _sunset,
    "in the sky": _sky,
}


def paint(scene: Int[Tensor, " b"], size: int, generator: torch.Generator) -> Float[Tensor, "b 3 s s"]:
    """Backgrounds in [0, 1], one a clip."""
    background = torch.empty(len(scene), 3, size, size, device=generator.device)
    for index, painter in enumerate(SCENES.values()):
        rows = (scene == index).nonzero()[:, 0]
        if len(rows):
            canvas = Painter(len(rows), size, generator)
            painter(canvas)
            background[rows] = canvas.canvas
    return background.clamp(0, 1)
