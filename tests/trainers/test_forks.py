"""Runs that begin where another one stands: forks, origins, starts, and runs that end before their end."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.trainers import config, tracker
from hasten.trainers.checkpoints import RunStore, State
from hasten.trainers.datasets import data
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.job import Job, Origin
from hasten.trainers.records import Report
from hasten.trainers.specs import RunSpec
from hasten.trainers.store import Folder
from hasten.trainers.tracker import NullTracker

JobOf = Callable[..., Job]
Run = Callable[..., Iterator[Report]]
Outcome = Callable[[Job], dict[str, Any]]
AssertSame = Callable[[Any, Any], None]

# Two evaluations, so that a run costs little; 640 images are ten batches.
QUICK = {"eval.loss.every": 0.5, "eval.grid.every": 0.5}
CONSTANT = {"momentum": {"kind": "constant", "beta": 0.9}}
LATE = {"momentum": {"kind": "mdlrc", "beta": 0.9, "delay": 0.5}}


class ListeningTracker(NullTracker):
    """Remembers what it is told, but for the clock's part."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, int], float] = {}
        self.images: dict[int, bytes] = {}
        self.files: dict[str, bytes] = {}

    def metrics(self, values: Any, *, step: int) -> None:
        new = {(key, step): value for key, value in values.items() if not key.startswith("perf/")}
        assert not new.keys() & self.points.keys(), "told twice"
        self.points |= new

    def image(self, key: str, image: np.ndarray, *, step: int) -> None:
        assert key == tracker.FIXED_NOISE_GRID
        self.images[step] = image.tobytes()

    def artifact(self, path: str, content: bytes) -> None:
        self.files[path] = content


def bins_and_items(job: Job) -> list[dict[str, Any]]:
    result = RunStore(job.uri).result()
    assert result is not None
    return result.by_timestep


def resumed_from(job: Job) -> int | None:
    result = RunStore(job.uri).result()
    assert result is not None
    return result.resumed_from


def as_again(reports: list[Report]) -> list[Report]:
    return [dataclasses.replace(report, again=True) for report in reports]


def from_origin(job: Job, donor: Job, images: int) -> Job:
    return dataclasses.replace(job, origin=Origin(uri=donor.uri, images=images))


@pytest.fixture
def forked_equals_separate(
    tmp_path: Path, bind: JobOf, run: Run, outcome: Outcome, assert_same: AssertSame
) -> Callable[..., None]:
    """Compute a run by itself, and again from the fork of another one."""

    def compare(both: dict[str, Any], donor: dict[str, Any], child: dict[str, Any], images: int) -> None:
        plain = bind(tmp_path / "plain", QUICK | both | donor)
        giving = dataclasses.replace(bind(tmp_path / "forks", QUICK | both | donor), forks=(images,))
        alone = bind(tmp_path / "plain", QUICK | both | child | {"name": "child"})
        forked = bind(tmp_path / "forks", QUICK | both | child | {"name": "child"})
        forked = from_origin(forked, giving, images)
        told = ListeningTracker(), ListeningTracker()
        for job, track in (
            (plain, NullTracker()),
            (giving, NullTracker()),
            (alone, told[0]),
            (forked, told[1]),
        ):
            list(run(job, track=track))
        assert resumed_from(forked) == images
        assert_same(outcome(giving), outcome(plain))
        assert_same(outcome(forked), outcome(alone))
        assert bins_and_items(forked) == bins_and_items(alone)
        assert vars(told[1]) == vars(told[0])
        assert outcome(forked)["history"] != outcome(giving)["history"], "the runs never parted"
        kept = [
            [(profile, store.read_average(profile)) for profile in store.averages()]
            for store in (RunStore(forked.uri), RunStore(alone.uri))
        ]
        assert [profile for profile, _ in kept[0]] == [profile for profile, _ in kept[1]]
        for (_, first), (_, second) in zip(*kept, strict=True):
            assert_same(dict(first.state), dict(second.state))

    return compare


