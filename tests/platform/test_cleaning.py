"""``hasten clean`` on real stores: what is shown, what goes, and what stays whatever happens meanwhile."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import torch
from rich.console import Console

from hasten.platform import cleaning, importing, inventory, references, registry, settings
from hasten.platform.locks import only_one
from hasten.platform.services import Services
from hasten.sweeps.conducting.ledger import Ledger, OpenTrial, StudyNote
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.study import StudySpec
from hasten.trainers import config, retention, session, specs
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.errors import Fault
from hasten.trainers.retention import Policy
from hasten.trainers.store import Folder
from hasten.trainers.tracker import NullTracker
from hasten.trainers.worker import Worker

DAY = 86_400.0
STUDY: dict[str, Any] = {
    "name": "search",
    "base": "digits",
    "space": {"optimizer.lr": {"log_uniform": [1e-4, 1e-2]}},
    "search": {"kind": "random", "trials": 4},
}
NOTHING_MORE = Policy(study_best=0, trial_best=0, trial_latest=0)
QUIET = Console(quiet=True)


class Place:
    """A store with four finished trials of one study and a run of none, all of them ten days old."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.services = Services(storage_uri=root, endpoint=None, region="", tracking_uri="none")
        for number in range(4):
            self.run(trial(number))
        self.run("alone-ffffffffffff")
        self.records = {trial(number): self.record(number) for number in range(4)}
        self.tell("finished")

    def folder(self, run: str) -> Folder:
        return Folder(f"{self.root}/runs/{run}")

    def run(self, name: str, *, over: bool = True) -> None:
        """Three checkpoints, two forks, an average, and everything that must never go."""
        folder = self.folder(name)
        for place in ("checkpoints/000000000100-aa", "checkpoints/000000000200-bb", "forks/000000000150-cc"):
            folder.write(f"{place}/state.pt", bytes(1000))
            folder.write(f"{place}/manifest.json", b"{}")
        folder.write("checkpoints/000000000150-dd/state.pt", bytes(500))
        folder.write("ema/000000000100-0.05.safetensors", bytes(200))
        for file in ("recipe.yaml", "samples/000000000000.png", "micro_batch.json"):
            folder.write(file, b"x")
        if over:
            folder.write("result.json", b"{}")
        age(self.root)

    def record(self, number: int) -> TrialRecord:
        return TrialRecord(
            trial=f"{number:04d}-s0",
            arm=f"{number:04d}",
            seed=0,
            run=trial(number),
            fingerprint=trial(number)[-12:],
            state="finished",
            images=200,
            total=200,
            metrics={"eval/loss": 0.1 * (number + 1)},
            curves={"eval/loss": [(100, 0.05), (200, 0.1 * (number + 1))]},
        )

    def tell(self, state: str, **more: Any) -> None:
        """The driver's note, and the records of what is over."""
        with Ledger(Folder(f"{self.root}/studies/search")) as ledger:
            ledger.records()
            for record in self.records.values():
                ledger.write(record)
            spec = StudySpec.model_validate(STUDY).model_dump(mode="json")
            fields: dict[str, Any] = {"state": state, "host": "here", "pid": 1, "started": 0.0} | more
            ledger.tell(StudyNote(name="search", spec=spec, **fields))

    def all(self) -> set[str]:
        return {file.path for file in inventory.files(f"{self.root}/runs")}

    def clean(self, policy: Policy = Policy(), **options: Any) -> dict[str, Any]:
        return cleaning.clean(policy, console=options.pop("console", QUIET), **options)


def trial(number: int) -> str:
    return f"digits-{number:012x}"


def age(root: str, days: float = 10.0) -> None:
    """Make every file in a folder so many days old."""
    then = time.time() - days * DAY
    for file in Path(root).rglob("*"):
        os.utime(file, (then, then))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))
    made = Place(str(tmp_path / "store"))
    monkeypatch.setattr(cleaning, "connected", lambda *_, **__: made.services)
    monkeypatch.setattr(registry, "registered_fingerprints", lambda _: frozenset())
    return made


