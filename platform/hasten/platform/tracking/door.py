"""MLflow as the server that trackers speak to, through ``MlflowClient`` with explicit run ids.

The fluent API has one current run for each thread.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import posixpath
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hasten.platform import grids
from hasten.platform.identity import (
    ATTEMPT,
    KIND,
    NAME,
    NOTE,
    STOPPED_BY,
    Dataset,
    RunIdentity,
    quoted,
    text,
)
from hasten.platform.observer import Gauge
from hasten.platform.outage import Gone, Refused, Unreachable, judged, reason
from hasten.platform.reconciliation import STATUS, Correction, Seen
from hasten.platform.scores import Sample
from hasten.platform.spool import Entry
from hasten.platform.tracker import THREAD_NAME
from hasten.platform.tracking import machine
from hasten.trainers.tracker import EndStatus

# Read by MLflow when it is imported or called; the user's own values win. Its defaults, seven retries
# with a doubling pause and 120 s each, would hang for minutes where a server is down.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient, entities  # noqa: E402  the settings above come first
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: E402
from mlflow.utils.credentials import get_default_host_creds  # noqa: E402
from mlflow.utils.rest_utils import http_request  # noqa: E402

_PROBE_SECONDS: Final = 5
_CREATE_PAUSES: Final = (0.5, 2.0, None)
_MAX_PER_BATCH: Final = 100  # parameters or tags

log = logging.getLogger(__name__)
# A tracker says once that the server is down; its threads need not say it at every try.
logging.getLogger("urllib3.connectionpool").addFilter(
    lambda record: not str(record.threadName).startswith(THREAD_NAME)
)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the server wants a run's files, and when the run began, in milliseconds since 1970."""

    artifacts: str
    started: int


