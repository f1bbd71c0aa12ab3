"""Simulated runs: a made-up curve that keeps the contract of a real run."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hasten.trainers import session, specs
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.errors import ConfigError, Diverged, Exhausted
from hasten.trainers.job import Job, Origin
from hasten.trainers.models import networks
from hasten.trainers.models.architectures import Simulated
from hasten.trainers.records import Point, Report, RunResult
from hasten.trainers.simulation import positions
from hasten.trainers.tracker import EndStatus, NullTracker
from hasten.trainers.worker import Worker

IMAGES = 64_000
CLTS = {"kind": "clts", "mu": 0.3, "sigma": 0.2}


def bind(place: Path, **changes: Any) -> Job:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return sources.bind(specs.load("simulated", {"model.seconds": 0.0, **dotted}), str(place))


def start(job: Job, **arguments: Any) -> Iterator[Report]:
    return session.run(job, **{"worker": Worker(), "track": NullTracker(), **arguments})


def finished(job: Job) -> RunResult:
    list(start(job))
    result = RunStore(job.uri).result()
    assert result is not None
    return result


def plain(result: RunResult) -> list[tuple[int, dict[str, float]]]:
    """A history without what depends on the clock."""
    return [
        (point.step, {key: value for key, value in point.metrics.items() if not key.startswith("perf/")})
        for point in result.history
    ]


def losses(result: RunResult) -> list[float]:
    return [value for _, value in result.series("eval/loss")]


class Diary:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.images: list[tuple[str, int]] = []
        self.artifacts: set[str] = set()

    def metrics(self, values: Any, *, step: int) -> None:
        self.points.append(Point(step=step, metrics=dict(values)))

    def image(self, key: str, image: NDArray[np.uint8], *, step: int) -> None:
        assert image.shape == (32, 32, 3)
        self.images.append((key, step))

    def artifact(self, path: str, content: bytes) -> None:
        assert content
        self.artifacts.add(path)

    def tags(self, values: Any) -> None:
        pass

    def close(self, status: EndStatus) -> None:
        pass


def test_it_learns_and_leaves_a_result(tmp_path: Path) -> None:
    job, diary = bind(tmp_path), Diary()
    reports = list(start(job, track=diary))
    evaluated = [report for report in reports if report.evaluated]
    assert [report.images for report in evaluated] == list(range(0, IMAGES + 1, IMAGES // 20))
    assert all(len(report.items) == 16 for report in evaluated)
    for report in evaluated:
        assert report.metrics["eval/loss"] == pytest.approx(statistics.fmean(report.items))
    result = RunStore(job.uri).result()
    assert result is not None
    assert (result.status, result.images) == ("finished", IMAGES)
    assert losses(result)[0] > 0.9
    assert losses(result)[-1] < 0.2
    assert {"eval/frechet", "train/loss", "train/lr", "perf/seconds"} <= result.metrics.keys()
    assert {point.step for point in diary.points} == {point.step for point in result.history}
    assert "config/resolved.yaml" in diary.artifacts
    assert not diary.images, "only where they are asked for"
    assert list(start(job)) == [], "a finished run only tells its tracker again"


def test_there_is_something_to_find(tmp_path: Path) -> None:
    """The optimizer's rate has a best value; the curriculum's centre has one, and makes the run faster."""
    at = {lr: losses(finished(bind(tmp_path, optimizer__lr=lr)))[-1] for lr in (2e-4, 2e-3, 2e-2)}
    assert at[2e-3] < min(at[2e-4], at[2e-2]) - 0.02
    halfway = len(losses(finished(bind(tmp_path)))) // 2
    uniform, good, bad = (
        losses(finished(bind(tmp_path, curriculum=curriculum)))[halfway]
        for curriculum in ({"kind": "uniform"}, CLTS, CLTS | {"mu": 0.9})
    )
    assert good < bad - 0.005
    assert good < uniform - 0.01


def test_runs_of_one_seed_share_half_of_their_noise(tmp_path: Path) -> None:
    """So the differences between pairs vary less than the values do."""
    pairs = [
        [losses(finished(bind(tmp_path, budget__seed=seed, optimizer__lr=lr)))[-1] for lr in (2e-3, 2.2e-3)]
        for seed in range(24)
    ]
    assert all(first != second for first, second in pairs)
    alone = statistics.variance(first for first, _ in pairs) + statistics.variance(last for _, last in pairs)
    paired = statistics.variance(first - last for first, last in pairs)
    assert paired < 0.8 * alone


@given(data=st.data())
def test_it_goes_on_as_if_nothing_had_happened(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Stopped at any report and started again, with the same numbers and all evaluations told once more."""
    place = tmp_path_factory.mktemp("storage")
    calm = bind(place / "calm", curriculum=CLTS)
    expected = [report for report in start(calm) if report.evaluated]
    job = bind(place / "disturbed", curriculum=CLTS)
    many = data.draw(st.integers(min_value=0, max_value=len(expected) - 2))
    heard: list[Report] = []
    for report in start(job, stop=lambda: len(heard) > many):
        heard.append(report)
    assert heard[-1].stopped
    assert RunStore(job.uri).result() is None
    again = [report for report in start(job) if report.evaluated]
    assert [(each.images, each.items) for each in again] == [(each.images, each.items) for each in expected]
    result = RunStore(job.uri).result()
    assert result is not None
    assert result.resumed_from == heard[-1].images
    assert [each.images for each in again if not each.again] == [
        each.images for each in expected if each.images > heard[-1].images
    ]
    assert plain(result) == plain(finished(calm))


