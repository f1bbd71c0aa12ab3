"""A CronJob that submits ticks to Ray, and KubeRay's RayCronJob."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import yaml

from hasten.platform.retraining.pipeline import Pipeline, Schedule
from hasten.trainers.errors import ConfigError

_SECRET: Final = "hasten"
_FOLDER: Final = "/etc/hasten/pipeline"
_FILE: Final = "pipeline.yaml"
_DAY: Final = 86_400
_SOON: Final = 300  # seconds in which a tick may still begin where missed ones are left out
_LONGEST: Final = 52  # characters of a CronJob's name

_OF_CRON_JOB: Final = """\
# Validated against Kubernetes' schemas. The tick runs on the Ray cluster; this pod submits it and waits, so
# that concurrencyPolicy means something. Where the pod dies the job goes on; the next tick finds it running.
# Secret "hasten" holds what the environment must: RAY_AUTH_TOKEN, AWS_*, MLFLOW_TRACKING_*, PGPASSWORD, ...
"""
_OF_RAY_CRON_JOB: Final = """\
# Validated against KubeRay's schemas (v1.7, where RayCronJob is alpha: feature gate RayCronJob). It has no
# concurrency policy and no deadline: after an outage of the operator, or when it is no longer suspended,
# every missed tick is created in one burst. That is harmless here: one of them holds the lease and works,
# the others say "running" and end. Finished jobs delete themselves after a day.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where ticks run: in which image and namespace, on which RayCluster."""

    image: str
    namespace: str
    cluster: str


def cron_job(pipeline: Pipeline, schedule: Schedule, text: str, place: Place) -> str:
    """A ConfigMap with the pipeline, and a CronJob that submits its ticks and waits for them."""
    submit = ["ray", "job", "submit", "--working-dir", _FOLDER, "--", "hasten", "retrain", _FILE]
    address = f"http://{place.cluster}-head-svc.{place.namespace}.svc.cluster.local:8265"
    spec = {
        "schedule": schedule.cron,
        "timeZone": schedule.timezone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": _SOON if schedule.catchup == "none" else 7 * _DAY,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 5,
        "jobTemplate": {
            "spec": {
                "backoffLimit": 2,
                "ttlSecondsAfterFinished": 7 * _DAY,
                **_deadline(pipeline),
                "template": {
                    "metadata": _metadata(pipeline, named=False),
                    "spec": _pod(pipeline, place, submit, address),
                },
            }
        },
    }
    job = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": _metadata(pipeline, place), "spec": spec}
    return _OF_CRON_JOB + _dumped(_config_map(pipeline, text, place), job)


def ray_cron_job(pipeline: Pipeline, schedule: Schedule, text: str, place: Place) -> str:
    """A ConfigMap with the pipeline, and a RayCronJob whose jobs are its ticks."""
    rules = [
        {"policy": "DeleteSelf", "condition": {"jobStatus": status, "ttlSeconds": _DAY}}
        for status in ("SUCCEEDED", "FAILED")
    ]
    template = {
        "clusterSelector": {"ray.io/cluster": place.cluster},
        "entrypoint": f"hasten retrain {_FILE}",
        "runtimeEnvYAML": yaml.safe_dump({"working_dir": _FOLDER}),
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": {"spec": _pod(pipeline, place, None, None)},
        "shutdownAfterJobFinishes": False,
        "deletionStrategy": {"deletionRules": rules},
        "backoffLimit": 0,
        **_deadline(pipeline),
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": _metadata(pipeline, place),
        "spec": {"schedule": schedule.cron, "timeZone": schedule.timezone, "jobTemplate": template},
    }
    return _OF_RAY_CRON_JOB + _dumped(_config_map(pipeline, text, place), job)


def _pod(pipeline: Pipeline, place: Place, command: list[str] | None, address: str | None) -> dict[str, Any]:
    """A pod without rights, that submits."""
    container: dict[str, Any] = {
        "name": "ray-job-submitter",
        "image": place.image,
        "envFrom": [{"secretRef": {"name": _SECRET}}],
        # The file itself and no link to it, as a ConfigMap mounted as a folder would have.
        "volumeMounts": [
            {"name": "pipeline", "mountPath": f"{_FOLDER}/{_FILE}", "subPath": _FILE, "readOnly": True}
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if command is not None:
        container |= {"command": command, "env": [{"name": "RAY_ADDRESS", "value": address}]}
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "pipeline", "configMap": {"name": _name(pipeline)}}],
    }


def _config_map(pipeline: Pipeline, text: str, place: Place) -> dict[str, Any]:
    metadata = _metadata(pipeline, place)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {_FILE: text}}


def _metadata(pipeline: Pipeline, place: Place | None = None, *, named: bool = True) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "hasten", "app.kubernetes.io/component": "retraining"}
    if not named or place is None:
        return {"labels": labels}
    return {"name": _name(pipeline), "namespace": place.namespace, "labels": labels}


def _deadline(pipeline: Pipeline) -> dict[str, int]:
    """Longer than the pipeline's own limit, which ends at a checkpoint."""
    hours = pipeline.limits.hours
    return {} if hours is None else {"activeDeadlineSeconds": int(hours * 3600) + 1800}


def _name(pipeline: Pipeline) -> str:
    """As Kubernetes takes names.

    Raises:
        ConfigError: nothing is left of the pipeline's name.
    """
    plain = re.sub(r"[^a-z0-9-]+", "-", f"hasten-{pipeline.name.lower()}").strip("-")
    if len(plain) > _LONGEST:
        raise ConfigError(
            "name", f"{pipeline.name}: is too long for a CronJob", f"{_LONGEST - 7} characters at most."
        )
    return plain


def _dumped(*documents: dict[str, Any]) -> str:
    return yaml.safe_dump_all(documents, sort_keys=False, width=120)