def test_it_shows_everything_and_removes_nothing(place: Place) -> None:
    before = place.all()
    console = Console(record=True, width=100, file=io.StringIO())
    found = place.clean(console=console)
    text = console.export_text()
    assert place.all() == before
    assert found["removable_bytes"] == 4 * 1002 + 5 * 500, "a fork of each trial, and every half"
    assert found["removed"] == []
    for words in ("search", "(no study)", "no trial starts here any more", "never completed", "--delete"):
        assert words in text


def test_what_nobody_needs_goes_and_the_rest_stays(place: Place) -> None:
    before = place.all()
    found = place.clean(delete=True)
    gone = before - place.all()
    assert {path.split("/")[1] for path in gone} == {"checkpoints", "forks"}
    assert not any("-aa" in path or "-bb" in path for path in gone), "the best and the last of every trial"
    assert len(found["removed"]) == 4 * 2 + 1, (
        "a fork and a half of each trial, and the half of the other run"
    )
    log = (settings.home() / cleaning.LOG).read_text().splitlines()
    assert len(log) == len(found["removed"])
    assert all(place.root in line for line in log)
    assert place.clean(delete=True)["removed"] == []


def test_the_best_of_a_study_stay_whole_when_trials_keep_nothing(place: Place) -> None:
    place.clean(Policy(study_best=2, trial_best=0, trial_latest=0), delete=True)
    left = {run: RunStore(f"{place.root}/runs/{run}").checkpoints() for run in map(trial, range(4))}
    assert [len(names) for names in left.values()] == [2, 2, 0, 0]
    assert all(place.folder(run).read("result.json") for run in left)
    assert len(RunStore(f"{place.root}/runs/alone-ffffffffffff").checkpoints()) == 2


def test_runs_of_no_study_go_only_when_they_are_asked_for(place: Place) -> None:
    place.clean(Policy(trial_best=0, trial_latest=0, orphans=True), delete=True)
    assert RunStore(f"{place.root}/runs/alone-ffffffffffff").checkpoints() == []