@pytest.mark.parametrize("batch", [64, 100, 640])
def test_schedules_that_agree_until_then_give_the_same_run_until_then(tmp_path: Path, batch: int) -> None:
    """A fork of one run is where the other one was, to the last bit, and goes on as the other one does."""
    late, fork = CLTS | {"start": 0.5}, 32_000
    donor = dataclasses.replace(bind(tmp_path / "shared", optimizer__batch=batch), forks=(fork,))
    first = finished(donor)
    child = bind(tmp_path / "shared", optimizer__batch=batch, curriculum=late)
    forked = finished(dataclasses.replace(child, origin=Origin(uri=donor.uri, images=fork)))
    assert forked.resumed_from == fork
    alone = finished(bind(tmp_path / "alone", optimizer__batch=batch, curriculum=late))
    assert plain(forked) == plain(alone)
    assert plain(forked) != plain(first)
    before = [point for point in plain(forked) if point[0] <= fork]
    assert before == plain(first)[: len(before)]


def test_a_generation_ends_and_another_recipe_goes_on_from_it(tmp_path: Path) -> None:
    job = dataclasses.replace(bind(tmp_path), until=16_000)
    reports = list(start(job))
    assert (reports[-1].images, reports[-1].stopped) == (16_000, True)
    store = RunStore(job.uri)
    assert store.result() is None
    assert store.forks() == [16_000]
    follow = {"start": {"run": job.run, "images": 16_000}, "optimizer.lr": 4e-3}
    child = sources.bind(specs.load("simulated", {"model.seconds": 0.0, **follow}), str(tmp_path))
    result = finished(child)
    steps = [step for step, _ in result.series("eval/loss")]
    assert steps == list(range(0, IMAGES + 1, IMAGES // 20)), "the parent's past is part of its history"
    assert losses(result)[5] == pytest.approx(reports[-2].metrics["eval/loss"], rel=0.2)


@pytest.mark.parametrize(
    ("how", "error"), [("nan", Diverged), ("memory", Exhausted), ("error", RuntimeError)]
)
def test_faults_on_demand(tmp_path: Path, how: str, error: type[Exception]) -> None:
    job = bind(tmp_path, model__fails={"at": 0.5, "how": how}, execution__checkpoint_every=0.25)
    with pytest.raises(error):
        list(start(job))
    store = RunStore(job.uri)
    assert store.load(store.latest() or "")["images"] == 32_000
    with pytest.raises(error):
        list(start(job))


def test_a_fault_that_comes_once_is_over_with_the_first_attempt(tmp_path: Path) -> None:
    job = bind(
        tmp_path, model__fails={"at": 0.5, "how": "nan", "once": True}, execution__checkpoint_every=0.25
    )
    with pytest.raises(Diverged):
        list(start(job))
    assert finished(job).resumed_from == 32_000


def test_pictures_are_drawn_where_they_are_asked_for(tmp_path: Path) -> None:
    job, diary = bind(tmp_path, model__images=True), Diary()
    list(start(job, track=diary))
    steps = [step for _, step in diary.images]
    assert steps == [0, 16_000, 32_000, 48_000, 64_000]
    assert [step for step, _ in RunStore(job.uri).sheets()] == steps


@pytest.mark.parametrize("batch", [1, 7, 64, 999])
def test_every_position_ends_a_batch(tmp_path: Path, batch: int) -> None:
    job = bind(tmp_path, optimizer__batch=batch, budget__images=10_000)
    ends: Callable[[int], bool] = lambda images: images % batch == 0 or images == 10_000  # noqa: E731
    found = positions(job, 0, forks=[])
    assert found[-1] == 10_000
    assert all(map(ends, found))
    assert len(found) <= 21


def test_there_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.kind: simulated runs have no network"):
        networks.build(Simulated(kind="simulated"), shape=(1, 8, 8), classes=None, seed=0)
