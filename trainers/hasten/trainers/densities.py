"""Densities over noise levels, each a pure function beside its formula and source.

Every function returns the probability of each of T levels, shape (T,), summing to 1. Where a density lives
in a continuous coordinate, a level stands for the cell around it and gets that cell's probability; what lies
outside all cells is left out, so no mass piles up at the ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Coordinate = Literal["timestep", "noise_variance", "noise_rate"]
UnitCoordinate = Literal["flow", "timestep"]

STEEPEST_MODE: Final = 2.0 / (math.pi - 2.0)  # beyond it, SD3's mode map turns back on itself
_SMALLEST: Final = 1e-30  # keeps logarithms and ratios finite where a level is all signal or all noise


def coordinate(alphas_bar: Array, name: Coordinate) -> Array:
    """t/T, 1 - abar or sqrt(1 - abar): where CLTS may measure difficulty, shape (T,)."""
    match name:
        case "timestep":
            return np.arange(len(alphas_bar)) / len(alphas_bar)
        case "noise_variance":
            return 1.0 - alphas_bar
        case "noise_rate":
            return np.sqrt(1.0 - alphas_bar)


def log_sigma(alphas_bar: Array) -> Array:
    """ln sigma, sigma = sqrt((1 - abar)/abar) = noise over signal; log SNR is -2 ln sigma. Shape (T,)."""
    return np.asarray(
        0.5 * (np.log(np.maximum(1.0 - alphas_bar, _SMALLEST)) - np.log(np.maximum(alphas_bar, _SMALLEST)))
    )


def flow_time(alphas_bar: Array) -> Array:
    """u = noise/(signal + noise), rectified flow's time of the same signal-to-noise ratio. Shape (T,)."""
    noise = np.sqrt(1.0 - alphas_bar)
    return np.asarray(noise / (noise + np.sqrt(alphas_bar)))


def edges(levels: Array) -> Array:
    """Borders of the cells around increasing ``levels``, shape (T+1,): halfway between neighbours.

    The outermost cells reach as far outwards as inwards.
    """
    middle = 0.5 * (levels[1:] + levels[:-1])
    return np.concatenate([[2.0 * levels[0] - middle[0]], middle, [2.0 * levels[-1] - middle[-1]]])


def unit_edges(alphas_bar: Array, coordinate: UnitCoordinate) -> Array:
    """Borders of the cells of u within [0, 1], shape (T+1,): of flow time, or t/T to (t+1)/T."""
    if coordinate == "timestep":
        return np.arange(len(alphas_bar) + 1) / len(alphas_bar)
    return np.clip(edges(flow_time(alphas_bar)), 0.0, 1.0)


def uniform(num: int) -> Array:
    """1/T."""
    return np.full(num, 1.0 / num)


def gaussian(x: Array, mu: float, sigma: float) -> Array:
    """exp(-(x - mu)^2 / (2 sigma^2)), normalised over the levels (CLTS, arXiv 2404.07946: see curriculum)."""
    # Subtracting the largest exponent keeps a narrow Gaussian far from every x from dividing 0 by 0.
    exponent = -0.5 * ((x - mu) / sigma) ** 2
    density = np.exp(exponent - exponent.max())
    return np.asarray(density / density.sum())


def normal(borders: Array, mean: float, std: float) -> Array:
    """A normal distribution over cells with these borders: EDM's in ln sigma (arXiv 2206.00364, table 1)."""
    return _symmetric(_normal_cdf, (borders - mean) / std)


def laplace(borders: Array, mean: float, scale: float) -> Array:
    """exp(-abs(x - mean)/b)/(2b): in log SNR, Hang et al., arXiv 2407.03297."""
    return _symmetric(_laplace_cdf, (borders - mean) / scale)


def logit_normal(borders: Array, mean: float, std: float) -> Array:
    """u = sigmoid(N(mean, std^2)) over cells of u in [0, 1] (Esser et al., arXiv 2403.03206, equation 19)."""
    with np.errstate(divide="ignore"):
        logit = np.log(borders) - np.log1p(-borders)
    return normal(logit, mean, std)


