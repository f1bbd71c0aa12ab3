"""Arms that cross two changes: whether the changes help or hinder each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from hasten.sweeps.statistics.comparison import Arm, Interaction
from hasten.sweeps.statistics.intervals import mean_of


def interactions(baseline: Arm, arms: Sequence[Arm], *, alpha: float, least: int) -> tuple[Interaction, ...]:
    """The interaction of every two arms whose changes a third arm makes together.

    Per seed ``both - first - second + baseline``, with a paired t interval over the seeds that all four
    have; none with fewer than ``least`` of them.
    """
    found = []
    for first, second, both in _crossed(arms):
        four = [arm.values for arm in (both, first, second, baseline)]
        seeds = [seed for seed in four[0] if all(seed in values for values in four)]
        contrasts = [four[0][seed] - four[1][seed] - four[2][seed] + four[3][seed] for seed in seeds]
        contrast = mean_of(contrasts, alpha=alpha)
        if contrast is not None and contrast.n >= least:
            found.append(Interaction(first=first.name, second=second.name, both=both.name, contrast=contrast))
    return tuple(found)


def _crossed(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Arm, Arm]]:
    """Two arms, and the one whose changes are the union of theirs."""
    changed = [arm for arm in arms if arm.changes]
    for first, second in combinations(changed, 2):
        together = {**first.changes, **second.changes}
        agree = together == {**second.changes, **first.changes}
        if not agree or together in (first.changes, second.changes):
            continue
        for both in changed:
            if both.changes == together:
                yield first, second, both
