"""Averages of any width after training, from snapshots of a few (EDM2, arXiv 2312.02696, section 3.2).

A snapshot holds the weights averaged with a profile p_i, the power function of its width up to its time. A
profile p of another width at time t is approximated by sum_i x_i p_i, and the average of the weights with it
by the same sum of snapshots. The x_i minimise the integral of (p - sum_i x_i p_i)^2, that is A x = b with the
inner products A_ij = <p_i, p_j> and b_i = <p_i, p>.

One thing is added to the paper's equations: sum_i x_i = 1. Its networks do not mind being scaled, ours do,
and a sum that is off by a percent scales all weights by as much. Written from the equations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from hasten.trainers.averaging import gamma
from hasten.trainers.ema import Average
from hasten.trainers.errors import ConfigError, Fault

Array = NDArray[np.float64]
State = Mapping[str, torch.Tensor]

WORST_FIT: Final = 0.1
"""The largest misfit that is accepted: see :func:`misfit`."""
_CONDITION: Final = 1e-12  # directions of A weaker than this are rounding errors of float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is averaged in a snapshot: a power function of relative width ``std``, up to image ``images``."""

    images: int
    std: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Profile):
    """Averaged weights (and buffers) as they were."""

    state: State


def take(average: Average, images: int) -> list[Snapshot]:
    """A copy, on the same device, of every power-function average after ``images`` images."""
    return [
        Snapshot(
            images=images,
            std=std,
            state={key: tensor.clone() for key, tensor in network.state_dict().items()},
        )
        for std, network in zip(average.stds, average.networks, strict=len(average.stds) > 0)
    ]


def inner_product(first: Profile, second: Profile) -> float:
    """The integral of p_1 p_2 over time, per image.

    With g, t the exponent and time of the profile that ends first and G, T of the other, it is
    (g + 1)(G + 1)/(g + G + 1) (t/T)^G / T.
    """
    return float(_products([first], [second])[0, 0])


def coefficients(snapshots: Sequence[Profile], target_std: float, at: int) -> Array:
    """What each snapshot counts in the average of width ``target_std`` at image ``at``; shape (N,), sum 1.

    Raises:
        ConfigError: no average of this width can be made of these snapshots, see :func:`misfit`.
    """
    key = f"std {target_std:g}"
    if not 0.0 < target_std < 0.289:
        raise ConfigError(key, "is no width of a power-function average", "Widths lie between 0 and 0.289.")
    if not snapshots:
        raise ConfigError(key, "there are no snapshots to make it from", "Set ema.snapshots before training.")
    target = Profile(images=at, std=target_std)
    solution: Array = _solve(snapshots, [target])[0]
    found = misfit(snapshots, solution, target)
    if found > WORST_FIT:
        problem = f"the snapshots give it at image {at:,} only to within {found:.0%}"
        raise ConfigError(key, problem, _remedy(snapshots, at))
    return solution


def misfit(snapshots: Sequence[Profile], weights: Array, target: Profile) -> float:
    """|p - sum_i x_i p_i| / |p|, the relative error of the profile in the norm of the inner product.

    Where the weights fluctuate independently from update to update, the reconstruction differs from the true
    average by this share of the fluctuation that the true average has itself: at 0.1, by 1 % of its variance.
    """
    products, shared = _products(snapshots, snapshots), _products(snapshots, [target])[:, 0]
    norm = inner_product(target, target)
    apart = norm - 2.0 * float(shared @ weights) + float(weights @ products @ weights)
    return math.sqrt(max(apart, 0.0) / norm)


def reachable(snapshots: Sequence[Profile], at: int) -> tuple[float, float] | None:
    """The least and the greatest width that the snapshots give at image ``at``, to a few percent."""
    targets = [Profile(images=at, std=float(width)) for width in np.geomspace(0.005, 0.285, 90)]
    solutions = _solve(snapshots, targets)
    good = [
        target.std
        for target, weights in zip(targets, solutions, strict=True)
        if misfit(snapshots, weights, target) <= WORST_FIT
    ]
    return (min(good), max(good)) if good else None


def reconstruct(snapshots: Sequence[Snapshot], target_std: float, at: int) -> dict[str, torch.Tensor]:
    """The weights averaged with relative width ``target_std`` up to image ``at``.

    Raises:
        ConfigError: no average of this width can be made of these snapshots.
        Fault: the snapshots are not of one network.
    """
    weights = coefficients(snapshots, target_std, at)
    return combine((one.state for one in snapshots), weights)


