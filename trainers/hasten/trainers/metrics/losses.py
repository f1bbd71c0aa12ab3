"""What is made of the errors of single held-out images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

CHUNK: Final = 256
_GROUPS: Final = 64

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Mean squared errors of the implied noise on held-out data.

    ``excess`` is what exceeds the best possible network's, where that is known. The arrays hold the same by
    equal ranges of timesteps, least noise first; NaN where no image fell into a range. ``items`` holds the
    loss of each group of images, see :func:`_by_group`.
    """

    loss: float
    by_timestep: Array
    items: tuple[float, ...]
    excess: float | None = None
    excess_by_timestep: Array | None = None

    def metrics(self) -> dict[str, float]:
        """Under the names that they are tracked by."""
        return {"eval/loss": self.loss} | ({} if self.excess is None else {"eval/excess_loss": self.excess})

    def bins(self) -> dict[str, list[float | None]]:
        """By timestep, as plain data; None where no image fell into a range."""
        arrays = {"loss": self.by_timestep, "excess_loss": self.excess_by_timestep}
        return {
            name: [None if np.isnan(value) else float(value) for value in array]
            for name, array in arrays.items()
            if array is not None
        }


def summary(
    errors: torch.Tensor, excess: torch.Tensor | None, *, bins: NDArray[np.int64], count: int
) -> Losses:
    """Losses from the errors of all images, float64 (N,); their timesteps are in these of ``count`` bins."""
    loss, by_timestep = _means(errors, bins, count)
    exceeding = (None, None) if excess is None else _means(excess, bins, count)
    return Losses(
        loss=loss,
        by_timestep=by_timestep,
        items=_by_group(errors),
        excess=exceeding[0],
        excess_by_timestep=exceeding[1],
    )


def _means(errors: torch.Tensor, bins: NDArray[np.int64], count: int) -> tuple[float, Array]:
    """The mean of all errors, added up in chunks as one worker would, and the mean of each bin."""
    total = torch.zeros((), dtype=torch.float64, device=errors.device)
    for start in range(0, len(errors), CHUNK):
        total += errors[start : start + CHUNK].sum()
    sums = np.bincount(bins, weights=errors.cpu().numpy(), minlength=count)
    sizes = np.bincount(bins, minlength=count)
    by_bin = np.divide(sums, sizes, out=np.full(count, np.nan), where=sizes > 0)
    return total.item() / len(errors), by_bin


def _by_group(errors: torch.Tensor) -> tuple[float, ...]:
    """The mean errors of G = min(64, images) groups of images: group g has images g, g + G, g + 2 G, ...

    Timesteps rise with the image's number, so every group has some of the whole range.
    """
    found: Array = errors.cpu().numpy()
    groups = min(_GROUPS, len(found))
    return tuple(float(found[first::groups].mean()) for first in range(groups))
