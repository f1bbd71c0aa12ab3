"""When a challenger is better: by more than luck with the seed could have brought about, and fit for use.

Two runs of one recipe that differ in nothing but their seed have metrics that differ by a random number of
variance 2 sigma^2. A challenger is better if its metric is lower by more than

    max(deviations s, t_{confidence, nu} sqrt(2) s)

where s estimates sigma with nu degrees of freedom and t is Student's quantile: the one-sided prediction
interval for a difference of two single runs. With few seeds the quantile rules, with many ``deviations``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from scipy import stats

from hasten.platform.retraining.pipeline import Gate, Guardrails

FEWEST: Final = 3
"""Values that a standard deviation is taken from, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """The standard deviation of a metric between seeds, its degrees of freedom, and where it is from."""

    value: float
    freedom: int
    source: str


def deviation(groups: Sequence[Sequence[float]], source: str) -> Deviation | None:
    """The deviation within groups of runs that differ in their seed alone, pooled.

    None where there are too few values, one is not finite, or all are equal (nobody is that lucky).
    """
    used = [group for group in groups if len(group) > 1]
    values = [value for group in used for value in group]
    freedom = len(values) - len(used)
    if freedom < FEWEST - 1 or not all(map(math.isfinite, values)):
        return None
    means = [sum(group) / len(group) for group in used]
    squares = sum((value - mean) ** 2 for group, mean in zip(used, means, strict=True) for value in group)
    if squares == 0.0:
        return None
    return Deviation(value=math.sqrt(squares / freedom), freedom=freedom, source=source)


def margin(gate: Gate, deviation: Deviation) -> float:
    """By how much a challenger's metric must be lower than the champion's, in units of the metric."""
    luck = math.sqrt(2.0) * float(stats.t.ppf(gate.confidence, deviation.freedom))
    return max(gate.deviations, luck) * deviation.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a challenger becomes champion, and why or why not."""

    promoted: bool
    reason: str


def verdict(gate: Gate, *, ours: float, theirs: float, version: str, deviation: Deviation | None) -> Verdict:
    """Judge a challenger's metric against that of the champion, which is ``version``."""
    compared = f"{gate.metric} {ours:.4g} against {theirs:.4g} of the champion, version {version}"
    if not ours < theirs:
        return Verdict(promoted=False, reason=f"{compared}: not better")
    if deviation is None:
        why = "how much the seed alone changes it is not known"
        return Verdict(promoted=False, reason=f"{compared}: cannot tell, as {why}")
    luck, wished = margin(gate, deviation), gate.min_improvement * abs(theirs)
    needed = max(luck, wished)
    by = f"lower by {theirs - ours:.2g}, the margin is {needed:.2g}"
    why = f"{luck / deviation.value:.2f} standard deviations of {deviation.value:.2g} ({deviation.source})"
    if wished > luck:
        why = f"gate.min_improvement {gate.min_improvement:g}"
    return Verdict(promoted=theirs - ours > needed, reason=f"{compared}: {by}: {why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known of a network besides its loss; NaN for what is unknown.

    ``quality`` is by the names of the tracker; ``seconds`` are those of a sample.
    """

    loss: float
    quality: Mapping[str, float] = field(default_factory=dict)
    megabytes: float = math.nan
    seconds: float = math.nan


def problems(rules: Guardrails, ours: Measured, champion: Measured | None) -> list[str]:
    """The guardrails that a challenger runs into, in words; empty where it keeps them all."""
    infinite = [
        name for name, value in {"eval/loss": ours.loss, **ours.quality}.items() if not math.isfinite(value)
    ]
    if infinite:
        return [f"{', '.join(infinite)}: not a finite number"]
    absolute = (
        _below(
            "eval/nearest_unseen", ours.quality.get("eval/nearest_unseen"), rules.min_unseen, "min_unseen"
        ),
        _above("megabytes", ours.megabytes, rules.max_megabytes, "max_megabytes"),
    )
    found = [problem for problem in absolute if problem]
    if champion is None:
        return found
    frechet = _ratio(ours.quality.get("eval/frechet"), champion.quality.get("eval/frechet"))
    recall = _ratio(ours.quality.get("eval/recall"), champion.quality.get("eval/recall"))
    relative = (
        _above("Fréchet distance over the champion's", frechet, rules.max_frechet_ratio, "max_frechet_ratio"),
        _below("recall over the champion's", recall, rules.min_diversity, "min_diversity"),
        _above(
            "seconds a sample over the champion's",
            _ratio(ours.seconds, champion.seconds),
            rules.max_latency_ratio,
            "max_latency_ratio",
        ),
    )
    return found + [problem for problem in relative if problem]


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    if ours is None or theirs is None or not theirs > 0.0:
        return None
    return ours / theirs


def _above(what: str, value: float | None, limit: float | None, key: str) -> str:
    if value is None or limit is None or not value > limit:
        return ""
    return f"{what} {value:.3g} is above guardrails.{key} {limit:g}"


def _below(what: str, value: float | None, limit: float | None, key: str) -> str:
    if value is None or limit is None or not value < limit:
        return ""
    return f"{what} {value:.3g} is below guardrails.{key} {limit:g}"
