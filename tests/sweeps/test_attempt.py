"""An attempt at a trial, in one process: nothing trains past what nobody has heard."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hasten.sweeps import attempt as attempts
from hasten.sweeps.attempt import Attempt, Last, News, Task, failed
from hasten.trainers import specs
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.errors import Away, ConfigError, Diverged, Exhausted, Fault, Lost, NodeLost
from hasten.trainers.job import Job
from hasten.trainers.memory import OutOfMemory
from hasten.trainers.records import Report
from hasten.trainers.tracker import EndStatus, NullTracker

STEP = 3200


class Closing(NullTracker):
    """A tracker that remembers how it was closed."""

    def __init__(self) -> None:
        self.statuses: list[EndStatus] = []

    def close(self, status: EndStatus) -> None:
        self.statuses.append(status)


@pytest.fixture
def track() -> Closing:
    return Closing()


@pytest.fixture
def begin(tmp_path: Path, track: Closing) -> Iterator[Callable[..., tuple[Attempt, Job]]]:
    """Begin an attempt at a simulated run."""
    begun: list[Attempt] = []

    def start(until: int | None = None, waits: bool = True, **changes: Any) -> tuple[Attempt, Job]:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        spec = specs.load("simulated", {"model.seconds": 0.0, **dotted})
        found = sources.bind(spec, str(tmp_path))
        job = Job(
            spec=spec,
            data_uri=found.data_uri,
            data_digest=found.data_digest,
            storage_uri=found.storage_uri,
            until=until,
        )
        task = Task(trial="t", job=job, open_tracker=lambda: track, waits=waits)
        attempt = Attempt(task, str(tmp_path))
        begun.append(attempt)
        return attempt, job

    yield start
    for attempt in begun:
        attempt.close(30.0)


def to_the_end(attempt: Attempt) -> tuple[list[Report], Last]:
    """All evaluations, and how it ended."""
    told: list[Report] = []
    while True:
        news = attempt.news()
        told += [report for report in news.reports if report.evaluated]
        if news.last is not None:
            return told, news.last


def next_evaluation(attempt: Attempt) -> News:
    while True:
        news = attempt.news()
        if news.last or any(report.evaluated for report in news.reports):
            return news


def test_each_evaluation_waits_to_be_heard(begin: Any, track: Closing) -> None:
    attempt, job = begin()
    for step in range(3):
        news = next_evaluation(attempt)
        assert [report.images for report in news.reports] == [step * STEP]
        time.sleep(0.05)  # it would be far ahead by now
    rest, last = to_the_end(attempt)
    assert [report.images for report in rest] == list(range(3 * STEP, 64_000 + 1, STEP))
    assert last.how == "finished"
    result = RunStore(job.uri).result()
    assert result is not None
    assert last.result == result.model_dump_json().encode()
    attempt.close(30.0)
    assert track.statuses == ["finished"]


def test_where_nobody_decides_the_run_goes_on_and_all_is_told_in_order(begin: Any) -> None:
    """Within less than a second: in one piece of news, unless the machine is very slow."""
    attempt, _ = begin(waits=False)
    told, last = to_the_end(attempt)
    assert [report.images for report in told] == list(range(0, 64_000 + 1, STEP))
    assert last.how == "finished"
    slow, _ = begin(waits=False, model__seconds=3.0, budget__seed=1)
    pieces = [slow.news() for _ in range(2)]
    assert all(len(news.reports) > 1 for news in pieces)  # nobody heard of the first before the second


@pytest.mark.parametrize("status", ["finished", "stopped"])
def test_halted_it_stops_where_it_was_heard_last(begin: Any, track: Closing, status: EndStatus) -> None:
    attempt, job = begin()
    for _ in range(3):
        next_evaluation(attempt)
    attempt.halt(status)
    rest, last = to_the_end(attempt)
    assert (rest, last.how) == ([], "stopped")
    store = RunStore(job.uri)
    assert store.load(store.latest() or "")["images"] == 2 * STEP
    attempt.close(30.0)
    assert track.statuses == [status]


def test_a_generation_that_came_to_its_end_is_finished(begin: Any, track: Closing) -> None:
    attempt, _ = begin(until=2 * STEP)
    told, last = to_the_end(attempt)
    assert [report.images for report in told] == [0, STEP, 2 * STEP]
    assert (last.how, last.result) == ("finished", None)
    attempt.close(30.0)
    assert track.statuses == ["finished"]


def test_another_attempt_tells_everything_again(begin: Any) -> None:
    first, _ = begin()
    for _ in range(4):
        next_evaluation(first)
    first.halt("stopped")
    to_the_end(first)
    again, _ = begin()
    told, last = to_the_end(again)
    assert [report.images for report in told] == list(range(0, 64_000 + 1, STEP))
    assert last.how == "finished"


def test_a_finished_run_ends_at_once_with_its_result(begin: Any) -> None:
    to_the_end(begin()[0])
    told, last = to_the_end(begin()[0])
    assert told == []
    assert (last.how, last.result is None) == ("finished", False)


def test_it_says_how_far_it_is_while_nothing_else_happens(
    begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_SECONDS_BETWEEN_NEWS", 0.05)
    attempt, _ = begin(model__seconds=2.0, model__reports=200, eval__loss__every=1.0)
    next_evaluation(attempt)
    heard = [attempt.news() for _ in range(8)]
    images = [report.images for news in heard for report in news.reports]
    assert images == sorted(images)
    assert 1 <= len(images) <= 8, "one at a time, not each of two hundred"
    attempt.halt("stopped")


def test_one_that_hangs_can_still_be_listened_to(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_SECONDS_BETWEEN_NEWS", 0.05)
    let_go = threading.Event()

    def sleep(seconds: float) -> None:
        if seconds > 60:
            let_go.wait()
            raise RuntimeError("let go")

    monkeypatch.setattr("hasten.trainers.simulation.time.sleep", sleep)
    attempt, _ = begin(model__fails={"at": 0.5, "how": "hang"})
    for _ in range(11):
        next_evaluation(attempt)
    assert attempt.news() == News()
    let_go.set()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (Diverged("train/loss", "is nan", "Try less."), "diverged", "train/loss: is nan"),
        (Exhausted("m", "full"), "memory", "m: full"),
        (OutOfMemory("m", "32 do not fit"), "memory", "m: 32 do not fit"),
        (torch.OutOfMemoryError("CUDA out of memory."), "memory", "OutOfMemoryError: CUDA out of memory."),
        (MemoryError(), "memory", "MemoryError"),
        (Lost("t", "its process died"), "lost", "t: its process died"),
        (NodeLost("t", "its node went down"), "lost", "t: its node went down"),
        (ConfigError("data.source", "is missing"), "data", "data.source: is missing"),
        (Away("s3://b", "failed"), "lost", "s3://b: failed"),
        (Fault("/disk", "is full"), "program", "/disk: is full"),
        (ValueError("first\nlast"), "program", "last"),
    ],
)
def test_failures_are_told_apart(error: Exception, kind: str, words: str) -> None:
    last = failed(error)
    assert (last.how, last.failure, last.error) == ("failed", kind, words)
    assert last.blameless == isinstance(error, NodeLost | Away)


def test_a_failure_is_told_after_what_came_before(begin: Any, track: Closing) -> None:
    attempt, _ = begin(model__fails={"at": 0.5, "how": "nan"})
    told, last = to_the_end(attempt)
    assert told[-1].images == 32_000
    assert last.failure == "diverged"
    attempt.close(30.0)
    assert track.statuses == ["failed"]
