"""Which timesteps are hard: loss, gradients and convergence by range of timesteps (method.md 3.2).

The paper holds that high noise is the easy end, one of its reviewers the reverse. Several meanings of "hard"
are measured here, each against the optimal linear denoiser where it has a scale; none is preferred, and a
direction is named only where an interval over several runs supports it.

Range 0 is the one with the least noise, for every process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.trainers.analyses import gaussian, probe
from hasten.trainers.analyses.intervals import LEVEL, Interval, mean_of
from hasten.trainers.process import Process

Array = NDArray[np.float64]
Tick = Callable[[], None]

_COLUMNS: Final = 2**20
_LEAST_BATCHES: Final = 3  # a jackknife of pairs needs them


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """Gradients of the mean squared error of the answer, in one range of timesteps.

    ``squared_norm`` is that of the expected gradient, estimated without the noise's share (it may come out
    negative where noise hides it); ``variance`` the trace of a single image's gradient's covariance;
    ``noise_scale`` their ratio, variance / squared_norm: the batch at which noise and signal are equally
    large (McCandlish et al., arXiv 1812.06162, the "simple" noise scale), None where no gradient is seen.
    Intervals are over mini-batches.
    """

    loss: Interval
    squared_norm: Interval
    variance: Interval
    noise_scale: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientStatistics:
    """``interference`` is the matrix of cosines between the ranges' expected gradients, as rows.

    An entry is None where one of the two gradients is not distinguishable from zero.
    """

    ranges: tuple[Gradients, ...]
    interference: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """A measure of hardness at little noise against one at much noise, over runs.

    ``contrast`` is the mean of the measure's logarithm over the lower half of the ranges, minus that over
    the upper half. ``finding`` is "open" unless the interval over at least three runs excludes zero.
    """

    measure: str
    contrast: Interval
    finding: str


def images_to_convergence(
    steps: Sequence[int], losses: NDArray[np.floating], *, within: float
) -> list[int | None]:
    """For each range, the first evaluation from which its loss stays within ``within`` of its final value.

    Args:
        steps: images seen at each evaluation, rising, (P,).
        losses: (P, ranges).
        within: relative, such as 0.05.

    Returns:
        Images, or None where only the last evaluation qualifies: a loss that still changes has not converged.
    """
    table = np.asarray(losses, dtype=np.float64)
    # Not "greater than": a loss that is not known (NaN) is outside too.
    outside = ~(np.abs(table - table[-1]) <= within * np.abs(table[-1]))
    first = len(table) - np.argmax(outside[::-1], axis=0)
    first[~outside.any(axis=0)] = 0
    return [int(steps[place]) if place < len(table) - 1 else None for place in first]


def gradient_statistics(
    network: torch.nn.Module,
    process: Process,
    clean: torch.Tensor,
    *,
    ranges: int,
    batch: int,
    seed: int = 0,
    labels: torch.Tensor | None = None,
    tick: Tick = lambda: None,
) -> GradientStatistics:
    """Gradients in ``ranges`` equal ranges of timesteps, on fixed images, noise and timesteps.

    Needs memory for as many copies of the weights as there are mini-batches, and two for each range.

    Args:
        network: in evaluation mode; its gradients are left alone.
        clean: images (N, C, H, W), cut into N // ``batch`` >= 3 mini-batches.
        labels: (N,) where the network wants them.
        tick: called after each range.
    """
    count = len(clean) // batch
    if count < _LEAST_BATCHES:
        raise ValueError(f"{len(clean)} images are less than {_LEAST_BATCHES} mini-batches of {batch}")
    edges = gaussian.edges(len(process.levels), ranges)
    found, halves = [], []
    for low, high in pairwise(edges):
        # The same noise in every range, so that ranges differ in nothing but their timesteps.
        t = probe.spread(int(low), int(high), count * batch, seed=seed, stream="analyses/timestep")
        given = probe.task(
            process,
            clean[: count * batch],
            t,
            seed=seed,
            stream="analyses/difficulty",
            labels=None if labels is None else labels[: count * batch],
        )
        losses, gradients = _gradients(network, given, batch)
        found.append(_statistics(losses, gradients, batch))
        halves.append(torch.stack([gradients[::2].mean(dim=0), gradients[1::2].mean(dim=0)]))
        tick()
    return GradientStatistics(ranges=tuple(found), interference=_interference(torch.stack(halves), found))


def directions(measures: Mapping[str, Sequence[Sequence[float | None]]]) -> list[Direction]:
    """Which end is harder by each measure, which is larger where it is harder.

    Intervals are widened for the number of measures (Bonferroni), so that all of them hold together.

    Args:
        measures: by name, the measure in each of two or more ranges for each run. A run that lacks it in any
            range, or has a value that is not positive, is left out; a measure without runs is too.
    """
    level = 1.0 - (1.0 - LEVEL) / max(len(measures), 1)
    found = [_direction(name, values, level) for name, values in measures.items()]
    return [each for each in found if each is not None]


def _direction(measure: str, values: Sequence[Sequence[float | None]], level: float) -> Direction | None:
    whole = [[v for v in run if v is not None and v > 0.0] for run in values]
    logs = [np.log(kept) for kept, run in zip(whole, values, strict=True) if len(kept) == len(run) > 1]
    if not logs:
        return None
    middle = len(logs[0]) // 2
    contrast = mean_of([run[:middle].mean() - run[-middle:].mean() for run in logs], level=level)
    finding = "open"
    # Fewer than three runs never decide anything, however far apart the ends are.
    if contrast.n >= 3 and contrast.excludes_zero:
        finding = "little noise is harder" if contrast.mean > 0.0 else "much noise is harder"
    return Direction(measure=measure, contrast=contrast, finding=finding)


def _gradients(network: torch.nn.Module, given: probe.Task, batch: int) -> tuple[Array, torch.Tensor]:
    """The loss (M,) and the gradient (M, weights) of each mini-batch."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    losses, gradients = [], []
    for part in given.parts(batch):
        loss = probe.errors(network, part).mean()
        slopes = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        losses.append(loss.detach())
        gradients.append(torch.cat([slope.flatten() for slope in slopes]))
    return torch.stack(losses).double().cpu().numpy(), torch.stack(gradients)


