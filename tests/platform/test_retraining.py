"""Days of retraining on real servers: data arrive, ticks die, challengers are worse, equal and better."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient
from rich.console import Console

from hasten.platform import database, settings, training
from hasten.platform.registry import Registry, Version
from hasten.platform.retraining import assessment, freshness, pipeline, status, telling, tick
from hasten.platform.retraining.ledger import Ledger, Tick
from hasten.platform.retraining.pipeline import Pipeline
from hasten.platform.services import Services
from hasten.platform.stack import launcher
from hasten.trainers import config, specs
from hasten.trainers.datasets import data
from hasten.trainers.errors import ConfigError, Fault, Stopped
from hasten.trainers.store import Folder

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

QUIET = Console(quiet=True)
TINY = {
    "model.channels": 8,
    "budget.images": 640,
    "eval.loss": {"every": 1.0, "images": 200},
    "eval.samples": {"images": 100, "steps": 4},
    "eval.grid": {"every": 1.0, "images": 4, "steps": 4},
}
WORSE = {"budget.images": 128}
BETTER = {"budget.images": 2560}
LENIENT = {"max_frechet_ratio": None, "min_diversity": None, "min_unseen": None, "max_latency_ratio": None}


@pytest.fixture
def arrive(stack: Services) -> Iterator[Callable[[int], str]]:
    """Lets so many images have arrived by now, in a data set of this test's own; says its digest."""
    name = f"arrivals-{os.urandom(4).hex()}"
    folder = Folder(f"{stack.storage_uri}/data/{name}")
    pixels, labels = data.digits()

    def write(count: int) -> str:
        manifest = data.write(
            folder, name=name, source="the post", pixels=pixels[:count], labels=labels[:count]
        )
        return manifest.digest

    write.source = name  # type: ignore[attr-defined]
    yield write
    folder.delete_folder("")


def pipeline_of(
    name: str, arrive: Any = None, changes: Mapping[str, Any] | None = None, **blocks: Any
) -> Pipeline:
    overrides = {**TINY, **(changes or {})}
    if arrive is not None:
        overrides["data.source"] = arrive.source
    fields = {"name": name, "model": name, "recipe": "digits-demo", "overrides": overrides}
    return config.validate(Pipeline, {"guardrails": LENIENT, **fields, **blocks})


def run(of: Pipeline, *, forced: bool = False) -> dict[str, Any]:
    return tick.tick(of, forced=forced, console=QUIET)


def story(name: str) -> list[Tick]:
    return Ledger(database.opened(settings.load().database), name).entries()


def champion(services: Services, name: str) -> Version | None:
    return Registry(services.tracking_uri, name).champion()


class Watch:
    """Looks at a model's champion all the time: once there is one, there has to be a valid one."""

    def __init__(self, services: Services, model: str) -> None:
        self._registry, self._over = Registry(services.tracking_uri, model), threading.Event()
        self.looks, self.without = 0, 0
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(0.05):
            found = self._registry.champion()
            self.looks += 1
            if found is None or not found.tags.get("hasten.run_uri"):
                self.without += 1

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_days_of_arrivals(stack: Services, arrive: Any) -> None:
    """First model, a quiet day, too few images, equal luck, a mistake, an improvement, and a quiet end."""
    name = "days"
    trigger = {"min_new_samples": 100}

    def day(images: int, changes: Mapping[str, Any] | None = None, *, forced: bool = False) -> dict[str, Any]:
        arrive(images)
        return run(pipeline_of(name, arrive, changes, trigger=trigger), forced=forced)

    first = day(800)
    assert (first["decision"], first["version"]) == ("promoted", "1")
    with Watch(stack, name) as watch:
        quiet = day(800)
        assert (quiet["decision"], quiet["key"]) == ("unchanged", first["key"])
        few = day(850)
        assert few["decision"] == "not_due"
        assert "50 images are new" in few["reason"]
        equal = day(1000)
        assert (equal["decision"], equal["version"]) == ("rejected", "2"), equal
        assert day(1000)["decision"] == "unchanged"
        mistake = day(1000, WORSE)
        assert (mistake["decision"], mistake["version"]) == ("rejected", "3")
        assert "not better" in mistake["reason"]
        lucky = day(1000, forced=True)
        assert lucky["decision"] == "rejected", lucky
        assert day(1000, forced=True)["decision"] == "unchanged", "this hour was trained for"
        better = day(1000, BETTER)
        assert (better["decision"], better["version"]) == ("promoted", "5"), better
        assert "standard deviations" in better["reason"]
        assert day(1000, BETTER)["decision"] == "unchanged"
    assert watch.looks > 10
    assert watch.without == 0
    known = MlflowClient(stack.tracking_uri).get_registered_model(name).aliases
    assert {alias: str(version) for alias, version in known.items() if alias != "challenger"} == {
        "champion": "5",
        "previous": "1",
    }
    told = [(each.decision, each.version) for each in story(name)]
    assert told == [
        ("promoted", "1"),
        ("unchanged", "1"),
        ("not_due", None),
        ("rejected", "2"),
        ("unchanged", "2"),
        ("rejected", "3"),
        ("rejected", "4"),
        ("unchanged", "4"),
        ("promoted", "5"),
        ("unchanged", "5"),
    ]
    _, fresh = freshness.kept(database.opened(settings.load().database))[name]
    assert (fresh.champion, fresh.images, fresh.new_images) == ("5", 1000, 0)
    client = MlflowClient(stack.tracking_uri)
    experiment = client.get_experiment_by_name(f"retrain-{name}")
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'pipeline'")
    assert len(runs) == 1
    points = client.get_metric_history(runs[0].info.run_id, "freshness/new_fraction")
    shares = [point.value for point in sorted(points, key=lambda point: point.step)]
    assert shares[:4] == [0.0, 0.0, pytest.approx(50 / 850), pytest.approx(200 / 1000)]
    assert shares[-1] == 0.0


