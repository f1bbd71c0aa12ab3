"""Adam's beta1 and the learning rate that goes with it, as functions of training progress.

MDLRC (momentum decay with learning-rate compensation) is a *reconstruction* of arXiv 2404.07946 from
third-party code and reviews. With tau the progress and b0 the initial momentum:

    beta(tau) = b0 (1 - tau) / ((1 - b0) + b0 (1 - tau))      Demon's rule (arXiv 1910.04952)
    factor    = (1 - b0) / (1 - beta(tau))                    the compensation, which shrinks the rate

Two consequences that hold exactly: factor = 1 - b0 tau (so MDLRC is a linear decay to 10 % of the learning
rate together with Demon's beta1, hence the control ``lr_only``), and lr (1 - beta1) is constant.
The factor is for optimizers whose momentum is an average (Adam's); on heavy ball it would count twice.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hasten.trainers.config import Spec

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class Constant(Spec):
    """The same beta1 throughout: the baseline."""

    kind: Literal["constant"]
    beta: Beta = 0.9


class _Decay(Spec):
    """Demon's decay of ``beta`` from progress ``delay`` on, never below ``floor``."""

    beta: Beta = 0.9
    floor: Beta = 0.0
    delay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class Demon(_Decay):
    """Momentum decay alone, the learning rate untouched."""

    kind: Literal["demon"]


class Mdlrc(_Decay):
    """Momentum decay with the compensated learning rate (method.md 2.1)."""

    kind: Literal["mdlrc"]


class LrOnly(_Decay):
    """MDLRC's learning rate at constant beta1: is it the momentum, or the decay of the rate?"""

    kind: Literal["lr_only"]


Momentum = Annotated[Constant | Demon | Mdlrc | LrOnly, Field(discriminator="kind")]


def at(spec: Momentum, progress: float) -> tuple[float, float]:
    """``(beta1, lr_factor)`` at ``progress`` in [0, 1] (clamped); lr_factor multiplies the base rate."""
    match spec:
        case Constant():
            return spec.beta, 1.0
        case Demon():
            return _decayed(spec, progress), 1.0
        case Mdlrc():
            beta = _decayed(spec, progress)
            return beta, _compensation(spec, beta)
        case LrOnly():
            return spec.beta, _compensation(spec, _decayed(spec, progress))


def _decayed(spec: _Decay, progress: float) -> float:
    tau = min(max((progress - spec.delay) / (1.0 - spec.delay), 0.0), 1.0)
    remaining = spec.beta * (1.0 - tau)
    decayed = remaining / ((1.0 - spec.beta) + remaining)
    return max(decayed, min(spec.floor, spec.beta))


def _compensation(spec: _Decay, beta: float) -> float:
    return (1.0 - spec.beta) / (1.0 - beta)
