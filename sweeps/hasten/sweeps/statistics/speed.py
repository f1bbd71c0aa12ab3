"""How much sooner an arm is: images and seconds until a quality that both runs of a seed reach.

The quality at a seed is the target, or, where one of the two runs never gets there, the worse of their last
values. So no seed is left out, arm and baseline are treated alike, and an interval holds the true ratio as
often as it says. Speed-ups over only those studies in which all seeds reached the baseline's own last
quality do not: the baseline always gets there, an equally good arm half the time, when luck is with it.
``tests/benchmarks/false_winners.py`` measures the coverage of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hasten.sweeps.statistics.censoring import median_of
from hasten.sweeps.statistics.comparison import Arm, Outcome
from hasten.sweeps.statistics.intervals import Estimate, mean_of
from hasten.sweeps.statistics.objectives import Curve, Mode, images_to_target, seconds_at

Targets = Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """One seed's two runs: ``log(baseline / arm)`` in images, in seconds where known, to one quality.

    ``variance`` is that of the logarithm because evaluations are apart.
    """

    images: float
    seconds: float | None
    variance: float


def with_target(arm: Arm, targets: Targets, *, mode: Mode, alpha: float) -> Arm:
    """The arm with its images and seconds until its targets are reached and kept, and their median.

    A diverged run counts as never reaching the target; failed and stopped ones are not judged.
    """
    judged = {
        seed: outcome
        for seed, outcome in arm.outcomes.items()
        if seed in targets and outcome.series and outcome.ending in ("measured", "diverged")
    }
    # A run may diverge after its last evaluation, or be measured nowhere but at the end.
    images = {
        seed: None
        if outcome.ending == "diverged"
        else images_to_target(outcome.series, target=targets[seed], mode=mode)
        for seed, outcome in judged.items()
    }
    seconds = {
        seed: None if found is None else seconds_at(judged[seed].seconds, found)
        for seed, found in images.items()
    }
    return replace(
        arm,
        images_to_target=images,
        seconds_to_target=seconds,
        reached=sum(found is not None for found in images.values()) if images else None,
        median=median_of(list(images.values()), alpha=alpha),
    )


def with_speedup(arm: Arm, baseline: Arm, targets: Targets, *, mode: Mode, alpha: float, least: int) -> Arm:
    """The arm with its speed-ups over the seeds that it shares with the baseline.

    Geometric means, with ``exp`` of the t interval on the logarithms from ``least`` seeds on. None where no
    seed of the arm reached the target, where one diverged, as leaving that out would flatter the arm, where
    a run was evaluated only once, or where the quality was there before training began.
    """
    if not arm.reached or arm.endings["diverged"]:
        return arm
    shared = [seed for seed in arm.images_to_target if seed in baseline.values]
    races: dict[int, Race] = {}
    for seed in shared:
        race = race_of(arm.outcomes[seed], baseline.outcomes[seed], target=targets[seed], mode=mode)
        if race is None:
            return arm
        races[seed] = race
    if not races:
        return arm
    if arm.name == baseline.name:
        return replace(arm, speedup=Estimate(n=len(races), mean=1.0))
    least_sd = math.sqrt(sum(race.variance for race in races.values()) / len(races))
    in_images = [race.images for race in races.values()]
    in_seconds = [race.seconds for race in races.values() if race.seconds is not None]
    return replace(
        arm,
        ratios={seed: math.exp(race.images) for seed, race in races.items()},
        speedup=_ratio(in_images, least_sd=least_sd, alpha=alpha, least=least),
        seconds_speedup=_ratio(in_seconds, least_sd=least_sd, alpha=alpha, least=least)
        if len(in_seconds) == len(races)
        else None,
    )


def race_of(arm: Outcome, baseline: Outcome, *, target: float, mode: Mode) -> Race | None:
    """How the two runs of a seed compare until the quality that both reach and keep.

    Between two evaluations, the crossing is found by linear interpolation: counting to the next evaluation
    would make every arm look slower than it is, by up to a whole step of the grid. What remains unknown is
    less than that step ``h``: a variance of ``(h / images)² / 12`` on the log scale (Sheppard 1898).
    ``None`` with fewer than two evaluations of either, or when there was nothing to train for.
    """
    if min(len(arm.series), len(baseline.series)) < 2:
        return None
    worst = max if mode == "min" else min
    quality = worst(target, arm.series[-1][1], baseline.series[-1][1])
    ours, theirs = (crossing(one.series, quality, mode=mode) for one in (arm, baseline))
    if ours is None or theirs is None or min(ours[0], theirs[0]) < 1.0:  # not one image was needed
        return None
    our_seconds = seconds_at(arm.seconds, ours[0])
    their_seconds = seconds_at(baseline.seconds, theirs[0])
    return Race(
        images=math.log(theirs[0] / ours[0]),
        seconds=math.log(their_seconds / our_seconds) if our_seconds and their_seconds else None,
        variance=sum((step / images) ** 2 / 12.0 for images, step in (ours, theirs)),
    )


def crossing(series: Curve, target: float, *, mode: Mode) -> tuple[float, float] | None:
    """Images at which the metric reaches ``target`` for good, and the step of the grid there.

    On the line between the first evaluation of :func:`images_to_target` and the one before it; ``None``
    when the last value is on the wrong side.
    """
    after = images_to_target(series, target=target, mode=mode)
    if after is None:
        return None
    known = dict(series)
    before = max((images for images in known if images < after), default=None)
    if before is None:
        return float(after), float(after)
    step, drop = after - before, known[before] - known[after]
    share = (known[before] - target) / drop if math.isfinite(drop) else 1.0
    return before + step * share, float(step)


def _ratio(logs: Sequence[float], *, least_sd: float, alpha: float, least: int) -> Estimate | None:
    estimate = mean_of(logs, alpha=alpha, least_sd=least_sd)
    if estimate is None:
        return None
    if estimate.low is None or estimate.high is None or estimate.n < least:
        return Estimate(n=estimate.n, mean=math.exp(estimate.mean))
    return Estimate(
        n=estimate.n,
        mean=math.exp(estimate.mean),
        low=math.exp(estimate.low),
        high=math.exp(estimate.high),
        p=estimate.p,
    )
