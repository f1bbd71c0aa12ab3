"""Power-function averages of the weights (Karras et al., EDM2, arXiv 2312.02696, section 3).

    theta_ema(t) = beta(t) theta_ema(t - dt) + (1 - beta(t)) theta(t)      beta(t) = (1 - dt/t)^(gamma + 1)

The average's width is a fixed share of the training so far, so that short runs are not averaged with their
initial weights, as a classic decay of 0.9999 would do. Written from the paper's equations.
"""

from __future__ import annotations

import copy

import numpy as np
import torch


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


class PowerEma:
    """Averaged copies of a network, one for each relative width."""

    def __init__(self, network: torch.nn.Module, stds: tuple[float, ...]) -> None:
        self._source = [p.detach() for p in network.parameters()]
        self._exponents = [gamma(width) + 1.0 for width in stds]
        self.networks = [copy.deepcopy(network).requires_grad_(False).eval() for _ in stds]
        self._averages: list[list[torch.Tensor]] = [list(network.parameters()) for network in self.networks]

    @torch.no_grad()
    def update(self, *, images: int, batch: int) -> None:
        """Take in the weights after ``images`` images, of which the last ``batch`` are new."""
        for exponent, averages in zip(self._exponents, self._averages, strict=True):
            beta = (1.0 - batch / images) ** exponent
            torch._foreach_lerp_(averages, self._source, 1.0 - beta)

    def state_dict(self) -> list[dict[str, torch.Tensor]]:
        return [network.state_dict() for network in self.networks]

    def load_state_dict(self, states: list[dict[str, torch.Tensor]]) -> None:
        for network, state in zip(self.networks, states, strict=True):
            network.load_state_dict(state)
