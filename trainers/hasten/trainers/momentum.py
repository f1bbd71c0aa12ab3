"""Adam's beta1 and the learning rate that goes with it, as functions of training progress.

MDLRC (momentum decay with learning-rate compensation) is a *reconstruction* of arXiv 2404.07946 from
third-party code and reviews. With tau the progress and b0 the initial momentum:

    beta(tau) = b0 (1 - tau) / ((1 - b0) + b0 (1 - tau))      Demon's rule (arXiv 1910.04952)
    factor    = (1 - b0) / (1 - beta(tau))                    the compensation, which shrinks the rate

Two consequences that hold exactly: factor = 1 - b0 tau (so MDLRC is a linear decay to 10 % of the learning
rate together with Demon's beta1, hence the control ``lr_only``), and lr (1 - beta1) is constant.
The factor is for optimizers whose momentum is an average (Adam's); on heavy ball it would count twice, see
:func:`conflict`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hasten.trainers.config import Spec
from hasten.trainers.learning_rate import Constant as ConstantRate
from hasten.trainers.learning_rate import LearningRate

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Convention = Literal["average", "heavy_ball"]
"""m = beta m + (1 - beta) g (Adam, SGD with dampening = momentum), or v = beta v + g (SGD, dampening 0)."""


class Constant(Spec):
    """The same beta1 throughout: the baseline."""

    kind: Literal["constant"]
    beta: Beta = 0.9


class _Decay(Spec):
    """A decay of ``beta`` from progress ``delay`` on, never below ``floor``."""

    beta: Beta = 0.9
    floor: Beta = 0.0
    delay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class _Shaped(_Decay):
    """A decay of ``beta`` to ``final``: along Demon's curve (which ends at 0), a line or half a cosine."""

    shape: Literal["demon", "linear", "cosine"] = "demon"
    final: Beta = 0.0

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.shape == "demon" and self.final:
            raise ValueError("final: Demon's curve ends at 0; use floor, or another shape")
        return self


class Demon(_Decay):
    """Momentum decay alone, along Demon's curve to 0, the learning rate untouched."""

    kind: Literal["demon"]


class Linear(_Decay):
    """beta + (final - beta) tau, the learning rate untouched."""

    kind: Literal["linear"]
    final: Beta = 0.0


class Cosine(_Decay):
    """Half a cosine from ``beta`` to ``final``, the learning rate untouched."""

    kind: Literal["cosine"]
    final: Beta = 0.0


class Mdlrc(_Shaped):
    """Momentum decay with the compensated learning rate (method.md 2.1).

    ``compensation``: shrink, (1 - b0)/(1 - beta), keeps the fresh gradient's coefficient and is for an
    averaged momentum; inverse, (1 - beta)/(1 - b0), keeps lr/(1 - beta) and is for heavy ball; none is the
    decay alone.
    """

    kind: Literal["mdlrc"]
    compensation: Literal["shrink", "none", "inverse"] = "shrink"


class LrOnly(_Shaped):
    """MDLRC's learning rate at constant beta1: is it the momentum, or the decay of the rate?

    On heavy ball it is the control of the decay alone, whose step lr/(1 - beta) shrinks just so.
    """

    kind: Literal["lr_only"]


class OneCycle(Spec):
    """One cycle of the rate and its mirror image in the momentum, as PyTorch's ``OneCycleLR`` has it.

    Over the first ``pct_start`` of the run the rate rises from 1/``div_factor`` of its peak, optimizer.lr,
    and beta1 falls from ``max_momentum`` to ``base_momentum``; then beta1 returns and the rate falls to
    1/(``div_factor`` ``final_div_factor``) of its peak. It is a warm-up too: optimizer.warmup is best 0.
    """

    kind: Literal["one_cycle"]
    max_momentum: Beta = 0.95
    base_momentum: Beta = 0.85
    pct_start: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    div_factor: Annotated[float, Field(ge=1.0)] = 25.0
    final_div_factor: Annotated[float, Field(ge=1.0)] = 1e4
    anneal: Literal["cosine", "linear"] = "cosine"

    @model_validator(mode="after")
    def _mirrors(self) -> Self:
        if self.base_momentum > self.max_momentum:
            problem = f"{self.base_momentum} is more than max_momentum ({self.max_momentum})"
            raise ValueError(f"base_momentum: {problem}")
        return self


