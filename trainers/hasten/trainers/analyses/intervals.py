"""Means with Student's t intervals, over noise seeds, mini-batches or runs; plain numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit

LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of ``n`` values with its 95 % interval; no ends where one value gives none."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


def mean_of(values: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Mean and interval, mean ± t(n - 1) sd/sqrt(n) (Student 1908), of at least one value."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(len(array), mean)
    half = float(stdtrit(len(array) - 1, 0.5 + level / 2.0) * array.std(ddof=1) / np.sqrt(len(array)))
    return Interval(len(array), mean, mean - half, mean + half)


def share_of(hits: ArrayLike, *, level: float = LEVEL) -> Interval:
    """The share of true values with Wilson's interval (1927), in [0, 1] and no point at either end."""
    array = np.asarray(hits, dtype=bool)
    count, share, z = len(array), float(array.mean()), float(ndtri(0.5 + level / 2.0))
    shrink = 1.0 + z**2 / count
    centre = (share + z**2 / (2.0 * count)) / shrink
    half = z * np.sqrt(share * (1.0 - share) / count + (z / (2.0 * count)) ** 2) / shrink
    return Interval(count, share, float(max(centre - half, 0.0)), float(min(centre + half, 1.0)))
