"""What images are compared by: their pixels, a small classifier's view of them, or Inception's."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hasten.trainers.datasets.data import Dataset
from hasten.trainers.errors import ConfigError
from hasten.trainers.metrics import classifier, inception
from hasten.trainers.metrics.classifier import Classifier
from hasten.trainers.specs import Classifier as ClassifierSpec
from hasten.trainers.specs import Features, Inception, Pixels
from hasten.trainers.worker import Worker

Comparable = NDArray[np.uint8 | np.float32]


class Extractor(Protocol):
    """Features (N, D) of images (N, C, H, W): bytes where the data are images, else as a model sees them."""

    def __call__(self, images: Comparable) -> NDArray[np.floating]: ...

    def record(self) -> dict[str, str | float]:
        """What identifies the features, to be kept with every score."""


class PixelFeatures:
    """The numbers themselves, in float64; bytes are scaled to [0, 1]."""

    def __call__(self, images: Comparable) -> NDArray[np.floating]:
        values = flat(images).astype(np.float64)
        return values / 255.0 if images.dtype == np.uint8 else values

    def record(self) -> dict[str, str | float]:
        return {"kind": "pixels"}


class ClassifierFeatures:
    """The last hidden layer of the data set's classifier."""

    def __init__(self, found: Classifier) -> None:
        self._classifier = found

    def __call__(self, images: Comparable) -> NDArray[np.floating]:
        return self._classifier(to_model(images))

    def record(self) -> dict[str, str | float]:
        found = self._classifier
        return {"kind": "classifier", "digest": found.digest, "accuracy": found.accuracy}


class InceptionPool:
    """Inception v3's pool features."""

    def __init__(self, found: inception.InceptionFeatures) -> None:
        self._inception = found

    def __call__(self, images: Comparable) -> NDArray[np.floating]:
        return self._inception(images.astype(np.uint8, copy=False))

    def record(self) -> dict[str, str | float]:
        return {"kind": "inception", "digest": self._inception.digest}


def check(spec: Features, *, images: bool, channels: int, classes: int) -> None:
    """Whether data have what these features need.

    Raises:
        ConfigError: they have not.
    """
    key = "eval.samples.features.kind"
    match spec:
        case Pixels():
            return
        case ClassifierSpec():
            if classes < 2:
                raise ConfigError(key, "classifier needs labels, and the data have none", "Use pixels.")
        case Inception():
            if not images or channels not in (1, 3):
                raise ConfigError(key, "inception needs grey or RGB images", "Use pixels or classifier.")


def extractor(spec: Features, *, dataset: Dataset | None, worker: Worker) -> Extractor:
    """The features that a recipe asks for; all workers call this.

    Raises:
        ConfigError: they do not fit the data, or their weights are not there.
        Fault: the storage failed.
    """
    match spec:
        case Pixels():
            return PixelFeatures()
        case ClassifierSpec():
            if dataset is None:
                problem = "classifier needs a data set to be trained on"
                raise ConfigError("eval.samples.features.kind", problem, "Use pixels.")
            return ClassifierFeatures(classifier.find(dataset, worker))
        case Inception():
            return InceptionPool(inception.load(spec.weights, worker.device))


def to_model(images: Comparable) -> NDArray[np.float32]:
    """Bytes as a model sees them, in [-1, 1]; anything else is what it sees already."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    return images.astype(np.float32, copy=False)


def to_bytes(clean: NDArray[np.float32], *, images: bool) -> Comparable:
    """The inverse of :func:`to_model`."""
    return np.round((clean.clip(-1.0, 1.0) + 1.0) * 127.5).astype(np.uint8) if images else clean


def flat(images: Comparable) -> NDArray[np.number]:
    """One row of numbers an image, shape (N, C H W)."""
    return images.reshape(len(images), -1)
