"""What a network is measured against: held-out data, training data, or a distribution known exactly."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hasten.trainers.datasets import data
from hasten.trainers.datasets.data import Dataset
from hasten.trainers.datasets.mixtures import Mixture
from hasten.trainers.errors import ConfigError
from hasten.trainers.metrics.features import Comparable
from hasten.trainers.specs import Eval

SEED: Final = 0  # of the evaluation's own randomness: the same for all runs, so that differences are paired
_POINTS: Final = 10_000  # of a mixture, at most, to compare samples with

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """The data's side of an evaluation.

    Args:
        digest: of the data set or the mixture.
        clean: held-out images as a model sees them, float32 (M, C, H, W).
        labels: theirs, shape (M,).
        training: gives training images and their labels when they are first needed: bytes where the data
            are images, else as a model sees them; (N, C, H, W) and (N,).
        classes: how many classes the network is told of; None where it is told nothing.
        images: the data are images of bytes: samples are clipped and rounded as images are.
        dataset: where the small classifier is kept.
        mixture: where the distribution itself is known.
    """

    digest: str
    clean: NDArray[np.float32]
    labels: Labels
    training: Callable[[], tuple[Comparable, Labels]]
    classes: int | None = None
    images: bool = True
    dataset: Dataset | None = None
    mixture: Mixture | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.clean.shape[1:]
        return channels, height, width


def subject_of(
    source: Dataset | Mixture, spec: Eval, *, holdout: float = 0.2, conditional: bool = False
) -> Subject:
    """What to measure against, for a run that trains on ``source``.

    Args:
        source: an opened data set, or a mixture.
        spec: how much is needed.
        holdout: the share of a data set that is held out; a mixture never repeats itself.
        conditional: whether the network is told labels.

    Raises:
        ConfigError: nothing is held out, or there are no labels to tell.
        Fault: the storage failed.
    """
    if isinstance(source, Mixture):
        return _mixture(source, spec, conditional=conditional)
    manifest = source.manifest
    train, held_out = source.split(holdout)
    if not len(held_out):
        raise ConfigError("data.holdout", f"{holdout} leaves nothing held out of {len(train)} images")
    if conditional and not manifest.classes:
        problem = f"classes, but {manifest.name} has no labels"
        raise ConfigError("conditioning.kind", problem, "Use none, or import data with labels.")
    # Both are in order of their content's hash: the first ones are a random choice, the same for all runs.
    wanted = max(spec.loss.images, spec.samples.reference if "memorization" in spec.samples.metrics else 0)
    stored, labels = source.rows(held_out[:wanted])
    return Subject(
        digest=manifest.digest,
        clean=data.to_model(stored, manifest),
        labels=labels,
        training=functools.partial(_rows, source, train[: spec.samples.reference]),
        classes=manifest.classes if conditional else None,
        images=manifest.dtype == "uint8",
        dataset=source,
    )


def _rows(dataset: Dataset, indices: NDArray[np.int64]) -> tuple[Comparable, Labels]:
    stored, labels = dataset.rows(indices)
    if dataset.manifest.dtype == "uint8":
        return stored.astype(np.uint8, copy=False), labels
    return data.to_model(stored, dataset.manifest), labels


def _mixture(mixture: Mixture, spec: Eval, *, conditional: bool) -> Subject:
    """Fresh points of the evaluation's own: every point that training sees is a different one."""
    held_out, reference = np.arange(spec.loss.images), np.arange(min(spec.samples.reference, _POINTS))

    def training() -> tuple[Comparable, Labels]:
        stream = "eval/reference"
        return mixture.generate(SEED, stream, reference), mixture.labels(SEED, stream, reference)

    return Subject(
        digest=mixture.digest,
        clean=mixture.generate(SEED, "eval/clean", held_out),
        labels=mixture.labels(SEED, "eval/clean", held_out),
        training=training,
        classes=mixture.classes if conditional else None,
        images=False,
        mixture=mixture,
    )
