"""What a study has found: the comparison of its arms or the best of its points, and the report of either."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, RenderableType

from hasten.platform import runs, settings, studies
from hasten.platform.services import look
from hasten.platform.studies import Standing, Study
from hasten.sweeps import compare as comparisons
from hasten.sweeps import plan as plans
from hasten.sweeps import study as study_files
from hasten.sweeps.conducting import stopping, stopping_check
from hasten.sweeps.plan import Plan
from hasten.sweeps.records import TrialRecord, TrialResult
from hasten.sweeps.reports import build, points, table
from hasten.sweeps.reports.build import StudyReport
from hasten.sweeps.statistics import rungs
from hasten.sweeps.statistics.caveats import second_opinion
from hasten.sweeps.statistics.comparison import Comparison
from hasten.sweeps.study import StudySpec
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.errors import ConfigError
from hasten.trainers.tracker import EVAL_FRECHET

if TYPE_CHECKING:
    from hasten.sweeps.searching.importance import Importances, Interaction

_PICTURES: Final = ("learning", "differences", "speed", "history", "parallel")
_TELLING: Final = 50  # trials that are asked what they ran on
_INTERACTING: Final = 3  # keys whose pairs are looked at


def _comparison(study: Study, results: Sequence[TrialResult]) -> Comparison | None:
    """The comparison of a study's arms; None for a search, or before any trial is over."""
    spec = study.plan.study
    if not spec.arms or not results:
        return None
    shared: dict[str, Any] = {
        "study": spec.name,
        "baseline": spec.baseline,
        "arms": study.plan.arms,
        "seeds": spec.seeds,
    }
    # Another measure of quality may disagree with the objective, and people should know.
    opinion = comparisons.compare(results, **shared, metric=EVAL_FRECHET, target=None)
    compared = comparisons.compare(
        results,
        **shared,
        metric=spec.objective.metric,
        mode=spec.objective.mode,
        target=spec.objective.target,
        notes=plans.missing_controls(study.plan),
    )
    disagreement = second_opinion(compared, opinion)
    return replace(compared, notes=(*compared.notes, disagreement)) if disagreement else compared


def report(study: Study, now: Standing) -> StudyReport:
    """All that the study's page shows."""
    spec, records = study.plan.study, now.in_order()
    # A search is judged by its records; what its trials ran on, some of them tell.
    results = studies.results(study, now, most=None if spec.arms else _TELLING)
    compared = _comparison(study, results)
    told = StudyReport(
        title=study.name,
        question=spec.question,
        study=spec,
        comparison=compared,
        records=records,
        planned=now.planned,
        specs=studies.specs_of(now),
        notes=() if compared else plans.missing_controls(study.plan),
        links={"MLflow": study.tracking.link(study.name), "Repeat": f"hasten sweep {study.name}"},
        provenance=build.provenance_of(results[:_TELLING]),
    )
    trials = {trial.name: trial for trial in now.trials}
    sheets = {
        trials[name].arm: RunStore(study.job(trials[name]).uri).sheet_files() for name in build.pictured(told)
    }
    told = replace(told, sheets=sheets)
    return told if spec.arms else replace(told, **_found(study, now))


def _found(study: Study, now: Standing) -> dict[str, Any]:
    """What a search teaches: which settings mattered, and whether early stopping could be trusted."""
    from hasten.sweeps.searching import importance  # with Optuna: not for a study of arms

    spec, records = study.plan.study, now.in_order()
    importances = importance.importances(spec, records)
    found: dict[str, Any] = {
        "importances": importances,
        "interactions": _interactions(spec, records, importances),
    }
    if spec.stopping is not None:
        metric = stopping.metric_of(spec.stopping, spec.objective)
        curves: dict[int, list[Any]] = {}
        for record in records:
            curves.setdefault(record.seed, []).append(record.curves.get(metric, []))
        first = now.trials[0].spec
        total = first.budget.images
        marks = stopping.rule(spec.stopping, spec.objective).marks(
            total, stopping_check.evaluations(first, metric)
        )
        found["rungs"] = rungs.judge(curves, marks, total=total)
    return found