def mode(borders: Array, scale: float) -> Array:
    """f(v) = 1 - v - s (cos^2(pi v/2) - 1 + v) for v ~ U(0, 1) (arXiv 2403.03206, equation 20).

    f falls from 1 to 0 where -1 <= s <= 2/(pi - 2), so P(f(v) <= u) = 1 - v at f(v) = u.
    """
    low, high = np.zeros_like(borders), np.ones_like(borders)
    for _ in range(60):  # bisection, to the last bit of v
        v = 0.5 * (low + high)
        above = 1.0 - v - scale * (np.cos(0.5 * np.pi * v) ** 2 - 1.0 + v) > borders
        low, high = np.where(above, v, low), np.where(above, high, v)
    # A border of the unit interval is met exactly, or the cells' sum would miss a bit there.
    cdf = np.where(borders <= 0.0, 0.0, np.where(borders >= 1.0, 1.0, 1.0 - 0.5 * (low + high)))
    return _normalised(np.diff(cdf))


def cosmap(borders: Array) -> Array:
    """2/(pi (1 - 2u + 2u^2)) (arXiv 2403.03206, equation 21), whose integral is 2/pi atan(2u - 1) + 1/2."""
    return _normalised(np.diff(2.0 / np.pi * np.arctan(2.0 * borders - 1.0) + 0.5))


def beta(borders: Array, alpha: float) -> Array:
    """Beta(alpha, 1), with distribution function x^alpha (B-TTDM, ECCV 2024, of t/T)."""
    return _normalised(np.diff(borders**alpha))


def speed(num: int, factor: float, below: int) -> Array:
    """k/(T + tau (k - 1)) for t < tau, 1/(T + tau (k - 1)) from there on (SpeeD, arXiv 2405.17403)."""
    return _normalised(np.where(np.arange(num) < below, factor, 1.0))


def paired(density: Array, pivot: int) -> Array:
    """What is really drawn where half of a batch mirrors the other half, as SpeeD's code has it.

    The partner of t is m - t for t < m and t - m from there on, m the ``pivot``; so the realised density is
    the mean of p and its image under that map.
    """
    t = np.arange(len(density))
    partner = np.where(t < pivot, pivot - t, t - pivot)
    return 0.5 * (density + np.bincount(partner, weights=density, minlength=len(density)))


def pivot(alphas_bar: Array) -> int:
    """SpeeD's m: one after the first level where sqrt(1 - abar) grows by less than 1e-4 a step of T = 1000.

    Looked for from the steepest level on: linear betas are steepest at the first, other processes start flat.
    At most T - 1, where it means plain mirroring.
    """
    num = len(alphas_bar)
    growth = np.gradient(np.sqrt(1.0 - alphas_bar))
    flat = growth < 1e-4 * 1000.0 / num
    flat[: int(growth.argmax())] = False
    return min(int(flat.argmax()) + 1, num - 1) if flat.any() else num - 1


def noisiest(num: int, count: int) -> Array:
    """Uniform over the ``count`` levels with the most noise."""
    return np.where(np.arange(num) >= num - count, 1.0 / count, 0.0)


def _symmetric(cdf: Callable[[Array], Array], z: Array) -> Array:
    """Probability of each cell between borders ``z`` of a distribution that is symmetric about 0."""
    low, high = z[:-1], z[1:]
    # In the upper tail the distribution function is 1 to the last bit: its mirror image is not.
    mass = np.where(low > 0.0, cdf(-low) - cdf(-high), cdf(high) - cdf(low))
    if not mass.max() > 0.0:
        mass = np.zeros_like(low)
        mass[np.maximum(low, -high).argmin()] = 1.0  # too far away for floating point: the nearest cell
    return _normalised(mass)


def _normal_cdf(z: Array) -> Array:
    return np.asarray(0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-z / math.sqrt(2.0)))


def _laplace_cdf(z: Array) -> Array:
    tail = 0.5 * np.exp(-np.abs(z))
    return np.where(z < 0.0, tail, 1.0 - tail)


def _normalised(mass: Array) -> Array:
    mass = np.maximum(mass, 0.0)
    total = mass.sum()
    # Nothing is left only where floating point tells no level from another.
    return np.asarray(mass / total) if total > 0.0 else uniform(len(mass))
