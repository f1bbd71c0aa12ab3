"""Runs that are said to share a beginning, against the trainer's own objects and against whole runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hasten.sweeps.conducting import prefixes
from hasten.trainers import curriculum, loop, samplers
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.errors import ConfigError
from hasten.trainers.job import Job, Origin
from hasten.trainers.loss import LossWeights
from hasten.trainers.process import Process
from hasten.trainers.records import Report
from hasten.trainers.specs import RunSpec
from hasten.trainers.worker import Worker

SpecOf = Callable[..., RunSpec]
JobOf = Callable[..., Job]
Run = Callable[..., Iterator[Report]]
Outcome = Callable[[Job], dict[str, Any]]
AssertSame = Callable[[Any, Any], None]

CPU = torch.device("cpu")
ONSETS = st.sampled_from([0.0, 0.1, 0.35, 0.5, 0.72])
RAMPS = st.sampled_from([0.8, 0.9, 1.0])


def block(kind: str, **fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    drawn = {
        key: value if isinstance(value, st.SearchStrategy) else st.just(value)
        for key, value in fields.items()
    }
    return st.fixed_dictionaries({"kind": st.just(kind), **drawn})


MIXTURES = st.one_of(
    block("uniform"),
    block("static", sigma=0.2, weight=st.sampled_from([0.0, 0.5])),
    *(
        block(
            kind,
            sigma=st.sampled_from([0.1, 0.2]),
            start=ONSETS,
            ramp=RAMPS,
            peak=st.sampled_from([0.0, 1.0]),
        )
        for kind in ("clts", "reverse", "shuffled")
    ),
    block("return", sigma=0.2, ramp=st.sampled_from([0.2, 0.4]), hold=ONSETS.filter(lambda hold: hold < 0.5)),
    block("two_phase", switch=ONSETS),
    block("logit_normal"),
)
WEIGHTINGS = st.one_of(
    block("none"), block("min_snr", gamma=st.sampled_from([1.0, 5.0])), block("twin", of=MIXTURES)
)
MOMENTA = st.one_of(
    block("constant", beta=0.9),
    *(block(kind, delay=ONSETS, floor=st.sampled_from([0.0, 0.8])) for kind in ("demon", "mdlrc", "lr_only")),
    block("cosine", delay=ONSETS),
    block("one_cycle", final_div_factor=st.sampled_from([1e3, 1e4])),
)
SCHEDULES = st.one_of(
    block("constant"), block("cosine"), block("inverse_sqrt", reference=st.sampled_from([0.3, 0.6]))
)
BLOCKS = {
    "curriculum": MIXTURES,
    "weighting": WEIGHTINGS,
    "momentum": MOMENTA,
    "optimizer.schedule": SCHEDULES,
    "optimizer.warmup": st.sampled_from([0.0, 0.05, 0.1]),
}
BASE = {
    "curriculum": {"kind": "uniform"},
    "momentum": {"kind": "constant"},
    "diffusion.timesteps": 40,
    "budget.images": 1990,  # the last batch is short
}


class Real:
    """The trainer's own objects of a run."""

    def __init__(self, spec: RunSpec) -> None:
        process = Process(spec.diffusion, CPU)
        self.spec = spec
        self.sampler = samplers.build(spec.curriculum, process.levels.alphas_bar, device=CPU, worker=Worker())
        self.weights = LossWeights(spec.weighting, process, CPU)

    def batch(self, before: int, after: int) -> list[Any]:
        """What the batch between these images is computed with, and what is told before and after it."""
        total, u = self.spec.budget.images, torch.zeros(1)
        self.sampler.draw(before / total, u)
        assert isinstance(self.sampler, samplers.ScheduledSampler)
        return [
            self.sampler._cdf.numpy().tobytes(),
            self.weights.at(before / total).numpy().tobytes(),
            loop.rates(self.spec, before / total, warmed=after / total),
            loop.schedules(self.spec, before / total),
            loop.schedules(self.spec, after / total),
        ]


