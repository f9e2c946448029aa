"""Means and shares with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        """`0.81 (0.75 to 0.86)`, each number formatted as `spec`."""
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def share(hits: int, n: int) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927), which stays sound near 0 and 1. `n` >= 1."""
    z, p = 1.959964, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, max(0.0, middle - reach), min(1.0, middle + reach), n)


def mean(values: Sequence[float], groups: Sequence[str] | None = None, resamples: int = 4000) -> Estimate:
    """A mean with a percentile bootstrap interval; whole groups are drawn where values come in groups (Efron 1979).

    Values of one group, such as several seeds of one concept, do not count as independent. Deterministic.
    """
    names = list(groups) if groups is not None else [str(index) for index in range(len(values))]
    order = sorted(set(names))
    sums = np.array([sum(v for v, name in zip(values, names, strict=True) if name == group) for group in order])
    counts = np.array([names.count(group) for group in order])
    drawn = np.random.default_rng(0).integers(0, len(order), (resamples, len(order)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high), len(values))
