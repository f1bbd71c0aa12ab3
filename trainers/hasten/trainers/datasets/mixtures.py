"""Gaussian mixtures whose best denoiser is known in closed form: data for questions about the method itself.

    x_0 ~ sum_k w_k N(mu_k, S_k)      S_k = L_k L_k^T + s_k^2 I

At x_t = a x_0 + n eps, component k has the covariance C_k = a^2 S_k + n^2 I, and with d_k = x_t - a mu_k and
r_k proportional to w_k N(x_t; a mu_k, C_k),

    E[x_0 | x_t]   = sum_k r_k (mu_k + a S_k C_k^-1 d_k)
    E[eps | x_t]   = n sum_k r_k C_k^-1 d_k
    score(x_t)     = -E[eps | x_t] / n

The mean squared error of any predicted noise is that of E[eps | x_t] plus the mean square of its difference
from it, so the second term, the excess loss, can be measured without the first one's variance.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hasten.trainers import randomness
from hasten.trainers.errors import ConfigError

Array = NDArray[np.float64]

NAMES: Final = ("ring", "16d", "64d")
_SEED: Final = 0  # of the parameters themselves
_VARIANCE: Final = 0.25  # of a coordinate, on average: images in [-1, 1] have about this one
_CHUNK: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """What is known of x_0 and of eps once x_t is seen: means, each of x_t's shape."""

    clean: Array
    eps: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """K Gaussians in D dimensions.

    Args:
        name: how a recipe calls it.
        weights: shape (K,), positive, summing to 1.
        means: shape (K, D).
        spreads: shape (K,), the s_k > 0.
        factors: shape (K, D, R), the L_k; R = 0 for isotropic components.
    """

    name: str
    weights: Array
    means: Array
    spreads: Array
    factors: Array
    _axes: Array = field(init=False, repr=False)  # (K, D, R): orthonormal, along which L_k stretches
    _lengths: Array = field(init=False, repr=False)  # (K, R): by how much

    def __post_init__(self) -> None:
        axes, lengths, _ = np.linalg.svd(self.factors, full_matrices=False)
        object.__setattr__(self, "_axes", axes)
        object.__setattr__(self, "_lengths", lengths)

    @property
    def classes(self) -> int:
        """K: a point's label is the component that it came from."""
        return len(self.weights)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one point, as an image: (D, 1, 1)."""
        return (self.means.shape[1], 1, 1)

    @property
    def digest(self) -> str:
        """SHA-256 of the parameters, whatever the name."""
        parts = (self.weights, self.means, self.spreads, self.factors)
        content = b"".join(repr(a.shape).encode() + a.astype("<f8").tobytes() for a in parts)
        return hashlib.sha256(content).hexdigest()

    def labels(self, seed: int, stream: str, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """The component of each point that :meth:`generate` makes, shape (B,)."""
        u = randomness.uniform(seed, f"{stream}/component", images)
        chosen = np.searchsorted(np.cumsum(self.weights), u, side="right")
        return np.minimum(chosen, self.classes - 1).astype(np.int64)

    def generate(self, seed: int, stream: str, images: NDArray[np.int64]) -> NDArray[np.float32]:
        """Points, float32 (B, D, 1, 1), each a pure function of ``(seed, stream, its image index)``."""
        k = self.labels(seed, stream, images)
        dims, rank = self.factors.shape[1:]
        z = randomness.noise(seed, f"{stream}/point", images, (dims + rank,)).astype(np.float64)
        # A sum over the last axis, not a matrix product: BLAS may round a row by its batch's size.
        along = (self.factors[k] * z[:, None, dims:]).sum(axis=2)
        points = self.means[k] + along + self.spreads[k][:, None] * z[:, :dims]
        return np.asarray(points, dtype=np.float32).reshape(-1, *self.shape)

    def moments(self) -> tuple[Array, Array]:
        """The exact mean, shape (D,), and covariance, shape (D, D)."""
        mean = self.weights @ self.means
        within = np.einsum("k,kir,kjr->ij", self.weights, self.factors, self.factors)
        within += (self.weights @ self.spreads**2) * np.eye(len(mean))
        offset = self.means - mean
        return mean, within + np.einsum("k,ki,kj->ij", self.weights, offset, offset)

    def posterior(
        self,
        noisy: NDArray[np.floating],
        signal: Array,
        noise: Array,
        labels: NDArray[np.int64] | None = None,
    ) -> Posterior:
        """The best possible answers: E[x_0 | x_t] and E[eps | x_t].

        Args:
            noisy: x_t, shape (B, ...) of D numbers a point.
            signal, noise: a >= 0 and n > 0 of each point, shape (B,).
            labels: the components, shape (B,), where they are known to the network; else it must guess.
        """
        flat = np.asarray(noisy, dtype=np.float64).reshape(len(noisy), -1)
        parts = [slice(start, start + _CHUNK) for start in range(0, len(flat), _CHUNK)]
        answers = [
            self._posterior(flat[p], signal[p], noise[p], None if labels is None else labels[p])
            for p in parts
        ]
        clean, eps = (np.concatenate([answer[i] for answer in answers]) for i in (0, 1))
        return Posterior(clean=clean.reshape(noisy.shape), eps=eps.reshape(noisy.shape))

    def _posterior(
        self, noisy: Array, signal: Array, noise: Array, labels: NDArray[np.int64] | None
    ) -> tuple[Array, Array]:
        """C_k in the basis of its axes, where it is diagonal: Woodbury's formula, the factor orthonormal."""
        a, n = signal[:, None, None], noise[:, None, None]
        own, stretched = (self.spreads**2)[:, None], self._lengths**2  # (K, 1), (K, R)
        across = a**2 * own + n**2  # (B, K, 1): the variance of x_t off the axes
        along = a**2 * stretched + across  # (B, K, R): and on them
        offset = noisy[:, None, :] - a * self.means  # (B, K, D)
        inside = np.einsum("bkd,kdr->bkr", offset, self._axes)
        outside = offset - np.einsum("bkr,kdr->bkd", inside, self._axes)
        solved = outside / across + np.einsum("bkr,kdr->bkd", inside / along, self._axes)  # C_k^-1 d_k
        guessed = outside * (own / across) + np.einsum(
            "bkr,kdr->bkd", inside * ((stretched + own) / along), self._axes
        )  # S_k C_k^-1 d_k
        distance = (outside**2 / across).sum(axis=2) + (inside**2 / along).sum(axis=2)
        rest = self.means.shape[1] - stretched.shape[1]
        volume = rest * np.log(across[..., 0]) + np.log(along).sum(axis=2)
        score = np.log(self.weights) - 0.5 * (distance + volume)
        if labels is not None:
            score = np.where(np.arange(self.classes) == labels[:, None], score, -np.inf)
        share = np.exp(score - score.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        clean = np.einsum("bk,bkd->bd", share, self.means + a * guessed)
        return clean, n[:, 0] * np.einsum("bk,bkd->bd", share, solved)


@functools.cache
def get(name: str) -> Mixture:
    """A shipped mixture, centred on 0, of mean variance 1/4 a coordinate.

    ring: 8 equal modes on a circle in 2 dimensions. 16d: 8 unequal modes in 16 dimensions. 64d: 32 modes in
    64 dimensions, each a flat pancake of 8 dimensions.

    Raises:
        ConfigError: there is no such mixture.
    """
    match name:
        case "ring":
            angles = 2.0 * np.pi * np.arange(8) / 8
            means = np.stack([np.cos(angles), np.sin(angles)], axis=1)
            return _scaled(name, np.full(8, 1 / 8), means, np.full(8, 0.1), np.zeros((8, 2, 0)))
        case "16d":
            return _random(name, components=8, dims=16, rank=0, spread=0.4)
        case "64d":
            return _random(name, components=32, dims=64, rank=8, spread=0.15)
    raise ConfigError("data.source", f"no mixture is called {name!r}", f"There are {', '.join(NAMES)}.")


def _random(name: str, *, components: int, dims: int, rank: int, spread: float) -> Mixture:
    """Modes drawn around 0, the largest three times as heavy and as wide as the smallest at most."""
    index, stream = np.arange(components), f"mixture/{name}"
    weights = 0.5 + randomness.uniform(_SEED, f"{stream}/weight", index)
    spreads = spread * (0.5 + randomness.uniform(_SEED, f"{stream}/spread", index))
    means = randomness.noise(_SEED, f"{stream}/mean", index, (dims,)).astype(np.float64)
    factors = randomness.noise(_SEED, f"{stream}/factor", index, (dims, rank)).astype(np.float64)
    weights = np.round(weights / weights.sum(), 6)
    weights[0] += 1.0 - weights.sum()
    return _scaled(name, weights, means - weights @ means, spreads, factors / np.sqrt(max(rank, 1)))


def _scaled(name: str, weights: Array, means: Array, spreads: Array, factors: Array) -> Mixture:
    """The mixture shrunk to the usual variance, its numbers rounded.

    A library's logarithm and cosine may differ in the last bit between processors; digests must not.
    """
    _, covariance = Mixture(
        name=name, weights=weights, means=means, spreads=spreads, factors=factors
    ).moments()
    scale = np.sqrt(_VARIANCE * len(covariance) / np.trace(covariance))
    return Mixture(
        name=name,
        weights=weights,
        means=np.round(scale * means, 6) + 0.0,
        spreads=np.round(scale * spreads, 6),
        factors=np.round(scale * factors, 6) + 0.0,
    )
