"""Who won: arms against a baseline on paired seeds, with intervals that hold at three seeds.

Final values: Student's t on the differences at equal seeds, Holm over the arms. Speed: images and seconds
until a quality that both runs of a seed reach. Needs neither torch nor Ray nor MLflow, so a comparison runs
anywhere the results can be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal, get_args

from hasten.sweeps.records import TrialResult
from hasten.sweeps.statistics import power
from hasten.sweeps.statistics.caveats import caveats
from hasten.sweeps.statistics.comparison import CONTROL_SUFFIX, Arm, Comparison
from hasten.sweeps.statistics.factorial import interactions
from hasten.sweeps.statistics.intervals import holm, mean_of, paired_difference, welch_difference
from hasten.sweeps.statistics.objectives import Mode
from hasten.sweeps.statistics.outcomes import arms_of, conditions_of
from hasten.sweeps.statistics.speed import Targets, with_speedup, with_target
from hasten.sweeps.statistics.together import Together, differences_in_conditions
from hasten.trainers.errors import ConfigError
from hasten.trainers.tracker import EVAL_LOSS

LEAST_SEEDS: Final = 3
"""Fewer pairs than this are never a winner and give no interval for a speed-up."""


def compare(
    results: Sequence[TrialResult],
    *,
    study: str,
    metric: str = EVAL_LOSS,
    mode: Mode = "min",
    baseline: str = "baseline",
    target: Literal["baseline"] | float | None = "baseline",
    alpha: float = 0.05,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    notes: Sequence[str] = (),
) -> Comparison:
    """Compare every arm's final ``metric`` and its images to ``target`` with the baseline's.

    ``arms`` and ``seeds`` say what the study planned, so that what has no result yet is counted as
    missing; left out, the results speak for themselves. ``notes`` are put before the comparison's own.
    Only finished runs with a finite final value count. A seed is paired with the baseline's same seed; an
    arm without a seed in common is compared unpaired.

    The winner is the arm furthest ahead of the baseline among those with at least three seeds, a
    Holm-adjusted two-sided p below ``alpha`` and no diverged run. Naming a winner by mistake has a chance of
    at most ``alpha`` over all arms, about half of it where no arm does anything, as only one side counts.

    Raises ``ConfigError`` for a ``mode``, ``target`` or ``alpha`` that means nothing.
    """
    _check(mode=mode, target=target, alpha=alpha)
    rows = arms_of(results, metric=metric, baseline=baseline, arms=arms, seeds=seeds)
    rows = [_with_mean(arm, alpha=alpha) for arm in rows]
    rows = [rows[0], *(_with_difference(arm, rows[0], alpha=alpha) for arm in rows[1:])]
    targets = {arm.name: _targets(arm, rows[0], target) for arm in rows}
    rows = [with_target(arm, targets[arm.name], mode=mode, alpha=alpha) for arm in rows]
    rows = [
        with_speedup(arm, rows[0], targets[arm.name], mode=mode, alpha=alpha, least=LEAST_SEEDS)
        for arm in rows
    ]
    comparison = Comparison(
        study=study,
        metric=metric,
        mode=mode,
        baseline=baseline,
        target=target,
        alpha=alpha,
        arms=tuple(rows),
        winner=None,
        notes=(),
        interactions=interactions(rows[0], rows[1:], alpha=alpha, least=LEAST_SEEDS),
        conditions=conditions_of(results, baseline=baseline),
    )
    return _decided(comparison, notes=notes)


def compare_studies(comparisons: Sequence[Comparison]) -> Together:
    """One study or several side by side, and as one where they are parts of one experiment.

    Every arm stays paired with its own study's baseline. Where the baselines are the same recipe on the same
    data, judged alike, all arms of all studies are also held against it together, with Holm's correction
    over all of them; otherwise there is no winner across studies, and the notes say what differs.

    Raises ``ConfigError`` when the studies do not measure the same, or not in the same direction.
    """
    first = comparisons[0]
    for other in comparisons[1:]:
        if (other.metric, other.mode, other.alpha) != (first.metric, first.mode, first.alpha):
            raise ConfigError(
                "objective.metric",
                f"{first.study} is judged by {first.metric} ({first.mode}), "
                f"{other.study} by {other.metric} ({other.mode})",
                "Compare studies with one objective.",
            )
    if len(comparisons) == 1:
        return Together(studies=(first,), whole=first, notes=())
    notes = differences_in_conditions(comparisons)
    if notes:
        return Together(studies=tuple(comparisons), whole=None, notes=notes)
    arms = [
        replace(arm, name=f"{one.study}/{arm.name}", p_adjusted=None)
        for one in comparisons
        for arm in one.contenders
    ]
    whole = replace(
        first,
        study=" + ".join(one.study for one in comparisons),
        arms=(first.reference, *arms),
        interactions=(),
    )
    return Together(studies=tuple(comparisons), whole=_decided(whole, notes=()), notes=())


def _check(*, mode: str, target: object, alpha: float) -> None:
    if mode not in get_args(Mode):
        raise ConfigError("objective.mode", f"{mode!r} is neither min nor max")
    number = isinstance(target, int | float) and not isinstance(target, bool) and math.isfinite(target)
    if not (target is None or target == "baseline" or number):
        raise ConfigError("objective.target", f"{target!r} is not a number", "Give a number or: baseline")
    if not 0.0 < alpha < 1.0:
        raise ConfigError("alpha", f"{alpha} is not between 0 and 1", "0.05 gives 95 % intervals")


def _with_mean(arm: Arm, *, alpha: float) -> Arm:
    estimate = mean_of(list(arm.values.values()), alpha=alpha)
    if estimate is None:
        return arm
    return replace(arm, mean=estimate.mean, low=estimate.low, high=estimate.high)


def _with_difference(arm: Arm, baseline: Arm, *, alpha: float) -> Arm:
    """Paired on common seeds; Welch only where the arm was never meant to share one."""
    ours, theirs = arm.values, baseline.values
    if arm.outcomes and baseline.outcomes and not arm.outcomes.keys() & baseline.outcomes.keys():
        difference = welch_difference(list(ours.values()), list(theirs.values()), alpha=alpha)
        return replace(arm, paired=False, difference=difference)
    common = [seed for seed in ours if seed in theirs]
    difference = paired_difference(
        [ours[seed] for seed in common], [theirs[seed] for seed in common], alpha=alpha
    )
    return replace(
        arm, differences={seed: ours[seed] - theirs[seed] for seed in common}, difference=difference
    )


def _targets(arm: Arm, baseline: Arm, target: Literal["baseline"] | float | None) -> Targets:
    """The value to reach at each seed: the baseline's own final value at that seed, or one number."""
    if target is None:
        return {}
    if target == "baseline":
        return baseline.values
    return dict.fromkeys(arm.outcomes, float(target))


