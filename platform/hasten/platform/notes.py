"""The Markdown on a run's page: what it is, where its files are, and how to have it once more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.platform.provenance import Provenance
from hasten.sweeps.plan import Plan, Trial
from hasten.trainers.job import Job
from hasten.trainers.specs import flatten
from hasten.trainers.tracker import RESOLVED_CONFIG

RECONSTRUCTION = "CLTS and MDLRC are reconstructions of arXiv 2404.07946 from third-party code and reviews."
STUDY_FILE = "config/study.yaml"
BASE_FILE = "config/base.yaml"


def run(job: Job, source: Provenance) -> str:
    """For a run of its own."""
    what = f"Run **{job.spec.name}**: {_data(job)}, seed {job.spec.budget.seed}."
    return _page(
        what,
        _again(source, f"hasten train {_base_name(RESOLVED_CONFIG)}", f"`{RESOLVED_CONFIG}`", "this run"),
        "The same command resumes the run where it stands. On another number of workers, another device or"
        " other versions the last bits may differ.",
        _files(job),
        RECONSTRUCTION,
    )


def trial(planned: Trial, job: Job, source: Provenance, *, study: str) -> str:
    """For a trial of a study."""
    place = f"`{RESOLVED_CONFIG}`, the others from the study's run (*Parent run* above)"
    return _page(
        f"Arm **{planned.arm}** of study **{study}**, seed {planned.seed}: {_changes(planned.changes)},"
        f" {_data(job)}.",
        _again(source, f"hasten train {_base_name(RESOLVED_CONFIG)}", place, "this run"),
        _files(job),
        RECONSTRUCTION,
    )


def study(plan: Plan, source: Provenance) -> str:
    """For the parent of a study's trials."""
    spec = plan.study
    if spec.arms:
        rows = [f"| **{name}** | {_changes(changes)} |" for name, changes in spec.arms.items()]
        what = "\n".join(["| arm | changes |", "|---|---|", *rows])
        count = f"{len(plan.arms)} arms x {len(spec.seeds)} seeds"
    else:
        rows = [
            f"| `{key}` | `{distribution.model_dump(mode='json', exclude_defaults=True)}` |"
            for key, distribution in spec.space.items()
        ]
        what = "\n".join(["| searched | in |", "|---|---|", *rows])
        count = f"{plan.total // max(1, len(spec.seeds))} points of a space"
    command = f"hasten sweep {_base_name(STUDY_FILE)}"
    place = f"`{STUDY_FILE}` and `{BASE_FILE}`"
    return _page(
        spec.question or f"Study {spec.name}.",
        f"{count} on the recipe `{spec.base}`, judged by `{spec.objective.metric}` ({spec.objective.mode})."
        " The answer is in `report/report.html` under *Artifacts*.",
        _again(source, command, place, "this run"),
        what,
        RECONSTRUCTION,
    )


def experiment(question: str, link: str) -> str:
    """For a study's experiment, of which the page shows the first line."""
    return _page(question, f"[Open it with its columns, curves and samples]({link}).")


def _changes(changes: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"`{key}: {value}`" for key, value in flatten(dict(changes)).items()) or "the base recipe"
    )


def _data(job: Job) -> str:
    spec = job.spec
    return f"{spec.budget.images:,} images of `{spec.data.source}` (digest `{job.data_digest[:12]}`)"


def _files(job: Job) -> str:
    return f"Checkpoints and the result are in `{job.uri}`."


def _again(source: Provenance, command: str, place: str, whose: str) -> str:
    """A block of commands, with what they need from the artifacts."""
    steps = "\n".join([*source.steps(), command])
    text = f"**Reproduce it** with {place}, from the artifacts of {whose}:\n\n```\n{steps}\n```"
    return f"{text}\n\nIt was started as `{source.command}`." if source.command else text


def _base_name(path: str) -> str:
    return path.rpartition("/")[2]


def _page(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