def test_what_is_new_in_the_data(stack: Services, arrive: Any) -> None:
    digest = arrive(800)
    of = pipeline_of("new", arrive)
    run(of)
    pixels, labels = data.digits()
    folder = Folder(f"{stack.storage_uri}/data/{arrive.source}")
    data.write(folder, name=arrive.source, source="", pixels=255 - pixels[600:1000], labels=labels[600:1000])
    found = telling.dry_run(of, forced=False, console=QUIET)
    assert found["decision"] == "due"
    assert found["freshness"]["new_images"] == 400
    assert found["freshness"]["drift"] > 3.0 * found["freshness"]["drift_floor"]
    assert found["cost"]["hours"] > 0.0
    assert len(story("new")) == 1, "a dry run leaves nothing"
    arrive(800)
    back = run(of)
    assert (back["decision"], back["version"]) == ("unchanged", "1"), "a snapshot that was seen before"
    kept = data.read(folder.uri, digest)
    assert kept.manifest.count == 800


class Death(BaseException):
    """What a kill looks like from inside: nothing of ours catches it, and nothing more is written."""


class Deaths:
    """Lets a process die right after its n-th deed that others can see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left, self.deeds, self.dead = after, [], False
        places: list[tuple[Any, str]] = [
            (training, "run"),
            (Registry, "register"),
            (Registry, "nominate"),
            (Registry, "tag"),
            (MlflowClient, "set_registered_model_alias"),
            (Ledger, "end"),
        ]
        for owner, name in places:
            monkeypatch.setattr(owner, name, self._mortal(name, getattr(owner, name)))

    def _mortal(self, name: str, deed: Callable[..., Any]) -> Callable[..., Any]:
        def do(*arguments: Any, **named: Any) -> Any:
            if self.dead:
                raise Death(name)
            done = deed(*arguments, **named)
            self.deeds.append(name)
            self.left -= 1
            if self.left == 0:
                self.dead = True
                raise Death(name)
            return done

        return do


def test_a_tick_that_dies_anywhere_is_gone_on_with(stack: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any single deed, with a champion there whose successor is better: the end is always the same."""
    expected, after, deeds = None, 0, []
    while True:
        after += 1
        name = f"mortal-{after}"
        assert run(pipeline_of(name, changes=WORSE))["decision"] == "promoted"
        better = pipeline_of(name, changes=BETTER)
        with monkeypatch.context() as patched:
            deaths = Deaths(patched, after)
            try:
                run(better)
            except Death:
                assert champion(stack, name) is not None
            deeds = deaths.deeds
        again = run(better)
        known = MlflowClient(stack.tracking_uri).get_registered_model(name).aliases
        aliases = {alias: str(version) for alias, version in known.items() if alias != "challenger"}
        versions = Registry(stack.tracking_uri, name).versions()
        end = (
            again["version"],
            aliases,
            [version.tags.get("hasten.retrain.decision") for version in versions],
        )
        expected = expected or end
        assert end == expected, f"died after deed {after}, {deeds[-1]}"
        if not deaths.dead:
            break
        assert [each.decision for each in story(name)][1] in ("died", "promoted")
    assert expected == ("2", {"champion": "2", "previous": "1"}, ["promoted", "promoted"])
    assert after > 10
    assert {"run", "register", "tag", "set_registered_model_alias", "end"} <= set(deeds)


def test_without_knowing_the_seeds_nothing_is_promoted(stack: Services) -> None:
    gate = {"calibration_seeds": 0}
    assert run(pipeline_of("blind", changes=WORSE, gate=gate))["decision"] == "promoted"
    found = run(pipeline_of("blind", changes=BETTER, gate=gate))
    assert found["decision"] == "rejected"
    assert "cannot tell" in found["reason"]


