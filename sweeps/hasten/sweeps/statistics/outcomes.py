"""From trials to rows: how each trial ended, what it measured, and in what its arm differs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from hasten.sweeps.records import TrialRecord, TrialResult
from hasten.sweeps.statistics.comparison import Arm, Conditions, Ending, Outcome
from hasten.trainers.records import Point, RunResult
from hasten.trainers.specs import flatten
from hasten.trainers.tracker import SECONDS

Curve = tuple[tuple[int, float], ...]

_ELSEWHERE: Final = ("name", "execution.", "budget.seed")
"""Recipe keys in which runs of one arm may differ."""


def arms_of(
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
        outcome = outcome_of(trial, metric=metric)
        known = outcomes[trial.arm].get(trial.seed)
        # A trial that was tried again has two results: the finished one counts, else the later one.
        if known is None or known.ending != "measured" or outcome.ending == "measured":
            outcomes[trial.arm][trial.seed] = outcome
    recipes = _recipes(results)
    return [
        Arm(
            name=name,
            outcomes=dict(sorted(outcomes[name].items())),
            absent=max(len(set(seeds)) - len(outcomes[name]), 0),
            changes=_changes(recipes.get(name), recipes.get(baseline)),
        )
        for name in names
    ]


def outcome_of(trial: TrialResult, *, metric: str) -> Outcome:
    """What became of one trial; its ``record``, where there is one, knows why it failed."""
    result, record = trial.result, trial.record
    series = _curve(result, record, metric)
    value = result.metrics.get(metric, series[-1][1] if series else None)
    failure = record.failure if record is not None else None
    ending: Ending
    if failure == "diverged" or (value is not None and not math.isfinite(value)):
        ending = "diverged"
    elif record is not None and record.state != "finished":
        ending = record.state
    elif result.status != "finished":
        ending = result.status
    elif result.images < _budget(result):
        ending = "stopped"
    else:
        ending = "unmeasured" if value is None else "measured"
    return Outcome(
        seed=trial.seed,
        ending=ending,
        value=value if ending == "measured" else None,
        images=result.images,
        series=series,
        seconds=_curve(result, record, SECONDS),
        failure=failure,
    )


def unfinished(record: TrialRecord) -> TrialResult:
    """A trial that left no result, as far as its record knows it, so that a comparison can count it."""
    steps: dict[int, dict[str, float]] = {}
    for metric, curve in record.curves.items():
        for images, value in curve:
            steps.setdefault(images, {})[metric] = value
    result = RunResult(
        run=record.run,
        fingerprint=record.fingerprint,
        status="stopped" if record.state == "stopped" else "failed",
        images=record.images,
        seconds=record.seconds,
        metrics=record.metrics,
        history=[Point(step=images, metrics=metrics) for images, metrics in sorted(steps.items())],
        spec={"budget": {"images": record.total, "seed": record.seed}},
        data_digest="",
    )
    return TrialResult(trial=record.trial, arm=record.arm, seed=record.seed, result=result, record=record)


def conditions_of(results: Sequence[TrialResult], *, baseline: str) -> Conditions:
    """How the finished runs were judged, what they trained on, and what the baseline is."""
    finished = [trial.result for trial in results if trial.result.status == "finished"]
    recipe = _recipes(results).get(baseline, {})
    trained = {key: value for key, value in recipe.items() if not key.startswith("eval.")}
    return Conditions(
        evaluations=_distinct(_text(_evaluation(result)) for result in finished),
        data=_distinct(result.data_digest for result in finished),
        recipe=_text(trained) if recipe else "",
    )


def _curve(result: RunResult, record: TrialRecord | None, metric: str) -> Curve:
    points = result.series(metric) or (record.curves.get(metric, []) if record is not None else [])
    return tuple(sorted(points, key=lambda point: point[0]))


def _budget(result: RunResult) -> float:
    """Images that the run was to see; 0 where its recipe does not say."""
    budget = result.spec.get("budget")
    images = budget.get("images") if isinstance(budget, Mapping) else None
    return images if isinstance(images, int | float) else 0


def _recipes(results: Sequence[TrialResult]) -> dict[str, dict[str, Any]]:
    """Each arm's recipe as dotted keys, by its first finished run."""
    return {
        trial.arm: {
            key: value
            for key, value in flatten(dict(trial.result.spec)).items()
            if not key.startswith(_ELSEWHERE)
        }
        for trial in reversed(results)
        if trial.result.status == "finished"
    }


def _changes(ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> dict[str, Any]:
    if ours is None or theirs is None:
        return {}
    keys = dict.fromkeys([*ours, *theirs])
    return {key: ours.get(key) for key in keys if ours.get(key) != theirs.get(key)}


def _evaluation(result: RunResult) -> dict[str, Any]:
    """All that a score depends on, without versions: those are shown, but they seldom change a score."""
    found = result.evaluation or {"eval": result.spec.get("eval")}
    return {key: value for key, value in found.items() if key not in ("data", "versions")}


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({text for text in texts if text}))


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)
