"""Who won: arms against a baseline on paired seeds, with intervals that hold at three seeds.

Final values: Student's t on the differences at equal seeds, Holm over the arms. Speed: images until the
baseline's own final quality is reached and kept. Needs neither torch nor Ray nor MLflow, so a comparison
runs anywhere the results can be read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal, get_args

from hasten.sweeps.records import TrialResult
from hasten.sweeps.statistics.caveats import caveats
from hasten.sweeps.statistics.comparison import CONTROL_SUFFIX, Arm, Comparison, Ending, Mode, Outcome
from hasten.sweeps.statistics.intervals import Estimate, holm, mean_of, paired_difference, welch_difference
from hasten.trainers.errors import ConfigError
from hasten.trainers.records import RunResult
from hasten.trainers.tracker import EVAL_LOSS

LEAST_SEEDS: Final = 3
"""Fewer pairs than this are never a winner and give no interval for a speed-up."""

Targets = Mapping[int, float]


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
    rows = _rows(results, metric=metric, baseline=baseline, arms=arms, seeds=seeds)
    rows = [_with_mean(arm, alpha=alpha) for arm in rows]
    rows = [rows[0], *(_with_difference(arm, rows[0], alpha=alpha) for arm in rows[1:])]
    rows = [_with_images(arm, _targets(arm, rows[0], target), mode=mode) for arm in rows]
    rows = [replace(arm, speedup=_speedup(arm, rows[0], alpha=alpha)) for arm in rows]
    comparison = Comparison(
        study=study,
        metric=metric,
        mode=mode,
        baseline=baseline,
        target=target,
        alpha=alpha,
        arms=tuple(_with_holm(rows, control=baseline + CONTROL_SUFFIX)),
        winner=None,
        notes=(),
    )
    comparison = replace(comparison, winner=_winner(comparison))
    return replace(comparison, notes=(*notes, *caveats(comparison, least_seeds=LEAST_SEEDS)))


def images_to_target(series: Sequence[tuple[int, float]], *, target: float, mode: Mode = "min") -> int | None:
    """Images at the first evaluation from which the metric stays at or below ``target`` to the end.

    At or above it for ``mode="max"``; an evaluation at 0 images counts like any other. ``None`` is
    censored: the last value is on the wrong side, or is NaN, or there is no evaluation.
    """
    reached: int | None = None
    for images, value in sorted(series, key=lambda point: point[0], reverse=True):
        if not (value <= target if mode == "min" else value >= target):
            break
        reached = images
    return reached


def _check(*, mode: str, target: object, alpha: float) -> None:
    if mode not in get_args(Mode):
        raise ConfigError("objective.mode", f"{mode!r} is neither min nor max")
    number = isinstance(target, int | float) and not isinstance(target, bool) and math.isfinite(target)
    if not (target is None or target == "baseline" or number):
        raise ConfigError("objective.target", f"{target!r} is not a number", "Give a number or: baseline")
    if not 0.0 < alpha < 1.0:
        raise ConfigError("alpha", f"{alpha} is not between 0 and 1", "0.05 gives 95 % intervals")


def _rows(
    results: Sequence[TrialResult],
    *,
    metric: str,
    baseline: str,
    arms: Sequence[str],
    seeds: Sequence[int],
) -> list[Arm]:
    """One row per arm with what its trials measured: baseline first, planned arms in their order."""
    names = list(dict.fromkeys([baseline, *arms, *(trial.arm for trial in results)]))
    outcomes: dict[str, dict[int, Outcome]] = {name: {} for name in names}
    for trial in results:
        outcome = _outcome(trial.result, seed=trial.seed, metric=metric)
        known = outcomes[trial.arm].get(trial.seed)
        # A trial that was tried again has two results: the finished one counts, else the later one.
        if known is None or known.ending != "measured" or outcome.ending == "measured":
            outcomes[trial.arm][trial.seed] = outcome
    return [
        Arm(
            name=name,
            outcomes=dict(sorted(outcomes[name].items())),
            absent=max(len(set(seeds)) - len(outcomes[name]), 0),
        )
        for name in names
    ]


def _outcome(result: RunResult, *, seed: int, metric: str) -> Outcome:
    series = tuple(sorted(result.series(metric), key=lambda point: point[0]))
    value = result.metrics.get(metric, series[-1][1] if series else None)
    ending: Ending
    if value is not None and not math.isfinite(value):
        ending = "diverged"
    elif result.status != "finished":
        ending = result.status
    elif result.images < _budget(result):
        ending = "stopped"
    else:
        ending = "unmeasured" if value is None else "measured"
    return Outcome(
        seed=seed,
        ending=ending,
        value=value if ending == "measured" else None,
        images=result.images,
        series=series,
    )


def _budget(result: RunResult) -> float:
    """Images that the run was to see; 0 where its recipe does not say."""
    budget = result.spec.get("budget")
    images = budget.get("images") if isinstance(budget, Mapping) else None
    return images if isinstance(images, int | float) else 0


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


def _with_holm(rows: Sequence[Arm], *, control: str) -> list[Arm]:
    """Adjust over the arms that could win; the A/A control is a check, not one more hypothesis."""
    tested = {
        arm.name: arm.difference.p
        for arm in rows[1:]
        if arm.name != control and arm.difference is not None and arm.difference.p is not None
    }
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [replace(arm, p_adjusted=adjusted.get(arm.name)) for arm in rows]


def _winner(comparison: Comparison) -> str | None:
    ahead: dict[str, float] = {}
    for arm in comparison.contenders:
        difference = arm.difference
        if difference is None or difference.n < LEAST_SEEDS or arm.p_adjusted is None:
            continue
        # Leaving out the seeds at which an arm diverged would reward it for diverging.
        if arm.endings["diverged"] or not comparison.better(difference.mean):
            continue
        if arm.p_adjusted < comparison.alpha:
            ahead[arm.name] = abs(difference.mean)
    return max(ahead, key=lambda name: ahead[name]) if ahead else None


def _targets(arm: Arm, baseline: Arm, target: Literal["baseline"] | float | None) -> Targets:
    """The value to reach at each seed: the baseline's own final value at that seed, or one number."""
    if target is None:
        return {}
    if target == "baseline":
        return baseline.values
    return dict.fromkeys(arm.outcomes, float(target))


