"""Which timesteps to train on, as a function of training progress.

CLTS (curriculum-learning-based timestep schedule) is a *reconstruction* of arXiv 2404.07946 from
third-party code and reviews; ``sigma`` and the coordinate are its least certain quantities. The sampling
density starts uniform and moves linearly towards a Gaussian around the hardest timesteps:

    pi(t) = (1 - g)/T + g peak N(t) + g (1 - peak)/T      g = clip((progress - start)/(ramp - start), 0, 1)
    N(t)  = exp(-(x(t) - mu)^2 / (2 sigma^2)) / sum over t'   normalised on the grid t = 0..T-1

``x(t)`` is t/T, 1 - abar(t) ("noise_variance") or sqrt(1 - abar(t)) ("noise_rate"). The objective changes
on purpose: there is no importance correction.

Every other curriculum that follows a schedule is likewise a fixed density with a share that depends on
progress, the rest uniform. The formulas and their sources are in :mod:`hasten.trainers.densities`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hasten.trainers import densities, randomness
from hasten.trainers.config import Spec

Array = NDArray[np.float64]
Unit = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


class _Curriculum(Spec):
    """``draws``: "stratified" spreads a global batch evenly over the density, "independent" does not."""

    draws: Literal["stratified", "independent"] = "stratified"


class Uniform(_Curriculum):
    """Every timestep equally often: the baseline."""

    kind: Literal["uniform"]


class _Gaussian(_Curriculum):
    """A Gaussian of centre ``mu`` and width ``sigma``, both in units of ``coordinate`` (0 to 1)."""

    mu: Unit = 0.3
    sigma: Annotated[float, Field(gt=0.0, le=10.0)]
    coordinate: densities.Coordinate = "timestep"


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


class Shuffled(_Ramp):
    """CLTS with the Gaussian's values dealt out to the timesteps at random: does it matter which ones?"""

    kind: Literal["shuffled"]
    permutation_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class Return(_Ramp):
    """CLTS up to ``ramp``, at its peak for ``hold`` more of the run, then back to uniform at ``end``."""

    kind: Literal["return"]
    ramp: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    hold: Unit = 0.0
    end: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0

    @model_validator(mode="after")
    def _returns(self) -> Self:
        if self.ramp + self.hold >= self.end:
            raise ValueError(f"end: {self.end} must come after ramp + hold ({self.ramp} + {self.hold})")
        return self


class Speed(_Curriculum):
    """SpeeD (arXiv 2405.17403): timesteps below ``tau`` (a fraction of T) come ``factor`` times as often.

    Its code draws antithetic pairs, which have another density than p: with ``pairing`` that one, the one
    which its results were made with.
    """

    kind: Literal["speed"]
    factor: Positive = 2.0
    tau: Unit = 0.7
    pairing: bool = True


class EdmLognormal(_Curriculum):
    """EDM (arXiv 2206.00364): ln sigma is normal, sigma = noise over signal."""

    kind: Literal["edm_lognormal"]
    p_mean: float = -1.2
    p_std: Positive = 1.2


class _OnUnit(_Curriculum):
    """A density of u in [0, 1].

    "flow": u = noise/(signal + noise), rectified flow's own time, the same noise for every process.
    "timestep": u = t/T, so the noise that it means depends on the process and its shift.
    """

    coordinate: densities.UnitCoordinate = "flow"


class LogitNormal(_OnUnit):
    """SD3 (arXiv 2403.03206): u is the sigmoid of a normal number. In flow time this is EDM's ln sigma."""

    kind: Literal["logit_normal"]
    mean: float = 0.0
    std: Positive = 1.0


class TwoPhase(_OnUnit):
    """Middle timesteps first (logit-normal in t/T), uniform from progress ``switch`` on (arXiv 2603.12517).

    Where the paper switches is not known to us.
    """

    kind: Literal["two_phase"]
    coordinate: densities.UnitCoordinate = "timestep"
    mean: float = 0.0
    std: Positive = 1.0
    switch: Unit = 0.5


class Mode(_OnUnit):
    """SD3's mode density with heavy tails; ``scale`` > 0 favours the middle, < 0 the ends."""

    kind: Literal["mode"]
    scale: Annotated[float, Field(ge=-1.0, le=densities.STEEPEST_MODE)] = 1.29


class Cosmap(_OnUnit):
    """SD3's cosmap density: the cosine schedule's log SNR in a flow."""

    kind: Literal["cosmap"]


class Beta(_OnUnit):
    """B-TTDM (ECCV 2024): u is Beta(``alpha``, 1); alpha < 1 favours little noise."""

    kind: Literal["beta"]
    coordinate: densities.UnitCoordinate = "timestep"
    alpha: Annotated[float, Field(gt=0.0, le=10.0)] = 0.8


class Laplace(_Curriculum):
    """log SNR is Laplace distributed about ``mu`` with scale ``scale`` (arXiv 2407.03297)."""

    kind: Literal["laplace"]
    mu: float = 0.0
    scale: Positive = 0.5


class SecondMoment(_Curriculum):
    """Loss second moment (Nichol and Dhariwal, arXiv 2102.09672, equation 18): importance sampling.

    p(t) is proportional to sqrt(E[loss^2]) over the last ``history`` losses of each timestep, with a share
    ``floor`` of the uniform; the loss is divided by T p(t), so the objective stays what it was. Uniform until
    every timestep has its history.
    """

    kind: Literal["second_moment"]
    history: Annotated[int, Field(ge=1, le=1000)] = 10
    floor: Unit = 0.001


