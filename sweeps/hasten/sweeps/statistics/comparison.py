"""What a comparison found, as values: every arm's outcomes, its interval, its difference and its speed-up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from hasten.sweeps.records import FailureKind
from hasten.sweeps.statistics.censoring import Median
from hasten.sweeps.statistics.intervals import Estimate
from hasten.sweeps.statistics.objectives import Mode

Ending = Literal["measured", "diverged", "failed", "stopped", "running", "unmeasured"]

NO_WINNER: Final = "no clear winner"
CONTROL_SUFFIX: Final = "-aa"
"""``BASELINE-aa`` is the baseline's own recipe on other seeds: it shows the noise, and never wins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one trial of an arm ended, and its curve of ``(images, value)``.

    ``value`` is the final value and ``None`` unless ``ending`` is ``measured``. A ``diverged`` trial ended
    on a value that is not finite, a ``stopped`` one before its budget, an ``unmeasured`` one finished
    without the metric. ``failure`` says why one failed, where that is known. ``seconds`` are
    ``(images, seconds of training)``, empty where nobody kept them.
    """

    seed: int
    ending: Ending
    value: float | None
    images: int
    series: tuple[tuple[int, float], ...]
    seconds: tuple[tuple[int, float], ...] = ()
    failure: FailureKind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm against the baseline.

    ``changes`` are the recipe's keys in which it differs from the baseline, ``None`` where it lacks one.
    ``mean``, ``low`` and ``high`` describe the final values. ``difference`` is arm minus baseline,
    ``differences`` the same per common seed (empty when ``paired`` is false), ``p_adjusted`` Holm's
    p-value over the arms tested.

    ``images_to_target`` and ``seconds_to_target`` hold ``None`` where a seed never reached the target;
    ``reached`` counts those that did, and is ``None`` when no seed has a target; ``median`` is that of the
    images. ``speedup`` is a ratio: 2 means half the images until the target, or until the worse of the two
    last values at a seed where one of the runs never reached it (see :mod:`hasten.sweeps.statistics.speed`).
    ``ratios`` are the same per common seed; ``seconds_speedup`` is its like in seconds of training.

    ``seeds_to_settle`` more seeds would probably tell the difference from luck, if it is what it seems: 0
    where that is done, ``None`` where nothing can be said; ``detectable`` is the smallest difference that
    these seeds would probably have shown (see :mod:`hasten.sweeps.statistics.power`).
    """

    name: str
    outcomes: Mapping[int, Outcome]
    absent: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    paired: bool = True
    differences: Mapping[int, float] = field(default_factory=dict)
    difference: Estimate | None = None
    p_adjusted: float | None = None
    images_to_target: Mapping[int, int | None] = field(default_factory=dict)
    seconds_to_target: Mapping[int, float | None] = field(default_factory=dict)
    reached: int | None = None
    median: Median | None = None
    ratios: Mapping[int, float] = field(default_factory=dict)
    speedup: Estimate | None = None
    seconds_speedup: Estimate | None = None
    seeds_to_settle: int | None = None
    detectable: float | None = None

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
class Interaction:
    """What two changes do together beyond the sum of what each does: ``both - first - second + baseline``.

    Below 0 they help each other where less is better. A paired t interval, not corrected for several arms.
    """

    first: str
    second: str
    both: str
    contrast: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What must be equal before numbers of two studies may stand side by side, as canonical texts.

    ``evaluations`` say how the runs were judged, ``data`` on what they trained (digests), ``recipe`` is the
    baseline's, without name, seed and execution. Empty where no run has finished.
    """

    evaluations: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    recipe: str = ""


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
    interactions: tuple[Interaction, ...] = ()
    conditions: Conditions = Conditions()

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

    @property
    def control_holds(self) -> bool | None:
        """Whether the A/A control came out as no different; ``None`` without a control that can tell."""
        control = next((arm for arm in self.arms if self.is_control(arm)), None)
        if control is None or control.difference is None or control.difference.p is None:
            return None
        return control.difference.p >= self.alpha

    def is_control(self, arm: Arm) -> bool:
        return arm.name == self.baseline + CONTROL_SUFFIX

    def better(self, difference: float) -> bool:
        """Whether a difference to the baseline is in the right direction."""
        return difference < 0.0 if self.mode == "min" else difference > 0.0

    def settled(self, arm: Arm) -> bool:
        """Whether an arm's difference, in either direction, is more than luck over all arms."""
        return arm.p_adjusted is not None and arm.p_adjusted < self.alpha

    def as_json(self) -> dict[str, Any]:
        """The stable object of ``hasten compare --json``: numbers or null, never NaN or infinity."""
        return {
            "study": self.study,
            "metric": self.metric,
            "baseline": self.baseline,
            "arms": [_row(arm) for arm in self.arms],
            "verdict": self.verdict,
            "control_holds": self.control_holds,
            "interactions": [
                {
                    "first": one.first,
                    "second": one.second,
                    "both": one.both,
                    **_estimate("contrast", one.contrast),
                }
                for one in self.interactions
            ],
            "notes": list(self.notes),
        }


def _row(arm: Arm) -> dict[str, Any]:
    median = arm.median
    return {
        "arm": arm.name,
        "n": arm.n,
        "mean": _finite(arm.mean),
        "low": _finite(arm.low),
        "high": _finite(arm.high),
        **_estimate("difference", arm.difference),
        "p_adjusted": _finite(arm.p_adjusted),
        **_estimate("speedup", arm.speedup),
        **_estimate("seconds_speedup", arm.seconds_speedup),
        "reached": arm.reached,
        "images_to_target_median": _finite(median.median) if median else None,
        "images_to_target_low": _finite(median.low) if median else None,
        "images_to_target_high": _finite(median.high) if median else None,
        "seeds_to_settle": arm.seeds_to_settle,
        "detectable": _finite(arm.detectable),
    }


def _estimate(name: str, found: Estimate | None) -> dict[str, float | None]:
    return {
        name: _finite(found.mean) if found else None,
        f"{name}_low": _finite(found.low) if found else None,
        f"{name}_high": _finite(found.high) if found else None,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