class Mlflow:
    """MLflow as a ``Server``."""

    def __init__(self, uri: str) -> None:
        self.address = uri
        self.client = MlflowClient(tracking_uri=uri)
        self._experiments: dict[str, str] = {}
        self._places: dict[str, _Place] = {}
        self._with_images: set[str] = set()

    def probe(self) -> None:
        self._once("experiments/search", "GET", params={"max_results": 1}, timeout=_PROBE_SECONDS)

    def attempt(self, identity: RunIdentity, *, fresh: bool = False) -> tuple[str, int]:
        with judged():
            if fresh:
                run_id = self._create(identity)
                self._describe(run_id, identity, attempt=1)
                return run_id, 1
            run = self._run(identity)
            run_id = run.info.run_id
            number = int(run.data.tags.get(ATTEMPT, "0")) + 1
            if run.info.status != "RUNNING":
                self.client.update_run(run_id, status="RUNNING")
            if STOPPED_BY in run.data.tags:
                self.client.delete_tag(run_id, STOPPED_BY)
            self._describe(run_id, identity, attempt=number, known=run)
            return run_id, number

    def find(self, identity: RunIdentity) -> tuple[str, int]:
        with judged():
            run = self._run(identity)
            number = int(run.data.tags.get(ATTEMPT, "0"))
            if number == 0:
                self._describe(run.info.run_id, identity, attempt=(number := 1), known=run)
            return run.info.run_id, number

    def history(self, run_id: str) -> list[Sample]:
        with judged():
            return [
                Sample(point.key, point.value, point.step, point.timestamp)
                for key in self.client.get_run(run_id).data.metrics
                for point in self.client.get_metric_history(run_id, key)
            ]

    def log(self, run_id: str, samples: Sequence[Sample], tags: Mapping[str, str]) -> None:
        metrics = [entities.Metric(point.key, point.value, point.time, point.step) for point in samples]
        with judged():
            try:
                self.client.log_batch(run_id, metrics, tags=_tags(tags))
            except MlflowException as error:
                if error.get_http_status_code() in (400, 404):
                    self._check_alive(run_id)
                raise

    def upload(self, run_id: str, entry: Entry, content: bytes) -> None:
        with judged():
            contents = {entry["artifact"]: content} if "artifact" in entry else {}
            place = self._place(run_id)
            if "image" in entry:
                if run_id not in self._with_images:
                    self.client.set_tag(run_id, "mlflow.loggedImages", "True")
                    self._with_images.add(run_id)
                key, step, started = entry["image"], entry["step"], place.started
                contents = grids.files(content, run_id=run_id, key=key, step=step, time=started)
            # The client's own method would ask the server for the run once more.
            files = get_artifact_repository(place.artifacts, tracking_uri=self.address)
            with tempfile.TemporaryDirectory() as folder:
                for path, data in contents.items():
                    parent, name = posixpath.split(path)
                    Path(folder, name).write_bytes(data)
                    files.log_artifact(str(Path(folder, name)), parent or None)

    def download(self, run_id: str, path: str) -> bytes:
        with judged(), tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, path, folder)).read_bytes()

    def files(self, run_id: str, folder: str) -> list[str]:
        with judged():
            return [file.path for file in self.client.list_artifacts(run_id, folder) if not file.is_dir]

    def gauges(self) -> list[Gauge]:
        return machine.gauges()

    def delete_experiment(self, name: str) -> None:
        with judged():
            self.client.delete_experiment(self.experiment_id(name))

    def end(self, run_id: str, status: EndStatus, *, time: int) -> None:
        with judged():
            self.client.set_terminated(run_id, STATUS[status], end_time=time)

    def kill(self, run_id: str) -> None:
        with judged():
            if self.client.get_run(run_id).info.status == "RUNNING":
                self.client.set_terminated(run_id, "KILLED")

    def experiment_id(self, name: str) -> str:
        if name not in self._experiments:
            self._experiments[name] = self._find_experiment(name)
        return self._experiments[name]

    def _find_experiment(self, name: str) -> str:
        with judged():
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                try:
                    return str(self.client.create_experiment(name))
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    experiment = self.client.get_experiment_by_name(name)
            if experiment.lifecycle_stage == "deleted":
                log.warning("tracking: experiment %s had been deleted and is restored", name)
                self.client.restore_experiment(experiment.experiment_id)
            return str(experiment.experiment_id)

    def experiment_of(self, run_id: str) -> str:
        with judged():
            return str(self.client.get_run(run_id).info.experiment_id)

    def tag_experiment(self, name: str, tags: Mapping[str, str]) -> None:
        with judged():
            experiment_id = self.experiment_id(name)
            for key, value in tags.items():
                self.client.set_experiment_tag(experiment_id, key, value)

    def existing(self, identity: RunIdentity) -> Seen | None:
        with judged():
            experiment = self.client.get_experiment_by_name(identity.experiment)
            if experiment is None:
                return None
            runs = self._search([experiment.experiment_id], identity.searched())
            return next((_seen(run) for run in runs if ATTEMPT in run.data.tags), None)

    def seen(self, experiment: str | None, tags: Mapping[str, str]) -> list[Seen]:
        with judged():
            if experiment is None:
                experiments = [found.experiment_id for found in self.client.search_experiments()]
            else:
                experiments = [self.experiment_id(experiment)]
            return [_seen(run) for run in self._search(experiments, tags)]

    def correct(self, correction: Correction) -> None:
        with judged():
            if correction.status:
                self.client.set_terminated(correction.run_id, correction.status)
            if correction.stopped_by:
                self.client.set_tag(correction.run_id, STOPPED_BY, correction.stopped_by)
            if correction.is_orphan:
                self.client.delete_run(correction.run_id)

    def _search(self, experiments: Sequence[str], tags: Mapping[str, str]) -> list[Any]:
        """The active runs with all of these tags in these experiments, oldest first."""
        condition = " and ".join(f"tags.`{key}` = {quoted(value)}" for key, value in tags.items())
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        page = self.client.search_runs(experiments, condition, order_by=order)
        runs = list(page)
        while page.token:
            page = self.client.search_runs(experiments, condition, order_by=order, page_token=page.token)
            runs += page
        return runs

    def _run(self, identity: RunIdentity) -> Any:
        """The run of an identity, found or made; never two, also where a slow answer makes us ask twice."""
        for pause in _CREATE_PAUSES:
            if found := self._found(identity):
                return found
            try:
                self._create(identity)
            except Unreachable:
                if pause is None:
                    raise
                time.sleep(pause)  # it may have been made all the same, and show in a moment
        found = self._found(identity)
        if found is None:
            raise Unreachable("a run that was made cannot be found")
        return found

    def _found(self, identity: RunIdentity) -> Any | None:
        runs = self._search([self.experiment_id(identity.experiment)], identity.searched())
        runs.sort(key=lambda run: ATTEMPT not in run.data.tags)
        for orphan in runs[1:]:  # made by a request whose answer did not arrive, never used
            if ATTEMPT not in orphan.data.tags:
                self.client.delete_run(orphan.info.run_id)
        return runs[0] if runs else None

    def _place(self, run_id: str) -> _Place:
        if run_id not in self._places:
            info = self.client.get_run(run_id).info
            self._places[run_id] = _Place(info.artifact_uri, info.start_time)
        return self._places[run_id]

    def _create(self, identity: RunIdentity) -> str:
        """The id of a new run, asked for once: one whose answer was lost is made all the same."""
        tags = identity.searched() | {"mlflow.source.name": "hasten", "mlflow.user": _user()}
        if identity.parent_run_id:
            tags["mlflow.parentRunId"] = identity.parent_run_id
        wanted = {
            "experiment_id": self.experiment_id(identity.experiment),
            "run_name": identity.name,
            "start_time": time.time_ns() // 1_000_000,
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        info = self._once("runs/create", "POST", json=wanted)["run"]["info"]
        run_id = str(info["run_id"])
        self._places[run_id] = _Place(info["artifact_uri"], int(info["start_time"]))
        return run_id

    def _once(self, what: str, method: str, **request: Any) -> Any:
        """The server's answer to a request that MLflow's client would repeat where none comes."""
        with judged():
            response = http_request(
                get_default_host_creds(self.address),
                f"/api/2.0/mlflow/{what}",
                method,
                max_retries=0,
                **request,
            )
        status, words = response.status_code, response.text
        if status == 400:
            raise Refused(reason(words))
        if status != 200 or not words.lstrip().startswith("{"):
            raise Unreachable(reason(words), status=status if status != 200 else 404)
        return json.loads(words)

    def _describe(
        self, run_id: str, identity: RunIdentity, *, attempt: int, known: Any | None = None
    ) -> None:
        """Parameters, which never change, once; tags anew, since a commit or a note may have changed.

        ``known`` is the run as the server has it, where it is not a new one.
        """
        there = known.data.params if known else {}
        params = [
            entities.Param(key, text(value)) for key, value in identity.params.items() if key not in there
        ]
        tags = {KIND: identity.kind, NAME: identity.name, **identity.tags, ATTEMPT: str(attempt)}
        if identity.note:
            tags[NOTE] = identity.note
        if identity.dataset and not (known and known.inputs.dataset_inputs):
            self.client.log_inputs(run_id, [_dataset_input(identity.dataset)])
        while len(params) > _MAX_PER_BATCH:
            self.client.log_batch(run_id, params=params[:_MAX_PER_BATCH])
            params = params[_MAX_PER_BATCH:]
        # Last, and tags come last in it: the attempt counts once all of it is there.
        self.client.log_batch(run_id, params=params, tags=_tags(tags))

    def _check_alive(self, run_id: str) -> None:
        try:
            stage = self.client.get_run(run_id).info.lifecycle_stage
        except MlflowException as error:
            stage = "deleted" if error.error_code == "RESOURCE_DOES_NOT_EXIST" else ""
        if stage == "deleted":
            raise Gone(f"run {run_id} has been deleted")


def _tags(tags: Mapping[str, str]) -> list[Any]:
    return [entities.RunTag(key, str(value)) for key, value in tags.items()]


def _seen(run: Any) -> Seen:
    return Seen(run_id=run.info.run_id, status=run.info.status, tags=run.data.tags)


def _dataset_input(dataset: Dataset) -> Any:
    described = entities.Dataset(
        name=dataset.name,
        digest=dataset.digest[:36],  # the server's limit
        source_type="hasten",
        source=json.dumps({"uri": dataset.source}),
    )
    return entities.DatasetInput(described, tags=[entities.InputTag("mlflow.data.context", "training")])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "unknown"
