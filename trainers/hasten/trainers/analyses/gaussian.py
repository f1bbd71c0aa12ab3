"""The optimal linear denoiser: the answer to everything that second moments explain.

For data of mean m and covariance C = U diag(l) U^T, the best linear (Wiener) estimate at x_t = a x_0 + s eps
is

    E[x_0 | x_t] = m + U diag(a l / (a^2 l + s^2)) U^T (x_t - a m)

and for Gaussian data it is the best estimate of all. As a network it can be sampled from like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.trainers.diffusion import Levels
from hasten.trainers.models.networks import Network
from hasten.trainers.process import Process

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """First and second moments of D-dimensional data.

    ``mean`` (D,); ``variances`` (R,), the covariance's eigenvalues that are not zero; ``basis`` (D, R), their
    directions. R is less than D where there were fewer images than numbers in one.
    """

    mean: Array
    variances: Array
    basis: Array


def moments(images: NDArray[np.float32]) -> Moments:
    """The moments of images (N, ...), N >= 2; the covariance is divided by N."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    mean = flat.mean(axis=0)
    centred = flat - mean
    if len(flat) < flat.shape[1]:  # the smaller of the two Gram matrices has the same eigenvalues
        values, vectors = np.linalg.eigh(centred @ centred.T / len(flat))
        kept = values > values[-1] * 1e-10
        basis = centred.T @ vectors[:, kept] / np.sqrt(values[kept] * len(flat))
    else:
        values, vectors = np.linalg.eigh(centred.T @ centred / len(flat))
        kept = values > values[-1] * 1e-10
        basis = vectors[:, kept]
    return Moments(mean=mean, variances=values[kept], basis=basis)


class GaussianDenoiser(Network):
    """The optimal linear denoiser as a network without labels.

    Args:
        known: of the data.
        process: whose answers it gives. Solvers also ask between its levels, and a little beyond the last:
            there the tables go on in straight lines.
        shape: (C, H, W).
    """

    def __init__(self, known: Moments, process: Process, shape: tuple[int, int, int]) -> None:
        super().__init__(torch.nn.Identity(), shape=shape, classes=None)
        levels = process.levels
        columns = np.stack([levels.signal, levels.noise, levels.scale, levels.clean, levels.eps])
        tables = {
            "mean": known.mean,
            "variances": known.variances,
            "basis": known.basis,
            "condition": levels.condition,
            "levels": columns,
        }
        # Parameters, so that whoever asks for the network's device finds it. In double precision: at the
        # ends of a process, gains differ from 0 and 1 by less than float32 resolves.
        self.tables = torch.nn.ParameterDict(
            {name: torch.nn.Parameter(torch.from_numpy(table), False) for name, table in tables.items()}
        )

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The answer to x (B, C, H, W) at noise level ``condition`` (B,)."""
        del labels
        signal, noise, scale, to_clean, to_eps = self._levels(condition.double())
        mean, variances, basis = (self.tables[name] for name in ("mean", "variances", "basis"))
        noisy = x.double().flatten(1) / scale
        gain = signal * variances / (signal**2 * variances + noise**2)
        clean = mean + (gain * ((noisy - signal * mean) @ basis)) @ basis.T
        answer: torch.Tensor = to_clean * clean + to_eps * (noisy - signal * clean) / noise
        return answer.to(x.dtype).reshape(x.shape)

    def _levels(self, condition: torch.Tensor) -> torch.Tensor:
        """The process's tables at conditions (B,), as (5, B, 1)."""
        known, columns = self.tables["condition"], self.tables["levels"]
        above = torch.bucketize(condition, known).clamp(1, len(known) - 1)
        share = (condition - known[above - 1]) / (known[above] - known[above - 1])
        return torch.lerp(columns[:, above - 1], columns[:, above], share)[..., None]


def linear_loss(known: Moments, levels: Levels, images: NDArray[np.float32]) -> Array:
    """The mean squared error of the noise that the denoiser of ``known`` predicts, at each level (T,).

    The mean over ``images`` (N, ...) is taken over exactly these, that over the noise in closed form: with
    gain g and y an image's coordinate along a direction of variance l, E[(x_0 - E x_0)^2] along it is
    (1 - g a)^2 y^2 + g^2 s^2, and an error of x_0 is a/s times as large in eps.
    """
    flat = images.reshape(len(images), -1).astype(np.float64) - known.mean
    along = (flat @ known.basis) ** 2
    power = along.mean(axis=0)  # (R,)
    outside = max(0.0, float((flat**2).sum(axis=1).mean() - along.sum(axis=1).mean()))
    a, s = levels.signal[:, None], levels.noise[:, None]
    gain = a * known.variances / (a**2 * known.variances + s**2)  # (T, R)
    error = ((1.0 - gain * a) ** 2 * power + gain**2 * s**2).sum(axis=1) + outside
    return np.asarray(error / flat.shape[1] * (levels.signal / levels.noise) ** 2)


def by_bin(values: Array, bins: int) -> Array:
    """The mean over each of ``bins`` equal ranges of levels: (T,) -> (bins,)."""
    return np.array([part.mean() for part in np.array_split(values, edges(len(values), bins)[1:-1])])


def edges(num_levels: int, bins: int) -> NDArray[np.int64]:
    """Where ranges of levels begin and end, (bins + 1,): level t lies in range floor(t bins / T)."""
    return np.asarray(-(-np.arange(bins + 1) * num_levels // bins), dtype=np.int64)