def parting(first: RunSpec, second: RunSpec) -> int:
    """After how many images the trainer's objects first differ."""
    total, batch = first.budget.images, first.optimizer.batch
    ours, theirs = Real(first), Real(second)
    for before in range(0, total, batch):
        after = min(before + batch, total)
        if ours.batch(before, after) != theirs.batch(before, after):
            return before
    return total


@given(data=st.data(), keys=st.sets(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=2))
@settings(max_examples=400, deadline=None)
def test_the_trainer_does_the_same_until_then_and_no_longer(
    spec_of: SpecOf, data: st.DataObject, keys: set[str]
) -> None:
    """Runs that differ in one or two schedules: every batch's distribution, weights and rates, bit by bit."""
    drawn = [{key: data.draw(BLOCKS[key]) for key in sorted(keys)} for _ in range(2)]
    try:
        first, second = (spec_of(BASE | changes) for changes in drawn)
    except ConfigError:
        assume(False)
    assert prefixes.agree_until(first, second) == parting(first, second)


# Whole runs. The tiny one has 640 images, ten batches of 64.

LATE = {"kind": "clts", "sigma": 0.2, "start": 0.45}
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "curriculum": ({"curriculum": {"kind": "uniform"}}, {"curriculum": LATE}, 5),
    "momentum": (
        {"momentum": {"kind": "constant", "beta": 0.9}},
        {"momentum": {"kind": "mdlrc", "beta": 0.9, "delay": 0.65}},
        6,
    ),
    "rate": (
        {"optimizer.schedule": {"kind": "constant"}},
        {"optimizer.schedule": {"kind": "inverse_sqrt", "reference": 0.4}},
        4,
    ),
    "weighting": (
        {"curriculum": {"kind": "uniform"}},
        {"curriculum": {"kind": "uniform"}, "weighting": {"kind": "twin", "of": LATE}},
        5,
    ),
    "learning sampler": (
        {"curriculum": {"kind": "second_moment", "history": 1}, "momentum": {"kind": "demon", "delay": 0.3}},
        {"curriculum": {"kind": "second_moment", "history": 1}, "momentum": {"kind": "demon", "delay": 0.8}},
        3,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_a_run_that_goes_on_from_another_equals_one_of_its_own(
    name: str, tmp_path: Path, bind: JobOf, run: Run, outcome: Outcome, assert_same: AssertSame
) -> None:
    """To the last bit, and the donor is none the worse for it. One batch later, they are not the same."""
    first, second, batches = PAIRS[name]
    donor, child = bind(tmp_path / "shared", first), bind(tmp_path / "shared", second)
    images = prefixes.agree_until(donor.spec, child.spec)
    assert images == 64 * batches
    list(run(replace(donor, forks=(images,))))
    heard = list(run(replace(child, origin=Origin(uri=donor.uri, images=images))))
    result = RunStore(child.uri).result()
    assert result is not None
    assert result.resumed_from == images  # it was not computed again
    evaluated = [report.images for report in heard if report.evaluated]
    assert evaluated == [0, 160, 320, 480, 640]

    for job, changes in ((donor, first), (child, second)):
        alone = bind(tmp_path / "alone", changes)
        list(run(alone))
        assert_same(outcome(job), outcome(alone))
    assert outcome(donor)["network"].keys() == outcome(child)["network"].keys()
    with pytest.raises(AssertionError):
        assert_same(outcome(donor)["network"], outcome(child)["network"])


def test_adaptive_curricula_are_told_apart_by_kind(spec_of: SpecOf) -> None:
    """The trainer's list of curricula that learn is the one that prefixes goes by."""
    learning = spec_of({"curriculum": {"kind": "clusters"}})
    assert curriculum.adaptive(learning.curriculum)
    assert prefixes.agree_until(learning, spec_of({"curriculum": {"kind": "clusters", "clusters": 5}})) == 0
