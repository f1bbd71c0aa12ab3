"""The learning rate over training, as a share of ``optimizer.lr``; the momentum's factor is apart from it.

Progress is images seen over images planned, in [0, 1]: the schedule and the curriculum share one horizon, and
a batch size means nothing here.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from hasten.trainers.config import Spec

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Constant(Spec):
    """The base rate throughout."""

    kind: Literal["constant"]


class Cosine(Spec):
    """Half a cosine from the base rate to ``final`` of it (arXiv 1608.03983, one period)."""

    kind: Literal["cosine"]
    final: Share = 0.0


class Linear(Spec):
    """A line from the base rate to ``final`` of it."""

    kind: Literal["linear"]
    final: Share = 0.0


class InverseSqrt(Spec):
    """EDM2's 1/sqrt(max(progress/reference, 1)) (arXiv 2312.02696): the base rate until ``reference``.

    EDM2 counts the reference in updates; here it is a share of the budget, 0.07 for its 70,000 of 1,048,576.
    """

    kind: Literal["inverse_sqrt"]
    reference: Annotated[float, Field(gt=0.0, le=1.0)] = 0.07


LearningRate = Annotated[Constant | Cosine | Linear | InverseSqrt, Field(discriminator="kind")]


def factor(spec: LearningRate, progress: float) -> float:
    """What multiplies the base rate at ``progress`` in [0, 1] (clamped); in [0, 1]."""
    tau = min(max(progress, 0.0), 1.0)
    match spec:
        case Constant():
            return 1.0
        case Cosine():
            return spec.final + (1.0 - spec.final) * 0.5 * (1.0 + math.cos(math.pi * tau))
        case Linear():
            return 1.0 + (spec.final - 1.0) * tau
        case InverseSqrt():
            return 1.0 / math.sqrt(max(tau / spec.reference, 1.0))


def warmup(progress_after_batch: float, share: float) -> float:
    """The linear rise to 1 over the first ``share`` of the budget; 1 where there is none.

    It counts the batch that is about to be trained, so that no update has a rate of 0.
    """
    return min(1.0, progress_after_batch / share) if share else 1.0