def test_registered_runs_stay(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    registered = frozenset({trial(3)[-12:]})
    monkeypatch.setattr(registry, "registered_fingerprints", lambda _: registered)
    place.clean(NOTHING_MORE, delete=True)
    left = [len(RunStore(f"{place.root}/runs/{trial(number)}").checkpoints()) for number in range(4)]
    assert left == [0, 0, 0, 2]


def running(place: Place) -> None:
    place.tell("running")


def unfinished(place: Place) -> None:
    place.tell("stopped")


@pytest.mark.parametrize("change", [running, unfinished])
def test_forks_of_a_study_that_goes_on_stay(place: Place, change: Callable[[Place], None]) -> None:
    change(place)
    place.clean(NOTHING_MORE, delete=True)
    assert all(RunStore(f"{place.root}/runs/{trial(n)}").forks() == [150] for n in range(4))


def test_nothing_of_a_running_study_goes(place: Place) -> None:
    """Whether its heartbeat says so, or the lock on this machine."""
    with only_one(settings.home() / "locks" / "study-search", what="study search"):
        assert references.is_held("search")
        found = place.clean(NOTHING_MORE, delete=True)
    assert {each["run"] for each in found["removed"]} == {"alone-ffffffffffff"}
    assert not references.is_held("search")
    place.tell("running")
    assert place.clean(NOTHING_MORE, delete=True)["removed"] == []


def test_a_sweep_that_begins_while_one_answers_is_respected(place: Place) -> None:
    def answer(question: str) -> bool:
        assert "items" in question
        place.tell("running")
        return True

    removed = place.clean(NOTHING_MORE, delete=True, confirm=answer)["removed"]
    assert {each["run"] for each in removed} == {"alone-ffffffffffff"}


def test_no_is_an_answer(place: Place) -> None:
    before = place.all()
    assert place.clean(delete=True, confirm=lambda _: False)["removed"] == []
    assert place.all() == before


def test_an_open_run_keeps_its_last_checkpoint_and_its_forks(place: Place) -> None:
    """A trial that has begun, failed for want of data, or ran out of memory may go on."""
    place.run("digits-eeeeeeeeeeee", over=False)
    for record in ({}, {"state": "failed", "failure": "data"}, {"state": "failed", "failure": "memory"}):
        if record:
            changed = place.record(9).model_copy(
                update={"run": "digits-eeeeeeeeeeee", "fingerprint": "e" * 12} | record
            )
            place.records = place.records | {"9": changed}
        seen = OpenTrial(fingerprint="e" * 12, running=False, images=100, total=200)
        place.tell("finished", open={} if record else {"0009-s0": seen})
        place.clean(NOTHING_MORE, delete=True)
        store = RunStore(f"{place.root}/runs/digits-eeeeeeeeeeee")
        assert store.latest() == "000000000200-bb"
        assert store.forks() == [150]


def test_a_diverged_or_stopped_trial_never_goes_on(place: Place) -> None:
    for number, change in enumerate(({"state": "stopped"}, {"state": "failed", "failure": "diverged"})):
        run = f"digits-{'ab'[number] * 12}"
        place.run(run, over=False)
        update = {"trial": f"x{number}", "run": run, "fingerprint": run[-12:]} | change
        place.records[run] = place.record(9).model_copy(update=update)
    place.tell("finished")
    place.clean(NOTHING_MORE, delete=True)
    assert RunStore(f"{place.root}/runs/digits-{'a' * 12}").checkpoints() == []
    assert RunStore(f"{place.root}/runs/digits-{'b' * 12}").checkpoints() == []


def test_what_is_half_removed_is_not_there_and_goes_the_next_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(
        inventory.store, "filesystem", lambda uri: (_Failing(full), str(Path(uri).absolute()))
    )
    item = inventory.run(trial(0), [_file("checkpoints/000000000100-aa/manifest.json")]).items[0]
    with pytest.raises(Fault, match="Input/output error"):
        inventory.remove(f"{place.root}/runs/{trial(0)}", item)
    monkeypatch.undo()
    store = RunStore(f"{place.root}/runs/{trial(0)}")
    assert store.checkpoints() == ["000000000200-bb"]
    assert place.folder(trial(0)).read("checkpoints/000000000100-aa/state.pt") is not None


class _Failing:
    """The file system of this machine, in which no folder can be removed."""

    def __init__(self, fail: Callable[..., None]) -> None:
        self.delete_file = pafs.LocalFileSystem().delete_file
        self.delete_dir = fail


def _file(path: str) -> inventory.File:
    return inventory.File(path=path, bytes=1, written=0.0)


def measured(number: int, **metrics: float) -> TrialRecord:
    return TrialRecord(
        trial=f"{number}",
        arm=f"{number}",
        seed=0,
        run=trial(number),
        fingerprint=trial(number)[-12:],
        state="finished",
        images=200,
        total=200,
        metrics={f"eval/{name}": value for name, value in metrics.items()},
        curves={f"eval/{name}": [(100, 2.0 * value), (200, value)] for name, value in metrics.items()},
    )


def study(**changes: Any) -> StudySpec:
    return config.validate(StudySpec, STUDY | changes)


def test_trials_are_judged_by_the_studys_objective() -> None:
    """Less is better here, whatever is better there; who breaks a bound is not among the best."""
    records = [measured(0, loss=0.3, recall=0.5), measured(1, loss=0.1, recall=0.9)]
    first, second = references.standings(study(), records).values()
    assert (first.value, second.value) == (0.3, 0.1)
    assert first.scores == ((100, 0.6), (200, 0.3))

    more = study(objective={"metric": "eval/recall", "mode": "max"})
    first, second = references.standings(more, records).values()
    assert (first.value, second.value) == (-0.5, -0.9)
    assert first.scores == ((100, -1.0), (200, -0.5))

    bounded = study(objective={"bounds": [{"metric": "eval/recall", "at_most": 0.7}]})
    assert [one.value for one in references.standings(bounded, records).values()] == [0.3, None]

    reached = study(objective={"measure": "images", "target": 0.3})
    assert [one.value for one in references.standings(reached, records).values()] == [200.0, 100.0]


def test_the_whole_pareto_front_is_among_the_best() -> None:
    traded = study(pareto=[{"metric": "eval/recall", "mode": "max"}])
    records = [
        measured(0, loss=0.1, recall=0.1),
        measured(1, loss=0.2, recall=0.9),
        measured(2, loss=0.3, recall=0.5),
    ]
    assert [one.front for one in references.standings(traded, records).values()] == [True, True, False]


def test_unknown_files_are_left_alone() -> None:
    names = ["result.json", "notes.txt", "checkpoints/mine/state.pt", "samples/0.png", "ema/.5.part", "ema/x"]
    found = inventory.run("a-0", map(_file, names))
    assert [(item.place, item.whole) for item in found.items] == [("ema/.5.part", False)]
    assert found.over


def test_a_damaged_ledger_stops_it(place: Place) -> None:
    Folder(f"{place.root}/studies/search").write("study.json", b"{")
    before = place.all()
    with pytest.raises(Fault, match="is damaged"):
        place.clean(NOTHING_MORE, delete=True)
    assert place.all() == before


@pytest.fixture
def writer(place: Place) -> Iterator[RunStore]:
    """A trial that writes checkpoints and forks as fast as it can while the test runs."""
    store = RunStore(f"{place.root}/runs/digits-{'d' * 12}")
    stop, failures = threading.Event(), list[BaseException]()

    def write() -> None:
        images = 0
        try:
            while not stop.is_set():
                images += 100
                store.save({"images": images, "history": [], "weights": torch.zeros(1000)})
                if images % 500 == 0:
                    store.write_fork({"images": images, "history": []})
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield store
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_a_run_that_writes_meanwhile_loses_nothing(
    place: Place, writer: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Youth protects nothing here; what is half written is left alone for a day all the same."""
    seen = OpenTrial(fingerprint="d" * 12, running=True, images=0, total=10_000)
    place.tell("stopped", open={"0009-s0": seen})
    monkeypatch.setattr(retention, "YOUNG_SECONDS", 0.0)
    forks: list[int] = []
    removed = 0
    deadline = time.monotonic() + 30.0
    while (len(forks) < 20 or not removed) and time.monotonic() < deadline:
        removed += len(place.clean(NOTHING_MORE, delete=True)["removed"])
        latest = writer.latest()
        if latest is not None:
            assert set(forks) <= set(writer.forks())
            forks = writer.forks()
    assert len(forks) >= 20
    assert removed
    for images in forks:
        assert writer.load_fork(images)["images"] == images


@pytest.mark.stack
def test_a_real_run_a_real_bucket_and_a_registered_model(stack: Services, tmp_path: Path) -> None:
    """Two finished runs, one of which a model was made of: the other's checkpoints go, when asked for."""
    runs = {}
    for seed in (0, 1):
        changes = {
            "name": "cleaned",
            "budget.images": 128,
            "budget.seed": seed,
            "model.channels": 8,
            "eval.samples": {"images": 4, "steps": 2},
        }
        spec = specs.load("digits", changes)
        importing.ensure(spec.data.source, stack.storage_uri)
        job = sources.bind(spec, stack.storage_uri)
        for _ in session.run(job, worker=Worker(), track=NullTracker()):
            pass
        runs[seed] = job
    found = registry.Registry(stack.tracking_uri, "cleaned-model")
    client = found._client()
    run_id = client.create_run(client.create_experiment("cleaned")).info.run_id
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x").write_text("x")
    found.register(tmp_path / "model", run_id=run_id, tags={registry.RUN_URI: runs[0].uri})
    assert registry.registered_fingerprints(stack.tracking_uri) >= {runs[0].fingerprint}

    store = cleaning.Store(stack)
    policy = Policy(study_best=0, trial_best=0, trial_latest=0, orphans=True)
    young = [decision for decision in store.decide(policy) if decision.run in (runs[0].run, runs[1].run)]
    assert young
    assert all(decision.reason == "younger than an hour" for decision in young)
    assert all(decision.item.bytes > 1000 for decision in young if decision.item.kind == "checkpoint")

    with pytest.MonkeyPatch.context() as later:
        now = time.time
        later.setattr(cleaning.time, "time", lambda: now() + 2 * DAY)
        going = [
            one for one in store.decide(policy) if not one.keep and one.run in (runs[0].run, runs[1].run)
        ]
        gone = cleaning.remove(going, store, policy, log=tmp_path / "log", console=QUIET)
    assert {decision.run for decision in gone} == {runs[1].run}
    assert RunStore(runs[1].uri).checkpoints() == []
    assert RunStore(runs[1].uri).result() is not None
    assert RunStore(runs[1].uri).last_sheet() is not None
    latest = RunStore(runs[0].uri).latest()
    assert latest is not None
    assert RunStore(runs[0].uri).load(latest)["images"] == 128