def _interactions(
    spec: StudySpec, records: Sequence[TrialRecord], found: Importances | None
) -> list[Interaction]:
    """How the settings that matter most act together, two by two."""
    from hasten.sweeps.searching import importance

    shares = {key: share for key, share in (found.shares if found else {}).items() if share is not None}
    keys = sorted(shares, key=lambda key: -shares[key])[:_INTERACTING]
    pairs = (importance.interaction(spec, records, *pair) for pair in itertools.combinations(keys, 2))
    return sorted((pair for pair in pairs if pair is not None), key=lambda pair: -pair.share)


def write(told: StudyReport) -> list[Path]:
    """The report and its pictures, in ``$HASTEN_HOME/reports/STUDY``."""
    return build.write(told, studies.report_folder(told.title), pictures=_PICTURES)


def page(told: StudyReport) -> Path:
    """Where the study's page lies."""
    return studies.report_folder(told.title) / build.PAGE


def compare(
    what: Sequence[str], overrides: dict[str, Any], *, console: Console
) -> tuple[RenderableType, dict[str, Any], list[Path]]:
    """Compare a study's arms, several studies, or runs by name, as far as they are over; runs nothing.

    Returns what a terminal shows, what ``hasten compare --json`` prints, and the files of the report.

    Raises:
        ConfigError: a name means neither a study nor a run, or nothing is over.
    """
    if not all(_is_study(name) for name in what):
        compared, paths = runs.compare(what, console=console)
        return table.render(compared), compared.as_json(), paths
    found = [_one(plans.plan(study_files.load(name, overrides)), console) for name in what]
    if len(found) == 1:
        return rendered(found[0]), as_json(found[0]), write(found[0])
    several = [told.comparison for told in found if told.comparison is not None]
    if len(several) < len(found):
        searches = ", ".join(told.title for told in found if told.comparison is None)
        raise ConfigError(searches, "searches a space: it has no arms to set beside others")
    together = comparisons.compare_studies(several)
    folder = studies.report_folder("-".join(told.title for told in found)[:100])
    paths = build.write_together(together, found, folder)
    return table.render_together(together), together.as_json(), paths


def _is_study(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or (study_files.STUDIES / f"{name}.yaml").is_file()


def _one(plan: Plan, console: Console) -> StudyReport:
    study = studies.bind(plan, console=console, ray=False)
    now = studies.standing(study)
    if not now.records:
        raise ConfigError(study.name, "has no trial that is over", f"Run it first: hasten sweep {study.name}")
    return report(study, now)


def rendered(told: StudyReport) -> RenderableType:
    """The verdict on arms, or the best points of a search, for a terminal."""
    if told.comparison is not None:
        return table.render(told.comparison)
    standing = told.standing
    assert standing is not None, "a study has either arms or a space"
    return points.render(standing)


def as_json(told: StudyReport) -> dict[str, Any]:
    """A comparison or a ranking as the stable object of ``hasten compare --json``."""
    if told.comparison is not None:
        return told.comparison.as_json()
    standing = told.standing
    assert standing is not None, "a study has either arms or a space"
    return {
        "study": told.title,
        "metric": standing.study.objective.metric,
        "points": [
            {
                "point": place.point,
                "state": place.state,
                "settings": place.settings,
                "mean": place.mean.mean if place.mean else None,
                "n": len(place.records),
                "goals": list(place.goals),
                "front": place.front,
            }
            for place in standing.places
        ],
    }


def summary(told: StudyReport) -> dict[str, str]:
    """The answer as tags: the verdict on arms, or the best point of a search."""
    if told.comparison is not None:
        return {"hasten.verdict": told.comparison.verdict}
    standing = told.standing
    if standing is None or not standing.ranked:
        return {}
    first = standing.ranked[0]
    value = {} if first.mean is None else {"hasten.best_value": f"{first.mean.mean:.6g}"}
    return {"hasten.best": first.point, **value}


def save_sheet(run: str, path: Path) -> Path:
    """Copy the last sheet of samples of a finished run to a file of this machine."""
    sheet = runs.store(run, look(settings.load())).last_sheet()
    assert sheet is not None, "a finished run has a sheet of samples"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sheet)
    return path
