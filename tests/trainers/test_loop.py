from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hasten.trainers import loop, momentum, session, tracker
from hasten.trainers.checkpoints import RunStore, StoreWriter
from hasten.trainers.errors import Diverged
from hasten.trainers.job import Job
from hasten.trainers.parts import Parts
from hasten.trainers.records import Report
from hasten.trainers.specs import RunSpec
from hasten.trainers.tracker import NullTracker
from hasten.trainers.worker import Worker

JobOf = Callable[..., Job]
Run = Callable[..., Iterator[Report]]


class Recorder(torch.nn.Module):
    """Lets the network work, and remembers what it was shown."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.noisy: list[torch.Tensor] = []
        self.steps: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.noisy.append(x.detach().clone())
        self.steps.append(condition.long())
        if labels is not None:
            self.labels.append(labels.clone())
        answer: torch.Tensor = self.network(x, condition, labels)
        return answer


def recorded(job: Job) -> tuple[torch.Tensor, torch.Tensor, Parts]:
    """Everything that a whole run shows to its network, in order: x (N, C, H, W) and t (N,)."""
    parts = session.assemble(job, Worker())
    recorder = Recorder(parts.network)
    parts.model = recorder
    writer = StoreWriter(RunStore(job.uri))
    for _ in loop.train(
        job.spec, parts, worker=Worker(), track=NullTracker(), writer=writer, stop=session.never
    ):
        pass
    writer.close()
    return torch.cat(recorder.noisy), torch.cat(recorder.steps), parts


def history_of(job: Job, metric: str) -> dict[int, float]:
    result = RunStore(job.uri).result()
    assert result is not None
    series = result.series(metric)
    assert len(series) == len(dict(series)), "a metric twice at one step"
    return dict(series)


def test_a_run_learns(job_of: JobOf, run: Run) -> None:
    job = job_of({"budget.images": 1280, "optimizer.lr": 5e-3})
    reports = list(run(job))
    losses = history_of(job, tracker.EVAL_LOSS)
    assert losses[1280] < 0.7 * losses[0]
    assert [report.images for report in reports] == list(range(0, 1281, 64))
    assert [report.images for report in reports if report.evaluated] == [0, 320, 640, 960, 1280]
    assert reports[-1].metrics[tracker.EVAL_LOSS] == losses[1280]
    assert all(first.seconds < second.seconds for first, second in pairwise(reports))
    assert not any(report.stopped for report in reports)


@pytest.mark.parametrize("batch", [640, 72, 48, 1])
def test_evaluation_grid_is_the_same_for_every_batch_size(batch: int, job_of: JobOf, run: Run) -> None:
    images = 640 if batch > 1 else 40
    changes = {"optimizer.batch": batch, "budget.images": images}
    job = job_of(changes)
    reports = list(run(job))
    spaced = [0, images // 4, images // 2, 3 * images // 4, images]
    expected = spaced if batch <= images // 4 else [0, images]
    assert sorted(history_of(job, tracker.EVAL_LOSS)) == expected
    assert sorted(history_of(job, tracker.EVAL_FRECHET)) == [images]
    sheets = [0, images // 2, images] if batch <= images // 2 else [0, images]
    assert [step for step, _ in RunStore(job.uri).sheets()] == sheets
    # The last batch is short where the batch does not divide the budget.
    assert reports[-1].images == images


def test_evaluation_judges_the_averaged_weights(job_of: JobOf) -> None:
    """The first of `ema.stds` counts; the second average and the raw weights score otherwise."""
    _, _, parts = recorded(job_of({"budget.images": 256}))
    judged = {point.step: point.metrics for point in parts.history if tracker.EVAL_LOSS in point.metrics}
    narrow, wide = parts.ema.networks

    def loss(network: Any) -> float:
        return parts.scorer.evaluator.losses(network).loss

    assert judged[256][tracker.EVAL_LOSS] == loss(narrow)
    assert len({loss(narrow), loss(wide), loss(parts.network)}) == 3


def test_training_metrics_follow_their_schedules(job_of: JobOf, run: Run) -> None:
    job = job_of({"optimizer.warmup": 0.5})
    list(run(job))
    rates, betas = history_of(job, tracker.TRAIN_LR), history_of(job, tracker.TRAIN_BETA1)
    assert sorted(rates) == sorted(betas) == list(range(0, 641, 64))
    for images in rates:
        progress = images / 640
        beta1, factor = momentum.at(job.spec.momentum, progress)
        assert betas[images] == beta1
        assert rates[images] == pytest.approx(2e-3 * factor * min(1.0, 2.0 * progress))
    assert sorted(history_of(job, tracker.TRAIN_LOSS)) == list(range(64, 641, 64))
    assert all(norm > 0.0 for norm in history_of(job, tracker.TRAIN_GRAD_NORM).values())


def test_warm_up_counts_the_batch_about_to_be_trained(spec_of: Callable[..., RunSpec]) -> None:
    spec = spec_of({"momentum": {"kind": "constant"}, "optimizer.warmup": 0.5})
    assert loop.rates(spec, 0.0, warmed=0.1) == (pytest.approx(2e-3 * 0.2), 0.9)
    assert loop.rates(spec, 0.4, warmed=0.5) == (2e-3, 0.9)
    assert loop.rates(spec, 0.9, warmed=1.0) == (2e-3, 0.9)
    assert loop.rates(spec_of({"optimizer.warmup": 0.0}), 0.0, warmed=0.1)[0] == 2e-3


@pytest.mark.parametrize("momentum_kind", ["constant", "demon", "mdlrc", "lr_only"])
def test_optimizer_is_given_the_schedule(momentum_kind: str, job_of: JobOf) -> None:
    job = job_of({"momentum": {"kind": momentum_kind}, "optimizer.warmup": 0.0})
    _, _, parts = recorded(job)
    beta1, factor = momentum.at(job.spec.momentum, (640 - 64) / 640)
    group = parts.optimizer.param_groups[0]
    assert group["betas"] == (beta1, 0.999)
    assert group["lr"] == pytest.approx(2e-3 * factor)


def test_first_loss_is_the_mean_over_the_global_batch(job_of: JobOf, run: Run) -> None:
    """The reported loss is the plain mean squared error of what the network was shown."""
    job = job_of()
    reports = list(run(job))
    noisy, steps, parts = recorded(job_of({"budget.images": 64}))
    network = session.assemble(job, Worker()).network
    signal = torch.from_numpy(parts.process.levels.alphas_bar[steps[:64].numpy()]).float()
    signal = signal[:, None, None, None]
    clean, _ = parts.reader.batch(np.arange(64))
    eps = (noisy[:64] - signal.sqrt() * clean) / (1.0 - signal).sqrt()
    with torch.no_grad():
        error = (network(noisy[:64], steps[:64].float()) - eps).square().mean().item()
    assert reports[1].metrics[tracker.TRAIN_LOSS] == pytest.approx(error, rel=1e-3)


def test_runs_with_one_seed_see_the_same(job_of: JobOf) -> None:
    """Arms that differ in their optimizer alone are shown the very same inputs."""
    short = {"budget.images": 256}
    noisy, steps, _ = recorded(job_of(short))
    for changes in ({"optimizer.lr": 1e-4}, {"momentum": {"kind": "constant"}}):
        other_noisy, other_steps, _ = recorded(job_of(short | changes))
        assert torch.equal(noisy, other_noisy)
        assert torch.equal(steps, other_steps)
    assert not torch.equal(noisy, recorded(job_of(short | {"budget.seed": 1}))[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"curriculum": {"kind": "uniform"}},
        {"curriculum": {"kind": "reverse", "sigma": 0.1}},
        {"optimizer.batch": 40},
    ],
)
def test_curricula_and_batch_sizes_share_images_and_noise(changes: dict[str, Any], job_of: JobOf) -> None:
    """Their timesteps differ, so two noisy versions of each image tell the image and its noise apart: the
    image found is one of the data set's bytes only if both runs used the same two."""
    short = {"budget.images": 320}
    noisy, steps, parts = recorded(job_of(short))
    other_noisy, other_steps, _ = recorded(job_of(short | changes))
    assert not torch.equal(steps, other_steps)
    abar = torch.from_numpy(parts.process.levels.alphas_bar)
    a, b = abar[steps][:, None, None, None], abar[other_steps][:, None, None, None]
    determinant = a.sqrt() * (1 - b).sqrt() - b.sqrt() * (1 - a).sqrt()
    clean = ((1 - b).sqrt() * noisy.double() - (1 - a).sqrt() * other_noisy.double()) / determinant
    solvable = determinant[:, 0, 0, 0].abs() > 0.1
    assert solvable.sum() > 20
    shown = parts.reader.batch(np.arange(320))[0].double()
    torch.testing.assert_close(clean[solvable], shown[solvable], atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(("batch", "world_size"), [(64, 1), (64, 2), (7, 2), (5, 4), (1, 2), (2, 5)])
def test_shares_cover_the_batch_and_nobody_is_idle(batch: int, world_size: int) -> None:
    workers = [Worker(rank=rank, world_size=world_size) for rank in range(world_size)]
    shares = [loop.share(batch, worker) for worker in workers]
    assert all(len(share) for share in shares)
    counted = [
        place for share, worker in zip(shares, workers, strict=True) if worker.rank < batch for place in share
    ]
    assert sorted(counted) == list(range(batch))


def test_divergence_is_a_fault_that_names_the_loss(job_of: JobOf, run: Run) -> None:
    job = job_of({"optimizer.lr": 1e9})
    with pytest.raises(Diverged) as caught:
        list(run(job))
    assert caught.value.subject == "train/loss"
    assert re.search(
        r"not a finite number from image \d+ on, first at timesteps \d+ to \d+", caught.value.problem
    )
    assert "optimizer.lr" in caught.value.remedy
    store = RunStore(job.uri)
    assert store.result() is None
    # What went wrong is not kept to be resumed from.
    for name in store.checkpoints():
        assert all(torch.isfinite(value).all() for value in store.load(name)["network"].values())


def test_a_diverged_run_that_is_stopped_keeps_nothing_of_it(job_of: JobOf, run: Run) -> None:
    """Off the grid too: who goes on would only meet the same broken weights again."""
    job = job_of({"optimizer.lr": 1e9, "optimizer.batch": 1, "optimizer.warmup": 0.0})
    steps = iter(range(100))
    with pytest.raises(Diverged, match="not a finite number"):
        list(run(job, stop=lambda: next(steps) >= 4))
    assert RunStore(job.uri).latest() is None


@pytest.mark.parametrize("changes", [{"optimizer.batch": 640}, {"optimizer.batch": 320}])
def test_divergence_at_the_very_end_is_a_fault_too(changes: dict[str, Any], job_of: JobOf, run: Run) -> None:
    """The loss is measured before the update: the last update's damage shows in the evaluation alone."""
    job = job_of({"optimizer.lr": 1e9, "optimizer.warmup": 0.0, **changes})
    with pytest.raises(Diverged) as caught:
        list(run(job))
    assert caught.value.subject in (tracker.TRAIN_LOSS, tracker.EVAL_LOSS)
    assert RunStore(job.uri).result() is None


def test_half_precision_trains(job_of: JobOf, run: Run) -> None:
    job = job_of({"precision": "bf16"})
    list(run(job))
    losses = history_of(job, tracker.EVAL_LOSS)
    assert losses[640] < losses[0]
    reference = job_of({"name": "fp32"})
    list(run(reference))
    assert losses[640] == pytest.approx(history_of(reference, tracker.EVAL_LOSS)[640], rel=0.05)


def test_labels_are_hidden_at_the_stated_rate_and_by_address(job_of: JobOf) -> None:
    conditional = {"conditioning": {"kind": "classes", "dropout": 0.25}, "budget.images": 640}

    def shown(changes: dict[str, Any]) -> torch.Tensor:
        job = job_of(conditional | changes)
        parts = session.assemble(job, Worker())
        parts.model = recorder = Recorder(parts.network)
        writer = StoreWriter(RunStore(job.uri))
        arguments = {"worker": Worker(), "track": NullTracker(), "writer": writer, "stop": session.never}
        for _ in loop.train(job.spec, parts, **arguments):
            pass
        writer.close()
        return torch.cat(recorder.labels)

    labels = shown({})
    hidden = labels == 10
    true = session.assemble(job_of(conditional), Worker()).reader.batch(np.arange(640))[1]
    assert torch.equal(labels[~hidden], true[~hidden])
    assert 0.18 < hidden.float().mean() < 0.32
    assert torch.equal(shown({"optimizer.batch": 40}), labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"curriculum": {"kind": "second_moment", "history": 2}, "diffusion.timesteps": 10},
        {"curriculum": {"kind": "clusters", "clusters": 4}},
        {"curriculum": {"kind": "two_phase"}, "curriculum.draws": "independent"},
        {"weighting": {"kind": "min_snr"}},
        {
            "curriculum": {"kind": "uniform"},
            "weighting.kind": "twin",
            "weighting.of": {"kind": "clts", "sigma": 0.2},
        },
        {
            "optimizer": {"kind": "sgd", "lr": 0.1, "clip": 1.0},
            "momentum": {"kind": "mdlrc", "compensation": "inverse"},
        },
        {"optimizer.schedule": {"kind": "cosine"}, "momentum": {"kind": "linear"}},
        {"momentum": {"kind": "one_cycle"}, "ema": {"kind": "classic", "decay": 0.9}},
        {"diffusion": {"kind": "edm"}, "curriculum": {"kind": "edm_lognormal"}},
        {"diffusion": {"kind": "flow"}, "curriculum": {"kind": "logit_normal"}},
        {"diffusion.predict": "v"},
        {"diffusion.predict": "x0"},
        {"model.dropout": 0.1},
        {"data.flip": True},
        {"execution.micro_batch": 10},
        {"execution.reader": "streaming"},
        {"execution.evaluation": "background", "eval.raw": True},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items())[:60],
)
def test_every_kind_of_run_learns_and_resumes_to_the_bit(
    changes: dict[str, Any],
    bind: Callable[..., Job],
    run: Run,
    outcome: Callable[[Job], Any],
    assert_same: Callable[[Any, Any], None],
    tmp_path: Path,
) -> None:
    """Stopped off the grid of ticks and checkpoints, and continued by new objects, against undisturbed."""
    small = {"optimizer.batch": 32, "eval.loss.every": 0.5, **changes}
    plain, stopped = bind(tmp_path / "plain", small), bind(tmp_path / "stopped", small)
    list(run(plain))
    steps = iter(range(100))
    reports = list(run(stopped, stop=lambda: next(steps) >= 6))
    assert reports[-1].stopped
    assert reports[-1].images == 7 * 32
    list(run(stopped))
    result = RunStore(stopped.uri).result()
    assert result is not None
    assert result.resumed_from == 7 * 32
    assert_same(outcome(stopped), outcome(plain))
    losses = history_of(plain, tracker.EVAL_LOSS)
    assert losses[640] < losses[0]


@pytest.mark.slow
def test_scores_of_another_process_are_the_loops_own(
    bind: Callable[..., Job],
    run: Run,
    outcome: Callable[[Job], Any],
    assert_same: Callable[[Any, Any], None],
    tmp_path: Path,
) -> None:
    """Also when the run is killed with evaluations pending: the checkpoint knows what was asked."""
    changes = {"eval.raw": True, "eval.loss.every": 0.2, "execution.checkpoint_every": 0.1}
    inline, killed = (
        bind(tmp_path / "inline", changes),
        bind(tmp_path / "killed", {**changes, "execution.evaluation": "background"}),
    )
    list(run(inline))
    reports = run(killed)
    # What was asked for last cannot be known yet when the checkpoint of the same moment is written.
    for report in reports:
        if report.images >= 320:
            break
    reports.close()
    store = RunStore(killed.uri)
    pending = store.load(store.latest() or "")["scorer"]
    assert pending[-1]["marks"]["sheet"] == 320
    assert pending[-1]["averaged"].keys() == pending[-1]["last"].keys()
    list(run(killed))
    assert_same(outcome(killed), outcome(inline))
    assert RunStore(killed.uri).result().evaluation == RunStore(inline.uri).result().evaluation
