"""Several studies side by side: whether their numbers may be compared, and what they say together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.sweeps.statistics.comparison import NO_WINNER, Comparison, Conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Studies in the order given, and ``whole``: all their arms against the one baseline that they share.

    ``whole`` is ``None`` where they do not share it, or were not judged alike; ``notes`` say why.
    """

    studies: tuple[Comparison, ...]
    whole: Comparison | None
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        return NO_WINNER if self.whole is None else self.whole.verdict

    def as_json(self) -> dict[str, Any]:
        """The studies' own objects, and that of the whole, or null."""
        return {
            "studies": [one.as_json() for one in self.studies],
            "together": None if self.whole is None else self.whole.as_json(),
            "verdict": self.verdict,
            "notes": list(self.notes),
        }


def differences_in_conditions(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """What keeps studies from being one experiment, in sentences; none when nothing does."""
    return tuple(
        f"{_listed(comparisons)} {sentence}"
        for of, sentence in _CONDITIONS
        if len({of(one.conditions) for one in comparisons}) > 1
    )


_CONDITIONS: tuple[tuple[Callable[[Conditions], object], str], ...] = (
    (lambda one: one.evaluations, "were evaluated differently: compare arms within a study only"),
    (lambda one: one.data, "trained on different data: compare arms within a study only"),
    (lambda one: one.recipe, "have different baselines: compare arms within a study only"),
)


def _listed(comparisons: Sequence[Comparison]) -> str:
    names = [one.study for one in comparisons]
    return f"{', '.join(names[:-1])} and {names[-1]}"
