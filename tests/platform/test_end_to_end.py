"""Whole commands on real servers: Swift, MLflow and Ray, as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from hasten.platform import importing, settings
from hasten.platform.services import Services
from hasten.platform.stack import launcher, processes
from hasten.sweeps import plan as plans
from hasten.sweeps import study as studies
from hasten.trainers import session
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.job import Job
from hasten.trainers.records import RunResult
from hasten.trainers.tracker import NullTracker
from hasten.trainers.worker import Worker

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

TINY = {
    "base.budget.images": 640,
    "base.model.channels": 8,
    "base.eval.loss.images": 64,
    "base.eval.samples": "{images: 64, steps: 4}",
    "base.eval.grid": "{every: 0.5, images: 4, steps: 4}",
}


HUGE = ["sweep", "demo", "-s", "name=huge", "-s"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hasten.platform", *arguments]


def hasten(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def found(done: subprocess.CompletedProcess[str], *, code: int = 0) -> dict[str, Any]:
    assert done.returncode == code, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def options(changes: dict[str, Any]) -> list[str]:
    return [part for key, value in changes.items() for part in ("-s", f"{key}={value}")]


def plain(result: RunResult) -> list[tuple[int, dict[str, float]]]:
    """A run's history without what depends on the clock."""
    return [
        (point.step, {key: value for key, value in point.metrics.items() if not key.startswith("perf/")})
        for point in result.history
    ]


def undisturbed(study: studies.StudySpec, services: Services, folder: Path) -> dict[str, RunResult]:
    """The same trials, run one after the other by the local launcher into a folder."""
    results = {}
    for trial in plans.plan(study).trials:
        job = sources.bind(trial.spec, services.storage_uri)
        alone = Job(
            spec=job.spec, data_uri=job.data_uri, data_digest=job.data_digest, storage_uri=str(folder)
        )
        list(session.run(alone, worker=Worker(), track=NullTracker()))
        result = RunStore(alone.uri).result()
        assert result is not None
        results[trial.name] = result
    return results


def load(name: str, changes: dict[str, Any]) -> studies.StudySpec:
    from hasten.trainers import config

    return studies.load(name, config.parse_overrides([f"{key}={value}" for key, value in changes.items()]))