def _statistics(losses: Array, gradients: torch.Tensor, batch: int) -> Gradients:
    """From the Gram matrix of the mini-batches' gradients; both estimates are U-statistics of it."""
    gram = _gram(gradients)
    count = len(gram)
    across = (gram.sum() - gram.trace()) / (count * (count - 1))
    rest = gram.sum() - gram.trace() - 2.0 * (gram.sum(axis=0) - gram.diagonal())
    across_without = rest / ((count - 1) * (count - 2))
    own, own_without = gram.trace() / count, (gram.trace() - gram.diagonal()) / (count - 1)
    squared_norm = _jackknife(across, across_without)
    variance = _jackknife(batch * (own - across), batch * (own_without - across_without))
    return Gradients(
        loss=mean_of(losses),
        squared_norm=squared_norm,
        variance=variance,
        noise_scale=variance.mean / squared_norm.mean if _is_seen(squared_norm) else None,
    )


def _jackknife(whole: float, without: Array) -> Interval:
    """An estimate with the t interval of its jackknife pseudo-values (Tukey 1958)."""
    count = len(without)
    return mean_of(count * whole - (count - 1) * without)


def _interference(halves: torch.Tensor, found: Sequence[Gradients]) -> tuple[tuple[float | None, ...], ...]:
    """Cosines from (ranges, 2, weights): two means of gradients a range, over different images.

    Products are between different halves, so that an image's own noise, which ranges share, does not count.
    """
    first, second = _gram(halves[:, 0], halves[:, 1]), [each.squared_norm for each in found]
    products = (first + first.T) / 2.0
    return tuple(
        tuple(
            _cosine(products[i, j], second[i], second[j]) if i != j else 1.0 if _is_seen(second[i]) else None
            for j in range(len(found))
        )
        for i in range(len(found))
    )


def _cosine(product: float, first: Interval, second: Interval) -> float | None:
    if not (_is_seen(first) and _is_seen(second)):
        return None
    return float(np.clip(product / np.sqrt(first.mean * second.mean), -1.0, 1.0))


def _is_seen(squared_norm: Interval) -> bool:
    return squared_norm.low is not None and squared_norm.low > 0.0


def _gram(first: torch.Tensor, second: torch.Tensor | None = None) -> Array:
    """Inner products of rows, in double precision without a copy of all of it."""
    second = first if second is None else second
    total = torch.zeros(len(first), len(second), dtype=torch.float64, device=first.device)
    for start in range(0, first.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        total += first[:, columns].double() @ second[:, columns].double().T
    return total.cpu().numpy()
