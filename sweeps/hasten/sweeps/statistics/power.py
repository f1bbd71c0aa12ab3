"""How many seeds a paired comparison needs, and how small a difference it can see.

By the noncentral t distribution: with ``n`` pairs whose differences have mean ``effect`` and standard
deviation ``sd``, the t statistic is noncentral with ``n - 1`` degrees of freedom and noncentrality
``sqrt(n) * effect / sd`` (Cohen 1988; Lehmann and Romano 2005, section 5.2). ``level`` is that of the
two-sided test after the correction for several arms.
"""

from __future__ import annotations

import math
from typing import Final

from scipy.special import nctdtr, nctdtrinc, stdtrit

POWER: Final = 0.8
"""The chance to find a difference that counts as enough, by convention."""
MOST_SEEDS: Final = 1000
"""Beyond this many seeds, nobody will ask for more."""


def power(n: int, *, effect: float, sd: float, level: float) -> float:
    """The chance that ``n`` pairs give a significant difference in the right direction."""
    noncentrality = math.sqrt(n) * abs(effect) / sd
    threshold = float(stdtrit(n - 1, 1.0 - level / 2.0))
    return 1.0 - float(nctdtr(n - 1, noncentrality, threshold))


def seeds_needed(*, effect: float, sd: float, level: float, least: int) -> int | None:
    """The fewest pairs, ``least`` or more, that find ``effect`` with a chance of ``POWER``.

    ``None`` when even ``MOST_SEEDS`` are too few, and where there is no effect or no spread to reckon with.
    """
    if effect == 0.0 or sd == 0.0 or power(MOST_SEEDS, effect=effect, sd=sd, level=level) < POWER:
        return None
    too_few, enough = least - 1, MOST_SEEDS
    while enough - too_few > 1:  # power grows with n
        middle = (too_few + enough) // 2
        if power(middle, effect=effect, sd=sd, level=level) < POWER:
            too_few = middle
        else:
            enough = middle
    return enough


def detectable(n: int, *, sd: float, level: float) -> float:
    """The smallest effect that ``n`` pairs find with a chance of ``POWER``."""
    threshold = float(stdtrit(n - 1, 1.0 - level / 2.0))
    return float(nctdtrinc(n - 1, 1.0 - POWER, threshold)) * sd / math.sqrt(n)
