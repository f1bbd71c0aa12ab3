"""What a comparison found, as values: every arm's outcomes, its interval, its difference and its speed-up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from hasten.sweeps.statistics.intervals import Estimate

Mode = Literal["min", "max"]
Ending = Literal["measured", "diverged", "failed", "stopped", "running", "unmeasured"]

NO_WINNER: Final = "no clear winner"
CONTROL_SUFFIX: Final = "-aa"
"""``BASELINE-aa`` is the baseline's own recipe on other seeds: it shows the noise, and never wins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one trial of an arm ended, and its curve of ``(images, value)``.

    ``value`` is the final value and ``None`` unless ``ending`` is ``measured``. A ``diverged`` trial ended
    on a value that is not finite, a ``stopped`` one before its budget, an ``unmeasured`` one finished
    without the metric.
    """

    seed: int
    ending: Ending
    value: float | None
    images: int
    series: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm against the baseline.

    ``mean``, ``low`` and ``high`` describe the final values. ``difference`` is arm minus baseline,
    ``differences`` the same per common seed (empty when ``paired`` is false), ``p_adjusted`` Holm's
    p-value over the arms tested. ``images_to_target`` holds ``None`` where a seed never reached the
    target; ``reached`` counts those that did, and is ``None`` when no seed has a target.
    ``speedup`` is a ratio: 2 means half the images.
    """

    name: str
    outcomes: Mapping[int, Outcome]
    absent: int = 0
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    paired: bool = True
    differences: Mapping[int, float] = field(default_factory=dict)
    difference: Estimate | None = None
    p_adjusted: float | None = None
    images_to_target: Mapping[int, int | None] = field(default_factory=dict)
    reached: int | None = None
    speedup: Estimate | None = None

    @property
    def values(self) -> dict[int, float]:
        """The final values by seed, of the trials that have one."""
        return {seed: outcome.value for seed, outcome in self.outcomes.items() if outcome.value is not None}

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def endings(self) -> Counter[Ending]:
        """How many trials ended in which way."""
        return Counter(outcome.ending for outcome in self.outcomes.values())

    @property
    def expected(self) -> int:
        """Trials that this arm has or should have."""
        return len(self.outcomes) + self.absent


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All arms of a study against its baseline; ``arms`` starts with the baseline.

    ``verdict`` is ``no clear winner`` or ``ARM beats BASELINE``, ``winner`` that arm's name; ``notes`` are
    sentences on what the numbers cannot tell.
    """

    study: str
    metric: str
    mode: Mode
    baseline: str
    target: Literal["baseline"] | float | None
    alpha: float
    arms: tuple[Arm, ...]
    winner: str | None
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        return NO_WINNER if self.winner is None else f"{self.winner} beats {self.baseline}"

    @property
    def reference(self) -> Arm:
        """The baseline's own row, empty when it has no results."""
        return self.arms[0]

    @property
    def contenders(self) -> tuple[Arm, ...]:
        """The arms that can win: neither the baseline nor its A/A control."""
        return tuple(arm for arm in self.arms[1:] if not self.is_control(arm))

    def is_control(self, arm: Arm) -> bool:
        return arm.name == self.baseline + CONTROL_SUFFIX

    def better(self, difference: float) -> bool:
        """Whether a difference to the baseline is in the right direction."""
        return difference < 0.0 if self.mode == "min" else difference > 0.0

    def as_json(self) -> dict[str, Any]:
        """The stable object of ``hasten compare --json``: numbers or null, never NaN or infinity."""
        return {
            "study": self.study,
            "metric": self.metric,
            "baseline": self.baseline,
            "arms": [_row(arm) for arm in self.arms],
            "verdict": self.verdict,
        }


def _row(arm: Arm) -> dict[str, Any]:
    speedup = arm.speedup
    return {
        "arm": arm.name,
        "n": arm.n,
        "mean": _finite(arm.mean),
        "low": _finite(arm.low),
        "high": _finite(arm.high),
        "speedup": _finite(speedup.mean) if speedup else None,
        "speedup_low": _finite(speedup.low) if speedup else None,
        "speedup_high": _finite(speedup.high) if speedup else None,
        "reached": arm.reached,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
