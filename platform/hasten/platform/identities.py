"""How runs, studies and trials appear in the tracking server: names, tags, parameters, notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from hasten.platform import notes
from hasten.platform.identity import ARM, FINGERPRINT, SEED, STUDY, TRIAL, Dataset, RunIdentity
from hasten.platform.provenance import Provenance
from hasten.platform.tracking import Tracking
from hasten.sweeps.plan import Plan, Trial
from hasten.trainers.job import Job
from hasten.trainers.specs import flatten
from hasten.trainers.tracker import Tracker


@dataclass(frozen=True, slots=True)
class OpenRun:
    """Opens the tracker of one run, in whichever process trains it; arguments as for ``Tracking.open``."""

    tracking: Tracking
    identity: RunIdentity
    fresh: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)

    def __call__(self) -> Tracker:
        return self.tracking.open(
            self.identity, required=False, fresh=self.fresh, observed=True, files=self.files
        )


def run(
    job: Job,
    source: Provenance,
    *,
    experiment: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> RunIdentity:
    """A run of its own; ``experiment`` is its recipe's name unless given."""
    return RunIdentity(
        experiment=experiment or job.spec.name,
        name=job.run,
        kind="run",
        tags={**_tags(job, source), **(tags or {})},
        params=_params(job),
        note=notes.run(job, source),
        dataset=_dataset(job),
    )


def trial(planned: Trial, job: Job, source: Provenance, *, study: str, parent_run_id: str) -> RunIdentity:
    """A trial of a study, nested under its parent."""
    tags = {STUDY: study, TRIAL: planned.name, ARM: planned.arm, SEED: str(planned.seed)}
    return RunIdentity(
        experiment=study,
        name=planned.name,
        kind="trial",
        tags={**_tags(job, source), **tags},
        params=_params(job),
        parent_run_id=parent_run_id,
        note=notes.trial(planned, job, source, study=study),
        dataset=_dataset(job),
    )


def study(plan: Plan, source: Provenance) -> RunIdentity:
    """The parent of a study's trials."""
    spec = plan.study
    return RunIdentity(
        experiment=spec.name,
        name=spec.name,
        kind="study",
        tags={STUDY: spec.name, **source.tags()},
        params={"base": spec.base, "seeds": list(spec.seeds), "objective.metric": spec.objective.metric},
        note=notes.study(plan, source),
    )


def study_files(plan: Plan) -> dict[str, bytes]:
    """A study and its base recipe as files that make the same study wherever they lie side by side."""
    spec = plan.study.model_dump(mode="json", exclude_defaults=True)
    spec |= {"base": notes.BASE_FILE.rpartition("/")[2]}
    spec.pop("base_overrides", None)
    files = {notes.STUDY_FILE: spec, notes.BASE_FILE: dict(plan.base)}
    return {path: yaml.safe_dump(content, sort_keys=False).encode() for path, content in files.items()}


def _tags(job: Job, source: Provenance) -> dict[str, str]:
    return {FINGERPRINT: job.fingerprint, **source.tags()}


def _params(job: Job) -> dict[str, Any]:
    """What identifies the run, flat: the execution and the name of the recipe do not."""
    return flatten(job.spec.identity(job.data_digest[:12]))


def _dataset(job: Job) -> Dataset:
    return Dataset(name=job.spec.data.source, digest=job.data_digest, source=job.data_uri)
