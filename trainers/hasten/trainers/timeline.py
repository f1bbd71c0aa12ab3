"""When things are due, in images: marks at multiples of a fraction of the budget.

A mark is due at the first batch that ends at or after it, and is recorded under its own step: the grid of
evaluation points is the same for every batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hasten.trainers.specs import Eval


def crossed(before: int, after: int, *, every: float, total: int) -> int | None:
    """The newest mark in (before, after], as images; the end of the budget is always one."""
    if after >= total:
        return total if before < total else None
    spacing = every * total
    # Marks are rounded to whole images, so the next one may already lie at or before ``after``.
    number = int(after / spacing)
    return _newest(before, [round(number * spacing), round((number + 1) * spacing)], after)


def reached(before: int, after: int, *, fractions: Sequence[float], total: int) -> int | None:
    """The newest of ``fractions`` of ``total`` that lies in (before, after], as images."""
    return _newest(before, [max(1, round(fraction * total)) for fraction in fractions], after)


def _newest(before: int, marks: Sequence[int], after: int) -> int | None:
    due = [mark for mark in marks if before < mark <= after]
    return max(due, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Which evaluations are due, each under the step that it is recorded at; None where it is not."""

    loss: int | None
    samples: int | None
    sheet: int | None

    def __bool__(self) -> bool:
        return not (self.loss is None and self.samples is None and self.sheet is None)


AT_START: Final = Marks(loss=0, samples=None, sheet=0)


def evaluations(spec: Eval, before: int, after: int, total: int) -> Marks:
    """The evaluations that fell due in (before, after]."""
    return Marks(
        loss=crossed(before, after, every=spec.loss.every, total=total),
        samples=reached(before, after, fractions=spec.samples.at, total=total),
        sheet=crossed(before, after, every=spec.grid.every, total=total),
    )
