"""Tracking against a real MLflow server: killed, slow, and asked by processes that get killed themselves."""

import http.server
import os
import pickle
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient

from hasten.platform import shared_view
from hasten.platform.tracking import Dataset, RunIdentity, Tracking, round_trip
from hasten.platform.tracking.door import Mlflow
from hasten.trainers.errors import ConfigError, Fault

pytestmark = pytest.mark.stack

IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A real server with its database and files in a folder; may be killed and started again in place."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | settings, stdout=log, stderr=log, cwd=self.folder
            )
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def kill(self):
        if self.process is None:
            return
        parent = psutil.Process(self.process.pid)
        family = [parent, *parent.children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=10)
        self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("mlflow"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def client(server):
    return MlflowClient(server.uri)


@pytest.fixture
def tracking(server, tmp_path):
    return Tracking(server.uri, tmp_path / "spool", close_seconds=60.0)


@pytest.fixture
def study():
    return f"study-{uuid.uuid4().hex[:8]}"


def trial_of(study, trial, parent=None, **more):
    tags = {"hasten.study": study, "hasten.trial": trial, "hasten.fingerprint": f"f-{trial}"}
    return RunIdentity(experiment=study, name=trial, kind="trial", tags=tags, parent_run_id=parent, **more)


def steps(client, run_id, key):
    return [point.step for point in client.get_metric_history(run_id, key)]


def images(client, run_id):
    return [file.path for file in client.list_artifacts(run_id, "images") if file.path.endswith(".png")]


def test_a_run_is_found_again_and_continued(tracking, client, study):
    identity = trial_of(
        study,
        "a",
        params={"optimizer.lr": 2e-3},
        note="**bold**",
        dataset=Dataset(name="digits", digest="d" * 64, source="s3://hasten/digits"),
    )
    first = tracking.open(identity)
    first.close("stopped")
    assert client.get_run(first.run_id).info.status == "KILLED"
    second = tracking.open(identity)
    assert second.run_id == first.run_id
    run = client.get_run(second.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.tags["hasten.attempt"] == "2"
    assert run.data.tags["mlflow.note.content"] == "**bold**"
    assert run.data.params == {"optimizer.lr": "0.002"}
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["digits"]
    second.close("finished")
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert not list(tracking.spool.iterdir())


def test_files_are_attached_to_every_run_of_a_fingerprint(tracking, client, study):
    """Whichever experiments they are in; and nothing else of the runs changes."""
    shared = {"hasten.fingerprint": f"f-{study}"}
    ids = []
    for experiment in (study, f"{study}-other"):
        tags = {"hasten.trial": "a", "hasten.study": experiment, **shared}
        track = tracking.open(RunIdentity(experiment=experiment, name="a", kind="trial", tags=tags))
        track.close("finished")
        ids.append(track.run_id)
    before = [client.get_run(run_id).info.end_time for run_id in ids]
    files = {"analyses/x/a.json": b"{}", "analyses/x/b.html": b"<p>"}
    assert tracking.attach(f"f-{study}", files) == 2
    assert tracking.attach("f-nobody", files) == 0
    for run_id in ids:
        assert sorted(file.path for file in client.list_artifacts(run_id, "analyses/x")) == sorted(files)
        assert client.get_run(run_id).info.status == "FINISHED"
    assert [client.get_run(run_id).info.end_time for run_id in ids] == before


def test_a_run_can_be_looked_up_and_ended_from_outside(tracking, study):
    identity = trial_of(study, "a")
    assert tracking.run_id(identity) is None
    assert tracking.status(identity) == ""
    tracker = tracking.open(identity)
    assert tracking.run_id(identity) == tracker.run_id
    assert tracking.status(identity) == "RUNNING"
    tracking.end(identity, "stopped")
    assert tracking.status(identity) == "KILLED"
    tracker.close("finished")
    tracking.end(identity, "failed")
    assert tracking.status(identity) == "FINISHED"


def test_a_run_that_somebody_deletes_does_not_hold_up_its_training(tracking, client, study):
    tracker = tracking.open(trial_of(study, "a"))
    client.delete_run(tracker.run_id)
    tracker.metrics({"train/loss": 1.0}, step=0)
    started = time.monotonic()
    tracker.close("finished")
    assert time.monotonic() - started < 30
    assert not list(tracking.spool.iterdir())


def test_what_the_server_refuses_does_not_take_the_rest_with_it(tracking, client, study):
    tracker = tracking.open(trial_of(study, "a"))
    for step in range(5):
        tracker.metrics({"train/loss": float(step), "not:a|name?": 1.0}, step=step)
    tracker.tags({"also?|not": "x", "hasten.note": "y"})
    tracker.close("finished")
    run = client.get_run(tracker.run_id)
    assert steps(client, tracker.run_id, "train/loss") == list(range(5))
    assert set(run.data.metrics) == {"train/loss"}
    assert run.data.tags["hasten.note"] == "y"
    assert run.info.status == "FINISHED"


def test_trials_are_nested_under_their_study(tracking, client, study):
    parent = tracking.open(
        RunIdentity(experiment=study, name=study, kind="study", tags={"hasten.study": study})
    )
    children = [tracking.open(trial_of(study, name, parent.run_id)) for name in ("a", "b")]
    assert len({parent.run_id, *(child.run_id for child in children)}) == 3
    found = client.search_runs(
        [tracking.experiment_id(study)],
        f"tags.`mlflow.parentRunId` = '{parent.run_id}' and tags.kind = 'trial'",
    )
    assert {run.info.run_id for run in found} == {child.run_id for child in children}
    for tracker in (*children, parent):
        tracker.close("finished")


@pytest.mark.parametrize(
    ("end", "status"), [("finished", "FINISHED"), ("failed", "FAILED"), ("stopped", "KILLED")]
)
def test_an_end_has_its_status(tracking, client, study, end, status):
    tracker = tracking.open(trial_of(study, end))
    tracker.close(end)
    tracker.close("failed")  # the first word counts
    assert client.get_run(tracker.run_id).info.status == status


def test_everything_arrives(tracking, client, study):
    tracker = tracking.open(trial_of(study, "a"))
    for step, loss in [(0, 3.0), (64, 1.0), (128, 2.0)]:
        tracker.metrics({"eval/loss": loss, "train/loss": loss / 2}, step=step)
        tracker.image("samples/fixed_noise", IMAGE, step=step)
    tracker.image("samples/fixed_noise", IMAGE, step=128)
    tracker.artifact("config/resolved.yaml", b"name: a\n")
    tracker.tags({"hasten.stopped_by": "asha"})
    tracker.close("finished")
    run = client.get_run(tracker.run_id)
    assert run.data.metrics == {
        "eval/loss": 2.0,
        "train/loss": 1.0,
        "best/eval/loss": 1.0,
        "final/eval/loss": 2.0,
    }
    assert run.data.tags["hasten.stopped_by"] == "asha"
    assert run.data.tags["mlflow.loggedImages"] == "True"
    assert len(images(client, tracker.run_id)) == 3
    assert [file.path for file in client.list_artifacts(tracker.run_id, "config")] == ["config/resolved.yaml"]


def test_resuming_from_an_earlier_checkpoint_leaves_neither_gap_nor_duplicate(tracking, client, study):
    identity = trial_of(study, "a")
    first = tracking.open(identity)
    for step in range(101):
        first.metrics({"train/loss": float(step)}, step=step)
    first.image("samples/fixed_noise", IMAGE, step=0)
    first.close("stopped")
    second = tracking.open(identity)
    for step in range(50, 151):
        second.metrics({"train/loss": float(step)}, step=step)
    second.image("samples/fixed_noise", IMAGE, step=0)
    second.close("finished")
    assert steps(client, second.run_id, "train/loss") == list(range(151))
    assert len(images(client, second.run_id)) == 1


def test_a_close_in_mid_request_makes_nobody_send_its_points_again(
    server, tracking, client, study, monkeypatch
):
    identity, asked, answered = trial_of(study, "slow"), threading.Event(), threading.Event()
    log = Mlflow.log

    def slow(self, *points):
        is_first = not asked.is_set()
        asked.set()
        if is_first:
            time.sleep(3.0)
        log(self, *points)
        if is_first:
            answered.set()

    monkeypatch.setattr(Mlflow, "log", slow)
    hasty = Tracking(server.uri, tracking.spool, close_seconds=0.5)
    first = hasty.open(identity)
    first.metrics({"eval/loss": 0.5}, step=64)
    assert asked.wait(20)
    first.close("failed")
    second = tracking.open(identity)  # the server still works on the request of the first one
    second.metrics({"eval/loss": 0.5}, step=64)
    second.metrics({"eval/loss": 0.4}, step=128)
    second.close("finished")
    assert answered.wait(20)
    assert second.run_id == first.run_id
    assert steps(client, second.run_id, "eval/loss") == [64, 128]


@pytest.mark.parametrize("how", [{}, {"required": False, "fresh": True}], ids=["looked for", "fresh"])
def test_a_create_whose_answer_is_lost_makes_no_second_run(how, server, client, tmp_path, study):
    with lossy_proxy(server.port, lose="/mlflow/runs/create") as port:
        tracking = Tracking(f"http://127.0.0.1:{port}", tmp_path / "spool")
        tracker = tracking.open(trial_of(study, "a"), **how)
        tracker.metrics({"train/loss": 1.0}, step=0)
        tracker.close("finished")
    runs = client.search_runs([client.get_experiment_by_name(study).experiment_id])
    assert [(run.info.run_id, run.info.status) for run in runs] == [(tracker.run_id, "FINISHED")]


@contextmanager
def lossy_proxy(target, *, lose):
    """Passes everything on to the server, but drops its first answer to a request for ``lose``."""
    listener = socket.create_server(("127.0.0.1", 0))
    lost = threading.Event()

    def relay(source):
        with source, socket.create_connection(("127.0.0.1", target)) as sink:
            request = source.recv(1 << 20)
            while b"\r\n\r\n" not in request:
                request += source.recv(1 << 20)
            head, _, body = request.partition(b"\r\n\r\n")
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection")]
            length = next(
                (int(x.split(b":")[1]) for x in lines if x.lower().startswith(b"content-length")), 0
            )
            while len(body) < length:
                body += source.recv(1 << 20)
            sink.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
            answer = b"".join(iter(lambda: sink.recv(1 << 20), b""))
            if lose.encode() in lines[0] and not lost.is_set():
                lost.set()
                return
            source.sendall(answer)

    def accept():
        while True:
            try:
                source, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=relay, args=(source,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
    assert lost.is_set()


def test_statuses_are_made_true(tracking, client, study):
    trackers = {
        name: tracking.open(trial_of(study, name)) for name in ("done", "asha", "lost", "remote", "here")
    }
    run_ids = {name: tracker.run_id for name, tracker in trackers.items()}
    # What a kill leaves: runs that are RUNNING and have nobody, because their spool is elsewhere.
    elsewhere = Tracking(tracking.uri, tracking.spool.parent / "another machine")
    here = Tracking(tracking.uri, tracking.spool)
    changed = elsewhere.reconcile(
        study,
        {"done": "finished", "asha": "finished"},
        stopped_by={"asha": "asha"},
        alive=["remote", "here"],
    )
    assert sorted(changed) == ["asha", "done", "lost"]
    assert here.reconcile(study, {}) == []  # the others are alive on this machine
    assert here.reconcile(study, {"here": "failed"}) == ["here"]  # whoever lists a trial knows better
    status = {name: client.get_run(run_id).info.status for name, run_id in run_ids.items()}
    assert status == {
        "done": "FINISHED",
        "asha": "FINISHED",
        "lost": "KILLED",
        "remote": "RUNNING",
        "here": "FAILED",
    }
    assert client.get_run(run_ids["asha"]).data.tags["hasten.stopped_by"] == "asha"
    for tracker in trackers.values():
        tracker.close("finished")
    assert here.reconcile(study, {"lost": "failed"}) == ["lost"]
    assert here.reconcile(study, {"lost": "failed"}) == []


def test_final_values_can_come_from_outside(tracking, client, study):
    tracker = tracking.open(trial_of(study, "a"))
    tracker.close("finished")
    tracking.log_final(tracker.run_id, {"eval/loss": 0.5}, step=96_000)
    assert client.get_run(tracker.run_id).data.metrics == {"final/eval/loss": 0.5}


def test_a_link_opens_the_shared_view(tracking, client, study):
    tracking.set_shared_view(
        study, ["best/eval/loss", "final/eval/frechet"], ["optimizer.lr"], image_step=6400, note="# Why"
    )
    experiment_id = tracking.experiment_id(study)
    for charts in (True, False):
        address = urlsplit(tracking.link(study, charts=charts))
        path, _, query = address.fragment.partition("?")
        assert path == f"/experiments/{experiment_id}/runs"
        assert parse_qs(query).get("compareRunsMode") == (["CHART"] if charts else None)
        assert parse_qs(query)["workflowType"] == ["machine_learning"]
        assert parse_qs(query)["viewStateShareKey"] == [shared_view.KEY]
    tags = client.get_experiment(experiment_id).tags
    assert tags[f"mlflow.sharedViewState.{shared_view.KEY}"].startswith("{")
    assert tags["mlflow.note.content"] == "# Why"


def test_a_doctor_gets_a_round_trip_and_leaves_nothing(server, client):
    assert server.uri in round_trip(server.uri)
    assert not [e for e in client.search_experiments() if "doctor" in e.name]


def test_a_server_that_is_down_is_told_at_once(tmp_path, study):
    tracking = Tracking(f"http://127.0.0.1:{free_port()}", tmp_path)
    started = time.monotonic()
    with pytest.raises(Fault, match="connection refused"):
        tracking.open(trial_of(study, "a"))
    with pytest.raises(Fault, match="connection refused"):
        round_trip(tracking.uri)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("status", "words"), [(401, "credentials"), (403, "credentials"), (404, "not MLflow")]
)
def test_a_proxy_that_refuses_is_understood(status, words, monkeypatch, tmp_path, study):
    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(status)

        def log_message(self, *words):
            pass

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-secret-word")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        with pytest.raises(Fault, match=words) as caught:
            round_trip(f"http://127.0.0.1:{proxy.server_port}")
        offline = Tracking(f"http://127.0.0.1:{proxy.server_port}", tmp_path, close_seconds=1.0)
        offline.open(trial_of(study, "a"), required=False).close("finished")
        proxy.shutdown()
    assert "a-secret-word" not in str(caught.value)
    kept = [path.read_text() for path in tmp_path.rglob("*.json*")]
    assert kept
    assert "a-secret-word" not in " ".join(kept)


def test_an_address_with_a_password_is_refused(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Tracking("http://me:a-secret-word@127.0.0.1:5000", tmp_path)
    assert "a-secret-word" not in str(caught.value)
    with pytest.raises(ConfigError):
        Tracking("sqlite:///mlflow.db", tmp_path)


def test_a_tracking_travels_in_a_pickle(tracking):
    assert pickle.loads(pickle.dumps(tracking)) == tracking


VICTIM = """
import sys, time
from pathlib import Path
import numpy as np
from hasten.platform.tracking import RunIdentity, Tracking
uri, spool, study, trial = sys.argv[1:]
tags = {"hasten.study": study, "hasten.trial": trial, "hasten.fingerprint": "f-" + trial}
identity = RunIdentity(experiment=study, name=trial, kind="trial", tags=tags)
tracker = Tracking(uri, Path(spool)).open(identity)
print(tracker.run_id, flush=True)
sys.stdin.readline()
for step in range(500):
    tracker.metrics({"train/loss": float(step)}, step=step)
tracker.image("samples/fixed_noise", np.zeros((4, 4, 3), np.uint8), step=0)
time.sleep(1.0)
print("logged", flush=True)
time.sleep(600)
"""


def cost_of_calls(tracker, first):
    """Median seconds of a call, one call a step for 1,000 steps."""
    seconds = []
    for step in range(first, first + 1000):
        started = time.perf_counter()
        tracker.metrics({"train/loss": float(step), "train/lr": 1e-3}, step=step)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def test_an_outage_loses_nothing_and_blocks_nobody(server, tracking, client, study):
    """The server dies under a training run, a trial starts while it is away, and two processes are killed."""
    command = [sys.executable, "-c", VICTIM, server.uri, str(tracking.spool), study]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    victims = {name: subprocess.Popen([*command, name], **pipes) for name in ("resumed", "forgotten")}
    run_ids = {name: victim.stdout.readline().strip() for name, victim in victims.items()}
    tracker = tracking.open(trial_of(study, "survivor"))
    up = cost_of_calls(tracker, 0)
    server.kill()

    # Nothing of this waits for the server, and nothing is lost.
    down = cost_of_calls(tracker, 1000)
    tracker.image("samples/fixed_noise", IMAGE, step=1000)
    late = tracking.open(trial_of(study, "late"), required=False)
    late.metrics({"eval/loss": 0.5}, step=7)
    for victim in victims.values():
        victim.stdin.write("go\n")
        victim.stdin.flush()
        assert victim.stdout.readline() == "logged\n"
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        victim.stdin.close()
        victim.stdout.close()
    assert down < 20 * up + 1e-3

    server.start()
    tracker.close("finished")
    late.close("finished")
    assert steps(client, tracker.run_id, "train/loss") == list(range(2000))
    assert steps(client, tracker.run_id, "train/lr") == list(range(2000))
    assert len(images(client, tracker.run_id)) == 1
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert steps(client, late.run_id, "final/eval/loss") == [7]

    # The next attempt of a killed run sends what its predecessor could not.
    resumed = tracking.open(trial_of(study, "resumed"))
    assert resumed.run_id == run_ids["resumed"]
    for step in range(400, 600):
        resumed.metrics({"train/loss": float(step)}, step=step)
    resumed.close("finished")
    assert steps(client, resumed.run_id, "train/loss") == list(range(600))
    assert len(images(client, resumed.run_id)) == 1

    # Any later command sends the rest, and says that the other one was killed.
    assert client.get_run(run_ids["forgotten"]).info.status == "RUNNING"
    assert tracking.replay() == 1
    assert tracking.replay() == 0
    assert steps(client, run_ids["forgotten"], "train/loss") == list(range(500))
    assert len(images(client, run_ids["forgotten"])) == 1
    assert client.get_run(run_ids["forgotten"]).info.status == "KILLED"
    assert not list(Path(tracking.spool).iterdir())


def test_a_close_during_an_outage_is_bounded_and_the_next_command_ends_the_run(
    server, client, tmp_path, study
):
    tracking = Tracking(server.uri, tmp_path / "spool", close_seconds=1.0)
    tracker = tracking.open(trial_of(study, "a"))
    server.kill()
    try:
        tracker.metrics({"eval/loss": 0.25}, step=10)
        started = time.monotonic()
        tracker.close("failed")
        assert time.monotonic() - started < 30
        assert tracking.replay() == 0
    finally:
        server.start()
    deadline = time.monotonic() + 60
    while not tracking.replay() and time.monotonic() < deadline:
        time.sleep(0.2)  # the closed tracker lets go of its spool when its last request has failed
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FAILED"
    assert run.data.metrics["final/eval/loss"] == 0.25
