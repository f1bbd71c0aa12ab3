"""Timestep samplers on a device: they turn uniform numbers into noise levels, and some learn from the losses.

Nothing here makes the host wait for the device. An adaptive sampler sees the losses of the whole global
batch in the order of its images, so its state is the same on every rank and at every world size.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.trainers import curriculum
from hasten.trainers.curriculum import Clusters, Curriculum, SecondMoment
from hasten.trainers.worker import Worker

Array = NDArray[np.float64]

# Probabilities become integers of this unit, because the sum of integers does not depend on its order:
# torch has no deterministic cumulative sum of floats on CUDA.
_UNIT: Final = 2.0**52


class TimestepSampler(Protocol):
    """What the loop asks of a curriculum."""

    def draw(self, progress: float, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Levels by the inverse of the distribution function, and the factor of their losses.

        Args:
            progress: images seen over images planned.
            u: numbers in [0, 1), shape (B,).

        Returns:
            int64 (B,), and float32 (B,) or None where losses count as they are; both on the device.
        """
        ...

    def observe(self, t: Tensor, error: Tensor, *, places: NDArray[np.int64], batch: int, total: int) -> None:
        """Learn from this rank's part of a global batch; all ranks must call it, also with no images.

        Args:
            t: levels of this rank's images, shape (B,).
            error: their losses, as they are before the factor of :meth:`draw`, shape (B,).
            places: their positions in the global batch, no position on two ranks, shape (B,).
            batch: images in the global batch.
            total: images of the whole budget.
        """
        ...

    def pmf(self, progress: float) -> Tensor:
        """The probability of each level in the next draw, float64 (T,) on the device."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What was learnt: with it, a run goes on as if nothing had happened."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`."""
        ...


def build(spec: Curriculum, alphas_bar: Array, *, device: torch.device, worker: Worker) -> TimestepSampler:
    """The sampler of a curriculum over the T levels of ``alphas_bar``."""
    match spec:
        case SecondMoment():
            return SecondMomentSampler(spec, len(alphas_bar), device=device, worker=worker)
        case Clusters():
            return ClusterSampler(spec, alphas_bar, device=device, worker=worker)
        case _:
            return ScheduledSampler(spec, alphas_bar, device=device)


class ScheduledSampler:
    """A curriculum that is a function of progress alone."""

    def __init__(self, spec: Curriculum, alphas_bar: Array, *, device: torch.device) -> None:
        self._spec = spec
        self._density = curriculum.density(spec, alphas_bar)
        self._device = device
        self._share = curriculum.share(spec, 0.0)
        self._cdf = self._cumulative()

    def draw(self, progress: float, u: Tensor) -> tuple[Tensor, Tensor | None]:
        share = curriculum.share(self._spec, progress)
        if share != self._share:
            self._share = share
            self._cdf = self._cumulative()
        return _invert(self._cdf, u), None

    def observe(self, t: Tensor, error: Tensor, *, places: NDArray[np.int64], batch: int, total: int) -> None:
        """Losses change nothing."""

    def pmf(self, progress: float) -> Tensor:
        share = curriculum.share(self._spec, progress)
        return _upload(curriculum.mixture(share, self._density), self._device)

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """There is nothing to load."""

    def _cumulative(self) -> Tensor:
        return _upload(np.cumsum(curriculum.mixture(self._share, self._density)), self._device)


class SecondMomentSampler:
    """Importance sampling by the recent losses of each level; see ``curriculum.SecondMoment``."""

    def __init__(self, spec: SecondMoment, num: int, *, device: torch.device, worker: Worker) -> None:
        self._spec = spec
        self._worker = worker
        self._levels = torch.arange(num + 1, device=device)
        # Rings: a level's loss number i lies at i modulo history. One row more takes what is not kept.
        self._losses = torch.zeros(num + 1, spec.history, device=device)
        self._counts = torch.zeros(num, dtype=torch.int64, device=device)

    def draw(self, progress: float, u: Tensor) -> tuple[Tensor, Tensor | None]:
        del progress
        units = self._units()
        total = units.sum()
        t = _invert(units.cumsum(0).double() / total, u)
        factor = total.double() / (len(units) * units.double())
        return t, factor[t].float()

    def observe(self, t: Tensor, error: Tensor, *, places: NDArray[np.int64], batch: int, total: int) -> None:
        del total
        levels, losses = _assemble(self._worker, self._counts.device, t, error, places, batch)
        order = levels.argsort(stable=True)
        levels, losses = levels[order], losses[order]
        # Where each level's images start, how many they are, and each image's number among them.
        starts = torch.searchsorted(levels, self._levels)
        number = starts.diff()
        nth = torch.arange(batch, device=levels.device) - starts[levels]
        # Of more images than a ring holds, the last ones stay, as if they had come one after another.
        last = nth >= number[levels] - self._spec.history
        rows = torch.where(last, levels, len(self._counts))
        self._losses[rows, (self._counts[levels] + nth) % self._spec.history] = losses.float()
        self._counts += number

    def pmf(self, progress: float) -> Tensor:
        del progress
        units = self._units().double()
        return units / units.sum()

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self._losses[:-1], "counts": self._counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._losses[:-1].copy_(state["losses"])
        self._counts.copy_(state["counts"])

    def _units(self) -> Tensor:
        """Probabilities times 2^52 as integers, shape (T,), never 0."""
        moments = self._losses[:-1].double().square().mean(dim=1).sqrt()
        known = (self._counts >= self._spec.history).all()
        # Losses that are all 0, or not finite, say nothing.
        known = known & (moments.sum() > 0.0) & moments.sum().isfinite()
        moments = torch.where(known, moments, 1.0)
        floor = self._spec.floor
        p = (1.0 - floor) * moments / moments.sum() + floor / len(moments)
        return (p * _UNIT).round().clamp_min(1.0).long()


