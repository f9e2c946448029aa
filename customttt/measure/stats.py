"""Means and shares with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; the mean of a single value has none."""

    value: float
    low: float | None
    high: float | None
    n: int

    def __format__(self, spec: str) -> str:
        """`0.81 (0.75 to 0.86)`, each number formatted as `spec`; `0.81` where there is no interval."""
        interval = "" if self.low is None else f" ({self.low:{spec}} to {self.high:{spec}})"
        return f"{self.value:{spec}}{interval}"


def share(hits: int, n: int) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927), which stays sound near 0 and 1. `n` >= 1."""
    z, p = 1.959964, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, max(0.0, middle - reach), min(1.0, middle + reach), n)


def mean(values: Sequence[float], groups: Sequence[str] | None = None, resamples: int = 4000) -> Estimate:
    """A mean with a percentile bootstrap interval; whole groups are drawn where values come in groups (Efron 1979).

    Values of one group, such as several seeds of one concept, do not count as independent; where all are of one, the
    interval is over them. Deterministic.
    """
    return ratio(values, [1.0] * len(values), groups, resamples)


def ratio(
    values: Sequence[float], others: Sequence[float], groups: Sequence[str] | None = None, resamples: int = 4000
) -> Estimate:
    """The mean of `values` over the mean of `others`, paired one by one, with the same interval as `mean`."""
    names = list(groups) if groups and len(set(groups)) > 1 else [str(index) for index in range(len(values))]
    places = np.unique(names, return_inverse=True)[1]
    tops, bottoms = (np.bincount(places, weights=some) for some in (values, others))
    value = float(tops.sum() / bottoms.sum())
    if len(values) == 1:
        return Estimate(value, None, None, 1)
    drawn = np.random.default_rng(0).integers(0, len(tops), (resamples, len(tops)))
    low, high = np.percentile(tops[drawn].sum(1) / bottoms[drawn].sum(1), [2.5, 97.5])
    return Estimate(value, float(low), float(high), len(values))
