"""Student's t intervals and tests for a handful of seeds, and Holm's correction over arms.

Functions of plain numbers; nothing here knows of runs, arms or files. The t interval is used because it
keeps its coverage at three seeds; a percentile bootstrap on so few pairs does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

ROUNDING: Final = 1e-6
"""Relative size below which two float32 averages count as equal: the order of a sum changes that much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its interval. ``low``, ``high`` and ``p`` are ``None`` where one value gives none.

    ``p`` is the two-sided p-value of "the mean is zero", ``error`` the standard error of the mean; ``n``
    counts the values (pairs, when paired).
    """

    n: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    error: float | None = None


def mean_of(values: Sequence[float], *, alpha: float, least_sd: float = 0.0) -> Estimate | None:
    """Mean and ``1 - alpha`` interval: ``mean ± t(1 - alpha/2, n - 1) * sd / sqrt(n)`` (Student 1908).

    ``sd`` is the sample standard deviation (n - 1), and no less than ``least_sd``, the rounding that the
    values are known to carry. ``None`` for no values, or where the arithmetic overflows.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return None
    mean, variance = _moments(array)
    error = math.sqrt(max(variance, least_sd**2) / array.size)
    return _student(array.size, mean, error, freedom=array.size - 1, alpha=alpha)


def paired_difference(values: Sequence[float], baseline: Sequence[float], *, alpha: float) -> Estimate | None:
    """Mean of ``value - baseline`` over pairs, with the interval and p-value of the paired t test.

    The formula is that of ``mean_of`` on the differences. Pairs that differ by less than ``ROUNDING`` of
    their size count as equal, so a constant rounding error never looks like a certain gain. Differences
    that are all zero give ``p = 1``; differences that are all the same number give ``p = 0``.
    """
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    with np.errstate(over="ignore"):
        differences = ours - theirs
    size = np.maximum(np.abs(ours), np.abs(theirs))
    equal = np.abs(differences) <= ROUNDING * size
    return mean_of(np.where(equal, 0.0, differences).tolist(), alpha=alpha)


def welch_difference(values: Sequence[float], baseline: Sequence[float], *, alpha: float) -> Estimate | None:
    """Difference of two unpaired means with Welch's interval and p-value (Welch 1947).

    ``se² = va/na + vb/nb``, with the Welch-Satterthwaite degrees of freedom
    ``se⁴ / ((va/na)²/(na-1) + (vb/nb)²/(nb-1))``. ``n`` is the smaller of the two counts; with fewer than
    two values on a side there is no interval.
    """
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    count = min(ours.size, theirs.size)
    if count == 0:
        return None
    (our_mean, our_variance), (their_mean, their_variance) = _moments(ours), _moments(theirs)
    mean = our_mean - their_mean
    if count == 1:
        return _student(1, mean, 0.0, freedom=0, alpha=alpha)
    our_share, their_share = our_variance / ours.size, their_variance / theirs.size
    error = math.sqrt(our_share + their_share)
    if error == 0.0:
        return _student(count, mean, 0.0, freedom=count - 1, alpha=alpha)
    # As fractions of the whole, so that tiny variances do not underflow when squared.
    ours_part, theirs_part = our_share / error**2, their_share / error**2
    freedom = 1.0 / (ours_part**2 / (ours.size - 1) + theirs_part**2 / (theirs.size - 1))
    return _student(count, mean, error, freedom=freedom, alpha=alpha)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979).

    For p-values in ascending order, ``adjusted[i] = max over j <= i of min(1, (m - j) p[j])`` with ``j``
    from 0: rejecting where ``adjusted < alpha`` keeps the chance of any false rejection below ``alpha``
    whatever the dependence, so arms may share one baseline.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _moments(array: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and sample variance; the variance is exactly zero for equal values, and for a single one."""
    if array.size == 1 or bool(np.all(array == array[0])):
        return float(array[0]), 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        return float(array.mean()), float(array.var(ddof=1))


def _student(n: int, mean: float, error: float, *, freedom: float, alpha: float) -> Estimate | None:
    if not (math.isfinite(mean) and math.isfinite(error)):
        return None
    if n < 2:
        return Estimate(n=n, mean=mean)
    if error == 0.0:
        return Estimate(n=n, mean=mean, low=mean, high=mean, p=1.0 if mean == 0.0 else 0.0, error=0.0)
    half = float(stdtrit(freedom, 1.0 - alpha / 2.0)) * error
    p = 2.0 * float(stdtr(freedom, -abs(mean / error)))
    return Estimate(n=n, mean=mean, low=mean - half, high=mean + half, p=p, error=error)
