"""Contact sheets and charts."""

from __future__ import annotations

import numpy as np

from customttt.measure.sheets import bar_chart, contact_sheet, mosaic
from customttt.measure.stats import Estimate

BLUE = (110, 150, 200)


def test_a_contact_sheet_shows_every_picture_under_its_label() -> None:
    row = [np.full((32, 32, 3), grey, np.uint8) for grey in (0, 100)]
    sheet = contact_sheet(
        [("koala", row), ("a long label\nof two lines", np.full((3, 48, 64, 3), 30, np.uint8))],
        cell=64,
        title="Results",
    )
    assert sheet.dtype == np.uint8
    assert sheet.shape[2] == 3
    assert (sheet[0] == 255).all()
    assert (sheet == 100).all(axis=2).sum() == 64 * 64
    assert sheet.shape[0] > 2 * 64
    wider = contact_sheet([("koala", [*row, *row])], cell=64)
    assert wider.shape[1] > contact_sheet([("koala", row)], cell=64).shape[1] + 2 * 64


def test_a_mosaic_holds_every_picture_in_its_place() -> None:
    whole = mosaic([np.full((4, 6, 3), grey, np.uint8) for grey in (0, 50, 100)], columns=2, gap=2)
    assert whole.shape == (4 + 2 + 4, 6 + 2 + 6, 3)
    assert [whole[0, 0, 0], whole[0, 8, 0], whole[6, 0, 0], whole[6, 8, 0], whole[5, 0, 0]] == [0, 50, 100, 255, 255]


def test_longer_bars_are_longer_and_negative_ones_lie_left_of_zero() -> None:
    bars = [("2", Estimate(0.8, 0.7, 0.9, 5)), ("6", Estimate(0.2, 0.1, 0.3, 5)), ("all", Estimate(-0.1, -0.2, 0.0, 5))]
    chart = bar_chart(bars, "effects")
    blue = (chart == BLUE).all(2)
    rows = [blue[28 * (index + 1) + 14] for index in range(3)]
    assert rows[0].sum() > 3 * rows[1].sum() > 0
    assert rows[2].nonzero()[0].max() < rows[0].nonzero()[0].min() + 4
