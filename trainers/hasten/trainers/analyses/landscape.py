"""How the loss is curved: along lines between weights, and at its sharpest (method.md 3.3, 2.2.4).

Gradient descent with momentum is stable on a quadratic while the largest eigenvalue of its Hessian, measured
in the optimizer's own metric, stays below a bound (Cohen et al., "Adaptive gradient methods at the edge of
stability", arXiv 2207.14484):

    largest eigenvalue of P^-1/2 H P^-1/2  <  (2 + 2 beta1) / ((1 - beta1) lr)

for Adam, whose P = (1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps) is its preconditioner after t steps; for
averaged momentum with P = 1; and with (2 + 2 beta) / lr for heavy ball, whose momentum adds up. The theory is
of full batches: training on mini-batches settles below the bound.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from hasten.trainers import randomness
from hasten.trainers.analyses import probe
from hasten.trainers.analyses.intervals import Interval, mean_of
from hasten.trainers.errors import Fault

Array = NDArray[np.float64]
Weights = Mapping[str, torch.Tensor]
Tick = Callable[[], None]
Convention = Literal["average", "heavy_ball"]

TOLERANCE: Final = 1e-3
_CHUNK: Final = 256  # images in the network at once
_BASIS: Final = 20  # Lanczos vectors kept between restarts
_RESTARTS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The loss at ``fractions`` of the way from one network's weights to another's.

    ``barrier`` is by how much the loss rises above the straight line between its two ends, at most (Entezari
    et al., arXiv 2110.06296), at ``place``; its interval is over images, at that place.
    """

    fractions: tuple[float, ...]
    losses: tuple[float, ...]
    place: float
    barrier: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Eigenvalue:
    """``residual`` is |A x - value x| / |value| of the unit vector x found; ``products`` is what it took."""

    value: float
    residual: float
    products: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """The optimizer's own metric at one moment: ``diagonal`` (weights,) of P, rate and momentum.

    ``diagonal`` is None for optimizers without one.
    """

    diagonal: torch.Tensor | None
    lr: float
    beta: float
    convention: Convention

    @property
    def bound(self) -> float:
        return stability_bound(self.lr, self.beta, self.convention)


def stability_bound(lr: float, beta: float, convention: Convention = "average") -> float:
    """The largest stable eigenvalue: see the module's formula."""
    fresh = 1.0 - beta if convention == "average" else 1.0
    return (2.0 + 2.0 * beta) / (fresh * lr)


def interpolate(
    network: torch.nn.Module,
    first: Weights,
    second: Weights,
    given: probe.Task,
    *,
    points: int = 21,
    tick: Tick = lambda: None,
) -> Line:
    """The loss along the line from ``first`` to ``second``, two states of ``network``.

    Numbers that are not floating point stay the first's. ``network`` itself is left alone.
    """
    moving = copy.deepcopy(network)
    fractions = np.linspace(0.0, 1.0, points)
    rows = []
    for fraction in fractions:
        moving.load_state_dict(_between(first, second, float(fraction)))
        rows.append(_losses(moving, given))
        tick()
    losses = np.stack(rows)  # (points, images)
    chord = (1.0 - fractions[:, None]) * losses[0] + fractions[:, None] * losses[-1]
    above = losses - chord
    highest = int(above.mean(axis=1).argmax())
    return Line(
        fractions=tuple(fractions.tolist()),
        losses=tuple(losses.mean(axis=1).tolist()),
        place=float(fractions[highest]),
        barrier=mean_of(above[highest]),
    )


def largest_eigenvalue(
    network: torch.nn.Module,
    given: probe.Task,
    *,
    diagonal: torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    tick: Tick = lambda: None,
) -> Eigenvalue:
    """The largest eigenvalue of the loss's Hessian H, or of P^-1/2 H P^-1/2 with P's ``diagonal`` (weights,).

    By restarted Lanczos iterations (ARPACK) on exact Hessian-vector products, from an addressed start, until
    the residual is at most ``tolerance`` of the eigenvalue.

    Raises:
        Fault: it did not come to that.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh  # slow to import

    weights = [weight for weight in network.parameters() if weight.requires_grad]
    size, device = sum(weight.numel() for weight in weights), weights[0].device
    scale = torch.ones(size, device=device) if diagonal is None else diagonal.to(device).rsqrt()
    count = 0

    def product(vector: NDArray[np.floating]) -> Array:
        nonlocal count
        count += 1
        tick()
        direction = torch.from_numpy(np.asarray(vector, dtype=np.float32).ravel()).to(device)
        found = scale * hessian_product(network, given, scale * direction)
        return found.double().cpu().numpy()

    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    start = randomness.noise(seed, "analyses/lanczos", np.zeros(1, dtype=np.int64), (size,))[0]
    try:
        values, vectors = eigsh(
            operator,
            k=1,
            which="LA",
            v0=start.astype(np.float64),
            ncv=min(size, _BASIS),
            maxiter=_RESTARTS,
            tol=tolerance / 2.0,
        )
    except ArpackNoConvergence:
        problem = f"the largest eigenvalue is not known to {tolerance:g} after {count} Hessian products"
        raise Fault("landscape", problem, "Try another --count or --seed.") from None
    value, vector = float(values[0]), vectors[:, 0]
    residual = float(np.linalg.norm(product(vector) - value * vector) / abs(value))
    return Eigenvalue(value=value, residual=residual, products=count)


def hessian_product(network: torch.nn.Module, given: probe.Task, direction: torch.Tensor) -> torch.Tensor:
    """H v for the weighted mean loss, all flat (weights,), by two backward passes (Pearlmutter 1994)."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    total = torch.zeros_like(direction)
    # The fused attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        for part in given.parts(_CHUNK):
            loss = (part.weight * probe.errors(network, part)).sum() / len(given)
            slopes = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
            along = torch.cat([slope.flatten() for slope in slopes]) @ direction
            if along.requires_grad:  # a loss that is linear in the weights has no curvature
                bends = torch.autograd.grad(along, weights, materialize_grads=True)
                total += torch.cat([bend.flatten() for bend in bends])
    return total


def metric(state: Mapping[str, Any], convention: Convention) -> Metric:
    """The metric in a torch optimizer's ``state_dict``: AdamW's preconditioner, none for SGD.

    ``convention`` says whether momentum is averaged, as Adam's is, or added up.
    """
    group, slots = state["param_groups"][0], state["state"]
    indices = [index for each in state["param_groups"] for index in each["params"]]
    if "betas" not in group:
        return Metric(
            diagonal=None,
            lr=float(group["lr"]),
            beta=float(group["momentum"]),
            convention=convention,
        )
    beta1, beta2 = (float(beta) for beta in group["betas"])
    eps, parts = float(group["eps"]), []
    for index in indices:
        steps = float(slots[index]["step"])
        second = slots[index]["exp_avg_sq"].flatten() / (1.0 - beta2**steps)
        parts.append((1.0 - beta1**steps) * (second.sqrt() + eps))
    return Metric(diagonal=torch.cat(parts), lr=float(group["lr"]), beta=beta1, convention=convention)


def _between(first: Weights, second: Weights, fraction: float) -> dict[str, torch.Tensor]:
    return {
        name: torch.lerp(value, second[name].to(value), fraction) if value.is_floating_point() else value
        for name, value in first.items()
    }


@torch.no_grad()
def _losses(network: torch.nn.Module, given: probe.Task) -> Array:
    """Each image's weighted loss, (N,)."""
    found: Sequence[torch.Tensor] = [
        part.weight * probe.errors(network, part) for part in given.parts(_CHUNK)
    ]
    return torch.cat(list(found)).double().cpu().numpy()
