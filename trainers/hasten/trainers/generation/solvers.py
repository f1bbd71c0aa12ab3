"""Solvers of the probability-flow ODE for every forward process: diffusers' schedulers, told where to look.

A network knows the noise levels that it was trained on, a scheduler has its own numbers for them. A
:class:`Route` pairs the two: at each evaluation the scheduler's timestep and the network's condition.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
from numpy.typing import NDArray

from hasten.trainers import diffusion
from hasten.trainers.diffusion import Ddpm, Diffusion, Edm, Flow
from hasten.trainers.specs import Sampler

Answer = Callable[[torch.Tensor, float], torch.Tensor]  # (network input, condition) -> the network's answer

_RHO: Final = 7.0  # arXiv 2206.00364, equation 5
_FLOW_STEPS: Final = 1000  # a flow's condition is 1000 u, however many levels it is trained on
# Second-order solvers on a chain start where the signal is e^-5.1 of the noise: a cosine chain goes on to
# 1/20,000 of it, over which no polynomial can be fitted.
_LEAST_LOG_SIGNAL: Final = -5.1

# Data that are no images in [-1, 1] are of about unit scale still. A chain ends in nearly pure noise,
# where an error of the predicted noise is magnified 20,000 times in the estimate of the data.
_FAR: Final = 6.0

_PREDICTION: Final = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A scheduler, the condition of each of its evaluations, and the standard deviation of its start."""

    scheduler: Any
    conditions: list[float]
    start: float = 1.0

    def follow(self, answer: Answer, noise: torch.Tensor) -> torch.Tensor:
        """Data from standard normal ``noise``, both of shape (B, ...)."""
        x = noise * self.start if self.start != 1.0 else noise
        scale = getattr(self.scheduler, "scale_model_input", None)  # diffusers' flow schedulers have none
        for t, condition in zip(self.scheduler.timesteps, self.conditions, strict=True):
            network_input = scale(x, t) if scale else x
            x = self.scheduler.step(answer(network_input, condition), t, x).prev_sample
        return x


