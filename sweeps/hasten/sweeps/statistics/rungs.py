"""Could early stopping be trusted: do trials rank at a rung as they rank in the end?

Spearman's correlation of the values at a rung with the final values, over trials of one seed that ran to the
end. Its interval is Fisher's, with Bonett and Wright's error (Psychometrika 65, 2000):

    tanh(atanh(r) -+ 1.96 sqrt((1 + r^2/2) / (n - 3)))

Simulated with normal values it covers the truth in 93.4 to 96.8 % from 10 trials on, up to a correlation of
0.95; with fewer trials in as little as 75 %, so then none is given.
Several seeds are averaged in z, and counted as one: they try the same points, not more of them.

Trials that were stopped have no final value, and those that were not are alike: among them the correlation is
smaller than among all (``tests/sweeps/test_rungs.py`` simulates it). So survivors can show that early
stopping could be trusted, never that it could not. To know, let some trials run to the end unjudged: in a
study the first ``ahead`` points are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Series = Sequence[tuple[int, float]]
Trust = Literal["could be trusted", "could not be trusted", "cannot tell"]

LEAST: Final = 10
"""Trials that ran to the end, below which no interval keeps its coverage."""

ENOUGH: Final = 0.6
"""The rank correlation that early stopping needs: of normal values, 71 of 100 pairs are then ordered as they
are in the end. A convention, not a law."""

_Z: Final = 1.959964  # of a 95 % interval
_MOST: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """How trials ranked after ``images``, against their ranks in the end.

    ``n`` trials of a seed (on average) ran to the end, ``stopped`` of all that came to the rung did not.
    ``spearman`` is in [-1, 1], with its 95 % interval from ``low`` to ``high``; ``ordered`` is the share of
    pairs that stand in their final order, (1 + Kendall's tau-b) / 2. All are None where there is too little
    to compute them from. ``needed`` unstopped trials would probably settle it, if it is not; None where a
    thousand might not.
    """

    images: int
    n: int
    stopped: int
    spearman: float | None = None
    low: float | None = None
    high: float | None = None
    ordered: float | None = None
    needed: int | None = None

    @property
    def trust(self) -> Trust:
        if self.low is None or self.high is None:
            return "cannot tell"
        if self.low >= ENOUGH:
            return "could be trusted"
        return "could not be trusted" if self.high < ENOUGH and not self.stopped else "cannot tell"

    @property
    def sentence(self) -> str:
        """The finding in one sentence, and what would settle it."""
        found = "no rank correlation"
        if self.spearman is not None and self.ordered is not None:
            interval = "" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})"
            found = (
                f"rank correlation {self.spearman:.2f}{interval}, {self.ordered:.0%} of pairs in final order"
            )
        said = f"At {self.images:,} images: {found}"
        if self.trust != "cannot tell":
            return f"{said}; early stopping {self.trust}."
        cannot = f"cannot tell (n={self.n}) whether early stopping could be trusted"
        return f"{said}; {cannot}.{self._survivors()}{self._remedy()}"

    def _survivors(self) -> str:
        if not self.stopped:
            return ""
        return (
            f" {self.stopped} stopped trials have no final value, which makes the correlation look smaller."
        )

    def _remedy(self) -> str:
        if self.needed is None:
            return ""
        return f" About {self.needed} trials that nobody stops would tell: set ahead: {self.needed}."


def judge(curves: Mapping[int, Sequence[Series]], marks: Sequence[int], *, total: int) -> tuple[Rung, ...]:
    """Each of ``marks``, in images, against the end of the budget of ``total`` images.

    Args:
        curves: by seed, for each trial the judged metric as ``(images, value)`` by images, stopped trials
            with what they had. Which values are better does not matter.
        marks: where trials were judged; a trial's value there is that of its first evaluation from there on.
        total: a curve that ends before has no final value.
    """
    return tuple(_judge(curves, images, total) for images in marks)


def _judge(curves: Mapping[int, Sequence[Series]], images: int, total: int) -> Rung:
    found, sizes, stopped = [], [], 0
    for of_seed in curves.values():
        there = [(_value(curve, images), curve[-1]) for curve in of_seed if curve and curve[-1][0] >= images]
        pairs = [(early, value) for early, (last, value) in there if last >= total]
        stopped += len(there) - len(pairs)
        finite = [pair for pair in pairs if all(map(math.isfinite, pair))]
        sizes.append(len(finite))
        if (ranks := _ranks(finite)) is not None:
            found.append((len(finite), *ranks))
    n = sum(sizes) // max(1, len(sizes))
    if not found:
        return Rung(images=images, n=n, stopped=stopped, needed=LEAST)
    weight = sum(size - 3 for size, _, _ in found)
    z = sum((size - 3) * _z(spearman, size) for size, spearman, _ in found) / weight
    tau = sum((size - 3) * kendall for size, _, kendall in found) / weight
    low, high = _interval(z, n) if n >= LEAST else (None, None)
    return Rung(
        images=images,
        n=n,
        stopped=stopped,
        spearman=math.tanh(z),
        low=low,
        high=high,
        ordered=(1.0 + tau) / 2.0,
        needed=_needed(z),
    )


def _value(curve: Series, images: int) -> float:
    """At the first evaluation at or after ``images``; there is one."""
    return next(value for at, value in curve if at >= images)


def _ranks(pairs: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Spearman's rho and Kendall's tau-b; None for fewer than four pairs, or where all are tied."""
    from scipy import stats  # takes half a second to import

    early, final = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if len(pairs) < 4 or min(early) == max(early) or min(final) == max(final):
        return None
    return float(stats.spearmanr(early, final).statistic), float(stats.kendalltau(early, final).statistic)


def _z(spearman: float, n: int) -> float:
    """Fisher's z; perfect agreement counts as half a step less, a step being one swap of neighbours."""
    most = 1.0 - 6.0 / (n * (n * n - 1))
    return math.atanh(min(max(spearman, -most), most))


def _interval(z: float, n: int) -> tuple[float, float]:
    half = _Z * math.sqrt((1.0 + math.tanh(z) ** 2 / 2.0) / (n - 3))
    return math.tanh(z - half), math.tanh(z + half)


def _needed(z: float) -> int | None:
    """With how many trials this correlation's interval would leave ``ENOUGH`` outside."""
    for n in range(LEAST, _MOST + 1):
        low, high = _interval(z, n)
        if low >= ENOUGH or high < ENOUGH:
            return n
    return None