def test_calibration_is_kept_and_inherited(stack: Services) -> None:
    """It is trained once; a champion of another recipe does not take it over."""
    assert run(pipeline_of("kept", changes=WORSE))["decision"] == "promoted"
    better = run(pipeline_of("kept", changes=BETTER))
    assert better["decision"] == "promoted"
    registry = Registry(stack.tracking_uri, "kept")
    second, first = registry.versions()
    calibration = json.loads(first.tags["hasten.calibration"])
    assert len(calibration) == 3
    assert "hasten.calibration" not in second.tags
    from hasten.platform.registry import registered_fingerprints

    needed = registered_fingerprints(stack.tracking_uri)
    assert {uri.rpartition("-")[2] for uri in calibration} <= needed, "`hasten clean` leaves them alone"


def test_guardrails_hold_back_what_has_a_lower_loss(stack: Services) -> None:
    assert run(pipeline_of("railed", changes=WORSE))["decision"] == "promoted"
    rails = {**LENIENT, "max_megabytes": 0.001}
    found = run(pipeline_of("railed", changes=BETTER, guardrails=rails))
    assert found["decision"] == "rejected"
    assert "guardrails.max_megabytes 0.001" in found["reason"]


def test_all_guardrails_are_measured(stack: Services) -> None:
    rails = {"max_frechet_ratio": 1e-9, "min_diversity": 1.0, "min_unseen": 1e-9, "max_latency_ratio": 1e-9}
    assert run(pipeline_of("measured", changes=BETTER, guardrails=rails))["decision"] == "promoted"
    found = run(pipeline_of("measured", changes=WORSE, guardrails=rails))
    assert found["decision"] == "rejected"
    assert "guardrails.max_frechet_ratio" in found["reason"]
    assert "guardrails.max_latency_ratio" in found["reason"]
    (newest, _) = Registry(stack.tracking_uri, "measured").versions()
    measured = json.loads(newest.tags["hasten.retrain.measured"])
    expected = {"eval/loss", "eval/frechet", "eval/recall", "eval/memorization", "eval/nearest_unseen"}
    assert expected <= measured.keys()
    assert all(np.isfinite(value) for value in measured.values())


def test_a_diverging_recipe_is_rejected_once(stack: Services) -> None:
    assert run(pipeline_of("wild"))["decision"] == "promoted"
    wild = pipeline_of("wild", changes={"optimizer": {"kind": "sgd", "lr": 1e12, "warmup": 0.0}})
    first = run(wild)
    assert (first["decision"], first["version"]) == ("rejected", None), first
    again = run(wild)
    assert again["decision"] == "unchanged"
    assert "rejected" in again["reason"]


def test_limits(stack: Services) -> None:
    with pytest.raises(ConfigError) as caught:
        run(pipeline_of("dear", limits={"gpu_hours": 1e-9}))
    assert caught.value.subject == "limits.gpu_hours"
    assert [each.decision for each in story("dear")] == ["failed"]
    assert run(pipeline_of("dear", limits={"gpu_hours": 10.0}))["decision"] == "promoted"


def test_a_warm_start_from_the_champion(stack: Services, arrive: Any) -> None:
    arrive(800)
    origin = {"config": "champion", "weights": "champion"}
    of = pipeline_of("warm", arrive, origin=origin)
    assert run(of)["decision"] == "promoted"
    arrive(1200)
    assert run(of)["decision"] == "promoted", "twice the training is better by far"
    second, first = Registry(stack.tracking_uri, "warm").versions()
    run_of = MlflowClient(stack.tracking_uri).get_run(second.run_id)
    assert run_of.data.params["initial.run"] == first.tags["hasten.run_uri"].rpartition("/")[2]
    assert run(of)["decision"] == "unchanged", "a new champion is no reason to train again"


