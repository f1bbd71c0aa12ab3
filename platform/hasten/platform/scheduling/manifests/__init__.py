"""What makes other schedulers run ticks: files for Kubernetes, KubeRay, systemd and Airflow.

All of them call the same verb, ``hasten retrain``, which is idempotent and holds a lease: whatever a
scheduler does twice, late or in bursts costs nothing but a look.
"""

from __future__ import annotations

from enum import StrEnum

import yaml

from hasten.platform.retraining.pipeline import Pipeline, Schedule
from hasten.platform.scheduling.manifests import airflow, kubernetes, systemd
from hasten.trainers.errors import ConfigError


class Target(StrEnum):
    """Whose files to write."""

    KUBERNETES = "kubernetes"
    RAYCRONJOB = "raycronjob"
    SYSTEMD = "systemd"
    AIRFLOW = "airflow"


def render(target: Target, pipeline: Pipeline, *, image: str, namespace: str, cluster: str) -> dict[str, str]:
    """The files of a target, by name.

    Args:
        target: whose.
        pipeline: with a schedule.
        image: a container image with hasten in it.
        namespace: of Kubernetes.
        cluster: the name of the RayCluster that ticks run on.

    Raises:
        ConfigError: the target cannot do what the schedule asks for.
    """
    schedule = pipeline.schedule
    assert schedule is not None, "only pipelines with a schedule are rendered"
    _require(target, schedule)
    text = yaml.safe_dump(pipeline.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    match target:
        case Target.KUBERNETES:
            place = kubernetes.Place(image=image, namespace=namespace, cluster=cluster)
            return {f"{pipeline.name}-cronjob.yaml": kubernetes.cron_job(pipeline, schedule, text, place)}
        case Target.RAYCRONJOB:
            place = kubernetes.Place(image=image, namespace=namespace, cluster=cluster)
            return {
                f"{pipeline.name}-raycronjob.yaml": kubernetes.ray_cron_job(pipeline, schedule, text, place)
            }
        case Target.SYSTEMD:
            return systemd.units(pipeline, schedule, text)
        case Target.AIRFLOW:
            return airflow.dag(pipeline, schedule, text)


def _require(target: Target, schedule: Schedule) -> None:
    """Refuse what a target would silently do otherwise."""
    if schedule.catchup == "all" and target is not Target.AIRFLOW:
        problem = f"all: {target.value} runs the latest missed tick at most"
        raise ConfigError("schedule.catchup", problem, "Use latest or none, `hasten schedule`, or Airflow.")
    if schedule.jitter and target is not Target.SYSTEMD:
        problem = f"{schedule.jitter:g}: {target.value} knows no jitter"
        raise ConfigError("schedule.jitter", problem, "Set it to 0, and spread the minutes of cron instead.")
