"""Ratios of paired blocks: the order in which arms take turns, intervals, and what may be concluded.

A ratio is a speed over a speed, so more than 1 means that the first arm was faster. Arms are compared only
within a round, in which each had its block: what the machine does slowly, it does to all of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from hasten.sweeps.statistics import intervals
from hasten.sweeps.statistics.intervals import Estimate

Verdict = Literal["pass", "fail", "unclear", "void", "no aim"]

ALPHA: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The median of ``n`` paired ratios, their geometric mean, and its 95 % interval."""

    n: int
    median: float
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """A bound that a ratio, or a cost, should keep."""

    bound: float
    kind: Literal["at least", "at most"] = "at least"


def turns(arms: Sequence[str], rounds: int) -> list[list[str]]:
    """The arms' order in each round: forwards and backwards in turn, A B B A A B B A ...

    A drift that is linear in time then favours no arm over two rounds.
    """
    return [list(arms) if number % 2 == 0 else list(reversed(arms)) for number in range(rounds)]


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """The ratio first / second of positive numbers, paired by round.

    The interval is Student's t on the logarithms: a percentile bootstrap of so few pairs is too narrow.
    """
    logs = [math.log(a / b) for a, b in zip(first, second, strict=True)]
    found = intervals.mean_of(logs, alpha=ALPHA)
    if found is None:
        raise ValueError("no pairs to compare")
    return Ratio(
        n=found.n,
        median=math.exp(statistics.median(logs)),
        mean=math.exp(found.mean),
        low=None if found.low is None else math.exp(found.low),
        high=None if found.high is None else math.exp(found.high),
    )


def mean(values: Sequence[float]) -> Estimate:
    """The mean of some costs, or of paired differences of them, with its 95 % interval."""
    found = intervals.mean_of(values, alpha=ALPHA)
    if found is None:
        raise ValueError("no values to average")
    return found


def holds(control: Ratio, tolerance: float) -> bool:
    """Whether an arm, measured against itself, came out as 1 within ``tolerance``."""
    return abs(control.median - 1.0) <= tolerance


def verdict(low: float | None, high: float | None, aim: Aim | None, *, control_holds: bool = True) -> Verdict:
    """What an interval says about the aim; nothing, where the control failed."""
    if not control_holds:
        return "void"
    if aim is None:
        return "no aim"
    if low is None or high is None:
        return "unclear"
    if aim.kind == "at least":
        keeps, misses = low >= aim.bound, high < aim.bound
    else:
        keeps, misses = high <= aim.bound, low > aim.bound
    return "pass" if keeps else "fail" if misses else "unclear"
