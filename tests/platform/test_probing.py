"""The probe before a study: real updates, in a folder of its own, told by kinds of trials."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from hasten.platform import connection, probing, services, settings
from hasten.platform.probing import Probe
from hasten.sweeps import plan as plans
from hasten.sweeps.plan import Plan
from hasten.sweeps.study import StudySpec
from hasten.trainers import config
from hasten.trainers.errors import ConfigError

TINY: dict[str, Any] = {
    "data.source": "mixture:ring",
    "data.resolution": 1,
    "model": {"kind": "mlp", "width": 16, "layers": 1},
    "budget.images": 6400,
    "eval.samples": {"images": 300, "steps": 2, "reference": 500},
    "eval.grid": {"images": 4, "steps": 2},
    "eval.loss.images": 64,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HASTEN_STORAGE_URI", str(tmp_path / "store"))
    monkeypatch.setattr(probing, "connected", lambda _: services.look(settings.load()))
    return tmp_path


def plan(space: dict[str, Any], **changes: Any) -> Plan:
    raw = {
        "name": "probed",
        "base": "digits",
        "base_overrides": TINY,
        "space": {key: {"choice": values} for key, values in space.items()},
    }
    return plans.plan(config.validate(StudySpec, config.override(raw, changes)))


def probe(planned: Plan) -> Probe:
    return probing.probe(planned, console=Console(file=io.StringIO()))


def test_rates_and_seeds_make_no_kinds_and_sizes_do() -> None:
    rates = plan({"optimizer.lr": [1e-3, 2e-3], "momentum.kind": ["constant", "mdlrc"]}, seeds=[0, 1])
    assert len({probing.kind(trial.spec) for trial in rates.trials}) == 1
    for key, values in (
        ("optimizer.batch", [32, 64]),
        ("model.width", [16, 32]),
        ("curriculum.kind", ["uniform", "second_moment"]),
        ("optimizer.clip", [None, 1.0]),
    ):
        assert len({probing.kind(trial.spec) for trial in plan({key: values}).trials}) == 2, key


def test_each_kind_is_measured_and_nothing_is_left(home: Path) -> None:
    found = probe(plan({"model.width": [16, 1024], "optimizer.lr": [1e-3, 2e-3, 3e-3]}))
    assert [(one.differs, one.trials) for one in found.kinds] == [
        ("model.width=16", 3),
        ("model.width=1024", 3),
    ]
    small, large = found.kinds
    assert large.speed.seconds_per_image > small.speed.seconds_per_image
    assert found.speed.seconds_per_image == pytest.approx(
        (small.speed.seconds_per_image + large.speed.seconds_per_image) / 2
    )
    for one in found.kinds:
        assert 0.0 <= one.low <= one.speed.seconds_per_image <= one.high
        assert one.speed.evaluation_seconds > 0.0
        assert one.speed.sampling_seconds > 0.0
        assert one.speed.sheet_seconds > 0.0
    assert not (home / "store" / "runs").exists()


def test_only_a_few_kinds_are_measured_and_that_is_said() -> None:
    found = probe(plan({"model.width": list(range(4, 4 + 4 * 9, 4))}))
    assert [one.differs for one in found.kinds][:: probing.MOST_KINDS - 1] == [
        "model.width=4",
        "model.width=36",
    ]
    assert len(found.kinds) == probing.MOST_KINDS
    assert any(note.startswith("3 more kinds") for note in found.notes)


def test_several_workers_share_a_batch() -> None:
    found = probe(plan({"optimizer.lr": [1e-3]}, **{"execution.workers": 4}))
    assert found.speed.seconds_per_image > 0.0
    assert any("exchange" in note for note in found.notes)


def test_a_simulated_trial_says_how_long_it_takes() -> None:
    model = {"kind": "simulated", "seconds": 64.0}
    found = probe(plan({"optimizer.lr": [1e-3]}, **{"base_overrides.model": model}))
    assert found.speed.seconds_per_image == 0.01


def test_what_comes_with_hasten_need_not_be_imported_first(home: Path) -> None:
    digits = {
        "data.source": "digits",
        "data.resolution": 8,
        "model": {"kind": "unet", "channels": 8, "multipliers": [1]},
    }
    changes: dict[str, Any] = {
        "base_overrides": {**TINY, **digits, "eval.samples": {"images": 4, "steps": 1}}
    }
    probe(plan({"optimizer.lr": [1e-3]}, **changes))
    assert not (home / "store" / "data").exists()


def test_data_that_is_missing_is_said_with_what_to_do() -> None:
    changes = {"base_overrides": {**TINY, "data.source": "cats"}}
    with pytest.raises(ConfigError, match="no data set at") as caught:
        probe(plan({"optimizer.lr": [1e-3]}, **changes))
    assert "hasten data import" in caught.value.remedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_trials_that_need_a_gpu_are_not_measured_without_one() -> None:
    with pytest.raises(ConfigError, match="this machine has none"):
        probe(plan({"optimizer.lr": [1e-3]}, **{"execution.gpus": 1}))


def test_nobody_is_connected_for_data_that_needs_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "connected", connection.connected)
    monkeypatch.setenv("HASTEN_STORAGE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HASTEN_STORAGE_URI", "s3://bucket")
    probe(plan({"optimizer.lr": [1e-3]}))