def _with_images(arm: Arm, targets: Targets, *, mode: Mode) -> Arm:
    """A diverged run counts as never reaching the target; failed and stopped ones are not judged."""
    judged = {
        seed: images_to_target(outcome.series, target=targets[seed], mode=mode)
        for seed, outcome in arm.outcomes.items()
        if seed in targets and outcome.series and outcome.ending in ("measured", "diverged")
    }
    # A run may diverge after its last evaluation, or be measured nowhere but at the end.
    images = {
        seed: None if arm.outcomes[seed].ending == "diverged" else found for seed, found in judged.items()
    }
    reached = sum(found is not None for found in images.values()) if images else None
    return replace(arm, images_to_target=images, reached=reached)


def _speedup(arm: Arm, baseline: Arm, *, alpha: float) -> Estimate | None:
    """Geometric mean over common seeds of baseline's images to target over the arm's.

    ``exp`` of the t interval on ``log(images_baseline / images_arm)``. Only where every seed reached the
    target, as leaving out those that did not would flatter the arm. An evaluation grid of spacing ``h``
    knows each count only to within ``h``, a variance of ``(h / images)² / 12`` on the log scale
    (rounding error is uniform: Sheppard 1898), so the interval is never narrower than that allows.
    """
    if arm.reached != len(arm.images_to_target):
        return None
    logs, variances = [], []
    for seed, ours in arm.images_to_target.items():
        if seed not in baseline.images_to_target:
            continue
        theirs = baseline.images_to_target[seed]
        if not theirs or not ours:  # censored, or reached before training began: no finite ratio
            return None
        logs.append(math.log(theirs / ours))
        variances.append(
            _grid_variance(baseline.outcomes[seed], theirs) + _grid_variance(arm.outcomes[seed], ours)
        )
    if not logs:
        return None
    if arm.name == baseline.name:
        return Estimate(n=len(logs), mean=1.0)
    least_sd = math.sqrt(sum(variances) / len(variances))
    estimate = mean_of(logs, alpha=alpha, least_sd=least_sd)
    if estimate is None or estimate.low is None or estimate.high is None or estimate.n < LEAST_SEEDS:
        return Estimate(n=len(logs), mean=math.exp(sum(logs) / len(logs)))
    return Estimate(
        n=estimate.n,
        mean=math.exp(estimate.mean),
        low=math.exp(estimate.low),
        high=math.exp(estimate.high),
        p=estimate.p,
    )


def _grid_variance(outcome: Outcome, images: int) -> float:
    """Variance of ``log(images)`` from knowing only that the target was reached since the last look."""
    before = max((step for step, _ in outcome.series if step < images), default=0)
    return ((images - before) / images) ** 2 / 12.0
