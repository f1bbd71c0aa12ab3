"""A tiny run of the real thing: scikit-learn's digits, eight channels, 640 images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from hasten.trainers import config, session
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import data, sources
from hasten.trainers.job import Job
from hasten.trainers.records import Report
from hasten.trainers.specs import RunSpec
from hasten.trainers.store import Folder
from hasten.trainers.tracker import NullTracker
from hasten.trainers.worker import Worker

# Two busy cores: how long an example takes says nothing.
settings.register_profile("hasten", deadline=None)
settings.load_profile("hasten")

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "digits", "resolution": 8},
    # Two channels a group: with one, normalisation would remove what the timestep adds.
    "model": {"kind": "unet", "channels": 8, "multipliers": [1], "groups": 4},
    "diffusion": {"kind": "ddpm", "schedule": "cosine", "timesteps": 1000, "predict": "epsilon"},
    "curriculum": {"kind": "clts", "mu": 0.3, "sigma": 0.2},
    "weighting": {"kind": "none"},
    "optimizer": {"kind": "adamw", "lr": 2e-3, "batch": 64, "warmup": 0.1},
    "momentum": {"kind": "mdlrc", "beta": 0.9},
    "ema": {"kind": "power", "stds": [0.05, 0.1]},
    "budget": {"images": 640, "seed": 0},
    "eval": {
        "loss": {"every": 0.25, "images": 32},
        "samples": {"at": [1.0], "images": 4, "steps": 2},
        "grid": {"every": 0.5, "images": 2, "steps": 2},
    },
    "execution": {"checkpoint_every": 0.25},
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """What a run does too; set before the first test, so that no test's numbers depend on its neighbours."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def recipe() -> dict[str, Any]:
    return RECIPE


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder that holds the digits."""
    root = tmp_path_factory.mktemp("imported")
    pixels, labels = data.digits()
    data.write(
        Folder(f"{root}/data/digits"), name="digits", source="scikit-learn", pixels=pixels, labels=labels
    )
    return root


@pytest.fixture(scope="session")
def spec_of() -> Callable[..., RunSpec]:
    """The tiny run with changes by dotted key."""

    def build(changes: dict[str, Any] | None = None) -> RunSpec:
        return config.validate(RunSpec, config.override(RECIPE, changes or {}))

    return build


@pytest.fixture(scope="session")
def bind(imported: Path, spec_of: Callable[..., RunSpec]) -> Callable[..., Job]:
    """The tiny run with changes by dotted key, bound to the digits and to a folder for what it leaves."""

    def build(place: Path, changes: dict[str, Any] | None = None) -> Job:
        source = {"data.source": str(imported / "data" / "digits")}
        return sources.bind(spec_of(source | (changes or {})), str(place))

    return build


@pytest.fixture
def job_of(tmp_path: Path, bind: Callable[..., Job]) -> Callable[..., Job]:
    """As ``bind``, with a folder of this test's own."""
    return lambda changes=None: bind(tmp_path / "storage", changes)


@pytest.fixture(scope="session")
def run() -> Callable[..., Iterator[Report]]:
    """Start a run as a single local worker; nothing happens before the first report is asked for."""

    def start(job: Job, **arguments: Any) -> Iterator[Report]:
        return session.run(job, **{"worker": Worker(), "track": NullTracker(), **arguments})

    return start


@pytest.fixture(scope="session")
def outcome() -> Callable[[Job], dict[str, Any]]:
    """All that a finished run leaves behind and that must not depend on how it got there."""

    def collect(job: Job) -> dict[str, Any]:
        store = RunStore(job.uri)
        result = store.result()
        assert result is not None
        latest = store.latest()
        assert latest is not None
        state = store.load(latest)
        history = [
            (point.step, {key: value for key, value in point.metrics.items() if not key.startswith("perf/")})
            for point in result.history
        ]
        return {
            "history": history,
            "images": result.images,
            "network": state["network"],
            "optimizer": state["optimizer"],
            "ema": state["ema"],
            "sheets": store.sheets(),
        }

    return collect


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Any, Any], None]:
    """Two nests of containers are equal to the last bit."""

    def compare(first: Any, second: Any, place: str = "") -> None:
        assert type(first) is type(second), place
        if isinstance(first, dict):
            assert first.keys() == second.keys(), place
            for key in first:
                compare(first[key], second[key], f"{place}/{key}")
        elif isinstance(first, (list, tuple)):
            assert len(first) == len(second), place
            for index, (left, right) in enumerate(zip(first, second, strict=True)):
                compare(left, right, f"{place}/{index}")
        elif isinstance(first, torch.Tensor):
            assert torch.equal(first, second), place
        elif isinstance(first, np.ndarray):
            assert np.array_equal(first, second), place
        else:
            assert first == second, place

    return compare
