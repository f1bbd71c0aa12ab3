"""Weights of the loss over timesteps, independent of how timesteps are drawn.

Weights are published for the error of one prediction and used with another. The errors of all predictions
at one level are multiples of each other, err_eps^2 = c err_prediction^2, with

    epsilon 1    x0 SNR    v abar    velocity (1 - u)^2    edm c_out^2 / sigma^2 = sd^2 / (sigma^2 + sd^2)

where SNR = abar/(1 - abar), sigma^2 = 1/SNR and u = sigma/(1 + sigma), rectified flow's time. Only ``none``
and ``twin`` leave this out: they weight whatever the network predicts.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hasten.trainers import curriculum
from hasten.trainers.config import Spec
from hasten.trainers.curriculum import Curriculum
from hasten.trainers.densities import flow_time
from hasten.trainers.diffusion import Prediction

Array = NDArray[np.float64]
Positive = Annotated[float, Field(gt=0.0)]

_SMALLEST: Final = 1e-30  # keeps ratios finite where a level is all signal or all noise


class Unweighted(Spec):
    """The plain mean squared error of the prediction."""

    kind: Literal["none"]


class P2(Spec):
    """1/(k + SNR)^gamma on the error of eps (arXiv 2204.00227): less for what cannot be perceived."""

    kind: Literal["p2"]
    k: Positive = 1.0
    gamma: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0


class MinSnr(Spec):
    """min(SNR, gamma) on the error of x0 (arXiv 2303.09556)."""

    kind: Literal["min_snr"]
    gamma: Positive = 5.0


class SoftMinSnr(Spec):
    """SNR gamma/(SNR + gamma) on the error of x0 (a baseline in arXiv 2407.03297)."""

    kind: Literal["soft_min_snr"]
    gamma: Positive = 5.0


class ChangeAware(Spec):
    """SpeeD's weight (arXiv 2405.17403) on the error of eps: 1 from ``tau`` (a fraction of T) on, and below

    (1 - l) + (2l - 1)(q - min q)/(max q - min q), q the growth of 1 - abar a step, l the ``lam``.
    """

    kind: Literal["change_aware"]
    lam: Annotated[float, Field(ge=0.0, le=1.0)] = 0.6
    tau: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7


class SigmaSqrt(Spec):
    """u^-2 on the error of the velocity (diffusers' ``sigma_sqrt``, u the flow's time).

    Meant for flows: an error of eps is one of the velocity 1/(1 - u) times as large, without bound.
    """

    kind: Literal["sigma_sqrt"]


class CosmapWeight(Spec):
    """2/(pi (1 - 2u + 2u^2)) on the error of the velocity (SD3, arXiv 2403.03206, as diffusers uses it)."""

    kind: Literal["cosmap"]


class Twin(Spec):
    """T p(t) of the curriculum ``of``: with uniform draws its expected gradient, with another variance.

    Is it which timesteps come often, or which count much?
    """

    kind: Literal["twin"]
    of: Curriculum

    @model_validator(mode="after")
    def _has_a_schedule(self) -> Self:
        if curriculum.adaptive(self.of):
            raise ValueError(f"of: {self.of.kind} depends on the losses seen, so it has no twin")
        return self


Weighting = Annotated[
    Unweighted | P2 | MinSnr | SoftMinSnr | ChangeAware | SigmaSqrt | CosmapWeight | Twin,
    Field(discriminator="kind"),
]


def weights(
    spec: Weighting,
    alphas_bar: Array,
    predict: Prediction,
    *,
    progress: float = 0.0,
    sigma_data: float = 0.5,
) -> Array:
    """The factor of each timestep's squared error in the loss.

    Args:
        spec: the weighting.
        alphas_bar: cumulative signal share of each timestep, shape (T,).
        predict: what the network predicts; the factor multiplies the error of that prediction.
        progress: images seen over images planned; only a twin's weights depend on it.
        sigma_data: the data's standard deviation, where the prediction is EDM's.

    Returns:
        Shape (T,), non-negative.
    """
    match spec:
        case Unweighted():
            return np.ones_like(alphas_bar)
        case Twin():
            return len(alphas_bar) * curriculum.pmf(spec.of, progress, alphas_bar)
        case SigmaSqrt() | CosmapWeight():
            u = np.maximum(flow_time(alphas_bar), _SMALLEST)
            factor = u**-2 if isinstance(spec, SigmaSqrt) else 2.0 / (np.pi * (1.0 - 2.0 * u + 2.0 * u**2))
            if predict == "velocity":
                return np.asarray(factor)  # exact, where the detour by eps divides (1 - u)^2 by itself
            return factor * epsilon_error(alphas_bar, predict, sigma_data) / _one_minus_u(alphas_bar) ** 2
        case _:
            return _on_epsilon(spec, alphas_bar) * epsilon_error(alphas_bar, predict, sigma_data)


def epsilon_error(alphas_bar: Array, predict: Prediction, sigma_data: float = 0.5) -> Array:
    """c of the module's formula, shape (T,): a prediction's squared error times c is that of its eps."""
    match predict:
        case "epsilon":
            return np.ones_like(alphas_bar)
        case "x0":
            return _snr(alphas_bar)
        case "v":
            return alphas_bar.copy()
        case "velocity":
            return _one_minus_u(alphas_bar) ** 2
        case "edm":
            variance = sigma_data**2 * _snr(alphas_bar)
            return np.asarray(variance / (1.0 + variance))


def constant(spec: Weighting) -> bool:
    """Whether the weights are the same at every progress."""
    return not isinstance(spec, Twin) or curriculum.constant(spec.of)


def conflict(draws: Curriculum, weighting: Weighting) -> str | None:
    """Why a curriculum and a weighting count one thing twice, as a clause about ``weighting``, or None."""
    if isinstance(weighting, Twin) and not isinstance(weighting.of, curriculum.Uniform):
        if weighting.of.model_copy(update={"draws": draws.draws}) == draws:
            return (
                f"twin of {draws.kind} while curriculum is the same {draws.kind}, so its density counts twice"
            )
        if curriculum.corrects(draws):
            return (
                f"twin beside {draws.kind}, which divides its own density out: a twin goes with uniform draws"
            )
        if not isinstance(draws, curriculum.Uniform):
            return (
                f"twin of {weighting.of.kind} beside {draws.kind}: two densities multiply, use uniform draws"
            )
    if isinstance(weighting, CosmapWeight) and isinstance(draws, curriculum.Cosmap):
        return "cosmap is the density of curriculum already, so it would count twice"
    return None


def _on_epsilon(spec: P2 | MinSnr | SoftMinSnr | ChangeAware, alphas_bar: Array) -> Array:
    """The factor of the squared error of eps."""
    snr = _snr(alphas_bar)
    match spec:
        case P2():
            return np.asarray((spec.k + snr) ** -spec.gamma)
        case MinSnr():
            return np.minimum(1.0, spec.gamma / snr)
        case SoftMinSnr():
            return np.asarray(spec.gamma / (spec.gamma + snr))
        case ChangeAware():
            growth = np.gradient(1.0 - alphas_bar)
            spread = max(float(np.ptp(growth)), _SMALLEST)
            aware = (1.0 - spec.lam) + (2.0 * spec.lam - 1.0) * (growth - growth.min()) / spread
            return np.where(np.arange(len(growth)) < round(spec.tau * len(growth)), aware, 1.0)


def _snr(alphas_bar: Array) -> Array:
    return np.maximum(alphas_bar, _SMALLEST) / np.maximum(1.0 - alphas_bar, _SMALLEST)


def _one_minus_u(alphas_bar: Array) -> Array:
    """signal/(signal + noise), without the cancellation of 1 - u."""
    signal = np.sqrt(np.maximum(alphas_bar, _SMALLEST))
    return np.asarray(signal / (signal + np.sqrt(1.0 - alphas_bar)))
