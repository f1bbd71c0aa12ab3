"""Weights of the loss over timesteps, independent of how timesteps are drawn."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hasten.trainers.config import Spec

Prediction = Literal["epsilon"]


class Unweighted(Spec):
    """The plain mean squared error of the prediction."""

    kind: Literal["none"]


Weighting = Unweighted


def weights(spec: Weighting, alphas_bar: NDArray[np.float64], predict: Prediction) -> NDArray[np.float64]:
    """The factor of each timestep's squared error in the loss.

    Args:
        spec: the weighting.
        alphas_bar: cumulative signal share of each timestep, shape (T,).
        predict: what the network predicts; the factor multiplies the error of that prediction.

    Returns:
        Shape (T,), non-negative.
    """
    del spec, predict
    return np.ones_like(alphas_bar)
