"""Which timesteps to train on, as a function of training progress.

CLTS (curriculum-learning-based timestep schedule) is a *reconstruction* of arXiv 2404.07946 from
third-party code and reviews; ``sigma`` and the coordinate are its least certain quantities. The sampling
density starts uniform and moves linearly towards a Gaussian around the hardest timesteps:

    pi(t) = (1 - g)/T + g peak N(t) + g (1 - peak)/T      g = clip((progress - start)/(ramp - start), 0, 1)
    N(t)  = exp(-(x(t) - mu)^2 / (2 sigma^2)) / sum over t'   normalised on the grid t = 0..T-1

``x(t)`` is t/T, 1 - abar(t) ("noise_variance") or sqrt(1 - abar(t)) ("noise_rate"). The objective changes
on purpose: there is no importance correction.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hasten.trainers.config import Spec

Array = NDArray[np.float64]
Unit = Annotated[float, Field(ge=0.0, le=1.0)]
Coordinate = Literal["timestep", "noise_variance", "noise_rate"]


class Uniform(Spec):
    """Every timestep equally often: the baseline."""

    kind: Literal["uniform"]


class _Gaussian(Spec):
    """A Gaussian of centre ``mu`` and width ``sigma``, both in units of ``coordinate`` (0 to 1)."""

    mu: Unit = 0.3
    sigma: Annotated[float, Field(gt=0.0, le=10.0)]
    coordinate: Coordinate = "timestep"


class _Ramp(_Gaussian):
    """A Gaussian whose share g rises from 0 at progress ``start`` to 1 at progress ``ramp``.

    ``peak`` < 1 keeps a uniform floor of 1 - peak under the Gaussian.
    """

    start: Unit = 0.0
    ramp: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    peak: Unit = 1.0

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.start >= self.ramp:
            raise ValueError(f"start: {self.start} must come before ramp ({self.ramp})")
        return self


class Clts(_Ramp):
    """From uniform to the Gaussian (method.md 1.3; reconstruction of arXiv 2404.07946)."""

    kind: Literal["clts"]


class Reverse(_Ramp):
    """CLTS backwards, from the Gaussian to uniform: does the order matter?"""

    kind: Literal["reverse"]


class Static(_Gaussian):
    """A constant share ``weight`` of the Gaussian; 0.5 is the time average of CLTS with ramp 1."""

    kind: Literal["static"]
    weight: Unit = 0.5


Curriculum = Annotated[Uniform | Clts | Reverse | Static, Field(discriminator="kind")]


def pmf(spec: Curriculum, progress: float, alphas_bar: Array) -> Array:
    """Probability of each timestep at ``progress`` in [0, 1] (clamped).

    Args:
        spec: the curriculum.
        progress: images seen over images planned.
        alphas_bar: cumulative signal share of each timestep, shape (T,), decreasing in (0, 1].

    Returns:
        Shape (T,), non-negative, sums to 1.
    """
    num_timesteps = len(alphas_bar)
    uniform = np.full(num_timesteps, 1.0 / num_timesteps)
    share = gaussian_share(spec, progress)
    if isinstance(spec, Uniform) or share == 0.0:
        return uniform
    return (1.0 - share) * uniform + share * _gaussian(spec, alphas_bar)


def gaussian_share(spec: Curriculum, progress: float) -> float:
    """The weight of the Gaussian in the mixture at ``progress``, in [0, 1]."""
    match spec:
        case Uniform():
            return 0.0
        case Static():
            return spec.weight
        case Clts():
            return _risen(spec, progress) * spec.peak
        case Reverse():
            return (1.0 - _risen(spec, progress)) * spec.peak


def _risen(spec: _Ramp, progress: float) -> float:
    return min(max((progress - spec.start) / (spec.ramp - spec.start), 0.0), 1.0)


def _gaussian(spec: _Gaussian, alphas_bar: Array) -> Array:
    """N(t) of the module's formula: no mass is piled up at the ends, what falls outside is left out."""
    match spec.coordinate:
        case "timestep":
            x = np.arange(len(alphas_bar)) / len(alphas_bar)
        case "noise_variance":
            x = 1.0 - alphas_bar
        case "noise_rate":
            x = np.sqrt(1.0 - alphas_bar)
    # Subtracting the largest exponent keeps a narrow Gaussian far from every x from dividing 0 by 0.
    exponent = -0.5 * ((x - spec.mu) / spec.sigma) ** 2
    density = np.exp(exponent - exponent.max())
    return np.asarray(density / density.sum())
