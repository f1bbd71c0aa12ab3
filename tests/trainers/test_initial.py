"""Runs that begin with the weights of another, finished one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.trainers import session
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import data
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.job import Job
from hasten.trainers.metrics import examination
from hasten.trainers.records import Report
from hasten.trainers.specs import RunSpec
from hasten.trainers.store import Folder
from hasten.trainers.worker import Worker

JobOf = Callable[..., Job]
Run = Callable[[Job], Iterator[Report]]

QUICK = {"eval.loss.every": 0.5, "eval.grid.every": 0.5}
SECOND: dict[str, Any] = {"budget.seed": 5, "name": "second"}


@pytest.fixture
def donor(job_of: JobOf, run: Run) -> Job:
    job = job_of(QUICK)
    list(run(job))
    return job


def weights_after(job: Job) -> dict[str, Any]:
    store = RunStore(job.uri)
    name = store.latest()
    assert name is not None
    averaged: dict[str, Any] = store.load(name)["ema"][0]
    return averaged


def test_it_begins_with_the_averaged_weights_and_nothing_else(donor: Job, job_of: JobOf, run: Run) -> None:
    job = job_of(QUICK | SECOND | {"initial": {"run": donor.run}})
    parts = session.assemble(job, Worker())
    try:
        session.resumption.resume(job, parts, Worker())
        expected = weights_after(donor)
        for key, tensor in parts.network.state_dict().items():
            assert (tensor == expected[key]).all(), key
        for key, tensor in parts.ema.networks[0].state_dict().items():
            assert (tensor == expected[key]).all(), key
        assert not parts.optimizer.state
        assert (parts.images, parts.history) == (0, [])
    finally:
        parts.close()
    list(run(job))
    scratch = job_of(QUICK | SECOND)
    list(run(scratch))
    warm, cold = (RunStore(each.uri).result() for each in (job, scratch))
    assert warm is not None
    assert cold is not None
    assert warm.metrics["eval/loss"] < cold.metrics["eval/loss"]


def test_a_run_that_has_begun_no_longer_needs_its_donor(donor: Job, job_of: JobOf, run: Run) -> None:
    job = job_of(QUICK | SECOND | {"initial": {"run": donor.run}})
    whole = job_of(QUICK | SECOND | {"initial": {"run": donor.run}, "name": "whole"})
    list(run(whole))
    ticks = iter([False, True])
    list(session.run(job, worker=Worker(), track=session.tracker.NullTracker(), stop=lambda: next(ticks)))
    shutil.rmtree(donor.uri)
    list(run(job))
    expected = weights_after(whole)
    assert all((tensor == expected[key]).all() for key, tensor in weights_after(job).items())


def test_other_data_are_no_hindrance_but_other_networks_are(
    donor: Job, job_of: JobOf, run: Run, imported: Path, tmp_path: Path
) -> None:
    pixels, labels = data.digits()
    other = Folder(str(tmp_path / "other"))
    data.write(other, name="other", source="", pixels=255 - pixels, labels=labels)
    initial = {"initial": {"run": donor.run}}
    list(run(job_of(QUICK | SECOND | initial | {"data.source": other.uri})))
    with pytest.raises(ConfigError, match="is another one") as caught:
        list(run(job_of(QUICK | initial | {"model.channels": 16, "name": "wider"})))
    assert caught.value.subject == "model"
    gone = {"initial": {"run": "nothing-0123456789ab"}, "name": "orphan"}
    with pytest.raises(Fault, match="no finished run"):
        list(run(job_of(QUICK | gone)))


def test_start_and_initial_exclude_each_other(spec_of: Callable[..., RunSpec], donor: Job) -> None:
    both = {"start": {"run": donor.run, "images": 64}, "initial": {"run": donor.run}}
    with pytest.raises(ConfigError, match="means nothing beside"):
        spec_of(both)


def test_networks_are_examined_on_the_same_images_and_noise(donor: Job, job_of: JobOf, run: Run) -> None:
    other = job_of(QUICK | SECOND)
    list(run(other))
    exam = examination.Examination(donor)
    known = [examination.trained(job.uri) for job in (donor, other)]
    results = [RunStore(job.uri).result() for job in (donor, other)]
    for trained, result in zip(known, results, strict=True):
        assert result is not None
        assert exam.loss(trained) == pytest.approx(result.metrics["eval/loss"], rel=1e-6)
    quality = exam.quality(known[0], ("frechet", "recall", "memorization"))
    expected = {"eval/frechet", "eval/recall", "eval/memorization", "eval/nearest_unseen"}
    assert quality.keys() == expected
    assert all(np.isfinite(value) for value in quality.values())
    first, second = exam.seconds_per_sample(known)
    assert first > 0.0
    assert second > 0.0