class ClusterSampler:
    """Stages that open when the loss stops falling; see ``curriculum.Clusters``."""

    def __init__(self, spec: Clusters, alphas_bar: Array, *, device: torch.device, worker: Worker) -> None:
        self._spec = spec
        self._worker = worker
        self._num = len(alphas_bar)
        self._sizes = torch.from_numpy(curriculum.stages(spec, alphas_bar)).to(device)
        self._stage = torch.zeros((), dtype=torch.int64, device=device)
        # Of this stage: the smoothed loss times its weight, that weight, the best smoothed loss, the images
        # since it, and all images.
        self._fresh = torch.tensor([0.0, 0.0, torch.inf, 0.0, 0.0], dtype=torch.float64).to(device)
        self._progress = self._fresh.clone()

    def draw(self, progress: float, u: Tensor) -> tuple[Tensor, Tensor | None]:
        del progress
        size = self._size()
        within = (_onto(u, size.device) * size).long()
        return self._num - size + torch.minimum(within, size - 1), None

    def observe(self, t: Tensor, error: Tensor, *, places: NDArray[np.int64], batch: int, total: int) -> None:
        _, losses = _assemble(self._worker, self._stage.device, t, error, places, batch)
        horizon = self._spec.smoothing * total
        kept = float(np.exp(-batch / horizon)) if horizon else 0.0
        summed, weight, best, waited, seen = self._progress.unbind()
        summed = kept * summed + (1.0 - kept) * losses.mean()
        weight, seen = kept * weight + (1.0 - kept), seen + batch
        smoothed = summed / weight
        # A stage's first losses are few: a lucky one must not be the best for good.
        settled = seen >= horizon
        better = settled & (smoothed < best)
        best = torch.where(better, smoothed, best)
        waited = torch.where(better | ~settled, 0.0, waited + batch)
        opens = (waited >= self._spec.patience * total) & (self._stage < len(self._sizes) - 1)
        self._stage += opens
        self._progress = torch.where(opens, self._fresh, torch.stack([summed, weight, best, waited, seen]))

    def pmf(self, progress: float) -> Tensor:
        del progress
        size = self._size()
        levels = torch.arange(self._num, device=size.device)
        return torch.where(levels >= self._num - size, 1.0 / size.double(), 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {"stage": self._stage, "progress": self._progress}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._stage.copy_(state["stage"])
        self._progress.copy_(state["progress"])

    def _size(self) -> Tensor:
        """How many of the noisiest levels are open, int64 of shape ()."""
        # Indexing with a tensor of no dimension would make the host read it.
        return self._sizes.index_select(0, self._stage[None])[0]


def _invert(cdf: Tensor, u: Tensor) -> Tensor:
    """The first level whose distribution function exceeds u."""
    return torch.searchsorted(cdf, _onto(u, cdf.device), right=True).clamp_max(len(cdf) - 1)


def _assemble(
    worker: Worker, device: torch.device, t: Tensor, error: Tensor, places: NDArray[np.int64], batch: int
) -> tuple[Tensor, Tensor]:
    """Levels and losses of the whole global batch in the order of its images, int64 and float64 (batch,)."""
    # Every place is filled by one rank and 0 on all others: the sum is exact, in whatever order.
    everyone = torch.zeros(2, batch, dtype=torch.float64, device=device)
    everyone[:, _upload(places, device)] = torch.stack([t.double(), error.detach().double()])
    levels, losses = worker.sum(everyone)
    return levels.long(), losses


def _onto(u: Tensor, device: torch.device) -> Tensor:
    return u.to(device, torch.float64, non_blocking=True).contiguous()


def _upload(values: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device; from pinned memory, so that the host need not wait for a CUDA device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
