"""Images to a target that some runs never reach: the median, its interval, and who was sooner.

The runs of an arm have one budget, so whatever is censored is censored at its end. A run that diverged
belongs there too: however early it broke down, it would never have reached the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import bdtr


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    """Half of ``n`` runs reach the target by ``median`` images; ``None`` when fewer than half ever do.

    ``low`` is ``None`` where so few runs give no interval, or where none is known to end before the budget;
    ``high`` is ``None`` beside a ``low`` when the interval has no end within the budget.
    """

    n: int
    median: float | None
    low: float | None = None
    high: float | None = None


def median_of(counts: Sequence[float | None], *, alpha: float) -> Median | None:
    """The Kaplan-Meier median of ``counts``, in which ``None`` is censored at the budget.

    The first count by which the estimated share of runs still short of the target is a half or less (Kaplan
    and Meier 1958). As nothing is censored before the budget, that estimate is the plain share, and the
    median an order statistic. So are the ends of its interval, by the binomial distribution of how many of
    ``n`` runs lie below the true median (Conover 1999, section 3.2): it holds the median at least as
    often as it says, for any distribution, and exists at 95 % from six runs on. Intervals by Greenwood's
    formula do not keep what they say: they hold it in 79 % of studies with six runs, and with three in 88 %,
    on the log-log scale too (``tests/benchmarks/false_winners.py``).
    ``None`` for no counts.
    """
    if not counts:
        return None
    n, in_order = len(counts), sorted(math.inf if count is None else count for count in counts)
    below = sum(bdtr(rank, n, 0.5) <= alpha / 2.0 for rank in range(n // 2))
    return Median(
        n=n,
        median=_reached(in_order[(n - 1) // 2]),
        low=_reached(in_order[below - 1]) if below else None,
        high=_reached(in_order[n - below]) if below else None,
    )


def sign_test(sooner: int, later: int) -> float:
    """The two-sided p of so many signs either way, when both are equally likely; ties are left out.

    Exact, by the binomial distribution; below 0.05 only from six to none on.
    """
    if sooner + later == 0:
        return 1.0
    return min(1.0, 2.0 * float(bdtr(min(sooner, later), sooner + later, 0.5)))


def _reached(count: float) -> float | None:
    return count if math.isfinite(count) else None
