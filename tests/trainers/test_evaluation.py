from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hasten.trainers import frechet, networks, session
from hasten.trainers.diffusion import Ddpm, alphas_bar
from hasten.trainers.evaluation import Evaluator
from hasten.trainers.session import Job
from hasten.trainers.specs import Eval, GridEval, LossEval, SampleEval, Unet
from hasten.trainers.worker import Worker

DDPM = Ddpm(kind="ddpm", timesteps=1000)
SIGNAL = alphas_bar(DDPM)
SPEC = Eval(
    loss=LossEval(images=300), samples=SampleEval(images=8, steps=2), grid=GridEval(images=5, steps=2)
)


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(count, 1, 8, 8), dtype=np.uint8)


def evaluator(spec: Eval = SPEC, held_out: int = 400, worker: Worker | None = None) -> Evaluator:
    return Evaluator(
        spec,
        diffusion=DDPM,
        alphas_bar=SIGNAL,
        train=pixels(50, seed=1),
        held_out=pixels(held_out),
        worker=worker or Worker(),
    )


class Listener(torch.nn.Module):
    """Remembers what it is asked; answers with the true noise (it knows the images), plus an offset."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(1))
        self.offset = offset
        self.images = torch.from_numpy(pixels(400)).double() / 127.5 - 1.0
        self.noisy: list[torch.Tensor] = []
        self.steps: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> SimpleNamespace:
        first = sum(len(part) for part in self.steps)
        self.noisy.append(x.clone())
        self.steps.append(t.clone())
        clean = self.images[first : first + len(x)]
        abar = torch.from_numpy(SIGNAL)[t][:, None, None, None]
        eps = (x.double() - abar.sqrt() * clean) / (1.0 - abar).sqrt()
        return SimpleNamespace(sample=eps.float() + self.offset)


def test_perfect_prediction_costs_nothing() -> None:
    assert evaluator().loss(Listener()) == pytest.approx(0.0, abs=1e-7)
    assert evaluator().loss(Listener(offset=0.5)) == pytest.approx(0.25, rel=1e-4)


def test_timesteps_are_uniform_over_the_chain() -> None:
    listener = Listener()
    evaluator().loss(listener)
    steps = torch.cat(listener.steps).numpy()
    assert len(steps) == SPEC.loss.images
    np.testing.assert_array_equal(steps // 100, np.repeat(np.arange(10), 30))


def test_noise_is_fixed_and_standard_normal() -> None:
    first, second = Listener(), Listener()
    evaluator().loss(first)
    evaluator().loss(second)
    for mine, theirs in zip(first.noisy, second.noisy, strict=True):
        assert torch.equal(mine, theirs)
    noisy, steps = torch.cat(first.noisy).double(), torch.cat(first.steps)
    abar = torch.from_numpy(SIGNAL)[steps][:, None, None, None]
    eps = (noisy - abar.sqrt() * first.images[:300]) / (1.0 - abar).sqrt()
    assert eps.mean().item() == pytest.approx(0.0, abs=0.03)
    assert eps.std().item() == pytest.approx(1.0, abs=0.03)


def test_no_more_images_than_there_are() -> None:
    listener = Listener()
    evaluator(held_out=40).loss(listener)
    assert len(torch.cat(listener.steps)) == 40


def network() -> torch.nn.Module:
    return networks.build(Unet(kind="unet", channels=8, multipliers=(1,)), resolution=8, channels=1, seed=5)


def scores(measured: Evaluator, judged: torch.nn.Module) -> tuple[float, float, bytes]:
    return measured.loss(judged), measured.frechet(judged), measured.sheet(judged).tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"budget.seed": 7},
        {"optimizer.batch": 16},
        {"curriculum": {"kind": "uniform"}},
        {"curriculum": {"kind": "reverse", "sigma": 0.1}},
        {"momentum": {"kind": "constant"}},
        {"budget.images": 1280},
        {"name": "other"},
    ],
)
def test_scores_depend_on_nothing_but_the_network(
    changes: dict[str, Any], job_of: Callable[..., Job]
) -> None:
    judged = network()
    base = scores(session.assemble(job_of(), Worker()).evaluator, judged)
    other = scores(session.assemble(job_of(changes), Worker()).evaluator, judged)
    assert base == other


def test_evaluation_leaves_no_trace_in_the_networks_gradients() -> None:
    judged = network()
    evaluator().loss(judged)
    evaluator().frechet(judged)
    assert all(parameter.grad is None for parameter in judged.parameters())


def test_frechet_compares_samples_with_the_training_images() -> None:
    measured, judged = evaluator(), network()
    value = measured.frechet(judged)
    assert np.isfinite(value)
    assert value > 0.0
    samples = measured._samples(judged, 8, 2)
    features = samples.reshape(8, -1) / 255.0
    reference = pixels(50, seed=1).reshape(50, -1) / 255.0
    assert value == pytest.approx(frechet.distance(frechet.moments(features), frechet.moments(reference)))


class OneOfTwo(Worker):
    """A worker that computes its share of two, and is told nothing of the other's."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


def shares(measure: Callable[[Evaluator], Any], spec: Eval = SPEC) -> list[Any]:
    return [measure(evaluator(spec, worker=OneOfTwo(rank=rank, world_size=2))) for rank in range(2)]


def test_two_workers_share_the_work_and_find_the_same() -> None:
    judged = network()
    alone = evaluator()
    assert sum(shares(lambda mine: mine.loss(judged))) == pytest.approx(alone.loss(judged), rel=1e-6)
    parts = shares(lambda mine: mine._samples(judged, 5, 2))
    assert all((part == 0).reshape(5, -1).all(axis=1).any() for part in parts)
    # A sample is rounded to a byte, and its batch may change the last bit before that.
    assert np.abs((parts[0] + parts[1]).astype(int) - alone._samples(judged, 5, 2)).max() <= 1


def test_a_worker_may_have_nothing_to_evaluate() -> None:
    """One image over two workers."""
    judged = network()
    spec = Eval(loss=LossEval(images=1), grid=GridEval(images=1, steps=2))
    assert sum(shares(lambda mine: mine.loss(judged), spec)) == pytest.approx(evaluator(spec).loss(judged))
    parts = shares(lambda mine: mine._samples(judged, 1, 2), spec)
    np.testing.assert_array_equal(parts[0] + parts[1], evaluator(spec)._samples(judged, 1, 2))
