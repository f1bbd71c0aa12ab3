"""The work of a tick that is due: train a challenger, make it a version, judge it, and act on that.

Each step leaves a mark in the store or the registry before the next one begins, and finds those of a tick
that was killed: the run by its fingerprint, the version by its key, the verdict by its tag. A verdict is
written down before an alias moves, so that whoever repairs a half-done promotion does not judge again.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from rich.console import Console

from hasten.platform import models, training
from hasten.platform.connection import connected
from hasten.platform.identity import FINGERPRINT, STUDY
from hasten.platform.leases import Lease
from hasten.platform.registry import PREVIOUS, RUN_URI, Registry, Version, verification
from hasten.platform.registry.verification import FILES
from hasten.platform.retraining import costs, judging, origins
from hasten.platform.retraining.assessment import DECISION, DIGEST, KEY, RECIPE, VERSION, Assessment
from hasten.platform.retraining.gate import Verdict
from hasten.platform.retraining.judging import MEGABYTES, Judge
from hasten.platform.retraining.pipeline import Pipeline
from hasten.platform.retraining.triggers import Due
from hasten.platform.services import Services
from hasten.trainers.errors import Diverged, Fault
from hasten.trainers.generation import packaged
from hasten.trainers.job import Job

REASON: Final = "hasten.retrain.reason"
MEASURED: Final = "hasten.retrain.measured"
ORIGIN: Final = "hasten.retrain.origin"
_VERDICT: Final = "hasten.retrain.verdict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a tick decided, and why."""

    decision: Literal["promoted", "rejected", "unchanged", "not_due", "running"]
    reason: str
    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One training of a pipeline, by the holder of its lease."""

    pipeline: Pipeline
    services: Services
    registry: Registry
    lease: Lease
    console: Console

    def do(self, found: Assessment, due: Due) -> Decision:
        """Everything that is left to do for what was found.

        Raises:
            ConfigError: it exceeds a limit.
            Stopped: a signal ended a training; the next tick goes on.
            Fault: a service failed, or the lease is lost.
        """
        try:
            challenger = found.known or self._register(found, self._job(found, due))
        except Diverged as error:
            return Decision(decision="rejected", reason=f"{error.subject}: {error.problem}")
        champion = found.champion
        if champion is not None and champion.number == challenger.number:
            champion = self.registry.aliased(PREVIOUS)  # a tick was killed after the alias had moved
        else:
            self.registry.nominate(challenger)
        verdict = _written(challenger, champion) or self._judged(found, challenger, champion)
        return self._carry_out(challenger, champion, verdict)

    def _job(self, found: Assessment, due: Due) -> Job:
        """What to train, after the study where one comes first, on the snapshot that was found."""
        spec, source = found.source.job.spec, found.source
        if source.study is not None:
            origins.run_study(source.study, self.console)
            spec, described = origins.winner(source.study, self.pipeline, self.console)
            self._say(f"from {described}")
        if due.window:  # the same seed on the same data would make the same model again
            spec = origins.reseeded(spec, due.window)
        if self.pipeline.origin.weights == "champion" and found.champion is not None:
            spec = origins.warmed(spec, found.champion)
        return Job(
            spec=spec,
            data_uri=source.job.data_uri,
            data_digest=source.job.data_digest,
            storage_uri=self.services.storage_uri,
        )

    def _register(self, found: Assessment, job: Job) -> Version:
        run_id = self._train(job, {KEY: found.key})
        if run_id is None:
            raise Fault(self.services.tracking_uri, "does not answer", "The next tick registers the model.")
        with tempfile.TemporaryDirectory() as folder:
            model = models.load(job.uri, console=self.console)
            packaged.write(model.trained, Path(folder), images=model.makes_images)
            lineage = {
                RUN_URI: job.uri,
                FINGERPRINT: job.fingerprint,
                DIGEST: job.data_digest,
                VERSION: metadata.version("hasten"),
            }
            tags = {
                KEY: found.key,
                RECIPE: found.source.recipe,
                ORIGIN: found.source.described,
                FILES: verification.digest_of(Path(folder)),
                MEGABYTES: f"{judging.megabytes(Path(folder)):.3f}",
            }
            if self.pipeline.origin.study is not None:
                tags[STUDY] = Path(self.pipeline.origin.study).stem
            self.lease.check()
            return self.registry.register(
                Path(folder),
                run_id=run_id,
                tags=lineage | tags,
                metadata=lineage,
                note=_note(self.pipeline, job, found),
            )

    def _judged(self, found: Assessment, challenger: Version, champion: Version | None) -> Verdict:
        """Judge, and write the verdict down."""
        judge = Judge(
            pipeline=self.pipeline,
            job=found.source.job,
            registry=self.registry,
            train=lambda job: self._calibrate(job, challenger),
            console=self.console,
        )
        verdict, measured = judge.judge(challenger, champion)
        self.lease.check()  # all that took a while
        against = None if champion is None else champion.number
        told = {"against": against, "promoted": verdict.promoted, "reason": verdict.reason}
        self.registry.tag(challenger, {MEASURED: json.dumps(measured), _VERDICT: json.dumps(told)})
        return verdict

    def _carry_out(self, challenger: Version, champion: Version | None, verdict: Verdict) -> Decision:
        self.lease.check()
        decision: Literal["promoted", "rejected"] = "promoted" if verdict.promoted else "rejected"
        if verdict.promoted:
            kept = {} if champion is None else judging.inherited(challenger, champion)
            self.registry.tag(challenger, kept)
            self.registry.promote(challenger)
        self.registry.tag(challenger, {REASON: verdict.reason, DECISION: decision})
        return Decision(decision=decision, reason=verdict.reason, version=challenger.number)

    def _calibrate(self, job: Job, challenger: Version) -> None:
        self._say(f"how much does the seed change? {job.spec.name} with seed {job.spec.budget.seed}")
        self._train(job, {KEY: challenger.tags[KEY], "hasten.retrain.calibration": "yes"})

    def _train(self, job: Job, tags: dict[str, str]) -> str | None:
        """Bring a run to its end within the limits; its id in the tracking server."""
        if self.pipeline.limits.gpu_hours is not None:
            cost = costs.known(job, self.registry.versions()) or costs.probed(job)
            costs.require(self.pipeline.limits, cost)
        experiment = f"retrain-{self.pipeline.name}"
        services = self.services
        if job.spec.execution.launcher == "ray":
            services = connected(self.console, tracking=True, ray=True)
        trained = training.run(job, services, console=self.console, experiment=experiment, tags=tags)
        run_id: str | None = trained["mlflow_run_id"]
        return run_id

    def _say(self, text: str) -> None:
        self.console.print(f"{self.pipeline.name}: {text}", soft_wrap=True, markup=False)


def _note(pipeline: Pipeline, job: Job, found: Assessment) -> str:
    """What a version is, on its page: how to use it, and where it is from."""
    name, source = pipeline.model, job.spec.data.source
    return (
        f"Made by pipeline {pipeline.name} from {found.source.described}: {job.spec.budget.images:,} "
        f"images of data `{source}`, digest `{job.data_digest[:12]}`."
        f"\n\n```python\nimport mlflow\nmodel = mlflow.pyfunc.load_model('models:/{name}@champion')\n"
        'model.predict([{"n": 4, "seed": 0}])  # a row an image: PNG files in base64\n```\n\n'
        f"`hasten sample models:/{name}@champion out.png`; `hasten registry verify {name}`. "
        f"Checkpoints and the result are in `{job.uri}`."
    )


def _written(challenger: Version, champion: Version | None) -> Verdict | None:
    """The verdict of a tick that was killed before it had carried it out, if it still holds."""
    told = json.loads(challenger.tags.get(_VERDICT, "{}"))
    against = None if champion is None else champion.number
    if not told or told["against"] != against:
        return None
    return Verdict(promoted=told["promoted"], reason=told["reason"])
