"""Both commands on a store that is a folder; the registry is a stand-in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image
from rich.console import Console

from hasten.platform import exporting, models, picturing
from hasten.platform.registry import RUN_URI, Version
from hasten.trainers import config, randomness
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import data
from hasten.trainers.diffusion import Flow
from hasten.trainers.errors import ConfigError
from hasten.trainers.generation import export, sampling
from hasten.trainers.models import networks
from hasten.trainers.process import Process
from hasten.trainers.specs import RunSpec
from hasten.trainers.store import Folder

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "digits", "resolution": 8},
    "model": {"kind": "unet", "channels": 8, "multipliers": [1], "groups": 4},
    "diffusion": {"kind": "flow"},
    "curriculum": {"kind": "uniform"},
    "weighting": {"kind": "none"},
    "optimizer": {"kind": "adamw", "lr": 1e-3},
    "momentum": {"kind": "constant"},
    "ema": {"kind": "power", "stds": [0.05, 0.1]},
    "budget": {"images": 640},
    "eval": {"samples": {"steps": 3}},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that is a folder, and no server anywhere."""
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HASTEN_STORAGE_URI", str(tmp_path / "storage"))
    return tmp_path / "storage"


def add_run(
    storage: Path,
    name: str = "tiny-0",
    *,
    classes: int | None = None,
    shape: tuple[int, int, int] = (1, 8, 8),
    **blocks: Any,
) -> str:
    """A run after its first checkpoint."""
    spec = config.validate(RunSpec, RECIPE | blocks)
    uri = f"{storage}/runs/{name}"
    Folder(uri).write(export.RECIPE, yaml.safe_dump(spec.model_dump(mode="json")).encode())
    states = [
        networks.build(spec.model, shape=shape, classes=classes, seed=seed).state_dict() for seed in range(3)
    ]
    RunStore(uri).save({"images": 64, "network": states[0], "ema": states[1:]})
    return uri


@pytest.fixture
def heard() -> Console:
    return Console(file=io.StringIO(), width=300, highlight=False)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as found:
        return dict(found)


def test_export_writes_a_folder_once(storage: Path, heard: Console, tmp_path: Path) -> None:
    uri = add_run(storage)
    found = exporting.export("tiny-0", tmp_path / "out", licence="cc0-1.0", console=heard)
    assert type(DiffusionPipeline.from_pretrained(found["folder"])).__name__ == found["pipeline"]
    assert (found["status"], found["images"]) == ("finished", 64)
    assert found["checkpoint"].startswith(f"{uri}/checkpoints/")
    assert "license: cc0-1.0" in (tmp_path / "out" / "README.md").read_text()
    assert "not finished: its newest checkpoint has 64 of 640 images" in said(heard)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="exists already"):
        exporting.export("tiny-0", tmp_path / "out", console=heard)
    with pytest.raises(ConfigError, match="no study or run of that name"):
        exporting.export("tiny-1", tmp_path / "other", console=heard)
    assert sorted(tmp_path.rglob("*")) == before, "nothing half-written is left"


def test_an_empty_folder_is_taken(storage: Path, heard: Console, tmp_path: Path) -> None:
    add_run(storage, model={"kind": "mlp", "width": 16})
    (tmp_path / "out").mkdir()
    assert exporting.export("tiny-0", tmp_path / "out", console=heard)["pipeline"] is None
    assert export.read_components(tmp_path / "out").shape == (1, 8, 8)


