"""How far data have moved: what is new in them, and how their features differ from an older snapshot's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hasten.trainers.datasets import shards
from hasten.trainers.datasets.data import Dataset, to_model
from hasten.trainers.metrics import features, frechet
from hasten.trainers.metrics.features import Comparable, Extractor
from hasten.trainers.specs import Features
from hasten.trainers.worker import Worker

_MOST: Final = 5_000  # images of each snapshot whose features are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How a snapshot differs from an older one.

    ``new`` of its ``images`` are not in the older one, whatever their labels. ``distance`` is Fréchet's,
    between equally many images of each, chosen by their hash: 0 for unchanged data. ``floor`` is the same
    between two halves of the older one: a distance below it is none. Both are NaN for fewer than 4 images.
    """

    images: int
    new: int
    distance: float
    floor: float

    @property
    def new_fraction(self) -> float:
        """The share of its images that are new, in [0, 1]."""
        return self.new / self.images


def unseen(now: Dataset, before: Dataset) -> int:
    """How many images of ``now`` are not in ``before``."""
    ours, theirs = (shards.sortable(dataset.keys()) for dataset in (now, before))
    return int(np.sum(~np.isin(ours, theirs)))


def drift(now: Dataset, before: Dataset, spec: Features) -> Drift:
    """Compare two snapshots by ``spec``'s features; a classifier is the older one's.

    Raises:
        ConfigError: the features do not fit the data, or their weights are not there.
        Fault: the data are damaged, or the storage failed.
    """
    count = min(before.manifest.count // 2, now.manifest.count, _MOST)
    new = unseen(now, before)
    if count < 2:
        return Drift(images=now.manifest.count, new=new, distance=math.nan, floor=math.nan)
    extract = features.extractor(spec, dataset=before, worker=Worker())
    # Rows lie in the order of their hash: the first ones are a random choice, the same one in both.
    ours = frechet.moments(_features(extract, now, np.arange(count)))
    first = frechet.moments(_features(extract, before, np.arange(count)))
    second = frechet.moments(_features(extract, before, np.arange(count, 2 * count)))
    return Drift(
        images=now.manifest.count,
        new=new,
        distance=frechet.distance(ours, first),
        floor=frechet.distance(first, second),
    )


def _features(extract: Extractor, dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.floating]:
    stored, _ = dataset.rows(rows)
    images: Comparable = stored.astype(np.uint8, copy=False)
    if dataset.manifest.dtype != "uint8":
        images = to_model(stored, dataset.manifest)
    return extract(images)
