"""Registered models on a real MLflow: loaded, served, listed, promoted, rolled back, verified."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from hasten.platform import picturing, registry_cli
from hasten.platform.registry import Registry, Version, verification
from hasten.platform.retraining import tick
from hasten.platform.retraining.pipeline import Pipeline
from hasten.platform.services import Services
from hasten.trainers import config
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.records import RunResult

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

QUIET = Console(quiet=True)
NAME = "painter"
TINY = {
    "conditioning": {"kind": "classes", "dropout": 0.1},
    "model.channels": 8,
    "budget.images": 640,
    "eval.loss": {"every": 0.5, "images": 100},
    "eval.samples": {"images": 64, "steps": 4},
    "eval.grid": {"every": 1.0, "images": 4, "steps": 4},
}


def trained(name: str, **changes: Any) -> dict[str, Any]:
    guardrails = dict.fromkeys(("max_frechet_ratio", "min_diversity", "min_unseen", "max_latency_ratio"))
    fields = {"name": name, "model": name, "recipe": "digits-demo", "guardrails": guardrails}
    of = config.validate(Pipeline, {**fields, "overrides": {**TINY, **changes}})
    return tick.tick(of, console=QUIET)


@pytest.fixture(scope="module")
def registry(stack: Services) -> Registry:
    """A model of two versions, both once champion."""
    before = {"MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI")}
    assert before["MLFLOW_TRACKING_URI"] in (None, stack.tracking_uri)
    assert trained(NAME)["decision"] == "promoted"
    assert trained(NAME, **{"budget.images": 2560})["decision"] == "promoted"
    return Registry(stack.tracking_uri, NAME)


@pytest.fixture
def tracked(stack: Services) -> Iterator[None]:
    mlflow.set_tracking_uri(stack.tracking_uri)
    mlflow.set_registry_uri(stack.tracking_uri)
    yield
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def run(*arguments: str) -> dict[str, Any]:
    """The JSON that a command of ``hasten registry`` ends with."""
    done = CliRunner().invoke(registry_cli.app, [*arguments, "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def pixels(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_it_loads_and_predicts_what_hasten_samples(registry: Registry, tracked: None, tmp_path: Path) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    found = model.predict(pd.DataFrame([{"n": 12, "seed": 7, "label": None}]))
    assert list(found["index"]) == list(range(12))
    assert list(found["label"]) == [*range(10), 0, 1], "all classes in turn"
    picturing.sample(f"models:/{NAME}@champion", tmp_path / "s.npz", count=12, seed=7, console=QUIET)
    expected = np.load(tmp_path / "s.npz")["images"][..., 0]
    assert (np.stack([pixels(data) for data in found["data"]]) == expected).all()
    threes = model.predict(pd.DataFrame([{"n": 2, "seed": 7, "label": 3}, {"n": 1, "seed": 9, "label": 4}]))
    assert list(threes["label"]) == [3, 3, 4]
    fewer = model.predict(pd.DataFrame([{"n": 1, "seed": 7}]), params={"steps": 1})
    assert fewer["data"][0] != found["data"][0]


@pytest.mark.parametrize(
    ("row", "params", "message"),
    [
        ({"n": 0, "seed": 1}, {}, "n: must be 1 or more, is 0"),
        ({"n": 1, "seed": -1}, {}, "seed: must be 0 or more"),
        ({"n": 1, "seed": 1, "label": 10}, {}, "label: 10 is not one of the model's, 0 to 9"),
        ({"n": 5000, "seed": 1}, {}, "more than 4,096 images at once"),
        ({"n": 1, "seed": 1}, {"steps": 0}, "steps: must be 1 or more"),
        ({"n": "many", "seed": 1}, {}, "column n"),
        ({"seed": 1}, {}, "missing inputs"),
    ],
)
def test_bad_wishes(registry: Registry, tracked: None, row: Any, params: Any, message: str) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    with pytest.raises(MlflowException, match=message) as caught:
        model.predict(pd.DataFrame([row]), params=params)
    assert caught.value.get_http_status_code() == 400


def test_what_a_version_holds(registry: Registry, stack: Services, tmp_path: Path) -> None:
    version = registry.champion()
    assert version is not None
    folder = registry.download(version, tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".bin", ".ckpt"))]
    assert [name for name in files if name.endswith(".safetensors")]
    described = (tmp_path / "MLmodel").read_text()
    for path in (str(tmp_path.parent), "/tmp", os.getcwd(), str(Path(sys.prefix).parent)):
        assert path not in described
    assert "signature" in described
    assert "input_example.json" in files
    known = json.loads((folder / "hasten.json").read_text())
    result = RunStore(version.tags["hasten.run_uri"]).result()
    assert result is not None
    assert known["recipe"] == result.spec
    assert known["data_digest"] == result.data_digest == version.tags["hasten.data.digest"]
    assert known["metrics"]["eval/loss"] == result.metrics["eval/loss"]
    assert known["evaluation"]["eval"]["loss"]["images"] == 100
    client = MlflowClient(stack.tracking_uri)
    kept = client.get_model_version(NAME, version.number)
    assert "hasten registry verify" in kept.description
    outputs = client.get_run(version.run_id).outputs.model_outputs
    linked = [client.get_logged_model(each.model_id) for each in outputs]
    assert [(each.name, each.source_run_id) for each in linked] == [(NAME, version.run_id)]


def test_it_is_served(registry: Registry, stack: Services, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}@champion"]
    command += ["--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    log = tmp_path / "log"
    with log.open("w") as output:
        uris = {"MLFLOW_TRACKING_URI": stack.tracking_uri, "MLFLOW_REGISTRY_URI": stack.tracking_uri}
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # as in an active environment
        server = subprocess.Popen(
            command,
            env=os.environ | uris | path,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            until = time.monotonic() + 120
            while ask(port, "ping", None)[0] != 200:
                assert time.monotonic() < until, log.read_text()
                assert server.poll() is None, log.read_text()
                time.sleep(0.3)
            rows = {"dataframe_records": [{"n": 2, "seed": 7, "label": 3}], "params": {"steps": 4}}
            code, found = ask(port, "invocations", rows)
            assert code == 200, found
            assert [row["label"] for row in found["predictions"]] == [3, 3]
            assert pixels(found["predictions"][0]["data"]).shape == (8, 8)
            again = ask(port, "invocations", rows)[1]
            assert again == found, "the same seed, the same images"
            code, found = ask(port, "invocations", {"dataframe_records": [{"n": 0, "seed": 7}]})
            assert code == 400
            assert "must be 1 or more" in found["message"]
            assert "Traceback" not in found["message"]
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


def ask(port: int, path: str, rows: Any) -> tuple[int, Any]:
    data = None if rows is None else json.dumps(rows).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
            return answer.status, json.loads(content) if content.strip() else None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    except OSError:
        return 0, None


def test_list(registry: Registry) -> None:
    found = {each["name"]: each["aliases"] for each in run("list")["models"]}
    assert found[NAME]["champion"] == "2"
    rows = run("list", NAME)["versions"]
    assert [row["version"] for row in rows] == ["2", "1"]
    assert rows[0]["decision"] == "promoted"
    assert rows[0]["run"].startswith("digits-demo-")
    with pytest.raises(ConfigError, match="no such registered model"):
        run("list", "nobody")


def test_promote_and_roll_back(registry: Registry) -> None:
    name = "roller"
    assert trained(name)["decision"] == "promoted"
    with pytest.raises(ConfigError, match="no previous champion"):
        run("rollback", name)
    assert trained(name, **{"budget.images": 2560})["decision"] == "promoted"
    assert run("rollback", name)["aliases"] == {"champion": "1", "previous": "2"}
    rows = {row["version"]: row for row in run("list", name)["versions"]}
    assert rows["2"]["rolled_back"]
    assert not rows["1"]["rolled_back"]
    unchanged = trained(name, **{"budget.images": 2560})
    assert (unchanged["decision"], unchanged["version"]) == ("unchanged", "2"), "no tick brings it back"
    assert run("promote", name, "2")["aliases"] == {"champion": "2", "previous": "1"}
    with pytest.raises(ConfigError, match="no such version; there are 2, 1"):
        run("promote", name, "9")


def test_a_promotion_that_dies_is_repaired_by_doing_it_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, first = registry.versions()
    moves = []

    def mortal(
        self: MlflowClient, *arguments: Any, _move: Any = MlflowClient.set_registered_model_alias
    ) -> None:
        if len(moves) == dying:
            raise KeyboardInterrupt
        moves.append(_move(self, *arguments))

    for dying in (0, 1):  # noqa: B007  it is what `mortal` looks at
        moves.clear()
        with monkeypatch.context() as patched:
            patched.setattr(MlflowClient, "set_registered_model_alias", mortal)
            with pytest.raises(KeyboardInterrupt):
                registry.promote(first)
        assert registry.aliases()["champion"] == "2", "the old one stays until the new one is there"
    registry.promote(first)
    assert registry.aliases() == {"champion": "1", "previous": "2"}
    registry.promote(second)
    assert registry.aliases() == {"champion": "2", "previous": "1"}


def test_verify(registry: Registry, stack: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = run("verify", NAME)
    assert found["ok"]
    assert found["version"] == "2"
    checks = {check["check"]: check["said"] for check in found["checks"]}
    assert checks.keys() == {"files", "weights", "trace"}
    assert "to the bit" in checks["trace"]
    version = registry.champion()
    assert version is not None

    def tampered(self: Registry, version: Any, folder: Path, _load: Any = Registry.download) -> Path:
        place: Path = _load(self, version, folder)
        weights = next(place.rglob("*.safetensors"))
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(bytes(content))
        return place

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "download", tampered)
        with pytest.raises(Fault, match="is not sound: files, weights"):
            run("verify", f"{NAME}@champion")
    result = RunStore(version.tags["hasten.run_uri"]).result()
    assert result is not None
    other = result.model_copy(
        update={
            "history": [
                point.model_copy(update={"metrics": {k: v * 1.001 for k, v in point.metrics.items()}})
                for point in result.history
            ]
        }
    )
    with monkeypatch.context() as patched:
        patched.setattr(RunStore, "result", replaced(version, other))
        (*_, trace) = verification.verify(registry, version, console=QUIET)
        assert not trace.ok
    elsewhere = other.model_copy(update={"environment": other.environment | {"torch": "0.1"}})
    with monkeypatch.context() as patched:
        patched.setattr(RunStore, "result", replaced(version, elsewhere))
        (*_, trace) = verification.verify(registry, version, console=QUIET)
        assert trace.ok, "within a tolerance where the versions are others"
        assert "is allowed" in trace.said
    gone = result.model_copy(update={"data_digest": "0" * 64})
    with monkeypatch.context() as patched:
        patched.setattr(RunStore, "result", replaced(version, gone))
        with pytest.raises(ConfigError, match="cannot be checked"):
            list(verification.verify(registry, version, console=QUIET))


def replaced(version: Version, result: RunResult) -> Any:
    """Reads another result for the run of a version, and what is there for every other run."""
    read = RunStore.result
    return lambda store: result if store.uri == version.tags["hasten.run_uri"] else read(store)


def test_names_that_are_none(registry: Registry) -> None:
    for name, message in (
        ("a/b/c", "is no model"),
        (f"{NAME}@best", "has no best"),
        ("nobody", "has no champion"),
    ):
        with pytest.raises(ConfigError, match=message):
            run("verify", name)