def _decided(comparison: Comparison, *, notes: Sequence[str]) -> Comparison:
    """The comparison with Holm's correction over its arms, its winner, and what cannot be told."""
    rows = _with_holm(comparison.arms, control=comparison.baseline + CONTROL_SUFFIX)
    comparison = replace(comparison, arms=tuple(rows))
    comparison = replace(comparison, arms=tuple(_with_seeds_needed(comparison)))
    comparison = replace(comparison, winner=_winner(comparison))
    return replace(comparison, notes=(*notes, *caveats(comparison, least_seeds=LEAST_SEEDS)))


def _with_holm(rows: Sequence[Arm], *, control: str) -> list[Arm]:
    """Adjust over the arms that could win; the A/A control is a check, not one more hypothesis."""
    tested = {
        arm.name: arm.difference.p
        for arm in rows[1:]
        if arm.name != control and arm.difference is not None and arm.difference.p is not None
    }
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [replace(arm, p_adjusted=adjusted.get(arm.name)) for arm in rows]


def _with_seeds_needed(comparison: Comparison) -> list[Arm]:
    """What more seeds would bring, for paired arms with seeds enough to know their spread.

    At the level that Holm's next step asks for: ``alpha`` over the arms that are not settled yet.
    """
    tested = [arm for arm in comparison.contenders if arm.p_adjusted is not None]
    open_arms = sum(not comparison.settled(arm) for arm in tested)
    level = comparison.alpha / max(1, open_arms)
    return [
        _with_seeds(arm, level=level, settled=comparison.settled(arm)) if arm in tested else arm
        for arm in comparison.arms
    ]


def _with_seeds(arm: Arm, *, level: float, settled: bool) -> Arm:
    found = arm.difference
    if found is None or not arm.paired or found.n < LEAST_SEEDS or not found.error:
        return arm
    spread = found.error * math.sqrt(found.n)
    needed = power.seeds_needed(effect=found.mean, sd=spread, level=level, least=found.n + 1)
    more = None if needed is None else needed - found.n
    return replace(
        arm,
        seeds_to_settle=0 if settled else more,
        detectable=power.detectable(found.n, sd=spread, level=level),
    )


def _winner(comparison: Comparison) -> str | None:
    ahead: dict[str, float] = {}
    for arm in comparison.contenders:
        difference = arm.difference
        if difference is None or difference.n < LEAST_SEEDS or not comparison.settled(arm):
            continue
        # Leaving out the seeds at which an arm diverged would reward it for diverging.
        if arm.endings["diverged"] or not comparison.better(difference.mean):
            continue
        ahead[arm.name] = abs(difference.mean)
    return max(ahead, key=lambda name: ahead[name]) if ahead else None
