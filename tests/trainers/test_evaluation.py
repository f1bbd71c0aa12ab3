from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hasten.trainers import randomness, session
from hasten.trainers.datasets import data, mixtures
from hasten.trainers.diffusion import Ddpm, Diffusion, Edm, Flow, alphas_bar
from hasten.trainers.errors import ConfigError
from hasten.trainers.job import Job
from hasten.trainers.metrics import evaluation, frechet
from hasten.trainers.metrics.evaluation import Evaluator
from hasten.trainers.metrics.subject import Subject, subject_of
from hasten.trainers.models import networks
from hasten.trainers.models.architectures import Mlp, Unet
from hasten.trainers.process import Process
from hasten.trainers.specs import Classifier, Eval, GridEval, Inception, LossEval, Metric, SampleEval
from hasten.trainers.store import Folder
from hasten.trainers.worker import Worker

CPU = torch.device("cpu")
DDPM = Ddpm(kind="ddpm", timesteps=1000)
SPEC = Eval(
    loss=LossEval(images=300), samples=SampleEval(images=8, steps=2), grid=GridEval(images=5, steps=2)
)
PROCESSES: dict[str, Diffusion] = {
    "epsilon": DDPM,
    "x0": Ddpm(kind="ddpm", predict="x0"),
    "v": Ddpm(kind="ddpm", schedule="linear", predict="v"),
    "edm": Edm(kind="edm"),
    "flow": Flow(kind="flow", shift=2.0),
}
EVERY = pytest.mark.parametrize("name", PROCESSES)


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(count, 1, 8, 8), dtype=np.uint8)


def images(held_out: int = 400, **fields: Any) -> Subject:
    """A subject of random pixels: 50 to train on."""
    given: dict[str, Any] = {
        "digest": "digest",
        "clean": pixels(held_out).astype(np.float32) / 127.5 - 1.0,
        "labels": np.arange(held_out) % 3,
        "training": lambda: (pixels(50, seed=1), np.arange(50) * 7 % 3),
    }
    return Subject(**given | fields)


def evaluator(
    spec: Eval = SPEC,
    subject: Subject | None = None,
    worker: Worker | None = None,
    process: Diffusion = DDPM,
) -> Evaluator:
    return Evaluator(
        spec, process=Process(process, CPU), subject=subject or images(), worker=worker or Worker()
    )


class Listener(torch.nn.Module):
    """Remembers what it is asked; answers as one that knows image and noise, its noise off by ``offset``."""

    def __init__(self, process: Diffusion = DDPM, offset: float = 0.0) -> None:
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(1))
        self.offset = offset
        self.levels = Process(process, CPU).levels
        self.images = torch.from_numpy(pixels(400)).double() / 127.5 - 1.0
        self.noisy: list[torch.Tensor] = []
        self.steps: list[np.ndarray] = []
        self.labels: list[torch.Tensor | None] = []

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        first = sum(len(part) for part in self.steps)
        order = np.argsort(self.levels.condition)
        t = order[np.searchsorted(self.levels.condition[order].astype(np.float32), condition.numpy())]
        signal, noise, scale, to_clean, to_eps, determinant = (
            torch.from_numpy(np.asarray(getattr(self.levels, column)[t]))[:, None, None, None]
            for column in ("signal", "noise", "scale", "clean", "eps", "determinant")
        )
        noisy = x.double() / scale
        self.noisy.append(noisy)
        self.steps.append(t)
        self.labels.append(labels)
        clean = self.images[first : first + len(x)]
        eps = (noisy - signal * clean) / noise
        return (to_clean * clean + to_eps * eps + self.offset * determinant / signal).float()


@EVERY
def test_perfect_prediction_costs_nothing(name: str) -> None:
    """Whatever is predicted, the loss is that of the implied noise."""
    spec = PROCESSES[name]
    right, off = Listener(spec), Listener(spec, offset=0.5)
    assert evaluator(process=spec).losses(right).loss == pytest.approx(0.0, abs=1e-6)
    found = evaluator(process=spec).losses(off)
    assert found.loss == pytest.approx(0.25, rel=1e-3)
    np.testing.assert_allclose(found.by_timestep, 0.25, rtol=2e-2)


