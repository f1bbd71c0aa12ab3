"""MLflow on PostgreSQL, its artifacts in the bucket; and its view made again on another server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_mlflow
import pytest
from mlflow import MlflowClient

from hasten.platform import shared_view
from hasten.platform.services import Services

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = {
    "budget.images": 640,
    "model.channels": 8,
    "eval.loss.images": 64,
    "eval.samples": {"images": 64, "steps": 4},
    "eval.grid": {"every": 0.5, "images": 4, "steps": 4},
}
STUDY = {
    "name": "kept",
    "question": "Does the momentum schedule help?",
    "base": "digits",
    "base_overrides": SMALL,
    "arms": {"baseline": {}, "mdlrc": {"momentum": {"kind": "mdlrc"}}},
    "seeds": [0],
}
RUN = [
    part
    for key, value in {**SMALL, "budget.seed": 7}.items()
    for part in ("-s", f"{key}={json.dumps(value)}")
]


def hasten(uri: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hasten.platform", *arguments],
        env=os.environ | {"HASTEN_TRACKING_URI": uri, "HUB_TOKEN": "planted-in-a-variable"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def states(found: dict[str, Any]) -> dict[str, tuple[str, int]]:
    return {each["name"].split("-")[0]: (each["state"], each["runs"]) for each in found["told"]}


def view(uri: str) -> dict[str, Any]:
    """All that a server shows, without ids, times, and what no store can know."""
    client, runs = MlflowClient(uri), {}
    names = {}
    for experiment in client.search_experiments():
        found = client.search_runs([experiment.experiment_id], max_results=1000)
        names |= {run.info.run_id: run.info.run_name for run in found}
        for run in found:
            run_id, tags = run.info.run_id, run.data.tags
            files = sorted(
                file.path.partition("+timestamp")[0]
                for folder in ("", "images", "report", "config", "eval")
                for file in client.list_artifacts(run_id, folder or None)
                if not file.is_dir
            )
            runs[f"{experiment.name}/{run.info.run_name}/{tags['kind']}"] = {
                "status": run.info.status,
                "parent": names.get(tags.get("mlflow.parentRunId", ""), ""),
                "params": run.data.params,
                "tags": {
                    key: value
                    for key, value in tags.items()
                    if key not in ("hasten.attempt", "mlflow.parentRunId", "mlflow.artifactLocation")
                },
                "datasets": [entry.dataset.name for entry in run.inputs.dataset_inputs],
                "files": [path for path in files if path != "requirements.txt"],
                "metrics": {
                    key: sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))
                    for key in run.data.metrics
                    if not key.startswith("system/")
                },
            }
    return runs


@pytest.fixture(scope="module")
def on_postgresql(
    stack: Services, postgresql: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A server on PostgreSQL with the stack's bucket, and on it a study and a run with a planted secret."""
    folder = tmp_path_factory.mktemp("postgresql")
    backend = postgresql.replace("://", "+psycopg://")
    with own_mlflow.started(folder, backend=backend, artifacts="s3://hasten/mlflow-postgresql") as uri:
        (folder / "kept.yaml").write_text(json.dumps(STUDY))
        told(hasten(uri, "sweep", str(folder / "kept.yaml"), "--json"))
        name = "name=alone-planted-in-a-variable"
        told(hasten(uri, "train", "digits", *RUN, "-s", name, "--json"))
        yield uri


def test_a_study_on_postgresql_is_whole(on_postgresql: str) -> None:
    client = MlflowClient(on_postgresql)
    experiment = client.get_experiment_by_name("kept")
    state = json.loads(experiment.tags[shared_view.TAG])
    assert "metrics.`final/eval/loss`" in state["selectedColumns"]
    runs = client.search_runs(
        [experiment.experiment_id], "tags.kind = 'trial'", order_by=["metrics.`final/eval/loss`"]
    )
    parent = client.search_runs([experiment.experiment_id], "tags.kind = 'study'")[0]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert sorted(run.info.run_name for run in runs) == ["baseline-s0", "mdlrc-s0"]
    for run in runs:
        assert run.info.status == "FINISHED"
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "eval/loss")]
        assert steps == sorted(set(steps))
        assert len(steps) == 11
        assert run.data.metrics["system/cpu_utilization_percentage"] >= 0.0
        assert "system/system_memory_usage_megabytes" in run.data.metrics
        assert client.list_artifacts(run.info.run_id, "images")


def test_a_run_says_where_it_comes_from_and_no_secret(on_postgresql: str) -> None:
    client = MlflowClient(on_postgresql)
    experiments = [each.experiment_id for each in client.search_experiments()]
    (run,) = client.search_runs(experiments, "tags.kind = 'run'")
    assert run.data.tags["hasten.command"].startswith("hasten train digits -s ")
    assert "planted" not in run.data.tags["hasten.command"]
    requirements = client.download_artifacts(run.info.run_id, "requirements.txt")
    assert "mlflow==" in Path(requirements).read_text()
    note = run.data.tags["mlflow.note.content"]
    assert "hasten train resolved.yaml" in note
    assert "pip install -r requirements.txt" in note


def test_the_view_is_made_again_on_an_empty_server_once(on_postgresql: str, tmp_path: Path) -> None:
    expected = view(on_postgresql)
    with own_mlflow.started(tmp_path) as uri:
        dry = told(hasten(uri, "tracking", "rebuild", "kept", "--dry-run", "--json"))
        assert states(dry) == {"kept": ("told", 3)}
        assert [each.name for each in MlflowClient(uri).search_experiments()] == ["Default"]
        alone = next(run["tags"]["hasten.name"] for run in expected.values() if run["tags"]["kind"] == "run")
        first = told(hasten(uri, "tracking", "rebuild", "kept", alone, "--json"))
        assert states(first) == {"kept": ("told", 3), "alone": ("told", 1)}
        assert view(uri) == expected
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("kept")
        assert shared_view.TAG in experiment.tags

        again = told(hasten(uri, "tracking", "rebuild", "kept", alone, "--json"))
        assert states(again) == {"kept": ("whole", 0), "alone": ("whole", 0)}

        (lost,) = client.search_runs([experiment.experiment_id], "tags.`hasten.trial` = 'mdlrc-s0'")
        client.delete_run(lost.info.run_id)
        mended = told(hasten(uri, "tracking", "rebuild", "kept", "--json"))
        assert states(mended) == {"kept": ("told", 1)}
        assert view(uri) == expected


def test_what_is_alive_is_left_alone_and_the_unknown_is_refused(on_postgresql: str) -> None:
    home = Path(os.environ["HASTEN_HOME"])
    from hasten.platform.locks import only_one

    with only_one(home / "locks" / "study-kept", what="study kept"):
        found = told(hasten(on_postgresql, "tracking", "rebuild", "kept", "--json"))
    assert states(found) == {"kept": ("alive", 0)}
    for arguments in (["nobody"], [], ["kept", "--all"]):
        done = hasten(on_postgresql, "tracking", "rebuild", *arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
