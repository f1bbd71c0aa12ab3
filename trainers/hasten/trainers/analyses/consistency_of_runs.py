"""Consistency of finished runs, as plain data and as the images to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hasten.trainers.analyses import consistency, gaussian
from hasten.trainers.analyses.finished import MOST_IMAGES, Finished, Plain, Tell
from hasten.trainers.datasets import data
from hasten.trainers.errors import ConfigError
from hasten.trainers.generation import sampling
from hasten.trainers.metrics import features
from hasten.trainers.models.networks import Network
from hasten.trainers.specs import Classifier, Pixels
from hasten.trainers.worker import Worker

FeatureKind = Literal["pixels", "classifier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """``samples`` are each network's images and then each process's linear denoiser's, for the picture."""

    found: Plain
    samples: Mapping[str, NDArray[np.float32]]


def check(runs: Sequence[Finished]) -> None:
    """Whether they can be compared.

    Raises:
        ConfigError: there are fewer than two runs, or their images differ in shape.
    """
    if len({run.uri for run in runs}) < 2:
        raise ConfigError(runs[0].name, "consistency compares networks: name two or more runs")
    for run in runs[1:]:
        if run.shape != runs[0].shape:
            shapes = [" x ".join(map(str, each.shape)) for each in (run, runs[0])]
            raise ConfigError(run.name, f"makes images of {shapes[0]}, {runs[0].name} of {shapes[1]}")


def phases(runs: Sequence[Finished]) -> int:
    """How often :func:`analyse` tells what it does."""
    return len(runs) + 1


def analyse(
    runs: Sequence[Finished], *, count: int, steps: int, seed: int, kind: FeatureKind, tell: Tell
) -> Consistency:
    """Whether networks make the same images of the same noise.

    Raises:
        ConfigError: there are fewer than two runs, or their images differ in shape.
    """
    check(runs)
    noise = consistency.noise_bank(count, runs[0].shape, seed)
    labels = _labels(runs, count)
    samples, linear = {}, {}
    for run in runs:
        tell(f"sampling {run.name}")
        samples[run.name] = _sample(run.network, run, noise, steps=steps, labels=labels)
        linear[run.name] = _sample(_linear(run), run, noise, steps=steps, labels=None)
    tell("comparing")
    train = runs[0].images(MOST_IMAGES, held_out=False).clean
    featurize, record = _features(runs[0], kind, train)
    data_range = 2.0 if runs[0].has_pixels else float(train.max() - train.min())
    pairs = consistency.compare(
        samples, linear, data_range=data_range, featurize=featurize, labels=labels, seed=seed
    )
    found = {
        "analysis": "consistency",
        "runs": [run.described() for run in runs],
        "count": count,
        "steps": steps,
        "seed": seed,
        "sampler": "ddim",
        "labels": labels is not None,
        "data_range": data_range,
        "features": record,
        "pairs": [asdict(pair) for pair in pairs],
        "notes": _notes(runs, labels is not None),
    }
    distinct = {run.spec.diffusion.model_dump_json(): run for run in reversed(runs)}
    shown = {f"linear, {run.name}": linear[run.name] for run in reversed(distinct.values())}
    if len(shown) == 1:
        shown = {"linear": next(iter(shown.values()))}
    return Consistency(found=found, samples=samples | shown)


def _labels(runs: Sequence[Finished], count: int) -> NDArray[np.int64] | None:
    """Classes in turn where all networks know the same ones; else none for any of them."""
    classes = {run.network.classes for run in runs}
    if len(classes) > 1 or None in classes:
        return None
    return np.arange(count) % int(runs[0].network.classes or 1)


def _sample(
    network: Network,
    run: Finished,
    noise: NDArray[np.float32],
    *,
    steps: int,
    labels: NDArray[np.int64] | None,
) -> NDArray[np.float32]:
    made = sampling.sample(
        network, run.process, noise, steps=steps, sampler="ddim", labels=labels, clip=run.has_pixels
    )
    return made.cpu().numpy()


def _linear(run: Finished) -> gaussian.GaussianDenoiser:
    return gaussian.GaussianDenoiser(run.moments(), run.process, run.shape).to(run.device).eval()


def _features(
    run: Finished, kind: FeatureKind, train: NDArray[np.float32]
) -> tuple[consistency.Featurize, Plain]:
    """Features about the training images' mean: what all images share is no agreement.

    Raises:
        ConfigError: the data have no labels to train a classifier with.
    """
    dataset = None if run.is_mixture else data.read(run.data_uri, run.result.data_digest)
    if kind == "classifier" and (dataset is None or dataset.manifest.classes < 2):
        problem = f"classifier needs labelled images, and the data of {run.name} have none"
        raise ConfigError("features", problem, "Use --features pixels.")
    spec = Pixels(kind="pixels") if kind == "pixels" else Classifier(kind="classifier")
    extract = features.extractor(spec, dataset=dataset, worker=Worker())
    centre = extract(train).mean(axis=0)
    return (lambda images: extract(images) - centre), dict(extract.record())


def _notes(runs: Sequence[Finished], labelled: bool) -> list[str]:
    notes = ["Intervals are over noise seeds: they say nothing of other trainings of the same recipes."]
    if len({run.result.data_digest for run in runs}) > 1:
        notes.append("The runs were trained on different data.")
    if labelled:
        notes.append("Seeds are shuffled within their class; the linear denoiser knows no classes.")
    if len({run.network.classes for run in runs}) > 1:
        notes.append("Some networks know classes and some do not: none was told a label.")
    return notes