def combine(states: Iterable[State], weights: Iterable[float]) -> dict[str, torch.Tensor]:
    """The weighted sum of states, in float64 and back; one state at a time is looked at.

    What is not a floating-point number, such as a count, is the last state's.

    Raises:
        Fault: the states have different tensors.
    """
    total: dict[str, torch.Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for state, weight in zip(states, weights, strict=True):
        shapes = {key: tensor.shape for key, tensor in state.items()}
        if total and shapes != {key: tensor.shape for key, tensor in total.items()}:
            raise Fault("ema snapshots", "are not of one network", "Give the snapshots of one run only.")
        for key, tensor in state.items():
            kinds[key] = tensor.dtype
            if not tensor.is_floating_point():
                total[key] = tensor
            elif key in total:
                total[key] += tensor.double() * float(weight)
            else:
                total[key] = tensor.double() * float(weight)
    return {key: tensor.to(kinds[key]) for key, tensor in total.items()}


def file_name(profile: Profile) -> str:
    """The name of a snapshot's file, which says all but its weights; names sort by time."""
    return f"{profile.images:012d}-{profile.std}.safetensors"


def parse(name: str) -> Profile:
    """The inverse of :func:`file_name`.

    Raises:
        Fault: no snapshot has such a name.
    """
    match = re.fullmatch(r"(\d{12})-(\d[\d.e-]*)\.safetensors", name)
    try:
        if match is not None:
            return Profile(images=int(match[1]), std=float(match[2]))
    except ValueError:
        pass
    raise Fault(name, "is not the name of a snapshot of an average", "Remove the file from the run's folder.")


def pack(state: State) -> bytes:
    """A snapshot's tensors as a safetensors file; tensors that share memory are written apart."""
    apart = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
    packed: bytes = safetensors.torch.save(apart)
    return packed


def unpack(content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        Fault: the file is damaged.
    """
    try:
        state: dict[str, torch.Tensor] = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise Fault("ema snapshot", f"is damaged: {error}", "Leave it out, or train again.") from None
    return state


def _solve(snapshots: Sequence[Profile], targets: Sequence[Profile]) -> Array:
    """x of A x = b with sum x = 1, by the multiplier of the constraint; a row (N,) for each target.

    Profiles are scaled to length 1 first: their lengths differ by as much as their times. Snapshots that lie
    close together make A nearly singular; what float64 cannot tell apart gets the least coefficients.
    """
    products = _products(snapshots, snapshots)
    length = np.sqrt(np.diag(products))
    inverse = np.linalg.pinv(products / np.outer(length, length), rcond=_CONDITION, hermitian=True)
    inverse /= np.outer(length, length)
    free = inverse @ _products(snapshots, targets)
    towards_one = inverse.sum(axis=1, keepdims=True)
    return np.asarray(free + towards_one * (1.0 - free.sum(axis=0)) / towards_one.sum()).T


def _products(first: Sequence[Profile], second: Sequence[Profile]) -> Array:
    """All inner products of two families, (N, M)."""
    (g, t), (other_g, other_t) = _parameters(first), _parameters(second)
    g, t = g[:, None], t[:, None]
    later_g = np.where(t > other_t, g, other_g)
    early, late = np.minimum(t, other_t), np.maximum(t, other_t)
    return np.asarray((g + 1.0) * (other_g + 1.0) / (g + other_g + 1.0) * (early / late) ** later_g / late)


def _parameters(profiles: Sequence[Profile]) -> tuple[Array, Array]:
    """The exponents and the times, (N,) each."""
    exponents = [gamma(profile.std) for profile in profiles]
    return np.array(exponents), np.array([float(profile.images) for profile in profiles])


def _remedy(snapshots: Sequence[Profile], at: int) -> str:
    widths = reachable(snapshots, at)
    if widths is not None:
        return f"At this moment they give widths from {widths[0]:.3f} to {widths[1]:.3f}."
    nearest = min((one.images for one in snapshots), key=lambda images: abs(images - at))
    return (
        f"An average ends at once where it is taken: ask for the moment of a snapshot, such as {nearest:,}."
    )