def test_timesteps_are_uniform_over_the_chain() -> None:
    listener = Listener()
    evaluator().losses(listener)
    steps = np.concatenate(listener.steps)
    assert len(steps) == SPEC.loss.images
    np.testing.assert_array_equal(steps // 100, np.repeat(np.arange(10), 30))


def test_noise_is_fixed_and_standard_normal() -> None:
    first, second = Listener(), Listener()
    evaluator().losses(first)
    evaluator().losses(second)
    for mine, theirs in zip(first.noisy, second.noisy, strict=True):
        assert torch.equal(mine, theirs)
    noisy, steps = torch.cat(first.noisy), np.concatenate(first.steps)
    abar = torch.from_numpy(alphas_bar(DDPM)[steps])[:, None, None, None]
    eps = (noisy - abar.sqrt() * first.images[:300]) / (1.0 - abar).sqrt()
    assert eps.mean().item() == pytest.approx(0.0, abs=0.03)
    assert eps.std().item() == pytest.approx(1.0, abs=0.03)


class Halving(torch.nn.Module):
    """An answer that is the same on every machine to the bit."""

    def forward(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        return 0.5 * x


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_losses_of_epsilon_networks_are_the_first_versions_to_the_bit(schedule: str) -> None:
    """Stored results go on being comparable: the first version's lines, on float32 signal shares."""
    spec = Ddpm.model_validate({"kind": "ddpm", "schedule": schedule})
    places = np.arange(300)
    steps = ((places + randomness.uniform(0, "eval/timestep", places)) / 300 * 1000).astype(np.int64)
    eps = randomness.noise(0, "eval/noise", places, (1, 8, 8))
    abar = alphas_bar(spec)[steps].astype(np.float32)[:, None, None, None]
    clean = pixels(400)[:300].astype(np.float32) / 127.5 - 1.0
    noisy = torch.from_numpy(np.sqrt(abar) * clean + np.sqrt(1.0 - abar) * eps)
    total = torch.zeros((), dtype=torch.float64)
    for part in (slice(0, 256), slice(256, 300)):
        error = (0.5 * noisy[part] - torch.from_numpy(eps)[part]).double()
        total += error.square().mean(dim=(1, 2, 3)).sum()
    assert evaluator(process=spec).losses(Halving()).loss == total.item() / 300


def test_no_more_images_than_there_are() -> None:
    listener = Listener()
    evaluator(subject=images(40)).losses(listener)
    assert len(np.concatenate(listener.steps)) == 40


class WrongEarly(Listener):
    """Knows the noise, but is off by 1 below timestep 200."""

    def forward(self, x: torch.Tensor, condition: torch.Tensor, *_: object) -> torch.Tensor:
        return super().forward(x, condition) + (condition < 200)[:, None, None, None]


def test_losses_by_timestep_say_where_it_goes_wrong() -> None:
    found = evaluator(Eval(loss=LossEval(images=300, bins=5))).losses(WrongEarly())
    np.testing.assert_allclose(found.by_timestep, [1.0, 0.0, 0.0, 0.0, 0.0], atol=1e-5)
    assert found.loss == pytest.approx(0.2, rel=1e-5)
    assert found.excess is None
    assert found.metrics() == {"eval/loss": found.loss}


def test_ranges_without_an_image_have_no_loss() -> None:
    found = evaluator(Eval(loss=LossEval(images=3, bins=10))).losses(Halving())
    assert np.isnan(found.by_timestep).sum() == 7
    assert np.isfinite(found.loss)
    bins = json.loads(json.dumps(found.bins()))
    assert bins.keys() == {"loss"}
    assert [value is None for value in bins["loss"]] == np.isnan(found.by_timestep).tolist()


@pytest.mark.parametrize("count", [1, 3, 64, 65, 300])
def test_items_are_the_means_of_groups_of_images(count: int) -> None:
    """Every 64th image makes a group, from each of the first 64 on."""
    measured = evaluator(Eval(loss=LossEval(images=count)))
    found = measured.losses(Halving())
    steps, eps, noisy = measured._trials
    errors = np.square((0.5 * noisy - eps).astype(np.float64)).mean(axis=(1, 2, 3))
    groups = min(64, count)
    expected = [errors[group::groups].mean() for group in range(groups)]
    np.testing.assert_allclose(found.items, expected, rtol=1e-6)
    sizes = [len(errors[group::groups]) for group in range(groups)]
    assert np.average(found.items, weights=sizes) == pytest.approx(found.loss)
    if count == 300:  # every group has easy and hard timesteps
        assert all(np.ptp(steps[group::groups]) > 600 for group in range(groups))


def test_conditional_networks_are_told_the_true_labels() -> None:
    told, untold = Listener(), Listener()
    evaluator(subject=images(classes=3)).losses(told)
    evaluator().losses(untold)
    assert untold.labels == [None, None]
    labels = torch.cat([part for part in told.labels if part is not None])
    np.testing.assert_array_equal(labels.numpy(), np.arange(300) % 3)


class Best(torch.nn.Module):
    """The best possible answer to a mixture, its noise off by ``offset``."""

    def __init__(self, name: str, process: Diffusion, offset: float = 0.0, *, told: bool = False) -> None:
        super().__init__()
        self.mixture, self.offset, self.told = mixtures.get(name), offset, told
        self.levels = Process(process, CPU).levels

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        order = np.argsort(self.levels.condition)
        t = order[np.searchsorted(self.levels.condition[order].astype(np.float32), condition.numpy())]
        column = {
            name: np.asarray(getattr(self.levels, name)[t])
            for name in ("signal", "noise", "scale", "clean", "eps", "determinant")
        }
        shaped = {name: values[:, None, None, None] for name, values in column.items()}
        noisy = x.double().numpy() / shaped["scale"]
        known = labels.numpy() if self.told and labels is not None else None
        best = self.mixture.posterior(noisy, column["signal"], column["noise"], known)
        answer = shaped["clean"] * best.clean + shaped["eps"] * best.eps
        return torch.from_numpy(answer + self.offset * shaped["determinant"] / shaped["signal"]).float()


def points(name: str = "16d", *, conditional: bool = False, spec: Eval = SPEC) -> Subject:
    return subject_of(mixtures.get(name), spec, conditional=conditional)


@EVERY
@pytest.mark.parametrize("mixture", mixtures.NAMES)
def test_only_the_best_network_has_no_excess_loss(name: str, mixture: str) -> None:
    measured = evaluator(process=PROCESSES[name], subject=points(mixture))
    best = measured.losses(Best(mixture, PROCESSES[name]))
    assert best.loss > 0.02
    assert best.excess == pytest.approx(0.0, abs=1e-6)
    off = measured.losses(Best(mixture, PROCESSES[name], offset=0.1))
    assert off.excess == pytest.approx(0.01, rel=1e-2)
    assert off.excess_by_timestep is not None
    np.testing.assert_allclose(off.excess_by_timestep, 0.01, rtol=0.1)
    other = measured.losses(Halving())
    assert other.excess is not None
    assert other.excess > 0.01
    assert off.metrics() == {"eval/loss": off.loss, "eval/excess_loss": off.excess}
    assert off.bins()["excess_loss"] == off.excess_by_timestep.tolist()


def test_who_is_told_the_component_can_know_more() -> None:
    told, guessing = Best("16d", DDPM, told=True), Best("16d", DDPM)
    conditional, unconditional = evaluator(subject=points(conditional=True)), evaluator(subject=points())
    assert conditional.losses(told).excess == pytest.approx(0.0, abs=1e-6)
    assert unconditional.losses(guessing).excess == pytest.approx(0.0, abs=1e-6)
    late = conditional.losses(guessing).excess_by_timestep
    assert late is not None
    assert late[7] > 0.001
    assert conditional.losses(told).loss < unconditional.losses(guessing).loss


def network(**fields: Any) -> networks.Network:
    given: dict[str, Any] = {"shape": (1, 8, 8), "classes": None, "seed": 5} | fields
    return networks.build(Unet(kind="unet", channels=8, multipliers=(1,)), **given).eval()


def mlp(name: str = "16d", classes: int | None = None) -> networks.Network:
    shape = mixtures.get(name).shape
    return networks.build(Mlp(kind="mlp", width=16, layers=1), shape=shape, classes=classes, seed=0).eval()


def scores(measured: Evaluator, judged: networks.Network) -> tuple[float, dict[str, float], bytes]:
    return measured.losses(judged).loss, measured.quality(judged), measured.sheet(judged).tobytes()


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
    base = scores(session.assemble(job_of(), Worker()).scorer.evaluator, judged)
    other = scores(session.assemble(job_of(changes), Worker()).scorer.evaluator, judged)
    assert base == other


def test_evaluation_leaves_no_trace_in_the_networks_gradients() -> None:
    judged = network()
    evaluator().losses(judged)
    evaluator().quality(judged)
    assert all(parameter.grad is None for parameter in judged.parameters())


def test_a_network_in_training_is_scored_without_its_dropout() -> None:
    judged = networks.build(
        Unet(kind="unet", channels=8, multipliers=(1,), dropout=0.5), shape=(1, 8, 8), classes=None, seed=5
    )
    expected = scores(evaluator(), judged.eval())
    assert scores(evaluator(), judged.train()) == expected
    assert judged.training


def test_frechet_compares_samples_with_the_training_images() -> None:
    measured, judged = evaluator(), network()
    found = measured.quality(judged)
    assert found.keys() == {"eval/frechet"}
    samples = measured._samples(judged, 8, 2, None)
    assert samples.dtype == np.uint8
    features, reference = (values.reshape(len(values), -1) / 255.0 for values in (samples, pixels(50, 1)))
    expected = frechet.distance(frechet.moments(features), frechet.moments(reference))
    assert found["eval/frechet"] == pytest.approx(expected)
    assert expected > 0.0


def samples_spec(*metrics: Metric, **fields: Any) -> Eval:
    samples = SampleEval.model_validate({"images": 30, "steps": 2, "metrics": metrics} | fields)
    return Eval(samples=samples, grid=GridEval(images=4, steps=2))


@pytest.mark.parametrize(
    ("metrics", "keys"),
    [
        (("kid",), {"eval/kid"}),
        (("recall", "frechet"), {"eval/recall", "eval/frechet"}),
        (("precision", "recall", "kid"), {"eval/precision", "eval/recall", "eval/kid"}),
        (("memorization",), {"eval/memorization", "eval/nearest_unseen"}),
    ],
)
def test_what_is_asked_for_is_measured_and_nothing_else(metrics: tuple[Metric, ...], keys: set[str]) -> None:
    found = evaluator(samples_spec(*metrics)).quality(network())
    assert found.keys() == keys
    assert np.isfinite(list(found.values())).all()


def drawn(monkeypatch: pytest.MonkeyPatch, made: np.ndarray) -> None:
    """A sampler that gives these images, whatever the network."""

    def sample(network: object, process: object, noise: np.ndarray, **settings: Any) -> torch.Tensor:
        return torch.from_numpy(made[: len(noise)].astype(np.float32) / 127.5 - 1.0)

    monkeypatch.setattr(evaluation.sampling, "sample", sample)


def test_copies_of_training_images_raise_the_alarm_and_fresh_ones_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = samples_spec("memorization", "precision")
    training = pixels(200, seed=1)
    subject = images(50, training=lambda: (training, np.zeros(200, dtype=np.int64)))
    drawn(monkeypatch, training[::3])
    found = evaluator(spec, subject).quality(network())
    assert found["eval/memorization"] == 1.0
    assert found["eval/nearest_unseen"] == 0.0
    assert found["eval/precision"] > 0.9
    drawn(monkeypatch, pixels(60, seed=9))
    found = evaluator(spec, subject).quality(network())
    assert found["eval/memorization"] == 0.0
    assert 0.2 < found["eval/nearest_unseen"] < 2.0


def test_samples_of_a_conditional_network_have_the_labels_of_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def sample(network: object, process: object, noise: np.ndarray, **settings: Any) -> torch.Tensor:
        asked.append(settings)
        return torch.zeros(noise.shape)

    monkeypatch.setattr(evaluation.sampling, "sample", sample)
    spec = samples_spec("frechet", guidance=2.0, sampler="heun")
    measured = evaluator(spec, images(classes=3))
    measured.quality(network(classes=3))
    picture = measured.sheet(network(classes=3))
    np.testing.assert_array_equal(asked[0]["labels"], np.arange(30) * 7 % 3)
    np.testing.assert_array_equal(asked[1]["labels"], [0, 1, 2, 0])
    assert picture.shape == (2 * 66 + 2, 3 * 66 + 2, 3)  # three columns, two in the first one
    assert all(one["guidance"] == 2.0 and one["sampler"] == "heun" and one["clip"] for one in asked)


def test_mixtures_are_compared_with_their_exact_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh points of the mixture itself score as well as points can."""
    mixture = mixtures.get("16d")
    spec = samples_spec("frechet", "kid", "precision", images=2000, reference=2000)
    subject = points(spec=spec)
    fresh = torch.from_numpy(mixture.generate(99, "fresh", np.arange(2000)))
    monkeypatch.setattr(evaluation.sampling, "sample", lambda *_, **__: fresh)
    found = evaluator(spec, subject).quality(mlp())
    expected = frechet.distance(frechet.moments(fresh.flatten(1).numpy()), mixture.moments())
    assert found["eval/frechet"] == expected < 0.02
    assert found["eval/precision"] > 0.7
    assert abs(found["eval/energy_distance"]) < 0.005
    monkeypatch.setattr(evaluation.sampling, "sample", lambda *_, **__: 0.5 * fresh)
    assert evaluator(spec, subject).quality(mlp())["eval/energy_distance"] > 0.05


def test_a_network_on_a_mixture_is_sampled_and_pictured() -> None:
    spec = samples_spec("frechet", reference=500)
    for classes in (None, 8):
        measured = evaluator(spec, points(conditional=classes is not None, spec=spec))
        judged = mlp(classes=classes)
        assert measured.quality(judged).keys() == {"eval/frechet", "eval/energy_distance"}
        picture = measured.sheet(judged)
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
        np.testing.assert_array_equal(picture, measured.sheet(judged))


@pytest.mark.parametrize(
    ("spec", "subject", "key"),
    [
        (samples_spec("memorization"), points(), "eval.samples.metrics"),
        (samples_spec("frechet", guidance=1.5), images(), "eval.samples.guidance"),
        (samples_spec("kid", features=Classifier(kind="classifier")), images(), "eval.samples.features.kind"),
        (
            samples_spec("kid", features=Inception(kind="inception", weights="x")),
            points(),
            "eval.samples.features.kind",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(spec: Eval, subject: Subject, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluator(spec, subject)
    assert caught.value.subject == key
    assert caught.value.remedy


def test_everything_that_a_score_depends_on_is_recorded() -> None:
    measured = evaluator(samples_spec("kid"))
    assert measured.spec_record()["features"] is None
    measured.quality(network())
    record = json.loads(json.dumps(measured.spec_record()))
    assert record["features"] == {"kind": "pixels"}
    assert record["data"] == "digest"
    assert record["samples"] == 30
    assert record["eval"]["samples"]["metrics"] == ["kid"]
    assert record["versions"]["torch"] == torch.__version__


def test_subject_of_a_data_set(tmp_path: Path) -> None:
    stored, labels = pixels(200), np.arange(200) % 5
    data.write(Folder(str(tmp_path)), name="set", source="test", pixels=stored, labels=labels)
    manifest = data.read_manifest(str(tmp_path))
    dataset = data.read(str(tmp_path), manifest.digest)
    spec = Eval(loss=LossEval(images=10), samples=SampleEval(reference=20))
    subject = subject_of(dataset, spec, holdout=0.2, conditional=True)
    training, held_out = dataset.split(0.2)
    np.testing.assert_array_equal(
        subject.clean, dataset.rows(held_out[:10])[0].astype(np.float32) / 127.5 - 1
    )
    np.testing.assert_array_equal(subject.training()[0], dataset.rows(training[:20])[0])
    assert (subject.classes, subject.images, subject.digest) == (5, True, manifest.digest)
    alarmed = Eval(loss=LossEval(images=10), samples=SampleEval(metrics=("memorization",)))
    assert len(subject_of(dataset, alarmed).clean) == len(held_out)
    with pytest.raises(ConfigError, match="holdout"):
        subject_of(dataset, spec, holdout=1e-9)


def test_latents_are_scored_as_a_model_sees_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    stored = random.normal(0.0, 4.0, size=(100, 4, 8, 8)).astype(np.float16)
    labels = np.full(100, -1)
    data.write(Folder(str(tmp_path)), name="set", source="", pixels=stored, labels=labels, scale=0.25)
    dataset = data.read(str(tmp_path), data.read_manifest(str(tmp_path)).digest)
    spec = samples_spec("frechet", "memorization")
    subject = subject_of(dataset, spec)
    assert not subject.images
    assert subject.clean.std() == pytest.approx(1.0, rel=0.05)
    measured = evaluator(spec, subject)
    judged = network(shape=(4, 8, 8))
    assert measured._samples(judged, 3, 2, None).dtype == np.float32
    assert measured.quality(judged)["eval/frechet"] > 0.0
    assert measured.sheet(judged).shape[2] == 3
    with pytest.raises(ConfigError, match="labels"):
        subject_of(dataset, spec, conditional=True)


class OneOfTwo(Worker):
    """A worker that computes its share of two, and is told nothing of the other's."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


def shares(measure: Callable[[Evaluator], Any], spec: Eval = SPEC) -> list[Any]:
    return [measure(evaluator(spec, worker=OneOfTwo(rank=rank, world_size=2))) for rank in range(2)]


def test_two_workers_share_the_work() -> None:
    judged = network()
    alone = evaluator()
    assert sum(shares(lambda mine: mine.losses(judged).loss)) == pytest.approx(
        alone.losses(judged).loss, rel=1e-6
    )
    parts = shares(lambda mine: mine._samples(judged, 5, 2, None))
    assert all((part == 0).reshape(5, -1).all(axis=1).any() for part in parts)
    # A sample is rounded to a byte, and its batch may change the last bit before that.
    assert np.abs((parts[0] + parts[1]).astype(int) - alone._samples(judged, 5, 2, None)).max() <= 1


def test_a_worker_may_have_nothing_to_evaluate() -> None:
    """One image over two workers."""
    judged = network()
    spec = Eval(loss=LossEval(images=1), grid=GridEval(images=1, steps=2))
    expected = evaluator(spec).losses(judged).loss
    assert sum(shares(lambda mine: mine.losses(judged).loss, spec)) == pytest.approx(expected)
    parts = shares(lambda mine: mine._samples(judged, 1, 2, None), spec)
    np.testing.assert_array_equal(parts[0] + parts[1], evaluator(spec)._samples(judged, 1, 2, None))


GLOO = """
import json, sys
import torch, torch.distributed as dist
from hasten.trainers.datasets import mixtures
from hasten.trainers.models import networks
from hasten.trainers.models.architectures import Mlp
from hasten.trainers.diffusion import Ddpm
from hasten.trainers.metrics.evaluation import Evaluator
from hasten.trainers.process import Process
from hasten.trainers.specs import Eval
from hasten.trainers.metrics.subject import subject_of
from hasten.trainers.worker import Worker

torch.set_num_threads(1)
rank, meeting, spec = int(sys.argv[1]), sys.argv[2], Eval.model_validate_json(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
mixture = mixtures.get("16d")
network = networks.build(Mlp(kind="mlp", width=16, layers=1), shape=mixture.shape, classes=8, seed=0).eval()
evaluator = Evaluator(
    spec,
    process=Process(Ddpm(kind="ddpm", predict="v"), torch.device("cpu")),
    subject=subject_of(mixture, spec, conditional=True),
    worker=Worker(rank=rank, world_size=2),
)
losses = evaluator.losses(network)
print(json.dumps([losses.metrics() | evaluator.quality(network), losses.by_timestep.tolist(), losses.items]))
"""


@pytest.mark.slow
def test_two_real_processes_find_what_one_finds(tmp_path: Path) -> None:
    spec = Eval(
        loss=LossEval(images=101),
        samples=SampleEval(images=51, steps=3, metrics=("frechet", "kid", "recall"), reference=200),
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", GLOO, str(rank), str(tmp_path / "meeting"), spec.model_dump_json()],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    judged, process = mlp(classes=8), Ddpm(kind="ddpm", predict="v")
    alone = evaluator(spec, points(conditional=True, spec=spec), process=process)
    losses, quality = alone.losses(judged), alone.quality(judged)
    first, second = (json.loads(process.communicate(timeout=300)[0]) for process in started)
    assert first == second
    assert first[0] == pytest.approx(losses.metrics() | quality, rel=1e-5)
    assert first[1] == pytest.approx(losses.by_timestep.tolist(), rel=1e-5)
    assert first[2] == pytest.approx(list(losses.items), rel=1e-5)