Momentum = Annotated[
    Constant | Demon | Linear | Cosine | OneCycle | Mdlrc | LrOnly, Field(discriminator="kind")
]


def at(spec: Momentum, progress: float) -> tuple[float, float]:
    """``(beta1, lr_factor)`` at ``progress`` in [0, 1] (clamped); lr_factor multiplies the base rate."""
    match spec:
        case Constant():
            return spec.beta, 1.0
        case Demon():
            return _decayed(spec, "demon", 0.0, progress), 1.0
        case Linear() | Cosine():
            return _decayed(spec, spec.kind, spec.final, progress), 1.0
        case OneCycle():
            return _one_cycle(spec, progress)
        case Mdlrc():
            beta = _decayed(spec, spec.shape, spec.final, progress)
            return beta, _compensation(spec, beta, spec.compensation)
        case LrOnly():
            beta = _decayed(spec, spec.shape, spec.final, progress)
            return spec.beta, _compensation(spec, beta, "shrink")


def conflict(spec: Momentum, *, convention: Convention, schedule: LearningRate) -> str | None:
    """Why this momentum counts something twice with this optimizer or learning rate; None when it does not.

    Heavy ball's whole step is lr/(1 - beta), which a decay of beta shrinks by itself: compensating by shrink
    would shrink it again (10 x 10 at b0 = 0.9). The inverse keeps that step, a hypothesis of its own. An
    averaged momentum's step is lr at any beta, and the inverse would multiply it by 1/(1 - b0) while the
    stable range shrinks by as much (method.md 2.2). Decay alone and ``lr_only`` mean something on both.
    """
    match spec:
        case Mdlrc(compensation="shrink") if convention == "heavy_ball":
            return (
                "compensation shrink is for an averaged momentum: with optimizer.convention heavy_ball the"
                " step lr/(1 - beta) shrinks by itself as beta decays, and would shrink twice. Use none, or"
                " inverse to keep that step"
            )
        case Mdlrc(compensation="inverse") if convention == "average":
            growth = _compensation(spec, _decayed(spec, spec.shape, spec.final, 1.0), "inverse")
            return (
                "compensation inverse is for sgd with optimizer.convention heavy_ball, whose step it keeps:"
                f" with an averaged momentum the step would grow {growth:.3g} times, and training blow up."
                " Use shrink or none"
            )
        case OneCycle() if not isinstance(schedule, ConstantRate):
            return (
                f"one_cycle is a learning-rate schedule itself, and would be multiplied by {schedule.kind}."
                " Use optimizer.schedule.kind constant, or another momentum"
            )
        case _:
            return None


def _decayed(
    spec: _Decay, shape: Literal["demon", "linear", "cosine"], final: float, progress: float
) -> float:
    tau = _clamp((progress - spec.delay) / (1.0 - spec.delay))
    match shape:
        case "demon":
            remaining = spec.beta * (1.0 - tau)
            decayed = remaining / ((1.0 - spec.beta) + remaining)
        case "linear":
            decayed = spec.beta + (final - spec.beta) * tau
        case "cosine":
            decayed = _half_cosine(spec.beta, final, tau)
    return max(decayed, min(spec.floor, spec.beta))


def _compensation(spec: _Decay, beta: float, kind: Literal["shrink", "none", "inverse"]) -> float:
    match kind:
        case "shrink":
            return (1.0 - spec.beta) / (1.0 - beta)
        case "inverse":
            return (1.0 - beta) / (1.0 - spec.beta)
        case "none":
            return 1.0


def _one_cycle(spec: OneCycle, progress: float) -> tuple[float, float]:
    tau = _clamp(progress)
    anneal = _half_cosine if spec.anneal == "cosine" else _line
    start = 1.0 / spec.div_factor
    if tau <= spec.pct_start:
        share = tau / spec.pct_start
        return anneal(spec.max_momentum, spec.base_momentum, share), anneal(start, 1.0, share)
    share = (tau - spec.pct_start) / (1.0 - spec.pct_start)
    end = start / spec.final_div_factor
    return anneal(spec.base_momentum, spec.max_momentum, share), anneal(1.0, end, share)


def _clamp(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _line(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))
