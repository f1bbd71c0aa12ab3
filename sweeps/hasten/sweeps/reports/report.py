"""A comparison of runs as a report; see ``build`` for all that a report can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hasten.sweeps.records import TrialResult
from hasten.sweeps.reports import build
from hasten.sweeps.reports.build import StudyReport, provenance_of, records_of
from hasten.sweeps.statistics.comparison import Comparison


def write_report(
    comparison: Comparison,
    results: Sequence[TrialResult],
    folder: Path,
    *,
    title: str,
    question: str = "",
    notes: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
    samples: Mapping[str, bytes] | None = None,
    expectation: str = "",
) -> list[Path]:
    """Write the page, its Markdown and three pictures; see :func:`hasten.sweeps.reports.build.write`."""
    report = StudyReport(
        title=title,
        question=question,
        expectation=expectation,
        comparison=comparison,
        records=records_of(results),
        notes=notes,
        links=links or {},
        sheets={
            arm: {max(one.result.images for one in results): png} for arm, png in (samples or {}).items()
        },
        provenance=provenance_of(results),
    )
    return build.write(report, folder, pictures=("learning", "differences", "speed"))
