"""A network's task on fixed images and fixed noise: the same numbers for every network, device and run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.trainers import randomness
from hasten.trainers.process import Process


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a network sees and is to say: ``x`` and ``answer`` (B, C, H, W), ``condition`` and ``t`` (B,).

    ``labels`` (B,) or None; ``weight`` (B,) multiplies an image's error in the loss.
    """

    x: torch.Tensor
    condition: torch.Tensor
    answer: torch.Tensor
    t: torch.Tensor
    labels: torch.Tensor | None
    weight: torch.Tensor

    def __len__(self) -> int:
        return len(self.x)

    def parts(self, size: int) -> Iterator[Task]:
        """The same task cut into pieces of at most ``size`` images."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def rows(self, rows: slice) -> Task:
        return Task(
            x=self.x[rows],
            condition=self.condition[rows],
            answer=self.answer[rows],
            t=self.t[rows],
            labels=None if self.labels is None else self.labels[rows],
            weight=self.weight[rows],
        )


def task(
    process: Process,
    clean: torch.Tensor,
    t: NDArray[np.int64],
    *,
    seed: int,
    stream: str,
    labels: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
) -> Task:
    """Images (B, C, H, W) at levels ``t`` (B,), with the noise of ``(seed, stream, place in the batch)``."""
    eps = randomness.noise(seed, stream, np.arange(len(clean)), tuple(clean.shape[1:]))
    levels = torch.from_numpy(t).to(clean.device)
    x, condition, answer = process.corrupt(clean, torch.from_numpy(eps).to(clean.device), levels)
    weight = torch.ones(len(clean), device=clean.device) if weight is None else weight
    return Task(x=x, condition=condition, answer=answer, t=levels, labels=labels, weight=weight)


def errors(network: torch.nn.Module, given: Task) -> torch.Tensor:
    """Each image's mean squared error of the answer, (B,)."""
    said: torch.Tensor = network(given.x, given.condition, given.labels)
    return (said.float() - given.answer).square().flatten(1).mean(dim=1)


def spread(low: int, high: int, count: int, *, seed: int, stream: str) -> NDArray[np.int64]:
    """``count`` levels in [low, high), evenly spread with jitter, in an order that means nothing."""
    places = np.arange(count)
    u = randomness.stratified(seed, stream, places, randomness.permutation(seed, stream, 0, count), count)
    return np.minimum(low + (u * (high - low)).astype(np.int64), high - 1)
