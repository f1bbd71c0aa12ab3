"""Forward processes, and what a network is asked to predict, as tables over noise levels.

Every process here is a finite chain of T noise levels, from the least noise (index 0) to the most:

    x_t    = signal_t x_0 + noise_t eps          what training makes of a clean image
    input  = scale_t x_t                         what the network sees, together with condition_t
    answer = clean_t x_0 + eps_t eps             what it is to say

DDPM, EDM and rectified flow, and every prediction type, differ in these tables alone, so samplers, loss
weights, evaluation and analyses know nothing of them. A continuous process is cut into T levels; T = 1000 is
finer than any sampler's steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hasten.trainers.config import Spec

Array = NDArray[np.float64]
Prediction = Literal["epsilon", "x0", "v", "velocity", "edm"]
Levelcount = Annotated[int, Field(ge=2, le=100_000)]
Positive = Annotated[float, Field(gt=0.0)]


class Ddpm(Spec):
    """A discrete, variance-preserving chain of ``timesteps`` levels (arXiv 2006.11239).

    ``shift`` > 1 moves the chain towards noise, as larger images need it (Hoogeboom et al., arXiv 2301.11093,
    equation 9): SNR' = SNR / shift^2, with shift = resolution / 64 in the paper.
    """

    kind: Literal["ddpm"]
    schedule: Literal["linear", "cosine"] = "cosine"
    shift: Positive = 1.0
    timesteps: Levelcount = 1000
    predict: Literal["epsilon", "x0", "v"] = "epsilon"


class Edm(Spec):
    """EDM (arXiv 2206.00364): x = x_0 + sigma eps, the network preconditioned as in its table 1.

    ``timesteps`` levels lie evenly in ln sigma between ``sigma_min`` and ``sigma_max``; ``sigma_data`` is the
    standard deviation of the data, 0.5 for images in [-1, 1].
    """

    kind: Literal["edm"]
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    sigma_data: Positive = 0.5
    timesteps: Levelcount = 1000


class Flow(Spec):
    """Rectified flow (arXiv 2209.03003): x = (1 - u) x_0 + u eps, predicting the velocity eps - x_0.

    u lies at the midpoints of ``timesteps`` cells of (0, 1), moved by ``shift`` a: u' = a u / (1 + (a - 1) u)
    (Esser et al., arXiv 2403.03206, equation 23).
    """

    kind: Literal["flow"]
    shift: Positive = 1.0
    timesteps: Levelcount = 1000


Diffusion = Annotated[Ddpm | Edm | Flow, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """A process as tables, each of shape (T,): see the module's formulas."""

    signal: Array
    noise: Array
    scale: Array
    condition: Array
    clean: Array
    eps: Array

    def __len__(self) -> int:
        return len(self.signal)

    @property
    def alphas_bar(self) -> Array:
        """The signal's share of the variance, a^2 / (a^2 + s^2): decreasing, in (0, 1)."""
        return np.asarray(self.signal**2 / (self.signal**2 + self.noise**2))

    @property
    def determinant(self) -> Array:
        """signal eps - noise clean: with it, an answer and x_t give back x_0 and eps."""
        return np.asarray(self.signal * self.eps - self.noise * self.clean)

    @property
    def epsilon_error(self) -> Array:
        """By how much an error of the answer becomes one of the implied eps: |signal / determinant|."""
        return np.asarray(np.abs(self.signal / self.determinant))


def levels(spec: Diffusion) -> Levels:
    """The tables of a process and its prediction."""
    match spec:
        case Ddpm():
            return _ddpm(spec)
        case Edm():
            return _edm(spec)
        case Flow():
            return _flow(spec)


def prediction(spec: Diffusion) -> Prediction:
    """What the network of this process predicts."""
    match spec:
        case Ddpm():
            return spec.predict
        case Edm():
            return "edm"
        case Flow():
            return "velocity"


def alphas_bar(spec: Diffusion) -> Array:
    """The signal's share of the variance at each level, shape (T,), decreasing in (0, 1)."""
    match spec:
        case Ddpm():
            return np.asarray(np.cumprod(1.0 - betas(spec)))
        case _:
            return levels(spec).alphas_bar


def betas(spec: Ddpm) -> Array:
    """Variance added at each timestep, shape (T,), in (0, 1).

    linear: 1e-4 to 0.02 for T = 1000 (arXiv 2006.11239, section 4), scaled by 1000/T for other lengths so
    that the chain always ends in noise.
    cosine: beta_t = 1 - f(t+1)/f(t), f(t) = cos^2((t/T + s)/(1 + s) pi/2), s = 0.008, at most 0.999
    (Nichol and Dhariwal, arXiv 2102.09672, equation 17).
    """
    num = spec.timesteps
    match spec.schedule:
        case "linear":
            scale = 1000.0 / num
            unshifted = np.minimum(np.linspace(1e-4 * scale, 0.02 * scale, num), 0.999)
        case "cosine":
            offset = 0.008
            signal = np.cos((np.arange(num + 1) / num + offset) / (1.0 + offset) * np.pi / 2.0) ** 2
            unshifted = np.minimum(1.0 - signal[1:] / signal[:-1], 0.999)
    if spec.shift == 1.0:
        return np.asarray(unshifted)
    abar = np.cumprod(1.0 - unshifted)
    shifted = np.concatenate([[1.0], abar / (abar + spec.shift**2 * (1.0 - abar))])
    return np.asarray(1.0 - shifted[1:] / shifted[:-1])


def _ddpm(spec: Ddpm) -> Levels:
    """x0: the image; v: signal eps - noise x_0 (Salimans and Ho, arXiv 2202.00512, appendix D)."""
    abar = alphas_bar(spec)
    signal, noise = np.sqrt(abar), np.sqrt(1.0 - abar)
    zeros, ones = np.zeros_like(abar), np.ones_like(abar)
    clean, eps = {"epsilon": (zeros, ones), "x0": (ones, zeros), "v": (-noise, signal)}[spec.predict]
    steps = np.arange(spec.timesteps, dtype=np.float64)
    return Levels(signal=signal, noise=noise, scale=ones, condition=steps, clean=clean, eps=eps)


def _edm(spec: Edm) -> Levels:
    """D(x) = c_skip x + c_out F(c_in x; c_noise), so F is to answer (x_0 - c_skip x) / c_out.

    c_skip = sd^2/(s^2 + sd^2), c_out = s sd/sqrt(s^2 + sd^2), c_in = 1/sqrt(s^2 + sd^2), c_noise = ln(s)/4
    (arXiv 2206.00364, table 1). EDM's loss weight (s^2 + sd^2)/(s sd)^2 on D is weight 1 on F.
    """
    sigma = np.exp(np.linspace(np.log(spec.sigma_min), np.log(spec.sigma_max), spec.timesteps))
    total = np.sqrt(sigma**2 + spec.sigma_data**2)
    skip, out = spec.sigma_data**2 / total**2, sigma * spec.sigma_data / total
    return Levels(
        signal=np.ones_like(sigma),
        noise=sigma,
        scale=1.0 / total,
        condition=np.log(sigma) / 4.0,
        clean=(1.0 - skip) / out,
        eps=-skip * sigma / out,
    )


def _flow(spec: Flow) -> Levels:
    """The condition is 1000 u, as diffusers' flow-matching schedulers pass it."""
    even = (np.arange(spec.timesteps) + 0.5) / spec.timesteps
    u = spec.shift * even / (1.0 + (spec.shift - 1.0) * even)
    ones = np.ones_like(u)
    return Levels(signal=1.0 - u, noise=u, scale=ones, condition=1000.0 * u, clean=-ones, eps=ones)
