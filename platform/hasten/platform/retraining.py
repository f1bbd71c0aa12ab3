"""``hasten retrain``: one idempotent tick that any scheduler may call.

Its state is the registry's: a version is tagged with the key of what it was trained from, and with the
decision about it. A tick that is killed anywhere is finished by the next one.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console

from hasten.platform import importing, settings, training
from hasten.platform.connection import connected
from hasten.platform.locks import Busy, only_one
from hasten.platform.pipeline import Pipeline
from hasten.platform.registry import Registry, Version
from hasten.trainers import specs
from hasten.trainers.datasets import sources
from hasten.trainers.datasets.data import BUILT_IN
from hasten.trainers.generation import export
from hasten.trainers.job import Job
from hasten.trainers.tracker import EVAL_LOSS

_KEY: Final = "hasten.retrain.key"
_DECISION: Final = "hasten.retrain.decision"
_REASON: Final = "hasten.retrain.reason"
_RUN_URI: Final = "hasten.run_uri"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a tick decided, and why."""

    decision: Literal["promoted", "rejected", "unchanged", "not_due", "running"]
    reason: str
    version: str | None = None


def tick(spec: Pipeline, *, dry_run: bool, console: Console) -> dict[str, Any]:
    """Bring a pipeline up to date; what ``hasten retrain --json`` prints.

    Raises:
        ConfigError: unknown or ill-typed keys of its recipe, impossible values.
        Stopped: a signal ended the training; the next tick goes on.
        Fault: a service failed.
    """
    run = specs.load(spec.recipe, spec.overrides)
    services = connected(console, tracking=True)
    if run.data.source in BUILT_IN and not dry_run:
        importing.import_dataset(run.data.source, run.data.source, services.storage_uri)
    job = sources.bind(run, services.storage_uri)
    key = key_of(job)
    registry = Registry(services.tracking_uri, spec.model)
    try:
        with only_one(settings.home() / "locks" / f"pipeline-{spec.name}", what=f"pipeline {spec.name}"):
            made = decide(spec, job, key, registry, dry_run=dry_run, console=console)
    except Busy as busy:
        made = Decision(decision="running", reason=busy.problem)
    return {
        "pipeline": spec.name,
        "key": key,
        "decision": made.decision,
        "reason": made.reason,
        "version": made.version,
    }


def key_of(job: Job) -> str:
    """What a version is made from: the run's identity, which holds the data's digest, and our own version."""
    text = f"{job.fingerprint}/{metadata.version('hasten')}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def decide(
    spec: Pipeline, job: Job, key: str, registry: Registry, *, dry_run: bool, console: Console
) -> Decision:
    """Do what is left to do for ``key``: train, register, judge, promote."""
    known = next((version for version in registry.versions() if version.tags.get(_KEY) == key), None)
    if known is not None and _DECISION in known.tags:
        reason = f"version {known.number} was made from this data and recipe, and {known.tags[_DECISION]}"
        return Decision(decision="unchanged", reason=reason, version=known.number)
    if dry_run:
        reason = f"would train {job.spec.budget.images:,} images on data {job.data_digest[:12]}, then compare"
        return Decision(decision="not_due", reason=reason)
    version = known or _train_and_register(spec, job, key, registry, console)
    return _judge(job, version, registry)


def _train_and_register(spec: Pipeline, job: Job, key: str, registry: Registry, console: Console) -> Version:
    trained = training.train(job.spec, console=console, experiment=f"retrain-{spec.name}", tags={_KEY: key})
    with tempfile.TemporaryDirectory() as folder:
        export.pipeline(job.uri, Path(folder))
        tags = {_KEY: key, _RUN_URI: job.uri, "hasten.data.digest": job.data_digest}
        return registry.register(Path(folder), run_id=str(trained["mlflow_run_id"]), tags=tags)


def _judge(job: Job, challenger: Version, registry: Registry) -> Decision:
    """Compare with the champion on the current held-out images and noise, and act on it.

    The alias moves before the decision is written: a tick killed in between judges once more and comes to
    the same end.
    """
    champion = registry.champion()
    ours = export.held_out_loss(challenger.tags[_RUN_URI], job)
    if champion is None or champion.number == challenger.number:  # the latter: killed after the alias moved
        made = Decision(
            decision="promoted",
            reason=f"no other champion; {EVAL_LOSS} {ours:.4f}",
            version=challenger.number,
        )
    else:
        theirs = export.held_out_loss(champion.tags[_RUN_URI], job)
        better = ours < theirs
        reason = f"{EVAL_LOSS} {ours:.4f} against the champion's {theirs:.4f} (version {champion.number})"
        made = Decision(
            decision="promoted" if better else "rejected", reason=reason, version=challenger.number
        )
    if made.decision == "promoted":
        registry.promote(challenger)
    registry.tag(challenger, {_DECISION: made.decision, _REASON: made.reason})
    return made
