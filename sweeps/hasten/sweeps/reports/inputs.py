"""What a report is made of, as one value: whatever is missing is left out of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hasten.sweeps.records import TrialRecord, TrialResult
from hasten.sweeps.reports.contact import Pictures
from hasten.sweeps.reports.standing import Standing, stand
from hasten.sweeps.searching.importance import Importances, Interaction
from hasten.sweeps.statistics.comparison import Comparison
from hasten.sweeps.statistics.rungs import Rung
from hasten.sweeps.study import StudySpec
from hasten.trainers.specs import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyReport:
    """All that is known of a study, or of some runs that are compared.

    ``comparison`` belongs to arms; a study with a space is ranked by its records. ``records`` are how trials
    ended, ``planned`` says how many there should be. ``specs`` are recipes to draw and ``sheets`` pictures of
    samples, both by arm or point. ``importances``, the first few ``interactions`` and ``rungs`` are as
    :mod:`hasten.sweeps.searching.importance` and :mod:`hasten.sweeps.statistics.rungs` find them. ``links``
    that are no http(s) address are shown as commands. ``provenance`` says what the runs rest on: data,
    versions, device.
    """

    title: str
    question: str = ""
    expectation: str = ""
    study: StudySpec | None = None
    comparison: Comparison | None = None
    records: Sequence[TrialRecord] = ()
    planned: int | None = None
    specs: Mapping[str, RunSpec] = field(default_factory=dict)
    sheets: Mapping[str, Pictures] = field(default_factory=dict)
    importances: Importances | None = None
    interactions: Sequence[Interaction] = ()
    rungs: Sequence[Rung] = ()
    notes: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def standing(self) -> Standing | None:
        """The points of a search in order; None for arms."""
        if self.study is None or not self.study.space:
            return None
        return stand(self.study, self.records)


def records_of(results: Sequence[TrialResult]) -> list[TrialRecord]:
    """A record for each result; for a run without a study, what its own result says."""
    return [one.record or _record(one) for one in results]


def provenance_of(results: Sequence[TrialResult]) -> dict[str, str]:
    """The data, and what the runs ran on; a fact in which runs differ names every value."""
    facts: dict[str, list[str]] = {}
    for one in results:
        for key, value in {"data": one.result.data_digest, **one.result.environment}.items():
            facts.setdefault(key, []).append(value)
    return {key: "; ".join(dict.fromkeys(filter(None, values))) for key, values in facts.items()}


def _record(one: TrialResult) -> TrialRecord:
    result = one.result
    curves: dict[str, list[tuple[int, float]]] = {}
    for point in result.history:
        for metric, value in point.metrics.items():
            curves.setdefault(metric, []).append((point.step, value))
    budget = result.spec.get("budget", {}).get("images", result.images)
    return TrialRecord(
        trial=one.trial,
        arm=one.arm,
        seed=one.seed,
        run=result.run,
        fingerprint=result.fingerprint,
        state="finished" if result.status == "finished" else "stopped",
        images=result.images,
        total=max(budget, result.images),
        seconds=result.seconds,
        occupied=result.wall_seconds or result.seconds,
        metrics=result.metrics,
        curves=curves,
    )