UNIFORM = {"curriculum": {"kind": "uniform"}}
Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]
# What both runs have, what the donor and what the child has of its own, and where they part or before.
QUICK_CASES: dict[str, Case] = {
    "clts with a start": (
        {},
        UNIFORM,
        {"curriculum": {"kind": "clts", "mu": 0.3, "sigma": 0.2, "start": 0.5}},
        320,
    ),
    "mdlrc with a delay": ({}, CONSTANT, LATE, 320),
    "two phases": (
        {},
        {"curriculum": {"kind": "two_phase", "switch": 0.7}},
        {"curriculum": {"kind": "two_phase", "switch": 0.4}},
        256,
    ),
    "second moment": (
        {"curriculum": {"kind": "second_moment", "history": 2}, "diffusion.timesteps": 10},
        CONSTANT,
        LATE,
        128,
    ),
    "clusters": ({"curriculum": {"kind": "clusters", "clusters": 4}}, CONSTANT, LATE, 192),
    "between ticks": (
        {"optimizer.batch": 4, "model": {"kind": "mlp", "width": 16, "layers": 1}},
        CONSTANT,
        LATE,
        236,
    ),
}
SLOW_CASES: dict[str, Case] = {
    "the first batch": ({}, CONSTANT, LATE, 64),
    "from static to two phases": (
        {"curriculum.draws": "independent"},
        {"curriculum": {"kind": "logit_normal", "coordinate": "timestep"}},
        {"curriculum": {"kind": "two_phase", "switch": 0.9}},
        576,
    ),
    "a short last batch": ({"optimizer.batch": 72}, CONSTANT, LATE, 288),
    "averages to rebuild others from": ({"ema.snapshots": 0.2}, CONSTANT, LATE, 320),
    "a classic average": ({"ema": {"kind": "classic", "decay": 0.9, "warmup": True}}, CONSTANT, LATE, 320),
    "micro-batches": ({"execution.micro_batch": 10}, CONSTANT, LATE, 320),
    "a streaming reader": ({"execution.reader": "streaming"}, CONSTANT, LATE, 320),
    "dropout, labels and flips": (
        {"model.dropout": 0.1, "conditioning": {"kind": "classes", "dropout": 0.2}, "data.flip": True},
        CONSTANT,
        LATE,
        320,
    ),
    "heavy ball": (
        {"optimizer": {"kind": "sgd", "lr": 0.05, "clip": 1.0}},
        CONSTANT,
        {"momentum": {"kind": "demon", "delay": 0.5}},
        320,
    ),
}


