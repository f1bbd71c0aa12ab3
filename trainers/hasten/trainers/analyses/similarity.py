"""How alike two sets of images are, every image of one with every image of the other.

All matrices are (N, M), in double precision: row i, column j compares the first set's i-th image with the
second's j-th. Their diagonal is the comparison seed by seed, the rest of them its null.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_WINDOW: Final = 11  # pixels, with a Gaussian of this standard deviation: Wang et al., section III.B
_SIGMA: Final = 1.5
_K1, _K2 = 0.01, 0.03
SMALLEST_SSIM: Final = 5  # pixels: below, a window would be a single one
MOST_PSNR: Final = 100.0  # dB: of images that are equal, which would be infinite


def squared_error(first: NDArray[np.floating], second: NDArray[np.floating]) -> Array:
    """Mean squared differences of images (N, ...) and (M, ...)."""
    a, b = _flat(first), _flat(second)
    # By differences, not by |a|^2 - 2ab + |b|^2: equal images must give exactly zero.
    return np.stack([((image - b) ** 2).mean(axis=1) for image in a])


def psnr(mse: Array, data_range: float) -> Array:
    """Peak signal-to-noise ratios in dB, 10 log10(range^2 / mse), at most :data:`MOST_PSNR`."""
    floor = data_range**2 * 10.0 ** (-MOST_PSNR / 10.0)
    return np.asarray(10.0 * np.log10(data_range**2 / np.maximum(mse, floor)))


def ssim(first: NDArray[np.floating], second: NDArray[np.floating], data_range: float) -> Array:
    """Structural similarities (Wang et al., IEEE TIP 13(4), 2004, equation 13), in [-1, 1].

    A Gaussian window of 11 x 11 pixels and standard deviation 1.5 where it lies within the image, K1 = 0.01,
    K2 = 0.03; the mean over positions and channels. In smaller images the window is the largest odd one that
    fits with some room to move, and its Gaussian narrower by as much.

    Args:
        first: images (N, C, H, W).
        second: images (M, C, H, W).
        data_range: the largest minus the smallest value that a pixel may have.
    """
    height, width = first.shape[-2:]
    windows = _windows(height, width)
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    total, count = np.zeros((len(first), len(second))), 0
    for channel in range(first.shape[1]):
        a, b = _flat(first[:, channel]), _flat(second[:, channel])
        for window in windows:
            inside = window > 0.0
            weight, x, y = window[inside], a[:, inside], b[:, inside]
            mean_x, mean_y = (x @ weight)[:, None], (y @ weight)[None, :]
            x, y = x - mean_x, y - mean_y.T
            variance = (x**2 @ weight)[:, None] + (y**2 @ weight)[None, :]
            covariance = (x * weight) @ y.T
            luminance = (2.0 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
            total += luminance * (2.0 * covariance + c2) / (variance + c2)
            count += 1
    return np.asarray(total / count)


def cosine(first: NDArray[np.floating], second: NDArray[np.floating]) -> Array:
    """Cosines between feature vectors (N, F) and (M, F); a vector of zeros is orthogonal to all."""
    a, b = (_flat(features) for features in (first, second))
    lengths = [np.linalg.norm(features, axis=1, keepdims=True) for features in (a, b)]
    a, b = (v / np.where(length > 0.0, length, 1.0) for v, length in zip((a, b), lengths, strict=True))
    return np.asarray(a @ b.T)


def retrieved(distances: Array) -> NDArray[np.int64]:
    """Which of the second set is nearest to each of the first, (N,); -1 where no single one is."""
    nearest = distances.argmin(axis=1)
    least = distances[np.arange(len(distances)), nearest]
    return np.where((distances == least[:, None]).sum(axis=1) == 1, nearest, -1)


def _windows(height: int, width: int) -> Array:
    """The Gaussian window at each place where it lies within the image, (places, height * width)."""
    along = [_placed(size, min(height, width)) for size in (height, width)]
    return np.stack([np.outer(down, across).ravel() for down in along[0] for across in along[1]])


def _placed(size: int, smaller: int) -> Array:
    """A one-dimensional window at each place of a row of ``size`` pixels, (places, size)."""
    length = min(_WINDOW, max(1, (smaller - 1) // 2 * 2 - 1))
    offsets = np.arange(length) - length // 2
    kernel = np.exp(-0.5 * (offsets / (_SIGMA * length / _WINDOW)) ** 2)
    kernel /= kernel.sum()
    return np.stack([np.pad(kernel, (start, size - length - start)) for start in range(size - length + 1)])


def _flat(images: NDArray[np.floating]) -> Array:
    return images.reshape(len(images), -1).astype(np.float64)