def test_a_model_has_several_names(storage: Path, heard: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = add_run(storage)
    name = RunStore(uri).latest()
    for source in ("tiny-0", uri, f"{uri}/checkpoints/{name}"):
        assert models.load(source, console=heard).trained.run_uri == uri
    versions = [
        Version(number="2", run_id="b", tags={RUN_URI: uri}),
        Version(number="1", run_id="a", tags={}),
    ]

    class StandIn:
        def __init__(self, tracking_uri: str, model: str) -> None:
            assert (tracking_uri, model) == ("http://tracking", "digits")

        def versions(self) -> list[Version]:
            return versions

        def aliased(self, alias: str) -> Version | None:
            return versions[0] if alias == "champion" else None

    monkeypatch.setattr(models, "Registry", StandIn)
    asked = {"storage_uri": str(storage), "tracking_uri": "http://tracking"}
    for source in ("models:/digits@champion", "models:/digits/2"):
        assert models.address(source, **asked) == uri
    for source, problem in [
        ("models:/digits@challenger", "no such version; registered versions of digits: 2, 1"),
        ("models:/digits/3", "no such version"),
        ("models:/digits/1", "not registered by hasten"),
        ("models:/digits", "is not the address"),
    ]:
        with pytest.raises(ConfigError, match=problem):
            models.address(source, **asked)


def test_a_sample_belongs_to_its_seed_and_place(storage: Path, heard: Console, tmp_path: Path) -> None:
    """Whatever the count and the kind of output; other weights and seeds give others."""
    add_run(storage)

    def made(name: str, **arguments: Any) -> np.ndarray:
        picturing.sample("tiny-0", tmp_path / name, console=heard, **arguments)
        return arrays(tmp_path / name)["images"]

    five = made("five.npz", count=5)
    assert (five.shape, five.dtype) == ((5, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(made("three.npz", count=3), five[:3])
    for number, other in enumerate([{"seed": 1}, {"raw": True}, {"ema_std": 0.1}, {"steps": 5}]):
        assert not np.array_equal(made(f"other-{number}.npz", count=5, **other), five)
    picturing.sample("tiny-0", tmp_path / "folder", count=5, console=heard)
    for index, file in enumerate(sorted((tmp_path / "folder").iterdir())):
        np.testing.assert_array_equal(np.array(Image.open(file)), five[index, ..., 0])
    found = picturing.sample("tiny-0", tmp_path / "sheet.png", count=5, console=heard)
    sheet = np.array(Image.open(found["out"]))
    np.testing.assert_array_equal(sheet[2:66:8, 2:66:8, 0], five[0, ..., 0])


def test_classes(storage: Path, heard: Console, tmp_path: Path) -> None:
    add_run(storage, classes=10)
    for name, arguments in [("all", {}), ("some", {"labels": [3, 7]}), ("guided", {"guidance": 4.0})]:
        picturing.sample("tiny-0", tmp_path / f"{name}.npz", count=12, console=heard, **arguments)
    everything, some, guided = (arrays(tmp_path / f"{name}.npz") for name in ("all", "some", "guided"))
    assert everything["labels"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert some["labels"].tolist() == [3, 7] * 6
    assert not np.array_equal(everything["images"], guided["images"])
    picturing.sample("tiny-0", tmp_path / "folders", count=12, labels=[3, 7], console=heard)
    assert len(list((tmp_path / "folders" / "0007").iterdir())) == 6
    picturing.sample("tiny-0", tmp_path / "sheet.png", count=12, labels=[3, 7], console=heard)
    assert Image.open(tmp_path / "sheet.png").size == (2 + 2 * 66, 2 + 6 * 66)


@pytest.mark.parametrize(
    ("classes", "out", "arguments", "problem"),
    [
        (10, "x.npz", {"labels": [10]}, "label: 10 is not one of the model's, 0 to 9"),
        (10, "x.npz", {"labels": [-1]}, "label: -1 is not one"),
        (None, "x.npz", {"labels": [0]}, "label: the model knows no classes"),
        (None, "x.npz", {"guidance": 2.0}, "guidance: the model knows no classes"),
        (None, "x.jpg", {}, "no kind of output"),
        (None, "x.npz", {"count": 0}, "count: 0"),
        (None, "x.npz", {"steps": 0}, "steps: 0"),
        (None, "storage", {}, "exists already"),
    ],
)
def test_what_cannot_be_sampled(
    classes: int | None,
    out: str,
    arguments: dict[str, Any],
    problem: str,
    storage: Path,
    heard: Console,
    tmp_path: Path,
) -> None:
    add_run(storage, classes=classes)
    with pytest.raises(ConfigError) as refused:
        picturing.sample("tiny-0", tmp_path / out, console=heard, **arguments)
    assert problem in str(refused.value)
    assert not (tmp_path / "x.npz").exists()


def test_points_of_a_mixture_are_arrays_and_never_clipped(
    storage: Path, heard: Console, tmp_path: Path
) -> None:
    add_run(
        storage,
        shape=(2, 1, 1),
        model={"kind": "mlp", "width": 16},
        data={"source": "mixture:ring", "resolution": 1},
    )
    with pytest.raises(ConfigError, match="makes no pictures but arrays of 2 x 1 x 1"):
        picturing.sample("tiny-0", tmp_path / "x.png", console=heard)
    picturing.sample("tiny-0", tmp_path / "x.npz", count=200, console=heard)
    samples = arrays(tmp_path / "x.npz")["samples"]
    assert samples.shape == (200, 2, 1, 1)
    assert np.abs(samples).max() > 1.0


def test_latents_come_in_the_datas_own_units(storage: Path, heard: Console, tmp_path: Path) -> None:
    """Latents of deviation 4, which models see divided by it: what a model makes is multiplied again."""
    rng = np.random.default_rng(0)
    latents = (rng.normal(size=(64, 4, 8, 8)) * 4.0).astype(np.float32)
    labels = np.full(64, -1, dtype=np.int64)
    data.write(
        Folder(f"{storage}/data/latents"),
        name="latents",
        source="test",
        pixels=latents,
        labels=labels,
        scale=0.25,
    )
    add_run(storage, shape=(4, 8, 8), data={"source": "latents", "resolution": 8})
    with pytest.raises(ConfigError, match="no pictures"):
        picturing.sample("tiny-0", tmp_path / "folder", console=heard)
    picturing.sample("tiny-0", tmp_path / "x.npz", count=50, console=heard)
    samples = arrays(tmp_path / "x.npz")["samples"]
    assert samples.dtype == np.float32
    made = sampling.sample(
        export.load(f"{storage}/runs/tiny-0").network,
        Process(Flow(kind="flow"), torch.device("cpu")),
        randomness.noise(0, "sample", np.arange(50), (4, 8, 8)),
        steps=3,
        clip=False,
    )
    np.testing.assert_allclose(samples, made.numpy() * 4.0, rtol=1e-4, atol=1e-5)
