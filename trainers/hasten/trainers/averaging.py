"""Which averages of the weights to keep, and how much of each moment is in them; no torch.

EDM2's power-function averages (Karras et al., arXiv 2312.02696, section 3.1) weigh the moment t of a training
of length t_now by a power of it,

    p(t) = (gamma + 1) t^gamma / t_now^(gamma + 1)      0 <= t <= t_now

whose standard deviation is a fixed share ``std`` of t_now, however long that is. Written from the equations.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hasten.trainers.config import Spec

Array = NDArray[np.float64]
Width = Annotated[float, Field(gt=0.0, lt=0.289)]


class PowerEma(Spec):
    """EDM2's power-function average; each of ``stds`` is a width relative to the training length.

    ``snapshots`` keeps a copy of the averages every so much of the budget, from which averages of other
    widths are reconstructed after training.
    """

    kind: Literal["power"]
    stds: Annotated[tuple[Width, ...], Field(min_length=1)] = (0.05,)
    snapshots: Annotated[float, Field(gt=0.0, le=1.0)] | None = None

    @model_validator(mode="after")
    def _spans(self) -> Self:
        if self.snapshots is not None and len(set(self.stds)) < 2:
            raise ValueError("snapshots: needs at least two different widths in stds, such as 0.05 and 0.1")
        return self


class ClassicEma(Spec):
    """The average with a constant ``decay`` per update, as most papers state it.

    ``warmup`` bounds the decay by (1 + n)/(10 + n) after n updates, so that the initial weights are forgotten
    in runs that are short beside 1/(1 - decay) updates.
    """

    kind: Literal["classic"]
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9999
    warmup: bool = False


Averaging = Annotated[PowerEma | ClassicEma, Field(discriminator="kind")]


@cache
def gamma(std: float) -> float:
    """The exponent whose average has the relative width ``std``, in (0, 0.289).

    Solves std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), arXiv 2312.02696 equation 126, for its one
    positive root.
    """
    inverse = std**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


def std(exponent: float) -> float:
    """The relative width of the average with this exponent: the inverse of :func:`gamma`."""
    return float(np.sqrt((exponent + 1.0) / ((exponent + 2.0) ** 2 * (exponent + 3.0))))


def fresh(spec: Averaging, *, images: int, batch: int) -> list[float]:
    """For each average, the weight of the newest network after ``images`` images, the last ``batch`` new."""
    match spec:
        case PowerEma():
            return [1.0 - (1.0 - batch / images) ** (gamma(width) + 1.0) for width in spec.stds]
        case ClassicEma():
            return [1.0 - classic_decay(spec, updates=images / batch)]


def classic_decay(spec: ClassicEma, *, updates: float) -> float:
    """The decay of a classic average at its ``updates``-th update.

    A short last batch makes ``updates`` = images/batch larger, and its own share smaller by as much.
    """
    return min(spec.decay, (1.0 + updates) / (10.0 + updates)) if spec.warmup else spec.decay


def profiles(spec: Averaging, *, images: int, batch: int, bins: int) -> list[Array]:
    """For each average, how much of it comes from each of ``bins`` equal parts of a finished run, (bins,).

    A profile sums to 1, less what a classic average still holds of the initial weights.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    match spec:
        case PowerEma():
            return [np.diff(edges ** (gamma(width) + 1.0)) for width in spec.stds]
        case ClassicEma():
            ends = np.minimum(np.arange(1, -(-images // batch) + 1) * batch, images)
            taken = np.diff(ends, prepend=0)
            kept = np.array([classic_decay(spec, updates=n) for n in ends / taken])
            later = np.append(np.cumprod(kept[::-1])[::-1][1:], 1.0)
            share = np.concatenate([[0.0], np.cumsum((1.0 - kept) * later)])
            return [np.diff(np.interp(edges * images, np.concatenate([[0], ends]), share))]
