"""A process's tables on a device, and the few lines of arithmetic between images, noise and answers."""

from __future__ import annotations

import numpy as np
import torch

from hasten.trainers import diffusion
from hasten.trainers.diffusion import Diffusion, Levels

_COLUMNS = ("signal", "noise", "scale", "condition", "clean", "eps")


class Process:
    """The forward process and the network's task, for batches of images of any shape.

    Args:
        spec: the process.
        device: where its tables live, as float32.
    """

    def __init__(self, spec: Diffusion, device: torch.device) -> None:
        self.spec = spec
        self.levels: Levels = diffusion.levels(spec)
        columns = [getattr(self.levels, name) for name in _COLUMNS] + [self.levels.determinant]
        self._tables = torch.from_numpy(np.stack(columns).astype(np.float32)).to(device)

    def corrupt(
        self, clean: torch.Tensor, eps: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``(input, condition, answer)``: what the network sees at levels ``t``, and what it is to say.

        Args:
            clean: images x_0, shape (B, ...).
            eps: standard normal noise of the same shape.
            t: levels, integers of shape (B,).
        """
        signal, noise, scale, condition, to_clean, to_eps, _ = self._at(t, clean.dim())
        noisy = signal * clean + noise * eps
        return scale * noisy, condition.flatten(), to_clean * clean + to_eps * eps

    def epsilon(self, answer: torch.Tensor, network_input: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The noise that an answer implies: (signal answer - clean x_t) / determinant."""
        signal, _, scale, _, to_clean, _, determinant = self._at(t, answer.dim())
        return (signal * answer - to_clean * (network_input / scale)) / determinant

    def clean(self, answer: torch.Tensor, network_input: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The image that an answer implies: (eps x_t - noise answer) / determinant."""
        _, noise, scale, _, _, to_eps, determinant = self._at(t, answer.dim())
        return (to_eps * (network_input / scale) - noise * answer) / determinant

    def answer(self, clean: torch.Tensor, network_input: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What a network that believes in ``clean`` would answer: the inverse of :meth:`clean`."""
        signal, noise, scale, _, to_clean, to_eps, _ = self._at(t, clean.dim())
        eps = (network_input / scale - signal * clean) / noise
        return to_clean * clean + to_eps * eps

    def _at(self, t: torch.Tensor, dims: int) -> tuple[torch.Tensor, ...]:
        """Each table at levels ``t``, shaped to broadcast over images."""
        return self._tables[:, t].reshape(len(self._tables), -1, *(1,) * (dims - 1)).unbind()
