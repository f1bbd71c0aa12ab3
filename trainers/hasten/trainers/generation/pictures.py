"""Many small images as one picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def contact_sheet(
    images: NDArray[np.uint8],
    *,
    labels: NDArray[np.int64] | None = None,
    padding: int = 2,
    smallest_tile: int = 64,
) -> NDArray[np.uint8]:
    """One RGB picture (height, width, 3) of images (N, C, H, W), C = 1 or 3, as square as it goes.

    With ``labels`` (N,) every class has a column of its own. Small images are enlarged by whole factors
    without smoothing, and set apart: digits touch their edges.
    """
    _, channels, height, width = images.shape
    scale = max(1, -(-smallest_tile // height))
    tiles = images.repeat(scale, axis=2).repeat(scale, axis=3)
    places = _square(len(images)) if labels is None else _by_class(labels)
    rows, columns = (1 + places.max(axis=0)).tolist() if len(places) else (0, 0)
    cell_height, cell_width = height * scale + padding, width * scale + padding
    sheet = np.full((rows * cell_height + padding, columns * cell_width + padding, 3), 96, dtype=np.uint8)
    for tile, (row, column) in zip(tiles, places, strict=True):
        top, left = padding + row * cell_height, padding + column * cell_width
        pixels = np.broadcast_to(
            tile.transpose(1, 2, 0), (height * scale, width * scale, 3 if channels == 1 else channels)
        )
        sheet[top : top + height * scale, left : left + width * scale] = pixels
    return sheet


def _square(count: int) -> NDArray[np.int64]:
    """Row and column of each of ``count`` images, shape (count, 2)."""
    columns = int(np.ceil(np.sqrt(count)))
    return np.array([divmod(index, columns) for index in range(count)], dtype=np.int64).reshape(-1, 2)


def _by_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row and column of each image: its place among its label's, and its label's place among labels."""
    _, columns = np.unique(labels, return_inverse=True)
    rows = [int((columns[:index] == column).sum()) for index, column in enumerate(columns)]
    return np.stack([np.array(rows, dtype=np.int64), columns], axis=1)
