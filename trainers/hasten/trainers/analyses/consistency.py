"""Do differently trained networks make the same images of the same noise (method.md 3.1)?

One bank of noise goes through every network by the same deterministic sampler. Agreement of two networks is
measured seed by seed, and against two readings of "none":

- *shuffled*: their images paired with the wrong seeds, over random permutations. It says what two networks
  share that draw from the same data, whatever the noise.
- *linear*: the images that the optimal linear denoiser makes of the same noise, through each network's own
  process. It says what second moments explain (arXiv 2602.02908): two networks may agree because each is
  near to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from hasten.trainers import randomness
from hasten.trainers.analyses import similarity
from hasten.trainers.analyses.intervals import Interval, mean_of, share_of

Array = NDArray[np.float64]
Images = NDArray[np.float32]
Featurize = Callable[[Images], NDArray[np.floating]]
Measure = Literal["mse", "psnr", "ssim", "cosine", "retrieval", "retrieval_features"]

STREAM: Final = "analyses/noise"
SMALLER_IS_BETTER: Final = frozenset({"mse"})
PERMUTATIONS: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Null:
    """The mean of a measure over seeds, paired at random: its mean, the middle 95 %, and the p-value.

    ``p`` is the share of permutations (the true order among them) that agree at least as well: one-sided.
    """

    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One measure of one pair.

    ``linear`` is the same measure between each network and the linear denoiser, the mean of the two;
    ``beyond_linear`` the paired difference over seeds, value minus linear.
    """

    measure: Measure
    value: Interval
    shuffled: Null
    linear: Interval
    beyond_linear: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    first: str
    second: str
    agreements: tuple[Agreement, ...]


def noise_bank(count: int, shape: tuple[int, ...], seed: int) -> Images:
    """``count`` blocks of standard normal noise, (count, *shape): a longer bank begins with a shorter one."""
    return randomness.noise(seed, STREAM, np.arange(count), shape)


def compare(
    samples: Mapping[str, Images],
    linear: Mapping[str, Images],
    *,
    data_range: float,
    featurize: Featurize | None = None,
    labels: NDArray[np.int64] | None = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> list[Pair]:
    """The agreement of every two networks.

    Args:
        samples: each network's images of the same noise, (N, C, H, W), N >= 2.
        linear: the same names, with the linear denoiser's images by the network's own process.
        data_range: the largest minus the smallest value of the data.
        featurize: features (N, F) of images, for cosines and retrieval; the images themselves when None.
            Both want them centred: without that, what all images share would count as agreement.
        labels: (N,), what each seed's image was to be of: seeds are shuffled within a label, since to share
            a label is no agreement on the noise.
        seed: of the permutations.
    """
    features = {name: _features(images, featurize) for name, images in samples.items()}
    straight = {name: _features(images, featurize) for name, images in linear.items()}
    count = len(next(iter(samples.values())))
    labels = np.zeros(count, dtype=np.int64) if labels is None else labels
    order = np.stack([_shuffled(labels, seed, number) for number in range(permutations)])
    pairs = []
    for first, second in combinations(samples, 2):
        values = measures(
            (samples[first], features[first]), (samples[second], features[second]), data_range=data_range
        )
        to_linear = [
            measures((samples[name], features[name]), (linear[name], straight[name]), data_range=data_range)
            for name in (first, second)
        ]
        agreements = [
            _agreement(measure, matrix, [each[measure] for each in to_linear], order)
            for measure, matrix in values.items()
        ]
        pairs.append(Pair(first=first, second=second, agreements=tuple(agreements)))
    return pairs


def measures(
    first: tuple[Images, Array], second: tuple[Images, Array], *, data_range: float
) -> dict[Measure, Array]:
    """Every measure between two sets of ``(images, features)``, as matrices (N, N), see :mod:`similarity`.

    In a retrieval's matrix, row i has a one where the nearest to image i of the first set is found. SSIM is
    left out for what is no image.
    """
    mse = similarity.squared_error(first[0], second[0])
    cosine = similarity.cosine(first[1], second[1])
    found: dict[Measure, Array] = {"mse": mse, "psnr": similarity.psnr(mse, data_range)}
    if min(first[0].shape[-2:]) >= similarity.SMALLEST_SSIM:
        found["ssim"] = similarity.ssim(first[0], second[0], data_range)
    return found | {
        "cosine": cosine,
        "retrieval": _one_hot(similarity.retrieved(mse)),
        "retrieval_features": _one_hot(similarity.retrieved(-cosine)),
    }


def _agreement(
    measure: Measure, matrix: Array, to_linear: list[Array], order: NDArray[np.int64]
) -> Agreement:
    values = matrix.diagonal()
    linear = np.mean([each.diagonal() for each in to_linear], axis=0)
    is_share = measure.startswith("retrieval")
    return Agreement(
        measure=measure,
        value=share_of(values > 0.0) if is_share else mean_of(values),
        shuffled=_null(matrix, order, smaller_is_better=measure in SMALLER_IS_BETTER),
        linear=mean_of(linear),
        beyond_linear=mean_of(values - linear),
    )


def _null(matrix: Array, order: NDArray[np.int64], *, smaller_is_better: bool) -> Null:
    means = matrix[np.arange(len(matrix)), order].mean(axis=1)
    sign = -1.0 if smaller_is_better else 1.0
    observed = matrix.diagonal().mean()
    # The same sum in another order must not count as smaller.
    as_good = sign * (means - observed) >= -1e-12 * max(abs(observed), 1.0)
    low, high = np.quantile(means, [0.025, 0.975])
    p = (1.0 + as_good.sum()) / (1.0 + len(means))
    return Null(mean=float(means.mean()), low=float(low), high=float(high), p=float(p))


def _shuffled(labels: NDArray[np.int64], seed: int, number: int) -> NDArray[np.int64]:
    """The ``number``-th random order of seeds in which each place keeps its label."""
    ranks = randomness.permutation(seed, "analyses/shuffle", number, len(labels))
    order = np.empty_like(ranks)
    order[np.argsort(labels, kind="stable")] = np.lexsort((ranks, labels))
    return order


def _features(images: Images, featurize: Featurize | None) -> Array:
    return np.asarray(images if featurize is None else featurize(images), dtype=np.float64).reshape(
        len(images), -1
    )


def _one_hot(places: NDArray[np.int64]) -> Array:
    return np.where(places[:, None] == np.arange(len(places)), 1.0, 0.0)
