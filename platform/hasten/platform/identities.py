"""How runs, studies and trials appear in the tracking server: names, tags, parameters, notes."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from hasten.platform.identity import ARM, FINGERPRINT, SEED, STUDY, TRIAL, Dataset, RunIdentity
from hasten.platform.tracking import Tracking
from hasten.sweeps.plan import Plan, Trial
from hasten.trainers.job import Job
from hasten.trainers.specs import flatten
from hasten.trainers.tracker import Tracker

RECONSTRUCTION = "CLTS and MDLRC are reconstructions of arXiv 2404.07946 from third-party code and reviews."


@dataclass(frozen=True, slots=True)
class OpenRun:
    """Opens the tracker of one run, in whichever process trains it; ``fresh`` as for ``Tracking.open``."""

    tracking: Tracking
    identity: RunIdentity
    fresh: bool = False

    def __call__(self) -> Tracker:
        return self.tracking.open(self.identity, required=False, fresh=self.fresh)


def run(job: Job, *, experiment: str | None = None, tags: Mapping[str, str] | None = None) -> RunIdentity:
    """A run of its own; ``experiment`` is its recipe's name unless given."""
    command = f"hasten train {job.spec.name}"
    return RunIdentity(
        experiment=experiment or job.spec.name,
        name=job.run,
        kind="run",
        tags={**_tags(job), **(tags or {})},
        params=_params(job),
        note=_note(f"Run `{job.run}`. The same command resumes it: `{command}`.", job.uri),
        dataset=_dataset(job),
    )


def trial(planned: Trial, job: Job, *, study: str, parent_run_id: str) -> RunIdentity:
    """A trial of a study, nested under its parent."""
    changes = (
        ", ".join(f"`{key}: {value}`" for key, value in flatten(planned.changes).items()) or "the base recipe"
    )
    text = f"Arm **{planned.arm}** of study **{study}**, seed {planned.seed}: {changes}."
    tags = {STUDY: study, TRIAL: planned.name, ARM: planned.arm, SEED: str(planned.seed)}
    return RunIdentity(
        experiment=study,
        name=planned.name,
        kind="trial",
        tags={**_tags(job), **tags},
        params=_params(job),
        parent_run_id=parent_run_id,
        note=_note(text, job.uri),
        dataset=_dataset(job),
    )


def study(plan: Plan) -> RunIdentity:
    """The parent of a study's trials."""
    spec = plan.study
    what = (
        f"{len(plan.arms)} arms x {len(spec.seeds)} seeds"
        if spec.arms
        else f"{len(plan.trials)} points of a space"
    )
    note = f"{spec.question}\n\n{what}. Repeat or resume: `hasten sweep {spec.name}`.\n\n{RECONSTRUCTION}"
    return RunIdentity(
        experiment=spec.name,
        name=spec.name,
        kind="study",
        tags={STUDY: spec.name, **_code()},
        params={"base": spec.base, "seeds": list(spec.seeds), "objective.metric": spec.objective.metric},
        note=note,
    )


def _tags(job: Job) -> dict[str, str]:
    return {FINGERPRINT: job.fingerprint, **_code()}


@functools.cache
def _code() -> dict[str, str]:
    """The version of hasten, and the commit where it runs from a checkout."""
    tags = {"hasten.version": metadata.version("hasten")}
    if shutil.which("git"):
        command = ["git", "-C", __file__.rpartition("/")[0], "rev-parse", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            tags["mlflow.source.git.commit"] = answer.stdout.strip()
    return tags


def _params(job: Job) -> dict[str, Any]:
    """What identifies the run, flat: the execution and the name of the recipe do not."""
    return flatten(job.spec.identity(job.data_digest[:12]))


def _dataset(job: Job) -> Dataset:
    return Dataset(name=job.spec.data.source, digest=job.data_digest, source=job.data_uri)


def _note(text: str, uri: str) -> str:
    return f"{text}\n\nCheckpoints and the result are in `{uri}`.\n\n{RECONSTRUCTION}"
