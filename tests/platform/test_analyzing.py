"""``hasten analyze`` on really trained tiny runs in a folder: what it prints, writes, records and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hasten.platform import analyzing, connection, runs, services, settings
from hasten.platform.services import Services
from hasten.trainers import config, session
from hasten.trainers.analyses import finished
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import data, sources
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.job import Job
from hasten.trainers.specs import RunSpec
from hasten.trainers.store import Folder
from hasten.trainers.tracker import NullTracker
from hasten.trainers.worker import Worker

pytestmark = pytest.mark.slow

RECIPE: dict[str, Any] = {
    "name": "eps",
    "data": {"source": "digits", "resolution": 8},
    "model": {"kind": "unet", "channels": 8, "multipliers": [1]},
    "diffusion": {"kind": "ddpm", "timesteps": 100, "predict": "epsilon"},
    "curriculum": {"kind": "uniform"},
    "weighting": {"kind": "none"},
    "optimizer": {"kind": "adamw", "lr": 2e-3, "batch": 64, "warmup": 0.1},
    "momentum": {"kind": "mdlrc", "beta": 0.9},
    "ema": {"kind": "power", "stds": [0.05, 0.1], "snapshots": 0.5},
    "budget": {"images": 512, "seed": 0},
    "eval": {
        "loss": {"every": 0.5, "images": 60, "bins": 3},
        "samples": {"images": 4, "steps": 2},
        "grid": {"every": 1.0, "images": 2, "steps": 2},
    },
    "execution": {"checkpoint_every": 0.5},
}
RUNS: dict[str, dict[str, Any]] = {
    "eps": {},
    "twin": {"name": "twin", "budget.seed": 1},
    "x0": {"name": "x0", "diffusion.predict": "x0"},
    "ring": {
        "name": "ring",
        "data.source": "mixture:ring",
        "data.resolution": 1,
        "model": {"kind": "mlp", "width": 16, "layers": 1},
        "optimizer": {"kind": "sgd", "lr": 1e-2, "batch": 64, "convention": "heavy_ball"},
        "momentum": {"kind": "constant"},
    },
}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("store")
    pixels, labels = data.digits()
    data.write(Folder(f"{root}/data/digits"), name="digits", source="test", pixels=pixels, labels=labels)
    made = {}
    for name, changes in RUNS.items():
        spec = config.validate(RunSpec, config.override(RECIPE, changes))
        made[name] = sources.bind(spec, str(root))
        for _ in session.run(made[name], worker=Worker(), track=NullTracker()):
            pass
    return made


@pytest.fixture
def home(jobs: dict[str, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    monkeypatch.setenv("HASTEN_STORAGE_URI", jobs["eps"].storage_uri)
    # No stack is started for it: the storage is a folder.
    monkeypatch.setattr(connection, "connected", lambda *_, **__: services.look(settings.load()))
    monkeypatch.setattr(analyzing, "record", lambda *_, **__: [])
    return tmp_path


def analyze(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(analyzing.app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for path in map(Path, found["files"]):
        assert path.stat().st_size > 0
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
    page = next(Path(path) for path in found["files"] if path.endswith(".html")).read_text()
    assert "vegaEmbed" in page
    assert "https://cdn" not in page
    return found


def names(found: dict[str, Any]) -> set[str]:
    return {Path(path).name for path in found["files"]}


def test_consistency_of_networks_that_differ_in_everything_but_their_shape(home: Path) -> None:
    found = analyze("consistency", "eps", "x0", "--count", "12", "--steps", "4")
    assert [(run["name"], run["prediction"]) for run in found["runs"]] == [("eps", "epsilon"), ("x0", "x0")]
    (pair,) = found["pairs"]
    measures = {each["measure"]: each for each in pair["agreements"]}
    assert measures.keys() == {"mse", "psnr", "ssim", "cosine", "retrieval", "retrieval_features"}
    assert measures["mse"]["value"]["n"] == 12
    assert names(found) == {"analysis.html", "analysis.json", "samples.png", "agreement.png"}
    assert all(Path(path).is_relative_to(home / "analyses") for path in found["files"])
    again = analyze("consistency", "eps", "x0", "--count", "12", "--steps", "4")
    assert again["pairs"] == found["pairs"]
    other = analyze("consistency", "eps", "x0", "--count", "12", "--steps", "4", "--seed", "1")
    assert other["pairs"] != found["pairs"]


def test_difficulty_has_the_runs_own_losses_and_gradients_over_training(
    home: Path, jobs: dict[str, Job]
) -> None:
    found = analyze("difficulty", "eps", "--count", "32")
    (run,) = found["runs"]
    result = RunStore(jobs["eps"].uri).result()
    assert result is not None
    assert [row["loss"] for row in run["history"]] == [row["loss"] for row in result.by_timestep]
    relative = np.array(run["history"][-1]["loss"]) / np.array(run["linear_loss"])
    assert np.allclose(relative, run["history"][-1]["relative"])
    assert [moment["images"] for moment in run["gradients"]] == [256, 512]
    assert all(len(moment["ranges"]) == 3 for moment in run["gradients"])
    assert {"loss.png", "convergence.png", "gradients.png", "interference.png"} < names(found)
    assert {each["finding"] for each in found["directions"]} == {"open"}
    assert (
        len(analyze("difficulty", "eps", "--count", "32", "--bins", "5")["runs"][0]["gradients"][0]["ranges"])
        == 5
    )


def test_an_untrained_network_is_far_above_the_linear_denoiser(home: Path) -> None:
    first = analyze("difficulty", "eps", "--count", "32")["runs"][0]["history"][0]
    assert first["step"] == 0
    assert first["relative"][-1] > 5.0


def test_landscape_holds_sharpness_against_this_moments_bound(home: Path, jobs: dict[str, Job]) -> None:
    found = analyze("landscape", "eps", "twin", "x0", "--count", "8", "--points", "5")
    store = RunStore(jobs["eps"].uri)
    own = [each for each in found["sharpness"] if each["run"] == "eps"]
    assert [each["images"] for each in own] == [256, 512]
    for each, name in zip(own, store.checkpoints(), strict=True):
        group = store.load(name)["optimizer"]["param_groups"][0]
        lr, beta = group["lr"], group["betas"][0]
        assert each["bound"] == pytest.approx((2 + 2 * beta) / ((1 - beta) * lr))
        assert each["share_of_bound"] == pytest.approx(each["preconditioned"]["value"] / each["bound"])
        assert each["preconditioned"]["residual"] < found["tolerance"]
    between = [line for line in found["lines"] if line["kind"] == "between"]
    assert [(line["first"], line["second"]) for line in between] == [("eps", "twin")]
    assert any("No line from eps to x0" in note for note in found["notes"])


def test_points_of_a_mixture_trained_by_sgd_can_be_analysed_too(home: Path) -> None:
    found = analyze("landscape", "ring", "--count", "16", "--points", "3")
    assert found["sharpness"][0]["preconditioned"] == found["sharpness"][0]["hessian"]
    assert found["sharpness"][0]["bound"] == pytest.approx(3.8 / found["sharpness"][0]["lr"])
    assert "gradients.png" in names(analyze("difficulty", "ring", "--count", "32"))


def refusal(*arguments: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        CliRunner().invoke(analyzing.app, list(arguments), catch_exceptions=False)
    return caught.value


def test_what_cannot_be_analysed_is_refused_in_words(home: Path, jobs: dict[str, Job]) -> None:
    assert "name two or more runs" in str(refusal("consistency", "eps"))
    assert "name two or more runs" in str(refusal("consistency", "eps", jobs["eps"].run))
    assert "ring: makes images of 2 x 1 x 1, eps of 1 x 8 x 8" in str(refusal("consistency", "eps", "ring"))
    assert "no study or run of that name" in str(refusal("difficulty", "nothing"))


def test_an_unfinished_run_is_refused(home: Path, tmp_path: Path, jobs: dict[str, Job]) -> None:
    unfinished = tmp_path / "runs" / "half-0123456789ab"
    unfinished.mkdir(parents=True)
    (unfinished / "checkpoints").symlink_to(Path(jobs["eps"].uri) / "checkpoints", target_is_directory=True)
    assert "is not finished" in str(refusal("landscape", str(unfinished)))


def test_a_name_means_its_one_run(home: Path, tmp_path: Path, jobs: dict[str, Job]) -> None:
    found = services.look(settings.load())
    assert runs.locate("eps", found.storage_uri) == jobs["eps"].uri
    assert runs.locate(jobs["eps"].run, found.storage_uri) == jobs["eps"].uri
    assert (
        runs.locate("s3://bucket/runs/eps-0123456789ab/", found.storage_uri)
        == "s3://bucket/runs/eps-0123456789ab"
    )
    for fingerprint in ("0123456789ab", "ba9876543210"):
        Folder(f"{tmp_path}/store/runs/eps-{fingerprint}").write("x", b"")
    other = Services(storage_uri=f"{tmp_path}/store", endpoint=None, region="")
    with pytest.raises(ConfigError, match="is the name of 2 runs"):
        runs.locate("eps", other.storage_uri)


def test_long_names_make_a_short_folder_of_their_own() -> None:
    first, second = ([f"s3://b/runs/{letter * 60}-{number}" for number in range(3)] for letter in "ab")
    assert len(analyzing.folder_name("consistency", first)) == 100
    assert analyzing.folder_name("consistency", first) != analyzing.folder_name("consistency", second)
    swapped = analyzing.folder_name("consistency", first[::-1])
    assert swapped != analyzing.folder_name("consistency", first)


class Tracking:
    """Knows one run, and keeps what is attached to it."""

    def __init__(self, known: str) -> None:
        self.known = known
        self.attached: dict[str, bytes] = {}

    def attach(self, fingerprint: str, files: dict[str, bytes]) -> int:
        if fingerprint != self.known:
            return 0
        self.attached |= files
        return 1


def test_files_are_attached_to_the_runs_that_mlflow_knows(
    jobs: dict[str, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Services(storage_uri=jobs["eps"].storage_uri, endpoint=None, region="")
    measured = [
        finished.load(name, jobs[name].uri, storage_uri=found.storage_uri, device=torch.device("cpu"))
        for name in ("eps", "twin")
    ]
    path = tmp_path / "analysis.json"
    path.write_bytes(b"{}")
    tracking = Tracking(jobs["twin"].fingerprint)
    monkeypatch.setattr("hasten.platform.tracking.tracker_of", lambda _: tracking)
    assert analyzing.record(measured, [path], folder="analyses/x", services=found) == ["twin"]
    assert tracking.attached == {"analyses/x/analysis.json": b"{}"}


def test_a_server_that_is_down_is_no_failure_of_the_analysis(
    jobs: dict[str, Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def down(_: Services) -> Tracking:
        raise Fault("tracking", "does not answer")

    monkeypatch.setattr("hasten.platform.tracking.tracker_of", down)
    found = Services(storage_uri=jobs["eps"].storage_uri, endpoint=None, region="")
    assert analyzing.record([], [], folder="x", services=found) == []
    assert "on this machine only" in caplog.text
