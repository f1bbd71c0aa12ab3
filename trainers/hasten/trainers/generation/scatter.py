"""A picture of points over the distribution that they should follow."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_SIZE: Final = 384
_MARK: Final = 2  # half of a point's width
_BACKGROUND: Final = np.array([24, 24, 32], dtype=np.uint8)
_POINT: Final = np.array([255, 160, 40], dtype=np.uint8)


def picture(
    points: NDArray[np.number], reference: NDArray[np.number], *, axes: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """RGB (384, 384, 3): the reference's density in grey, the points on it.

    Args:
        points: shape (N, ...) of D numbers each.
        reference: likewise, shape (M, ...); it fixes the frame, so that pictures of one run show one place.
        axes: the two directions to look along, shape (D, 2).
    """
    behind, seen = reference.reshape(len(reference), -1) @ axes, points.reshape(len(points), -1) @ axes
    reach = 1.2 * float(np.quantile(np.abs(behind), 0.999))
    density, _, _ = np.histogram2d(behind[:, 1], behind[:, 0], bins=_SIZE // 6, range=[[-reach, reach]] * 2)
    shade = np.sqrt(density / max(density.max(), 1.0)).repeat(6, axis=0).repeat(6, axis=1)[..., None]
    canvas = (_BACKGROUND + shade * (200 - _BACKGROUND.astype(np.float64))).astype(np.uint8)
    for x, y in (seen + reach) / (2.0 * reach) * _SIZE:
        if np.isfinite(x + y):
            column, row = (int(np.clip(value, 0, _SIZE - 1)) for value in (x, y))
            canvas[max(row - _MARK, 0) : row + _MARK, max(column - _MARK, 0) : column + _MARK] = _POINT
    return np.ascontiguousarray(canvas[::-1])
