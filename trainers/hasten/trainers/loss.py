"""The weighted squared error of the network's answers, and its gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from hasten.trainers import diffusion, weighting
from hasten.trainers.diffusion import Edm
from hasten.trainers.process import Process
from hasten.trainers.weighting import Weighting


class LossWeights:
    """The weight of each level in the loss, as a float32 table on a device."""

    def __init__(self, spec: Weighting, process: Process, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self._predict = diffusion.prediction(process.spec)
        self._alphas_bar = diffusion.alphas_bar(process.spec)
        self._sigma_data = process.spec.sigma_data if isinstance(process.spec, Edm) else 0.5
        self._constant = self._table(0.0) if weighting.constant(spec) else None

    def at(self, progress: float) -> torch.Tensor:
        """Shape (T,), at ``progress`` in [0, 1]."""
        return self._table(progress) if self._constant is None else self._constant

    def _table(self, progress: float) -> torch.Tensor:
        weights = weighting.weights(
            self._spec, self._alphas_bar, self._predict, progress=progress, sigma_data=self._sigma_data
        )
        return torch.from_numpy(weights.astype(np.float32)).to(self._device, non_blocking=True)


def backward(
    model: torch.nn.Module,
    network_input: torch.Tensor,
    condition: torch.Tensor,
    labels: torch.Tensor | None,
    answer: torch.Tensor,
    weight: torch.Tensor,
    *,
    prepare: Callable[[slice], None],
    divisor: float,
    micro_batch: int,
    bf16: bool,
) -> torch.Tensor:
    """Add the gradient of sum(weight * error) / divisor; returns each image's error, shape (B,).

    The error is the mean squared error over an image's numbers. At most ``micro_batch`` images are in the
    network at once; ``prepare`` is told which before each part, and DDP averages gradients in the last.
    """
    errors, starts = [], range(0, len(network_input), micro_batch)
    for start in starts:
        part = slice(start, start + micro_batch)
        prepare(part)
        with _alone(model) if start != starts[-1] else contextlib.nullcontext():
            with torch.autocast(network_input.device.type, torch.bfloat16, enabled=bf16):
                said = model(network_input[part], condition[part], None if labels is None else labels[part])
            error = (said.float() - answer[part]).square().flatten(1).mean(dim=1)
            (weight[part] * error).sum().div(divisor).backward()
        errors.append(error.detach())
    return torch.cat(errors)


def _alone(model: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
    """Gradients are only added up in here, and not averaged over workers."""
    if isinstance(model, DistributedDataParallel):
        return cast(contextlib.AbstractContextManager[None], model.no_sync())
    return contextlib.nullcontext()
