"""What a comparison cannot tell, in sentences that stand below its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final

from hasten.sweeps.records import FailureKind
from hasten.sweeps.statistics import power
from hasten.sweeps.statistics.censoring import sign_test
from hasten.sweeps.statistics.comparison import Arm, Comparison, Ending, Outcome

_REASONS: Final[dict[Ending, str]] = {
    "failed": "failed",
    "stopped": "stopped before its budget was spent",
    "running": "still running",
    "unmeasured": "finished without the metric",
}
_FAILURES: Final[dict[FailureKind, str]] = {
    "memory": "out of memory",
    "lost": "lost with its process",
    "data": "refused its data",
    "program": "failed with an error",
}


def caveats(comparison: Comparison, *, least_seeds: int) -> tuple[str, ...]:
    """Sentences on what is missing, too few, unpaired, censored or coarse; none when all is well."""
    sentences = [
        *_control(comparison),
        *_presence(comparison),
        *_conditions(comparison),
        *(sentence for arm in comparison.arms for sentence in _trials(comparison, arm)),
        *_numbers_of_seeds(comparison, least_seeds=least_seeds),
        *(sentence for arm in comparison.arms[1:] for sentence in _differences(comparison, arm)),
        *_several_winners(comparison),
        *_interactions(comparison),
        *_more_seeds(comparison),
        *_speed(comparison),
    ]
    return tuple(dict.fromkeys(sentences))


def _control(comparison: Comparison) -> Iterator[str]:
    """The check of the whole apparatus: the baseline against itself on other seeds."""
    for arm in comparison.arms:
        if comparison.control_holds is None or not comparison.is_control(arm) or arm.difference is None:
            continue
        found = f"{arm.difference.mean:+.2g}, p = {arm.difference.p:.2g}"
        if comparison.control_holds:
            yield (
                f"the A/A control holds: {arm.name} is no further from {comparison.baseline} "
                f"than luck takes it ({found})"
            )
        else:
            yield (
                f"THE A/A CONTROL FAILS: {arm.name} is {comparison.baseline} on other seeds and still "
                f"differs from it ({found}): MISTRUST EVERY DIFFERENCE HERE. Luck does this in "
                f"{100 * comparison.alpha:g} % of studies; otherwise the seeds are no fair sample"
            )


def _conditions(comparison: Comparison) -> Iterator[str]:
    if len(comparison.conditions.evaluations) > 1:
        yield "the runs were not all evaluated alike: their values do not measure the same"
    if len(comparison.conditions.data) > 1:
        yield "the runs did not all train on the same data"


def _presence(comparison: Comparison) -> Iterator[str]:
    if not any(arm.outcomes for arm in comparison.arms):
        yield "there are no results yet"
    elif comparison.reference.n == 0:
        yield (
            f"no finished run of {comparison.baseline} has a final {comparison.metric}: "
            "there is nothing to compare with"
        )
    elif len(comparison.arms) == 1:
        yield f"there is no arm beside {comparison.baseline}"


def _trials(comparison: Comparison, arm: Arm) -> Iterator[str]:
    """What became of the trials that do not count."""
    reasons = Counter(_reason(outcome) for outcome in arm.outcomes.values() if outcome.ending in _REASONS)
    missing = [f"{count} {reason}" for reason, count in sorted(reasons.items())]
    if arm.absent and arm.outcomes:
        missing.append(f"{arm.absent} without a result")
    if not arm.outcomes and any(other.outcomes for other in comparison.arms):
        yield f"{arm.name} has no results"
    elif missing:
        gone = arm.expected - arm.n - arm.endings["diverged"]
        yield f"{arm.name}: {gone} of {_count(arm.expected, 'trial')} missing ({', '.join(missing)})"
    diverged = [seed for seed, outcome in arm.outcomes.items() if outcome.ending == "diverged"]
    if diverged:
        fate = "" if arm is comparison.reference else "; an arm that diverges cannot win"
        yield (
            f"{arm.name} diverged: no finite final {comparison.metric} at {_seeds(diverged)} "
            f"({len(diverged)} of {_count(arm.expected, 'run')}){fate}"
        )
    if arm.n > 1 and len(set(arm.values.values())) == 1:
        yield f"{arm.name} ended at the same value at every seed: are these independent runs?"
    lengths = {outcome.images for outcome in arm.outcomes.values() if outcome.value is not None}
    reference = {o.images for o in comparison.reference.outcomes.values() if o.value is not None}
    if lengths and reference and lengths != reference:
        yield f"{arm.name} saw {_span(lengths)} images, {comparison.baseline} {_span(reference)}"


def _numbers_of_seeds(comparison: Comparison, *, least_seeds: int) -> Iterator[str]:
    pairs = {arm.name: arm.difference.n for arm in comparison.contenders if arm.difference is not None}
    few = {name: n for name, n in pairs.items() if n < least_seeds}
    rule = f"fewer than {least_seeds} never make a winner"
    if few and len(few) == len(pairs) and len(set(few.values())) == 1:
        yield f"only {_count(next(iter(few.values())), 'seed')}: {rule}"
    else:
        for name, n in few.items():
            yield f"{name}: only {_count(n, 'seed')} to compare with {comparison.baseline}: {rule}"
    for arm in comparison.contenders:
        if arm.paired and arm.n and comparison.reference.n and arm.difference is None:
            yield f"{arm.name} has no finished seed in common with {comparison.baseline}: not compared"


def _differences(comparison: Comparison, arm: Arm) -> Iterator[str]:
    difference, baseline = arm.difference, comparison.baseline
    if difference is None:
        return
    if not arm.paired:
        yield f"{arm.name} shares no seed with {baseline}: compared unpaired (Welch's t), less sharply"
    if difference.p is None:
        return
    if difference.n > 1 and difference.low == difference.high:
        same = "the same result as" if difference.mean == 0.0 else "the same difference to"
        yield f"{arm.name} has {same} {baseline} at every seed: does it change what is meant to change?"


def _several_winners(comparison: Comparison) -> Iterator[str]:
    others = [
        arm.name
        for arm in comparison.contenders
        if comparison.winner not in (None, arm.name)
        and arm.difference is not None
        and comparison.settled(arm)
        and comparison.better(arm.difference.mean)
    ]
    if others:
        yield (
            f"{', '.join(others)} also did better than {comparison.baseline}; "
            f"whether {comparison.winner} is better than {'them' if len(others) > 1 else 'it'} was not tested"
        )


def _interactions(comparison: Comparison) -> Iterator[str]:
    for one in comparison.interactions:
        found = one.contrast
        if found.p is None:
            continue
        helps = "better" if comparison.better(found.mean) else "worse"
        told = (
            f"{helps} together than the sum of their effects"
            if found.p < comparison.alpha
            else "together no different from the sum of their effects, as far as these seeds can tell"
        )
        yield (
            f"{one.first} and {one.second} are {told}: {found.mean:+.2g} "
            f"[{_bound(found.low)}, {_bound(found.high)}] (p = {found.p:.2g}, not corrected)"
        )


def _more_seeds(comparison: Comparison) -> Iterator[str]:
    """How many more seeds would settle it, and what these could have shown."""
    unsettled = [
        arm for arm in comparison.contenders if arm.detectable is not None and not comparison.settled(arm)
    ]
    if not unsettled:
        return
    wanted = ", ".join(
        f"over {power.MOST_SEEDS:,} for {arm.name}"
        if arm.seeds_to_settle is None
        else f"about {arm.seeds_to_settle} for {arm.name}"
        for arm in unsettled
    )
    seen = ", ".join(f"{arm.detectable:.2g} ({arm.name})" for arm in unsettled)
    yield (
        f"more seeds that would settle the difference to {comparison.baseline}, if it is what it seems: "
        f"{wanted}"
    )
    yield f"these seeds would probably ({100 * power.POWER:g} %) have shown differences from {seen} on"


def _speed(comparison: Comparison) -> Iterator[str]:
    """How a speed-up is to be read, why one is left out, and how finely it is resolved."""
    if comparison.target is None:
        return
    for arm in comparison.arms:
        judged = arm.images_to_target
        if arm.n and not judged:
            because = (
                f"it shares no seed with {comparison.baseline}"
                if not arm.paired
                else "it has no evaluations at a seed with a target"
            )
            yield f"{arm.name}: images to target left out: {because}"
        elif arm is not comparison.reference:
            yield from _censored(comparison, arm)
            yield from _without_speedup(comparison, arm)
    if any(arm.seconds_speedup is not None for arm in comparison.contenders):
        yield "speed-ups in seconds depend on what else the machines did; those in images do not"
    yield from _grid(comparison)


def _censored(comparison: Comparison, arm: Arm) -> Iterator[str]:
    judged = arm.images_to_target
    if arm.reached is None or arm.reached == len(judged):
        return
    sentence = (
        f"{arm.name} never reached the target at {len(judged) - arm.reached} of {_count(len(judged), 'seed')}"
    )
    if arm.median is not None and arm.median.median is not None:
        sentence += f"; half of its runs do by {arm.median.median:,.0f} images (Kaplan-Meier)"
    if arm.ratios:
        sooner = sum(ratio > 1.0 for ratio in arm.ratios.values())
        later = sum(ratio < 1.0 for ratio in arm.ratios.values())
        sentence += (
            "; its speed-up is to the quality that both runs of a seed reached: "
            f"sooner than {comparison.baseline} at {sooner}, later at {later} "
            f"(sign test p = {sign_test(sooner, later):.2g})"
        )
    yield sentence


def _without_speedup(comparison: Comparison, arm: Arm) -> Iterator[str]:
    if arm.speedup is not None:
        if arm.speedup.low is None:
            yield f"{arm.name}: speed-up without an interval: {_count(arm.speedup.n, 'seed')} cannot give one"
        return
    shared = [seed for seed in arm.images_to_target if seed in comparison.reference.values]
    curves = [row.outcomes[seed].series for row in (arm, comparison.reference) for seed in shared]
    if arm.endings["diverged"]:
        yield f"{arm.name}: speed-up left out: it diverged"
    elif not arm.reached or not shared:
        return
    elif min(len(curve) for curve in curves) < 2:
        yield f"{arm.name}: speed-up left out: it takes two evaluations of every run"
    else:
        yield f"{arm.name}: speed-up left out: it was at the target before training began"


def _grid(comparison: Comparison) -> Iterator[str]:
    grids = {
        tuple(step for step, _ in arm.outcomes[seed].series)
        for arm in comparison.arms
        for seed in arm.images_to_target
    }
    if len(grids) > 1:
        yield "the runs were not evaluated at the same points: images to target are not quite comparable"
    grid = max(grids, key=len, default=())
    gap = max((after - before for before, after in pairwise(grid)), default=0)
    if gap:
        yield f"the evaluation grid has {len(grid)} points: images to target are resolved to {gap:,} images"


def _reason(outcome: Outcome) -> str:
    if outcome.failure is not None and outcome.ending == "failed":
        return _FAILURES.get(outcome.failure, _REASONS["failed"])
    return _REASONS[outcome.ending]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _seeds(seeds: Iterable[int]) -> str:
    listed = [str(seed) for seed in seeds]
    return f"{'seed' if len(listed) == 1 else 'seeds'} {', '.join(listed)}"


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def second_opinion(comparison: Comparison, other: Comparison) -> str | None:
    """A sentence when another metric points the other way for an arm that is ahead, or None.

    ``other`` compares the same results by that metric.
    """
    ahead = {
        arm.name for arm in comparison.contenders if arm.difference and comparison.better(arm.difference.mean)
    }
    against = [
        f"{arm.name} {arm.difference.mean:+.2g} [{_bound(arm.difference.low)}, {_bound(arm.difference.high)}]"
        for arm in other.contenders
        if arm.name in ahead and arm.difference and other.better(-arm.difference.mean)
    ]
    if not against:
        return None
    better = "lower" if other.mode == "min" else "higher"
    listed = ", ".join(against)
    return f"{other.metric} ({better} is better) points the other way: {listed} minus {other.baseline}"


def _bound(value: float | None) -> str:
    return "?" if value is None else f"{value:+.2g}"
