"""Which of several points nobody beats in every goal at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np


def front(points: Mapping[str, Sequence[float]], modes: Sequence[Literal["min", "max"]]) -> frozenset[str]:
    """The names of the points that no other one dominates.

    A point dominates another when it is at least as good in every goal and better in one; ``modes`` say
    for each goal which way is better. Equal points are on the front together. A point with a value that is
    not a number is not on it; an infinitely bad one may be, by its other goals.

    Values are usually means over a few seeds, and the front is taken of them as they are: a point close to
    it may belong there, and one on it may be there by luck.
    """
    known = {name: values for name, values in points.items() if not np.isnan(values).any()}
    if not known:
        return frozenset()
    signs = np.array([1.0 if mode == "min" else -1.0 for mode in modes])
    costs = np.array(list(known.values()), dtype=np.float64) * signs
    return frozenset(
        name
        for name, cost in zip(known, costs, strict=True)
        if not np.any(np.all(costs <= cost, axis=1) & np.any(costs < cost, axis=1))
    )