def trials_of(services: Services, study: str) -> tuple[Any, list[Any]]:
    """The study's parent and its nested children, as MLflow has them."""
    client = MlflowClient(services.tracking_uri)
    experiment = client.get_experiment_by_name(study)
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in runs if run.data.tags["kind"] == "study"]
    assert len(parents) == 1
    children = [run for run in runs if run.data.tags["kind"] == "trial"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    return parents[0], children


@pytest.fixture(scope="module", autouse=True)
def digits(stack: Services) -> None:
    """The data set, so that tests may bind jobs before any command has run."""
    importing.ensure("digits", stack.storage_uri)


@pytest.fixture(scope="module")
def swept(stack: Services) -> tuple[dict[str, Any], dict[str, Any]]:
    """A small study of two arms and three seeds, run once for the tests below."""
    changes = {**TINY, "name": "small", "arms": "{baseline: {}, mdlrc: {momentum: {kind: mdlrc}}}"}
    return changes, found(hasten("sweep", "demo", *options(changes), "--json"))


def test_a_sweep_is_one_parent_with_nested_children(swept: Any, stack: Services) -> None:
    _, answer = swept
    assert answer["status"] == "finished"
    assert [trial["status"] for trial in answer["trials"]] == ["finished"] * 6
    parent, children = trials_of(stack, "small")
    children = [run for run in children if run.data.tags["hasten.seed"] in "012"]  # another test adds a seed
    assert parent.info.status == "FINISHED"
    assert parent.info.run_id == answer["mlflow_run_id"]
    assert {run.info.status for run in children} == {"FINISHED"}
    assert {run.info.run_name for run in children} == {trial["trial"] for trial in answer["trials"]}
    client = MlflowClient(stack.tracking_uri)
    for run, trial in ((run, trial) for run in children for trial in answer["trials"]):
        if run.info.run_name == trial["trial"]:
            assert run.data.metrics["final/eval/loss"] == pytest.approx(trial["metrics"]["eval/loss"])
            assert len(run.data.metrics) <= 40
    images = [file.path for file in client.list_artifacts(children[0].info.run_id, "images")]
    for step in (0, 320, 640):
        assert any(f"+step+{step}+" in path and path.endswith(".png") for path in images), images
    report = [file.path for file in client.list_artifacts(parent.info.run_id, "report")]
    assert "report/report.html" in report
    experiment = client.get_experiment(parent.info.experiment_id)
    assert "mlflow.sharedViewState.hasten" in experiment.tags


def test_a_finished_sweep_does_nothing(swept: Any, stack: Services) -> None:
    changes, answer = swept
    before = {run.info.run_id: run.data.tags["hasten.attempt"] for run in trials_of(stack, "small")[1]}
    again = hasten("sweep", "demo", *options(changes), "--json")
    assert found(again) == answer
    assert "nothing to run" in again.stderr
    assert {
        run.info.run_id: run.data.tags["hasten.attempt"] for run in trials_of(stack, "small")[1]
    } == before


def test_trials_have_the_numbers_of_runs_on_their_own(swept: Any, stack: Services, tmp_path: Path) -> None:
    changes, answer = swept
    alone = undisturbed(load("demo", {**changes, "seeds": "[1]"}), stack, tmp_path)
    for trial in answer["trials"]:
        if trial["seed"] == 1:
            expected = {
                key: value
                for key, value in alone[trial["trial"]].metrics.items()
                if not key.startswith("perf/")
            }
            got = {key: value for key, value in trial["metrics"].items() if not key.startswith("perf/")}
            assert got == expected


def test_compare_says_who_won_and_writes_the_report(swept: Any, tmp_path: Path) -> None:
    changes, _ = swept
    study = tmp_path / "small.yaml"
    raw = (studies.STUDIES / "demo.yaml").read_text()
    study.write_text(raw)
    answer = found(hasten("compare", str(study), *options(changes), "--json"))
    assert [row["arm"] for row in answer["arms"]] == ["baseline", "mdlrc"]
    assert [row["n"] for row in answer["arms"]] == [3, 3]
    assert answer["verdict"] in ("no clear winner", "mdlrc beats baseline")
    report = Path(os.environ["HASTEN_HOME"]) / "reports" / "small" / "report.html"
    assert answer["verdict"].lower() in report.read_text().lower()


def test_a_sweep_extended_by_a_seed_runs_only_what_is_new(swept: Any, stack: Services) -> None:
    changes, answer = swept
    longer = found(hasten("sweep", "demo", *options({**changes, "seeds": "[0, 1, 2, 3]"}), "--json"))
    assert len(longer["trials"]) == 8
    known = {trial["trial"]: trial for trial in answer["trials"]}
    assert {t["trial"]: t for t in longer["trials"] if t["trial"] in known} == known
    parent, children = trials_of(stack, "small")
    assert len(children) == 8
    assert parent.info.status == "FINISHED"


def test_a_driver_killed_in_mid_sweep_loses_nothing(stack: Services, tmp_path: Path) -> None:
    changes = {**TINY, "base.budget.images": 1920, "name": "killed", "seeds": "[0, 1]"}
    process = subprocess.Popen(command("sweep", "demo", *options(changes)), stderr=subprocess.DEVNULL)
    study = load("demo", changes)
    jobs = {trial.name: sources.bind(trial.spec, stack.storage_uri) for trial in plans.plan(study).trials}
    wait_until(lambda: any(RunStore(job.uri).result() for job in jobs.values()) or process.poll() is not None)
    assert process.poll() is None, "the sweep ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {name for name, job in jobs.items() if RunStore(job.uri).result()}
    assert len(finished) < len(jobs), "it was killed too late to prove anything"

    # The same command again; this time a trial's own process dies in the middle of it.
    again = subprocess.Popen(
        command("sweep", "demo", *options(changes), "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    wait_until(lambda: trial_processes() or again.poll() is not None)
    for victim in trial_processes()[:1]:
        victim.kill()
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0
    answer = json.loads(output.splitlines()[-1])
    assert {trial["status"] for trial in answer["trials"]} == {"finished"}
    parent, children = trials_of(stack, "killed")
    assert sorted(run.info.run_name for run in children) == sorted(jobs)
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    client = MlflowClient(stack.tracking_uri)
    alone = undisturbed(study, stack, tmp_path)
    for run in children:
        result = RunStore(jobs[run.info.run_name].uri).result()
        assert result is not None
        assert plain(result) == plain(alone[run.info.run_name])
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "eval/loss")]
        assert sorted(steps) == [step for step, _ in result.series("eval/loss")], "no gap and no duplicate"


def test_a_sweep_stopped_by_sigterm_says_so_and_ends_its_runs(stack: Services) -> None:
    changes = {**TINY, "base.budget.images": 2560, "name": "terminated", "seeds": "[0, 1]"}
    process = subprocess.Popen(command("sweep", "demo", *options(changes)), stderr=subprocess.PIPE, text=True)
    jobs = [sources.bind(t.spec, stack.storage_uri) for t in plans.plan(load("demo", changes)).trials]
    wait_until(lambda: any(RunStore(job.uri).result() for job in jobs) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    assert "The same command goes on" in errors
    parent, children = trials_of(stack, "terminated")
    finished = sum(RunStore(job.uri).result() is not None for job in jobs)
    assert finished < len(jobs), "it was stopped too late to prove anything"
    assert [run.info.status for run in children].count("FINISHED") == finished
    assert {parent.info.status, *(run.info.status for run in children)} <= {"FINISHED", "KILLED"}
    assert parent.info.status == "KILLED"


def test_trials_of_two_workers_run_by_ray_train(stack: Services) -> None:
    changes = {**TINY, "name": "wide", "arms": "{baseline: {}}", "seeds": "[0]", "execution.workers": 2}
    answer = found(hasten("sweep", "demo", *options(changes), "--json"))
    assert [trial["status"] for trial in answer["trials"]] == ["finished"]
    assert len(trials_of(stack, "wide")[1]) == 1


def test_ddp_by_ray_killed_and_continued_equals_uninterrupted(stack: Services) -> None:
    run = {
        **{key.removeprefix("base."): value for key, value in TINY.items()},
        "budget.images": 3200,
        "execution.launcher": "ray",
        "execution.workers": 2,
    }
    whole = found(hasten("train", "digits-demo", *options({**run, "name": "whole"}), "--json"))
    process = subprocess.Popen(
        command("train", "digits-demo", *options({**run, "name": "cut"})), stdout=subprocess.PIPE, text=True
    )
    cut = RunStore(f"{stack.storage_uri}/runs/cut-{whole['fingerprint']}")
    wait_until(lambda: cut.latest() is not None or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert cut.result() is None, "it was killed too late to prove anything"
    answer = found(hasten("train", "digits-demo", *options({**run, "name": "cut"}), "--json"))
    assert answer["resumed_from"]
    uncut = RunStore(f"{stack.storage_uri}/runs/{whole['run']}").result()
    resumed = cut.result()
    assert uncut is not None
    assert resumed is not None
    assert plain(resumed) == plain(uncut)


def test_a_local_run_stopped_by_sigterm_resumes(stack: Services) -> None:
    run = {key.removeprefix("base."): value for key, value in TINY.items()} | {
        "budget.images": 25600,
        "name": "stopped",
    }
    process = subprocess.Popen(
        command("train", "digits-demo", *options(run)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    wait_until(lambda: "to go" in process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3, output
    assert "The same command goes on" in output
    answer = found(hasten("train", "digits-demo", *options(run), "--json"))
    assert 0 < answer["resumed_from"] < 25600
    assert found(hasten("train", "digits-demo", *options(run), "--json")) == answer


def test_a_retraining_tick_trains_promotes_and_then_rests(stack: Services) -> None:
    tiny = {"overrides": json.dumps({"budget.images": 640, "model.channels": 8, "eval.samples.images": 64})}
    first = found(hasten("retrain", "digits", *options({**tiny, "model": "tick"}), "--json"))
    assert (first["decision"], first["version"]) == ("promoted", "1")
    again = found(hasten("retrain", "digits", *options({**tiny, "model": "tick"}), "--json"))
    assert again["decision"] == "unchanged"
    worse = {"overrides": json.dumps({"budget.images": 128, "model.channels": 8, "eval.samples.images": 64})}
    rejected = found(hasten("retrain", "digits", *options({**worse, "model": "tick"}), "--json"))
    assert (rejected["decision"], rejected["version"]) == ("rejected", "2")
    champion = MlflowClient(stack.tracking_uri).get_model_version_by_alias("tick", "champion")
    assert str(champion.version) == "1"


def tick_of(name: str, images: int = 1280) -> list[str]:
    """Arguments of a tick of a pipeline and a model of its own."""
    tiny = {"budget.images": images, "model.channels": 8, "eval.samples.images": 64}
    return [
        "retrain",
        "digits",
        *options({"name": name, "model": name, "overrides": json.dumps(tiny)}),
        "--json",
    ]


def test_two_ticks_at_once_train_once(stack: Services) -> None:
    both = [
        subprocess.Popen(
            command(*tick_of("twice")), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    told = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    decisions = {json.loads(out.splitlines()[-1])["decision"] for out, _ in told}
    assert "promoted" in decisions
    assert decisions <= {"promoted", "running", "unchanged"}  # the last: it came when the other one was done
    assert len(decisions) == 2
    assert len(MlflowClient(stack.tracking_uri).search_model_versions("name = 'twice'")) == 1
    story = found(hasten(*tick_of("twice"), "--history"))["ticks"]
    assert {tick["decision"] for tick in story} == decisions
    assert [tick["pipeline"] for tick in story] == ["twice", "twice"]


def test_a_killed_tick_is_gone_on_with(stack: Services) -> None:
    process = subprocess.Popen(command(*tick_of("killed", 6400)), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    wait_until(lambda: "to go" in process.stderr.readline())
    process.kill()
    process.wait()
    after = found(hasten(*tick_of("killed", 6400)))
    assert (after["decision"], after["version"]) == ("promoted", "1")
    story = found(hasten(*tick_of("killed", 6400), "--history"))["ticks"]
    assert [tick["decision"] for tick in story] == ["died", "promoted"]
    client = MlflowClient(stack.tracking_uri)
    experiment = client.get_experiment_by_name("retrain-killed")
    assert [
        run.info.status for run in client.search_runs([experiment.experiment_id], "tags.kind = 'run'")
    ] == ["FINISHED"]


@pytest.mark.parametrize(
    ("arguments", "variables", "message", "code"),
    [
        (["train", "digits", "-s", "optimizer.batch=1600"], {}, "optimizer.batch: 1600 is more than", 2),
        (["train", "digits", "-s", "data.source=cats"], {}, "data.source: no data set at", 2),
        (["train", "digits", "-s", "data.resolution=16"], {}, "data.resolution: is 16, but the images", 2),
        ([*HUGE, "execution.workers=64"], {}, "execution.workers: 64 of 1 CPUs", 2),
        ([*HUGE, "execution.concurrent=64"], {}, "execution.concurrent: 64 trials", 2),
        (["train", "digits"], {"HASTEN_STORAGE_URI": "s3://missing-bucket"}, "missing-bucket", 2),
    ],
    ids=["batch", "data", "resolution", "workers", "concurrent", "bucket"],
)  # fmt: skip
def test_impossible_wishes_are_refused(
    stack: Services, arguments: list[str], variables: dict[str, str], message: str, code: int
) -> None:
    if "HASTEN_STORAGE_URI" in variables:
        variables = {**variables, "HASTEN_STORAGE_ENDPOINT": str(stack.endpoint)}
    done = hasten(*arguments, **variables)
    assert message in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_an_mlflow_outage_costs_nothing(stack: Services) -> None:
    run = {key.removeprefix("base."): value for key, value in TINY.items()}
    run |= {"budget.images": 6400, "name": "outage"}
    process = subprocess.Popen(
        command("train", "digits-demo", *options(run), "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    wait_until(lambda: "to go" in process.stderr.readline())
    part = next(part for part in launcher.status(settings.load()) if part.part == "tracking")
    for server in [*psutil.Process(part.pid).children(recursive=True), psutil.Process(part.pid)]:
        server.kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert json.loads(output.splitlines()[-1])["mlflow_run_id"] is None, "nobody could be asked"
    answer = found(hasten("train", "digits-demo", *options(run), "--json"))
    result = RunStore(f"{stack.storage_uri}/runs/{answer['run']}").result()
    assert result is not None
    client = MlflowClient(stack.tracking_uri)
    kept = client.get_run(answer["mlflow_run_id"])
    assert kept.info.status == "FINISHED"
    for metric in ("eval/loss", "train/loss"):
        history = client.get_metric_history(answer["mlflow_run_id"], metric)
        assert sorted((point.step, point.value) for point in history) == result.series(metric)


def test_no_secret_in_anything_that_was_written(swept: Any, stack: Services) -> None:
    home = Path(os.environ["HASTEN_HOME"])
    lines = (home / "credentials").read_text().splitlines()
    secret = next(
        line.partition("=")[2].strip() for line in lines if line.startswith("aws_secret_access_key")
    )
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    assert len(secret) >= 16
    known = {home / "credentials", Path(os.environ["RAY_AUTH_TOKEN_PATH"])}
    places = [home, *Path("/tmp").glob("ray*"), *Path("/tmp").glob("hasten-*")]
    found_in = [
        str(path)
        for place in places
        for path in place.rglob("*")
        if path.is_file() and path not in known and path.name != "proxy.conf"
        for word in (secret, token)
        if word.encode() in path.read_bytes()
    ]
    assert not found_in


def trial_processes() -> list[psutil.Process]:
    """The processes of this stack in which trials train."""
    members = processes.members(Path(os.environ["HASTEN_HOME"]))
    return [process for process in members if "ResourceTrainable" in processes.title(process)]


def wait_until(condition: Any, *, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)
