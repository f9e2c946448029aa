"""Pictures that show results at a glance: contact sheets and charts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from customttt.measure.stats import Estimate
from customttt.media import Frames, Pixels


def contact_sheet(rows: Sequence[tuple[str, Sequence[Pixels] | Frames]], cell: int, title: str = "") -> Pixels:
    """One picture (h w 3), on white: labelled rows of pictures, each fitted into `cell` x `cell` pixels.

    Labels and title may have several lines.
    """
    font = ImageFont.load_default(max(12, cell // 9))
    gap = max(4, cell // 24)
    sketch = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = gap + max(round(sketch.multiline_textbbox((0, 0), label, font)[2]) for label, _ in rows) + 2 * gap
    top = gap + (round(sketch.multiline_textbbox((0, 0), title, font)[3]) + 2 * gap if title else 0)
    columns = max(len(pictures) for _, pictures in rows)
    sheet = Image.new("RGB", (left + columns * (cell + gap), top + len(rows) * (cell + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((gap, gap), title, "black", font)
    for row, (label, pictures) in enumerate(rows):
        y = top + row * (cell + gap)
        draw.multiline_text((gap, y + cell // 2), label, "black", font, anchor="lm")
        for column, pixels in enumerate(pictures):
            image = ImageOps.contain(Image.fromarray(pixels), (cell, cell), Image.Resampling.BICUBIC)
            x = left + column * (cell + gap)
            sheet.paste(image, (x + (cell - image.width) // 2, y + (cell - image.height) // 2))
    return np.array(sheet)


def mosaic(pictures: Sequence[Pixels], columns: int, gap: int = 8) -> Pixels:
    """One picture (h w 3), on white, of several of one size, row by row."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    whole = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = index // columns * (height + gap), index % columns * (width + gap)
        whole[y : y + height, x : x + width] = picture
    return whole


def bar_chart(bars: Sequence[tuple[str, Estimate]], title: str, width: int = 640) -> Pixels:
    """One picture (h w 3), on white: labelled bars from zero with their intervals as whiskers, if they have any.

    The scale fits all.
    """
    font, row, left, right = ImageFont.load_default(16), 28, 90, 70
    ends = [0.0, *(end for _, one in bars for end in (one.value, one.low, one.high) if end is not None)]
    low, high = min(ends), max(ends) or 1.0

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    sheet = Image.new("RGB", (width, row * (len(bars) + 1) + 16), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((12, 8), title, "black", font)
    for index, (label, one) in enumerate(bars):
        y = row * (index + 1) + 20
        draw.text((left - 12, y), label, "black", font, anchor="rm")
        draw.rectangle((min(at(0), at(one.value)), y - 8, max(at(0), at(one.value)), y + 8), fill=(110, 150, 200))
        if one.low is not None and one.high is not None:
            draw.line((at(one.low), y, at(one.high), y), "black", 2)
        draw.text((width - right + 8, y), f"{one.value:.3f}", "black", font, anchor="lm")
    draw.line((at(0), row, at(0), sheet.height - 8), "black", 1)
    return np.array(sheet)