@pytest.mark.parametrize("case", QUICK_CASES)
def test_forked_equals_separate(case: str, forked_equals_separate: Callable[..., None]) -> None:
    """History, weights, moments, averages, pictures, and what a tracker hears: equal to the last bit."""
    forked_equals_separate(*QUICK_CASES[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_CASES)
def test_forked_equals_separate_for_every_kind_of_run(
    case: str, forked_equals_separate: Callable[..., None]
) -> None:
    forked_equals_separate(*SLOW_CASES[case])


@pytest.mark.slow
@pytest.mark.parametrize("images", [64, 320])
def test_forked_with_an_evaluation_pending(images: int, forked_equals_separate: Callable[..., None]) -> None:
    """What another process still scores when the fork is written is scored again by the child."""
    forked_equals_separate({"execution.evaluation": "background", "eval.raw": True}, CONSTANT, LATE, images)


@pytest.fixture
def pair(tmp_path: Path, bind: JobOf) -> tuple[Job, Job]:
    """A run that leaves forks after 128 and 320 images, and one that agrees with it until 320."""
    donor = bind(tmp_path / "storage", QUICK | CONSTANT | {"name": "donor"})
    child = bind(tmp_path / "storage", QUICK | LATE | {"name": "child"})
    return dataclasses.replace(donor, forks=(128, 320)), from_origin(child, donor, 320)


@pytest.fixture(scope="module")
def separate(
    tmp_path_factory: pytest.TempPathFactory, bind: JobOf, run: Run, outcome: Outcome
) -> dict[str, Any]:
    """What the child of ``pair`` leaves when it computes everything by itself."""
    alone = bind(tmp_path_factory.mktemp("separate"), QUICK | LATE | {"name": "child"})
    list(run(alone))
    return outcome(alone)


@pytest.mark.parametrize("harm", ["never run", "no fork", "cut", "no manifest"])
def test_without_its_origin_a_run_begins_at_the_beginning(
    harm: str,
    pair: tuple[Job, Job],
    separate: dict[str, Any],
    run: Run,
    outcome: Outcome,
    assert_same: AssertSame,
    caplog: pytest.LogCaptureFixture,
) -> None:
    donor, child = pair
    if harm != "never run":
        list(run(dataclasses.replace(donor, forks=(128,)) if harm == "no fork" else donor))
    if harm in ("cut", "no manifest"):
        fork = Path(donor.uri) / RunStore(donor.uri).fork(320)
        if harm == "cut":
            (fork / "state.pt").write_bytes((fork / "state.pt").read_bytes()[:-1])
        else:
            (fork / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        reports = list(run(child))
    assert donor.uri in caplog.text
    assert resumed_from(child) is None
    assert reports[1].images == 64
    assert_same(outcome(child), separate)


def test_a_forked_run_goes_on_by_itself(
    pair: tuple[Job, Job], separate: dict[str, Any], run: Run, outcome: Outcome, assert_same: AssertSame
) -> None:
    """Killed before its first checkpoint it forks again; after it, the donor may be gone."""
    donor, child = pair
    list(run(donor))
    for least in (384, 512):
        running = run(child)
        for report in running:
            if report.images >= least:
                break
        running.close()
    shutil.rmtree(donor.uri)
    list(run(child))
    assert resumed_from(child) == 512
    assert_same(outcome(child), separate)


def test_the_furthest_state_is_used(
    pair: tuple[Job, Job], separate: dict[str, Any], run: Run, outcome: Outcome, assert_same: AssertSame
) -> None:
    """A run that began by itself takes its origin's fork when that is further; not one that is behind."""
    donor, child = pair
    ticks = iter([False, True])
    list(run(child, stop=lambda: next(ticks)))
    list(run(donor))
    ticks = iter([False, False, True])
    list(run(child, stop=lambda: next(ticks)))
    store = RunStore(child.uri)
    assert [store.load(name)["images"] for name in store.checkpoints()] == [128, 512]
    list(run(from_origin(child, donor, 128)))
    assert resumed_from(child) == 512
    assert_same(outcome(child), separate)


def test_forked_run_tells_its_evaluations_first(pair: tuple[Job, Job], run: Run) -> None:
    donor, child = pair
    theirs = [report for report in run(donor) if report.evaluated]
    mine = list(run(child))
    assert mine[:2] == as_again(theirs[:2])
    assert [report.images for report in mine] == [0, 320, 384, 448, 512, 576, 640]


def test_a_fork_can_be_read_when_its_image_is_reported(
    pair: tuple[Job, Job], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the store is; and it stays, as it was."""

    def slow(store: RunStore, state: State, write: Any = RunStore.write_fork) -> str:
        time.sleep(0.2)
        return str(write(store, state))

    monkeypatch.setattr(RunStore, "write_fork", slow)
    donor, _ = pair
    store = RunStore(donor.uri)
    for report in run(donor):
        assert store.forks() == [images for images in donor.forks if images <= report.images]
    assert [store.load_fork(images)["images"] for images in store.forks()] == [128, 320]


def test_forks_are_written_once(pair: tuple[Job, Job], run: Run) -> None:
    """Also where a run passes by again, and where a fork is wanted only once the run is there."""
    donor, _ = pair
    for _ in range(2):  # killed after its first fork
        running = run(donor)
        for report in running:
            if report.images >= 128:
                break
        running.close()
    list(run(donor, stop=lambda: True))
    store = RunStore(donor.uri)
    here = store.load(store.latest() or "")["images"]
    assert 128 < here < 320
    list(run(dataclasses.replace(donor, forks=(128, here, 320))))
    folders = [path.name.partition("-")[0] for path in (Path(donor.uri) / "forks").iterdir()]
    assert sorted(map(int, folders)) == [128, here, 320]


def test_diverged_runs_leave_no_fork(bind: JobOf, run: Run, tmp_path: Path) -> None:
    changes = {"optimizer.lr": 1e9, "optimizer.batch": 1, "optimizer.warmup": 0.0}
    job = dataclasses.replace(bind(tmp_path, QUICK | changes), forks=(5,))
    with pytest.raises(Fault, match="not a finite number"):
        list(run(job))
    assert RunStore(job.uri).forks() == []


# Ending before the end.


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, bind: JobOf, run: Run, outcome: Outcome
) -> Callable[..., dict[str, Any]]:
    """What an undisturbed run leaves; computed once."""
    place = tmp_path_factory.mktemp("whole")

    def compute(changes: dict[str, Any]) -> dict[str, Any]:
        job = bind(place, QUICK | changes)
        list(run(job))
        return outcome(job)

    return compute


@pytest.mark.parametrize(
    ("changes", "until"),
    [
        ({}, 320),
        ({}, 448),
        pytest.param({"optimizer.batch": 4}, 236, marks=pytest.mark.slow),
        pytest.param({"execution.evaluation": "background"}, 320, marks=pytest.mark.slow),
        pytest.param({"execution.evaluation": "background"}, 384, marks=pytest.mark.slow),
    ],
)
def test_run_ends_early_and_goes_on_later(
    changes: dict[str, Any],
    until: int,
    whole: Callable[..., dict[str, Any]],
    tmp_path: Path,
    bind: JobOf,
    run: Run,
    outcome: Outcome,
    assert_same: AssertSame,
) -> None:
    job = bind(tmp_path / "parted", QUICK | changes)
    first = dataclasses.replace(job, until=until)
    reports = list(run(first))
    store = RunStore(job.uri)
    assert store.forks() == [until]
    assert store.result() is None
    assert (reports[-1].images, reports[-1].stopped) == (until, True)
    assert not any(report.stopped for report in reports[:-1])
    evaluations = [report for report in reports if report.evaluated]
    assert [report.images for report in evaluations] == [0, 320][: 1 + (until >= 320)]

    before = {
        path: path.stat().st_mtime_ns for path in Path(job.uri).rglob("*") if path.name != "recipe.yaml"
    }
    again = list(run(first))
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before
    assert as_again([report for report in again if report.evaluated]) == as_again(evaluations)
    assert again[-1] == reports[-1]

    list(run(job))
    assert resumed_from(job) == until
    assert_same(outcome(job), whole(changes))


def test_until_the_end_is_a_whole_run(
    whole: Callable[..., dict[str, Any]],
    tmp_path: Path,
    bind: JobOf,
    run: Run,
    outcome: Outcome,
    assert_same: Any,
) -> None:
    job = dataclasses.replace(bind(tmp_path / "until", QUICK), until=640)
    reports = list(run(job))
    assert not reports[-1].stopped
    assert RunStore(job.uri).forks() == []
    assert_same(outcome(job), whole({}))
    assert list(run(job)) == []


def test_killed_on_the_way_to_its_early_end(tmp_path: Path, bind: JobOf, run: Run) -> None:
    job = dataclasses.replace(bind(tmp_path, QUICK), until=384)
    running = run(job)
    for report in running:
        if report.images >= 256:
            break
    running.close()
    assert list(run(job))[-1].stopped
    assert RunStore(job.uri).forks() == [384]


def test_an_early_end_where_the_run_already_stands(
    tmp_path: Path, bind: JobOf, run: Run, assert_same: AssertSame
) -> None:
    """It has a checkpoint of that moment, but no fork: that is written without training anything."""
    job = bind(tmp_path, QUICK)
    ticks = iter([False] * 5 + [True])
    list(run(job, stop=lambda: next(ticks)))
    reports = list(run(dataclasses.replace(job, until=384)))
    assert [report.images for report in reports] == [0, 320, 384]
    store = RunStore(job.uri)
    assert store.forks() == [384]
    assert_same(store.load_fork(384), store.load(store.latest() or ""))


def test_an_earlier_end_than_the_run_has_come_to(
    tmp_path: Path, bind: JobOf, run: Run, assert_same: AssertSame
) -> None:
    """What lies beyond is no way back: the run begins again, and leaves the same fork."""
    job = bind(tmp_path / "one", QUICK)
    ticks = iter([False] * 8 + [True])
    list(run(job, stop=lambda: next(ticks)))
    early, other = (dataclasses.replace(each, until=192) for each in (job, bind(tmp_path / "other", QUICK)))
    for each in (early, other):
        assert list(run(each))[-1].images == 192
    states = [RunStore(each.uri).load_fork(192) for each in (early, other)]
    for name in ("network", "optimizer", "ema", "meter"):
        assert_same(states[0][name], states[1][name])


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, {"until": 100}),
        ({}, {"forks": (64, 100)}),
        ({}, {"until": 704}),
        ({}, {"forks": (0,)}),
        ({"start": {"run": "a-0123456789ab", "images": 32}}, {"until": 128}),
        ({"start": {"run": "a-0123456789ab", "images": 128}}, {"until": 128}),
    ],
)
def test_moments_that_no_update_ends_at(
    changes: dict[str, Any], fields: dict[str, Any], job_of: JobOf
) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(job_of(changes), **fields)
    assert caught.value.subject == "optimizer.batch"


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"optimizer.batch": 72}, {"until": 640, "forks": (72, 576, 640)}),
        ({"start": {"run": "a-0123456789ab", "images": 32}}, {"until": 160}),
    ],
)
def test_moments_that_updates_end_at(changes: dict[str, Any], fields: dict[str, Any], job_of: JobOf) -> None:
    dataclasses.replace(job_of(changes), **fields)


# Starting from another run, with other settings.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, bind: JobOf, run: Run) -> Callable[..., Job]:
    """A finished run that left a fork after 320 images; computed once."""
    place = tmp_path_factory.mktemp("donors")

    def compute(changes: dict[str, Any]) -> Job:
        job = dataclasses.replace(bind(place, QUICK | changes | {"name": "donor"}), forks=(320,))
        list(run(job))
        return job

    return compute


@pytest.fixture
def started(tmp_path: Path, bind: JobOf, finished: Callable[..., Job]) -> Callable[..., Job]:
    """A run that starts from a donor of this test's own, with what both have and changes of its own."""

    def build(both: dict[str, Any], changes: dict[str, Any] | None = None) -> Job:
        donor = finished(both)
        shutil.copytree(donor.uri, tmp_path / "runs" / donor.run)
        start = {"start": {"run": donor.run, "images": 320}, "name": "started"}
        return bind(tmp_path, QUICK | both | start | (changes or {}))

    return build


def donor_of(job: Job) -> Job:
    """The run that a job starts from."""
    assert job.spec.start is not None
    recipe = RunStore(f"{job.storage_uri}/runs/{job.spec.start.run}").recipe()
    assert recipe is not None
    return dataclasses.replace(job, spec=config.validate(RunSpec, config.parse_yaml(recipe, "donor")))


@pytest.mark.parametrize(
    "both",
    [
        {},
        {"curriculum": {"kind": "second_moment", "history": 2}, "diffusion.timesteps": 10},
        pytest.param({"curriculum": {"kind": "clusters", "clusters": 4}}, marks=pytest.mark.slow),
        {"optimizer": {"kind": "sgd", "lr": 0.05}, "momentum": {"kind": "demon"}},
        pytest.param({"ema.snapshots": 0.2}, marks=pytest.mark.slow),
        pytest.param({"execution.evaluation": "background"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_start_with_equal_settings_is_the_donors_own_continuation(
    both: dict[str, Any],
    started: Callable[..., Job],
    run: Run,
    outcome: Outcome,
    assert_same: AssertSame,
) -> None:
    job = started(both)
    donor = donor_of(job)
    assert job.fingerprint != donor.fingerprint
    heard = ListeningTracker()
    reports = list(run(job, track=heard))
    assert_same(outcome(job), outcome(donor))
    assert bins_and_items(job) == bins_and_items(donor)
    assert resumed_from(job) == 320
    assert {step for _, step in heard.points} == {step for step, _ in outcome(job)["history"]}
    if job.spec.execution.evaluation == "inline":
        assert [report.images for report in reports] == [0, 320, 384, 448, 512, 576, 640]
    assert RunStore(job.uri).averages() == RunStore(donor.uri).averages()


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.lr": 1e-3},
        {"optimizer.weight_decay": 0.1},
        pytest.param({"optimizer.beta2": 0.9}, marks=pytest.mark.slow),
        {"optimizer.batch": 80},
        pytest.param({"optimizer.clip": 0.01}, marks=pytest.mark.slow),
        pytest.param({"curriculum": {"kind": "uniform"}}, marks=pytest.mark.slow),
        {"curriculum": {"kind": "second_moment", "history": 2}},
        pytest.param({"curriculum": {"kind": "clusters", "clusters": 3}}, marks=pytest.mark.slow),
        pytest.param({"weighting": {"kind": "min_snr"}}, marks=pytest.mark.slow),
        {"momentum": {"kind": "constant"}},
        pytest.param({"budget.seed": 1}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_start_with_other_settings_parts_from_there(
    changes: dict[str, Any], started: Callable[..., Job], run: Run, outcome: Outcome
) -> None:
    job = started({}, changes)
    list(run(job))
    mine, theirs = outcome(job)["history"], outcome(donor_of(job))["history"]
    assert [point for point in mine if point[0] <= 320] == [point for point in theirs if point[0] <= 320]
    assert dict(mine)[640] != dict(theirs)[640]
    group = outcome(job)["optimizer"]["param_groups"][0]
    assert group["weight_decay"] == job.spec.optimizer.weight_decay
    assert group["betas"][1] == job.spec.optimizer.beta2


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        ({"curriculum": {"kind": "second_moment", "history": 2}, "diffusion.timesteps": 10}, {"history": 3}),
        pytest.param(
            {"curriculum": {"kind": "clusters", "clusters": 9, "patience": 0.01}},
            {"clusters": 2},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_sampler_whose_knowledge_does_not_fit_learns_anew(
    theirs: dict[str, Any], mine: dict[str, Any], started: Callable[..., Job], run: Run, outcome: Outcome
) -> None:
    job = started(theirs, {f"curriculum.{key}": value for key, value in mine.items()})
    assert list(run(job))[-1].images == 640
    assert dict(outcome(job)["history"])[640] != dict(outcome(donor_of(job))["history"])[640]


def test_generations_add_up_to_the_whole_run(
    whole: Callable[..., dict[str, Any]],
    tmp_path: Path,
    bind: JobOf,
    run: Run,
    outcome: Outcome,
    assert_same: Any,
) -> None:
    """Members of a population that change nothing: each goes on where the one before ended."""
    job, members = bind(tmp_path, QUICK | {"name": "g0"}), []
    for number, end in enumerate((192, 384, 640)):
        reports = list(run(dataclasses.replace(job, until=end)))
        assert reports[-1].stopped == (end < 640)
        members.append(job)
        start = {"start": {"run": job.run, "images": end}} if end < 640 else {}
        job = bind(tmp_path, QUICK | start | {"name": f"g{number + 1}"})
    assert_same(outcome(members[-1]), whole({}))


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"model.channels": 16}, "model.channels"),
        ({"model": {"kind": "mlp"}}, "model.blocks"),
        ({"ema.stds": [0.05]}, "ema.stds"),
        ({"ema": {"kind": "classic"}}, "ema.decay"),
        ({"budget.images": 1280}, "budget.images"),
        ({"optimizer": {"kind": "sgd", "lr": 0.1, "convention": "average"}}, "optimizer.convention"),
        ({"diffusion.predict": "v"}, "diffusion.predict"),
        ({"conditioning": {"kind": "classes"}}, "conditioning.dropout"),
        ({"eval.loss.images": 16}, "eval.loss.images"),
        ({"data.holdout": 0.3}, "data.holdout"),
    ],
)
def test_what_cannot_start_from_the_donor_is_refused(
    changes: dict[str, Any], subject: str, started: Callable[..., Job], run: Run
) -> None:
    job = started({}, changes)
    with pytest.raises(ConfigError) as caught:
        list(run(job))
    assert caught.value.subject.split(".")[0] == subject.split(".")[0]
    assert job.spec.start is not None
    assert job.spec.start.run in caught.value.problem


def test_other_data_are_refused(started: Callable[..., Job], run: Run, tmp_path: Path) -> None:
    """Though they have the same shape: its history would be of other images."""
    pixels, labels = data.digits()
    other = tmp_path / "data" / "other"
    data.write(Folder(str(other)), name="other", source="", pixels=255 - pixels, labels=labels)
    job = started({}, {"data.source": str(other)})
    with pytest.raises(ConfigError, match="other data") as caught:
        list(run(job))
    assert caught.value.subject == "data.source"


@pytest.mark.parametrize("harm", ["no run", "no fork", "cut"])
def test_a_missing_start_is_a_fault(harm: str, started: Callable[..., Job], run: Run) -> None:
    """Other than an origin it is part of what is computed."""
    job = started({})
    assert job.spec.start is not None
    donor = Path(job.storage_uri) / "runs" / job.spec.start.run
    match harm:
        case "no run":
            shutil.rmtree(donor)
        case "no fork":
            shutil.rmtree(donor / "forks")
        case "cut":
            fork = next((donor / "forks").iterdir()) / "state.pt"
            fork.write_bytes(fork.read_bytes()[:-1])
    with pytest.raises(Fault) as caught:
        list(run(job))
    assert caught.value.subject == "start.run"
    assert job.spec.start.run in str(caught.value)
    assert caught.value.remedy
    assert RunStore(job.uri).latest() is None


def test_a_started_run_no_longer_needs_its_donor(
    started: Callable[..., Job], run: Run, outcome: Outcome, assert_same: AssertSame
) -> None:
    job = started({})
    expected = outcome(donor_of(job))
    ticks = iter([False, True])
    list(run(job, stop=lambda: next(ticks)))
    shutil.rmtree(donor_of(job).uri)
    list(run(job))
    assert_same(outcome(job), expected)