def test_a_stopped_tick_says_so(stack: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise Stopped("x", "stopped at a checkpoint")

    for replaced, error in ((stop, Stopped), (lambda *_, **__: {"mlflow_run_id": None}, Fault)):
        with monkeypatch.context() as patched:
            patched.setattr(training, "run", replaced)
            with pytest.raises(error):
                run(pipeline_of("halted"))
    assert run(pipeline_of("halted"))["decision"] == "promoted"
    assert [each.decision for each in story("halted")] == ["stopped", "failed", "promoted"]


class Listener(ThreadingHTTPServer):
    """A webhook that remembers what it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Listening)
        self.told: list[dict[str, Any]] = []


class _Listening(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002


def test_a_webhook_is_told_of_decisions_and_failures(
    stack: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        of = pipeline_of("loud", notify={})
        run(of)  # no address yet: it waits
        monkeypatch.setenv("HASTEN_WEBHOOK_URL", f"http://127.0.0.1:{listener.server_port}/secret-path")
        run(of)
        with pytest.raises(ConfigError):
            run(pipeline_of("loud", changes={"budget.images": 700}, notify={}, limits={"gpu_hours": 1e-9}))
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
    assert [each["decision"] for each in listener.told] == ["promoted", "failed"], (
        "unchanged is not asked for"
    )
    assert "limits.gpu_hours" in listener.told[1]["text"]
    assert "secret-path" not in json.dumps([asdict(each) for each in story("loud")])


def test_status_shows_pipelines(stack: Services) -> None:
    run(pipeline_of("shown"))
    console = Console(record=True, width=120, file=io.StringIO())
    rows = status.show(settings.load().database, console)
    (row,) = [each for each in rows if each["pipeline"] == "shown"]
    assert (row["decision"], row["champion"], row["freshness/new_fraction"]) == ("promoted", "1", 0.0)
    assert "shown" in console.export_text()
    silent = Console(file=io.StringIO(), width=120)
    assert status.show("postgresql://nobody@127.0.0.1:9/x", silent) == []
    assert "the database failed" in silent.file.getvalue()  # type: ignore[attr-defined]
    assert status.show("sqlite:////nowhere/hasten.db", silent) == []


def test_mlflow_goes_away_while_a_challenger_is_trained(stack: Services, tmp_path: Path) -> None:
    """The tick fails, its training does not: the next tick, for which MLflow is started again, goes on."""
    file = tmp_path / "lonely.yaml"
    file.write_text(pipeline_of("lonely", changes={"budget.images": 6400}).model_dump_json())
    command = [sys.executable, "-m", "hasten.platform", "retrain", str(file), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "to go" not in process.stderr.readline():
        assert process.poll() is None
    part = next(part for part in launcher.status(settings.load()) if part.part == "tracking")
    for server in [*psutil.Process(part.pid).children(recursive=True), psutil.Process(part.pid)]:
        server.kill()
    _, told = process.communicate(timeout=200)
    assert process.returncode == 1, told
    assert "Traceback" not in told
    again = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    found = json.loads(again.stdout.splitlines()[-1])
    assert (found["decision"], found["version"]) == ("promoted", "1")
    assert "to go" not in again.stderr, "nothing is trained twice"
    assert [each.decision for each in story("lonely")] == ["failed", "promoted"]


def test_from_the_winner_of_a_study(stack: Services, tmp_path: Path) -> None:
    """The study runs first, its arms tell how much the seed does, and what won is trained."""
    origin = {"config": "study", "study": _study(tmp_path, "of-a-study")}

    def of(changes: Mapping[str, Any], *, first: bool = False) -> Pipeline:
        fields = {"name": "studied", "model": "studied", "recipe": "digits-demo", "overrides": dict(changes)}
        blocks = {"guardrails": LENIENT, "origin": {**origin, "run_study": first}}
        return config.validate(Pipeline, fields | blocks)

    with pytest.raises(ConfigError, match="is not over"):
        run(of({}))
    found = run(of({}, first=True))
    assert found["decision"] == "promoted", found
    (version,) = Registry(stack.tracking_uri, "studied").versions()
    params = MlflowClient(stack.tracking_uri).get_run(version.run_id).data.params
    assert float(params["optimizer.lr"]) == 4e-3, "the arm that won"
    assert run(of({}, first=True))["decision"] == "unchanged"
    better = run(of(BETTER))
    assert better["decision"] == "promoted", better
    assert "within the arms of study of-a-study" in better["reason"]


def _study(folder: Path, name: str) -> str:
    """A study of two arms, of which the second trains longer, and its base."""
    base = config.override(specs.load_raw("digits-demo"), TINY)
    (folder / "base.yaml").write_text(json.dumps(base))
    study = {
        "name": name,
        "question": "Does training help?",
        "base": str(folder / "base.yaml"),
        "arms": {"baseline": {"optimizer": {**base["optimizer"], "lr": 1e-5}}, "faster": {}},
        "baseline": "baseline",
        "seeds": [0, 1, 2],
        "objective": {"metric": "eval/loss", "mode": "min"},
    }
    (folder / "study.yaml").write_text(json.dumps(study))
    return str(folder / "study.yaml")


def test_equal_ticks_have_equal_keys(stack: Services) -> None:
    source = assessment.origins.source(pipeline_of("keys"), None, stack, console=QUIET)
    keys = {
        assessment.key_of(source, "scratch"),
        assessment.key_of(source, "champion"),
        assessment.key_of(source, "scratch", "forced 2026-11-24T04"),
    }
    assert len(keys) == 3
    assert all(len(key) == 12 for key in keys)


def test_shipped_pipelines_are_sound() -> None:
    for path in Path(pipeline.PIPELINES).glob("*.yaml"):
        assert pipeline.load(path.stem, {}).name == path.stem
