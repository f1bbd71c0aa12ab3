"""``hasten status STUDY`` by the ledger alone: while a driver writes it, after an edit, without a store."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hasten.platform import study_checking, study_status
from hasten.platform.study_status import Earlier
from hasten.sweeps import plan as plans
from hasten.sweeps.conducting.ledger import Ledger, OpenTrial, StoredPoint, StudyNote
from hasten.sweeps.plan import Plan, Trial
from hasten.sweeps.records import TrialRecord, Verdict
from hasten.sweeps.searching.proposals import Point
from hasten.sweeps.study import StudySpec
from hasten.trainers import config
from hasten.trainers.datasets import mixtures
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.store import Folder

SPEC: dict[str, Any] = {
    "name": "search",
    "base": "digits",
    "base_overrides": {
        "data.source": "mixture:ring",
        "data.resolution": 1,
        "model": {"kind": "mlp", "width": 16, "layers": 1},
    },
    "space": {"optimizer.lr": {"log_uniform": [1e-4, 1e-2]}},
    "search": {"kind": "random", "trials": 3},
}
STOPPED = Verdict(rule="asha", images=500, value=0.9, threshold=0.1, reason="0.9 is not among the best")


def planned(*, images: int = 1000, trials: int = 3, **changes: Any) -> Plan:
    raw = {**SPEC, "base_overrides": {**SPEC["base_overrides"], "budget.images": images}}
    raw |= {"search": {"kind": "random", "trials": trials}, **changes}
    return plans.plan(config.validate(StudySpec, raw))


def record(trial: Trial, **changes: Any) -> TrialRecord:
    fingerprint = trial.spec.fingerprint(mixtures.get("ring").digest)
    fields: dict[str, Any] = {
        "trial": trial.name,
        "arm": trial.arm,
        "seed": trial.seed,
        "settings": trial.changes,
        "run": f"digits-{fingerprint}",
        "fingerprint": fingerprint,
        "state": "finished",
        "images": 1000,
        "total": 1000,
        "occupied": 2.0,
        "metrics": {"eval/loss": 0.25},
    }
    return TrialRecord.model_validate(fields | changes)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HASTEN_STORAGE_URI", str(tmp_path / "store"))
    return tmp_path / "store"


def keep(store: Path, plan: Plan, *records: TrialRecord, state: str = "running", **note: Any) -> None:
    with Ledger(Folder(f"{store}/studies/search")) as ledger:
        ledger.records()
        for each in records:
            ledger.write(each)
        fields: dict[str, Any] = {"host": "here", "pid": 7, "started": time.time() - 60.0} | note
        ledger.tell(
            StudyNote(
                name="search",
                spec=plan.study.model_dump(mode="json"),
                digest=plans.study_digest(plan.study, plan.base),
                state=state,
                trials=plan.total,
                **fields,
            )
        )


def show(study: str = "search", **options: Any) -> tuple[dict[str, Any], str]:
    console = Console(file=io.StringIO(), width=100, **options.pop("console", {}))
    found = study_status.status(study, console=console, **options)
    assert isinstance(console.file, io.StringIO)
    json.dumps(found)
    return found, console.file.getvalue()


def test_a_running_study_is_shown_with_what_became_of_its_trials(store: Path) -> None:
    plan = planned()
    first, second, third = plan.trials
    seen = OpenTrial(fingerprint="0" * 12, running=True, images=250, total=1000, value=0.5)
    stopped = record(second, state="stopped", images=500, verdict=STOPPED)
    keep(store, plan, record(first), stopped, open={third.name: seen})
    found, text = show()
    assert found["status"] == "running"
    assert found["counts"] == {"finished": 1, "stopped": 1}
    assert found["open"][third.name]["images"] == 250
    assert [trial["trial"] for trial in found["trials"]] == [first.name, second.name]
    for words in ("search", "running", third.name):
        assert words in text


def test_a_driver_that_gives_no_sign_of_life_is_lost(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(store, planned())
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600.0)
    assert show()[0]["status"] == "lost"


def test_records_of_other_settings_do_not_count_and_are_mentioned(store: Path) -> None:
    """The budget was raised since, and a trial dropped."""
    old = planned(images=500, trials=4)
    new = planned()
    kept = [record(trial, images=500, total=500) for trial in old.trials]
    keep(store, new, record(new.trials[0]), *kept[1:], state="finished")
    found, text = show()
    assert found["counts"] == {"finished": 1}
    assert found["stale"] == 3
    assert "3 more records" in text


def test_proposed_points_count_as_planned(store: Path) -> None:
    plan = planned(search={"kind": "optuna", "trials": 12})
    point = Point(number=10, name="0010", settings={"optimizer.lr": 5e-3})
    trial = plans.make_trial(plan.study, plan.base, point, 0)
    with Ledger(Folder(f"{store}/studies/search")) as ledger:
        ledger.records()
        ledger.write_point(StoredPoint(point=point, basis="x"))
    keep(store, plan, record(trial), record(plan.trials[0], fingerprint="f" * 12), state="stopped")
    found, _ = show()
    assert [each["trial"] for each in found["trials"]] == ["0010-s0"]
    assert found["stale"] == 1


def test_a_study_that_never_ran_is_refused_and_the_others_are_named(store: Path) -> None:
    keep(store, planned(), state="finished")
    with pytest.raises(ConfigError, match="no such study") as caught:
        show("serach")
    assert "search" in caught.value.remedy


def test_a_file_means_its_study(store: Path, tmp_path: Path) -> None:
    keep(store, planned(), state="finished")
    (tmp_path / "mine.yaml").write_text(json.dumps({**SPEC, "base": "digits"}))
    assert show(str(tmp_path / "mine.yaml"))[0]["study"] == "search"


def test_a_store_that_is_not_up_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    monkeypatch.delenv("HASTEN_STORAGE_URI", raising=False)
    with pytest.raises(Fault, match="not running") as caught:
        show()
    assert "hasten up" in caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_watching_ends_with_the_study(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver writes while somebody looks; an outage in between ends nothing."""
    monkeypatch.setattr(study_status, "_SECONDS", 0.01)
    plan = planned()
    keep(store, plan)
    looked = threading.Event()
    standing = study_status.standing
    asked: list[int] = []

    def sometimes(*arguments: Any) -> study_status.Standing:
        asked.append(len(asked))
        if len(asked) == 3:
            looked.set()
            raise Fault("storage", "does not answer")
        return standing(*arguments)

    monkeypatch.setattr(study_status, "standing", sometimes)

    def drive() -> None:
        looked.wait(30.0)
        keep(store, plan, *map(record, plan.trials), state="finished")

    driver = threading.Thread(target=drive)
    driver.start()
    found, text = show(watch=True, console={"force_terminal": True, "height": 40})
    driver.join()
    assert found["status"] == "finished"
    assert found["counts"] == {"finished": 3}
    assert "does not answer" in text
    assert show(watch=True)[0]["status"] == "finished", "a log is told once"