class Clusters(_Curriculum):
    """Task-difficulty curriculum (arXiv 2403.10348): from the noisiest timesteps to all of them, in stages.

    T levels make ``clusters`` ranges, equal in ``coordinate``. Stage n draws uniformly from the n noisiest;
    the next begins when the loss, smoothed over ``smoothing`` of the budget, has not fallen for ``patience``
    of the budget. (The paper waits 200 iterations, which means another thing for every batch and budget.)
    """

    kind: Literal["clusters"]
    clusters: Annotated[int, Field(ge=2, le=1000)] = 20
    patience: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.005
    coordinate: Literal["timestep", "log_snr"] = "timestep"


Curriculum = Annotated[
    Uniform
    | Clts
    | Reverse
    | Static
    | Shuffled
    | Return
    | TwoPhase
    | Speed
    | EdmLognormal
    | LogitNormal
    | Mode
    | Cosmap
    | Beta
    | Laplace
    | SecondMoment
    | Clusters,
    Field(discriminator="kind"),
]


def pmf(spec: Curriculum, progress: float, alphas_bar: Array) -> Array:
    """Probability of each timestep at ``progress`` in [0, 1] (clamped).

    Args:
        spec: the curriculum; of an adaptive one, the density before it has seen any loss.
        progress: images seen over images planned.
        alphas_bar: cumulative signal share of each timestep, shape (T,), decreasing in (0, 1].

    Returns:
        Shape (T,), non-negative, sums to 1.
    """
    return mixture(share(spec, progress), density(spec, alphas_bar))


def mixture(weight: float, component: Array) -> Array:
    """``weight`` of the density ``component``, shape (T,), the rest uniform."""
    return (1.0 - weight) * densities.uniform(len(component)) + weight * component


def share(spec: Curriculum, progress: float) -> float:
    """The weight of :func:`density` in the mixture with the uniform at ``progress``, in [0, 1]."""
    match spec:
        case Uniform() | SecondMoment():
            return 0.0
        case Static():
            return spec.weight
        case Clts() | Shuffled():
            return _risen(spec, progress) * spec.peak
        case Reverse():
            return (1.0 - _risen(spec, progress)) * spec.peak
        case Return():
            left = (spec.end - progress) / (spec.end - spec.ramp - spec.hold)
            return min(_risen(spec, progress), min(max(left, 0.0), 1.0)) * spec.peak
        case TwoPhase():
            return 1.0 if progress < spec.switch else 0.0
        case _:
            return 1.0


def density(spec: Curriculum, alphas_bar: Array) -> Array:
    """The part of a curriculum that does not depend on progress, shape (T,); see :func:`share`."""
    num = len(alphas_bar)
    match spec:
        case Uniform() | SecondMoment():
            return densities.uniform(num)
        case Clts() | Reverse() | Static() | Return():
            return densities.gaussian(densities.coordinate(alphas_bar, spec.coordinate), spec.mu, spec.sigma)
        case Shuffled():
            order = randomness.permutation(spec.permutation_seed, "curriculum/shuffled", 0, num)
            x = densities.coordinate(alphas_bar, spec.coordinate)
            return densities.gaussian(x, spec.mu, spec.sigma)[order]
        case Speed():
            plain = densities.speed(num, spec.factor, round(spec.tau * num))
            return densities.paired(plain, densities.pivot(alphas_bar)) if spec.pairing else plain
        case EdmLognormal():
            borders = densities.edges(densities.log_sigma(alphas_bar))
            return densities.normal(borders, spec.p_mean, spec.p_std)
        case Laplace():
            borders = densities.edges(2.0 * densities.log_sigma(alphas_bar))
            return densities.laplace(borders, -spec.mu, spec.scale)
        case LogitNormal() | TwoPhase():
            borders = densities.unit_edges(alphas_bar, spec.coordinate)
            return densities.logit_normal(borders, spec.mean, spec.std)
        case Mode():
            return densities.mode(densities.unit_edges(alphas_bar, spec.coordinate), spec.scale)
        case Cosmap():
            return densities.cosmap(densities.unit_edges(alphas_bar, spec.coordinate))
        case Beta():
            return densities.beta(densities.unit_edges(alphas_bar, spec.coordinate), spec.alpha)
        case Clusters():
            return densities.noisiest(num, int(stages(spec, alphas_bar)[0]))


def stages(spec: Clusters, alphas_bar: Array) -> NDArray[np.int64]:
    """How many of the noisiest levels each stage draws from, shape (clusters,), rising to T."""
    num, parts = len(alphas_bar), np.arange(1, spec.clusters + 1)
    if spec.coordinate == "timestep":
        return -(-num * parts // spec.clusters)
    x = densities.log_sigma(alphas_bar)
    lowest = x[-1] - (x[-1] - x[0]) * parts[:-1] / spec.clusters
    return np.append(np.maximum((x >= lowest[:, None]).sum(axis=1), 1), num)


def constant(spec: Curriculum) -> bool:
    """Whether the density is the same at every progress (and does not adapt)."""
    return not isinstance(spec, Clts | Reverse | Shuffled | Return | TwoPhase) and not adaptive(spec)


def adaptive(spec: Curriculum) -> bool:
    """Whether the density depends on the losses seen."""
    return isinstance(spec, SecondMoment | Clusters)


def corrects(spec: Curriculum) -> bool:
    """Whether losses are divided by T p(t), so that the curriculum leaves the objective as it was."""
    return isinstance(spec, SecondMoment)


def _risen(spec: _Ramp, progress: float) -> float:
    return min(max((progress - spec.start) / (spec.ramp - spec.start), 0.0), 1.0)
