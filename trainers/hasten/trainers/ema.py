"""Averaged copies of a network, kept while it trains; see ``averaging`` for what is averaged how.

    theta_ema(t) = beta(t) theta_ema(t - dt) + (1 - beta(t)) theta(t)

For the power-function averages (Karras et al., EDM2, arXiv 2312.02696, section 3) beta(t) = (1 - dt/t)^(gamma
+ 1): their width is a fixed share of the training so far, so that short runs are not averaged with their
initial weights, as a classic decay of 0.9999 would do.
"""

from __future__ import annotations

import copy

import torch

from hasten.trainers import averaging
from hasten.trainers.averaging import Averaging, gamma, std

__all__ = ["Average", "build", "gamma", "std"]


class Average:
    """Averaged copies of a network: ``networks``, in the order of the spec, never trained.

    ``stds`` are the relative widths of power-function averages; a classic average has none.
    """

    def __init__(self, spec: Averaging, network: torch.nn.Module) -> None:
        self._spec = spec
        self._weights = [parameter.detach() for parameter in network.parameters()]
        self._buffers = list(network.buffers())
        self.stds = spec.stds if isinstance(spec, averaging.PowerEma) else ()
        copies = max(len(self.stds), 1)
        self.networks = [copy.deepcopy(network).requires_grad_(False).eval() for _ in range(copies)]
        self._averages: list[list[torch.Tensor]] = [list(network.parameters()) for network in self.networks]

    @torch.no_grad()
    def update(self, *, images: int, batch: int) -> None:
        """Take in the weights after ``images`` images, of which the last ``batch`` are new.

        Buffers are not averaged: a count has no mean, and running statistics are averages already.
        """
        shares = averaging.fresh(self._spec, images=images, batch=batch)
        for share, network, averages in zip(shares, self.networks, self._averages, strict=True):
            torch._foreach_lerp_(averages, self._weights, share)
            if self._buffers:
                torch._foreach_copy_(list(network.buffers()), self._buffers)

    def state_dict(self) -> list[dict[str, torch.Tensor]]:
        """The weights of each average; they are all the state there is."""
        return [network.state_dict() for network in self.networks]

    def load_state_dict(self, states: list[dict[str, torch.Tensor]]) -> None:
        for network, state in zip(self.networks, states, strict=True):
            network.load_state_dict(state)


def build(spec: Averaging, network: torch.nn.Module) -> Average:
    """The averages that ``spec`` asks for, all equal to ``network`` as yet."""
    return Average(spec, network)