def test_a_plan_says_what_is_done_and_what_an_edit_makes_new(store: Path) -> None:
    plan = planned()
    assert study_status.earlier(plan) is None
    keep(store, plan, *(record(trial) for trial in plan.trials[:2]), state="stopped")
    assert study_status.earlier(plan) == Earlier(counts={"finished": 2}, again={}, seconds_per_image=0.002)
    longer = planned(images=2000)
    found = study_status.earlier(longer)
    assert found is not None
    assert found.counts == {}
    assert list(found.again.values()) == [[trial.name for trial in plan.trials[:2]]]
    console = Console(file=io.StringIO(), width=200)
    study_checking.check_study(longer, console)
    assert isinstance(console.file, io.StringIO)
    assert "run again, because budget.images changed from 1,000 to 2,000" in console.file.getvalue()


def test_a_dry_run_estimates_by_what_was_done(store: Path) -> None:
    plan = planned()
    keep(store, plan, record(plan.trials[0]), state="stopped")
    console = Console(file=io.StringIO(), width=200)
    found = study_checking.check_study(plan, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "done already: 1 of 3 trials (1 finished)" in text
    assert "finished trials took 0.002 s an image" in text
    assert found["estimate"]["cpu_hours"] == pytest.approx(3 * 2.0 / 3600.0)


def test_a_store_that_fails_never_fails_a_dry_run(store: Path) -> None:
    Folder(f"{store}/studies/search").write("study.json", b"{")
    assert study_checking.check_study(planned(), Console(file=io.StringIO()))["earlier"] is None