def solve(
    answer: Answer, spec: Diffusion, noise: torch.Tensor, *, steps: int, sampler: Sampler, clip: bool
) -> torch.Tensor:
    """Data from standard normal noise, by at most ``steps`` evaluations of ``answer``; deterministic.

    Heun's method evaluates twice a step but for the last, so it takes (steps + 1) // 2 steps. ``clip`` keeps
    a chain's intermediate estimates of the image in [-1, 1]; without it they stay in [-6, 6].
    """
    if isinstance(spec, Edm) and sampler == "heun":
        return _edm_heun(answer, spec, noise, steps=(steps + 1) // 2)
    return route(spec, steps=steps, sampler=sampler, clip=clip).follow(answer, noise)


def route(spec: Diffusion, *, steps: int, sampler: Sampler, clip: bool) -> Route:
    """The scheduler of a process and sampler, set to ``steps`` evaluations; EDM's Heun is no scheduler."""
    count = (steps + 1) // 2 if sampler == "heun" else steps
    match spec:
        case Ddpm():
            return _ddpm(spec, min(count, spec.timesteps), sampler, clip)
        case Edm():
            return _edm(spec, count, sampler)
        case Flow():
            return _flow(spec, count, sampler)


def ddim(spec: Ddpm, *, clip: bool = True) -> DDIMScheduler:
    """diffusers' DDIM scheduler for this chain, as exported with a model."""
    return DDIMScheduler(**_chain(spec), timestep_spacing="trailing", **_clipping(clip))


def exported(spec: Diffusion, *, clip: bool = True) -> Any:
    """The scheduler that a model of this process is exported with."""
    match spec:
        case Ddpm():
            return ddim(spec, clip=clip)
        case Edm():
            return EDMEulerScheduler(**_sigmas(spec))
        case Flow():
            return FlowMatchEulerDiscreteScheduler(shift=spec.shift)


def karras_sigmas(spec: Edm, count: int) -> NDArray[np.float64]:
    """Noise levels from sigma_max down to sigma_min (arXiv 2206.00364, equation 5), without the final 0."""
    ramp = np.linspace(0.0, 1.0, count)
    low, high = spec.sigma_min ** (1.0 / _RHO), spec.sigma_max ** (1.0 / _RHO)
    return np.asarray((high + ramp * (low - high)) ** _RHO)


def _ddpm(spec: Ddpm, count: int, sampler: Sampler, clip: bool) -> Route:
    scheduler: Any
    if sampler == "ddim":
        scheduler = _Ddim.from_config(ddim(spec, clip=clip).config)
        scheduler.set_timesteps(count)
        return Route(scheduler=scheduler, conditions=[float(t) for t in scheduler.timesteps])
    chosen = _chosen_levels(spec, count)
    if sampler == "dpm++":
        scheduler = _ClippedDpmSolver(**_chain(spec))
        scheduler.bound = _clipping(clip)["clip_sample_range"]
        scheduler.set_timesteps(timesteps=chosen.tolist())
        start = 1.0
    else:
        scheduler = HeunDiscreteScheduler(**_chain(spec), **_clipping(clip))
        scheduler.set_timesteps(timesteps=chosen.tolist())
        start = math.sqrt(float(scheduler.sigmas[0]) ** 2 + 1.0)  # works on x_t / signal_t
    scheduler.set_begin_index(0)
    return Route(scheduler=scheduler, conditions=[float(t) for t in scheduler.timesteps], start=start)


class _Ddim(DDIMScheduler):  # type: ignore[misc]
    """DDIM for any number of steps, equal to diffusers' where it divides the chain's length T.

    Elsewhere diffusers takes every step to be T // n long, and rounding may leave it a timestep of -1.
    """

    def set_timesteps(self, num_inference_steps: int) -> None:
        super().set_timesteps(num_inference_steps)
        length = self.config.num_train_timesteps
        trailing = length - np.arange(num_inference_steps) * (length / num_inference_steps)
        self.timesteps = torch.from_numpy(np.round(trailing).astype(np.int64) - 1)

    def step(self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor) -> Any:
        levels = [*self.timesteps.tolist(), -1]
        stride = int(timestep) - levels[levels.index(int(timestep)) + 1]
        # All that diffusers does with this number is to divide T by it.
        self.num_inference_steps = Fraction(self.config.num_train_timesteps, stride)
        return super().step(model_output, timestep, sample)


class _ClippedDpmSolver(DPMSolverMultistepScheduler):  # type: ignore[misc]
    """DPM-Solver++ whose estimates of the data stay within ``bound``; diffusers only cuts by quantiles."""

    bound = 1.0

    def convert_model_output(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        estimate = torch.as_tensor(super().convert_model_output(*arguments, **keywords))
        return estimate.clamp(-self.bound, self.bound)


def _chosen_levels(spec: Ddpm, count: int) -> NDArray[np.int64]:
    """``count`` different levels of the chain, most noise first, spaced in sigma as by Karras et al.

    Networks have seen a chain's own levels alone, so sigmas are rounded to them.
    """
    abar = diffusion.alphas_bar(spec)
    log_sigma = 0.5 * np.log((1.0 - abar) / abar)
    top = max(
        int(np.searchsorted(log_sigma, -_LEAST_LOG_SIGNAL, side="right")) - 1, min(count, len(abar)) - 1
    )
    low, high = np.exp(log_sigma[[0, top]] / _RHO)
    wanted = _RHO * np.log(np.linspace(low, high, count)) if count > 1 else log_sigma[[top]]
    nearest = np.rint(np.interp(wanted, log_sigma, np.arange(len(abar)))).astype(np.int64)
    places = np.arange(count)
    rising = np.maximum.accumulate(nearest - places) + places
    return np.minimum(rising, top - count + 1 + places)[::-1].copy()


def _edm(spec: Edm, count: int, sampler: Literal["ddim", "dpm++", "heun"]) -> Route:
    """Euler's method on EDM's ODE is DDIM (arXiv 2206.00364, appendix B.4)."""
    scheduler: Any = (EDMEulerScheduler if sampler == "ddim" else EDMDPMSolverMultistepScheduler)(
        **_sigmas(spec)
    )
    scheduler.set_timesteps(count)
    scheduler.set_begin_index(0)
    return Route(
        scheduler=scheduler, conditions=[float(t) for t in scheduler.timesteps], start=spec.sigma_max
    )


def _edm_heun(answer: Answer, spec: Edm, noise: torch.Tensor, *, steps: int) -> torch.Tensor:
    """Algorithm 1 of arXiv 2206.00364: Heun's method on dx/dsigma = (x - D(x; sigma)) / sigma."""
    sigmas: list[float] = [*karras_sigmas(spec, steps).tolist(), 0.0]

    def slope(x: torch.Tensor, sigma: float) -> torch.Tensor:
        total = math.hypot(sigma, spec.sigma_data)
        skip, out = (spec.sigma_data / total) ** 2, sigma * spec.sigma_data / total
        denoised = skip * x + out * answer(x / total, math.log(sigma) / 4.0)
        return (x - denoised) / sigma

    x = noise * sigmas[0]
    for sigma, lower in itertools.pairwise(sigmas):
        here = slope(x, sigma)
        euler = x + (lower - sigma) * here
        x = euler if lower == 0.0 else x + 0.5 * (lower - sigma) * (here + slope(euler, lower))
    return x


def _flow(spec: Flow, count: int, sampler: Sampler) -> Route:
    scheduler: Any
    if sampler == "ddim":
        scheduler = FlowMatchEulerDiscreteScheduler(_FLOW_STEPS, shift=spec.shift)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / count, count))
    elif sampler == "dpm++":
        scheduler = DPMSolverMultistepScheduler(
            _FLOW_STEPS, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=spec.shift
        )
        scheduler.set_timesteps(count)
    else:
        scheduler = FlowMatchHeunDiscreteScheduler(_FLOW_STEPS, shift=spec.shift)
        scheduler.set_timesteps(count)
    scheduler.set_begin_index(0)
    u = scheduler.timesteps / _FLOW_STEPS if sampler == "heun" else scheduler.sigmas[:-1]
    return Route(scheduler=scheduler, conditions=[float(value) * _FLOW_STEPS for value in u])


def _chain(spec: Ddpm) -> dict[str, Any]:
    return {
        "num_train_timesteps": spec.timesteps,
        "trained_betas": diffusion.betas(spec).astype(np.float32),
        "prediction_type": _PREDICTION[spec.predict],
    }


def _clipping(clip: bool) -> dict[str, Any]:
    return {"clip_sample": True, "clip_sample_range": 1.0 if clip else _FAR}


def _sigmas(spec: Edm) -> dict[str, float]:
    return {"sigma_min": spec.sigma_min, "sigma_max": spec.sigma_max, "sigma_data": spec.sigma_data}
