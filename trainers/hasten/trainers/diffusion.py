"""The forward process of DDPM (arXiv 2006.11239): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hasten.trainers.config import Spec
from hasten.trainers.weighting import Prediction

Array = NDArray[np.float64]


class Ddpm(Spec):
    """A discrete chain of ``timesteps`` noise levels."""

    kind: Literal["ddpm"]
    schedule: Literal["linear", "cosine"] = "cosine"
    timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    predict: Prediction = "epsilon"


Diffusion = Ddpm


def betas(spec: Diffusion) -> Array:
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
            return np.minimum(np.linspace(1e-4 * scale, 0.02 * scale, num), 0.999)
        case "cosine":
            offset = 0.008
            signal = np.cos((np.arange(num + 1) / num + offset) / (1.0 + offset) * np.pi / 2.0) ** 2
            return np.asarray(np.minimum(1.0 - signal[1:] / signal[:-1], 0.999))


def alphas_bar(spec: Diffusion) -> Array:
    """Share of the signal's variance left at each timestep, shape (T,), decreasing in (0, 1)."""
    return np.asarray(np.cumprod(1.0 - betas(spec)))
