"""How samples compare with real data, on features of shape (N, D): every number here has a stated null.

    frechet          see ``frechet.py``: 0 for equal moments, biased upwards by ~1/n, so n is part of it
    kid              unbiased: 0 in expectation when samples and data have one distribution
    energy distance  unbiased: 0 in expectation when samples and data have one distribution
    precision        share of samples among the data; recall: share of data among the samples
    copies           share of samples much nearer to one training point than to any other
    unseen           how often the nearest real point is a held-out one, over chance: 1 unless memorized

Distances are computed in float64: |x|^2 + |y|^2 - 2 x.y loses near duplicates in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

Features = NDArray[np.number]

COPY: Final = 1.0 / 3.0  # Yoon et al.'s threshold
_ROWS: Final = 1024
_POINTS: Final = 8192  # of many real points, how many are widened to float64 at a time
_CPU: Final = torch.device("cpu")


def kid(first: Features, second: Features, *, most: int = 10_000, device: torch.device = _CPU) -> float:
    """Kernel inception distance: unbiased squared MMD of the kernel (x.y / D + 1)^3 (arXiv 1801.01401).

    Over all pairs of the first ``most`` rows of each, where the paper averages random subsets: the same
    expectation with less variance, and no order of the rows matters. May be below 0.
    """
    x, y = (_tensor(values[:most], device) for values in (first, second))

    def mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64, device=device)
        for rows in _parts(a):
            total += (rows @ b.T / b.shape[1] + 1.0).pow_(3).sum()
        return total

    def within(a: torch.Tensor) -> torch.Tensor:
        own = (a.square().sum(dim=1) / a.shape[1] + 1.0).pow(3).sum()
        return (mean(a, a) - own) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2.0 * mean(x, y) / (len(x) * len(y)))


def energy_distance(
    first: Features, second: Features, *, most: int = 10_000, device: torch.device = _CPU
) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, unbiased, over the first ``most`` rows of each (Szekely and Rizzo,
    "Energy statistics", 2013). 0 only for equal distributions: unlike Fréchet's, it sees a missing mode."""
    x, y = (_tensor(values[:most], device) for values in (first, second))

    def total(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.stack([_distances(rows, b).sum() for rows in _parts(a)]).sum()

    within = total(x, x) / (len(x) * (len(x) - 1)) + total(y, y) / (len(y) * (len(y) - 1))
    return float(2.0 * total(x, y) / (len(x) * len(y)) - within)


def precision_recall(
    samples: Features, real: Features, *, neighbours: int = 3, device: torch.device = _CPU
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991, equations 1 to 3), in [0, 1].

    A point lies among others when it is within some other's distance to that one's k-th nearest neighbour,
    k = ``neighbours``. Both depend on the number of points: the larger set is cut to the smaller one's size.
    """
    count = min(len(samples), len(real))
    x, y = (_tensor(values[:count], device) for values in (samples, real))
    return _among(x, y, neighbours), _among(y, x, neighbours)


def copies(samples: Features, training: Features, *, device: torch.device = _CPU) -> float:
    """Share of samples that are copies: the nearest training point is at less than a third of the second
    nearest's distance (Yoon et al., "Diffusion probabilistic models generalize when they fail to memorize",
    2023; Gu et al., arXiv 2310.02664).

    Fresh points pass with a probability of about (1/3)^d, with d the dimension that the data fill: nothing
    for images, 0.11 in a plane. Equal training points count as one.
    """
    nearest = _nearest(_tensor(samples, device), np.unique(training, axis=0), 2)
    return float((nearest[:, 0] < COPY * nearest[:, 1]).double().mean())


def unseen(
    samples: Features, training: Features, held_out: Features, *, device: torch.device = _CPU
) -> float:
    """Share of samples whose nearest real point is a held-out one, over what chance would give.

    Which real points were held out was drawn at random, so a network that learned the distribution alone has
    an expectation of 1, for any sizes of the two sets; one that copies its training images has 0. With M of
    N + M points held out and n samples, its standard error is sqrt(N / (M n)), and larger where a few real
    points are nearest to many samples.
    """
    x = _tensor(samples, device)
    seen, fresh = (_nearest(x, points, 1)[:, 0] for points in (training, held_out))
    # A tie says nothing; half of it goes to either side.
    share = ((fresh < seen).double() + 0.5 * (fresh == seen).double()).mean()
    return float(share) * (len(training) + len(held_out)) / len(held_out)


def _tensor(values: Features, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).to(device)


def _parts(rows: torch.Tensor) -> Iterator[torch.Tensor]:
    return (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))


def _distances(rows: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Shape (rows, points); exactly 0 between equal points, whatever the product's rounding."""
    norms = rows.square().sum(dim=1, keepdim=True) + points.square().sum(dim=1)
    squares = norms - 2.0 * (rows @ points.T)
    return squares.where(squares > 1e-12 * norms, 0.0).sqrt_()


def _nearest(rows: torch.Tensor, points: Features, count: int) -> torch.Tensor:
    """Distances to the ``count`` nearest points, ascending, shape (rows, count); inf beyond the last."""
    best = rows.new_full((len(rows), count), torch.inf)
    for start in range(0, len(points), _POINTS):
        some = _tensor(points[start : start + _POINTS], rows.device)
        found = torch.cat([_distances(part, some) for part in _parts(rows)])
        best = torch.cat([best, found], dim=1).topk(count, dim=1, largest=False).values
    return best


def _among(rows: torch.Tensor, points: torch.Tensor, neighbours: int) -> float:
    """Share of ``rows`` within the k-th neighbour's distance of any of ``points``."""
    reach = min(neighbours + 1, len(points))  # a point is its own nearest neighbour
    radii = [_distances(part, points).kthvalue(reach, dim=1).values for part in _parts(points)]
    inside = [(_distances(part, points) <= torch.cat(radii)).any(dim=1) for part in _parts(rows)]
    return float(torch.cat(inside).double().mean())
