"""Randomness that is addressed, not consumed.

Every random number belongs to ``(seed, stream, image index)`` and is computed from that address by the
counter-based generator Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11; numpy's
implementation). Whoever needs the numbers of images [a, b) computes just those: they are the same for every
batch size, number of ranks and point of resumption, and two runs with one seed share them.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

_WORDS_PER_COUNTER: Final = 4  # Philox-4x64 makes four 64-bit words a counter


def noise(seed: int, stream: str, images: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal numbers of shape (len(images), *shape), one independent block for each image index.

    By the Box-Muller transform, which takes a fixed count of words: a block's place is its image's index
    times its length.
    """
    size = int(np.prod(shape))
    words = _words(seed, stream, images, (size + 1) // 2)
    # Two 32-bit uniforms a word; the half keeps u in (0, 1), away from log(0).
    high = ((words >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
    low = ((words & np.uint64(0xFFFFFFFF)).astype(np.float64) + 0.5) * 2.0**-32
    radius = np.sqrt(-2.0 * np.log(high))
    angle = 2.0 * np.pi * low
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return (
        pairs.reshape(len(images), 2 * words.shape[1])[:, :size]
        .reshape(len(images), *shape)
        .astype(np.float32)
    )


def uniform(seed: int, stream: str, images: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each image index, shape (len(images),)."""
    words = _words(seed, stream, images, 1)[:, 0]
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, stream: str, epoch: int, size: int) -> NDArray[np.int64]:
    """A random order of ``range(size)``, a pure function of its arguments."""
    generator = np.random.Generator(np.random.Philox(key=key(seed, f"{stream}/{epoch}")))
    return generator.permutation(size)


def stratified(
    seed: int, stream: str, images: NDArray[np.int64], places: NDArray[np.int64], batch: int
) -> NDArray[np.float64]:
    """One number in [0, 1) for each image, spread evenly over the global batch: (place + jitter) / batch.

    ``places`` are the images' positions 0..batch-1 in it. Data order is random, so which image gets which
    stratum is too; a rank that takes every n-th place of a batch gets an even spread of its own.
    """
    return (places + uniform(seed, stream, images)) / batch


def _words(seed: int, stream: str, images: NDArray[np.int64], count: int) -> NDArray[np.uint64]:
    """``count`` random 64-bit words for each image index, shape (len(images), count)."""
    if not len(images):
        return np.empty((0, count), dtype=np.uint64)
    counters = -(-count // _WORDS_PER_COUNTER)
    # One generator for the whole span: a rank's share of a batch is every n-th image, and making numbers
    # that it leaves out is cheaper than a generator for each image.
    first, last = int(images.min()), int(images.max())
    bits = np.random.Philox(key=key(seed, stream), counter=first * counters)
    span = bits.random_raw((last - first + 1) * counters * _WORDS_PER_COUNTER).reshape(last - first + 1, -1)
    return np.asarray(span[images - first, :count])


def key(seed: int, stream: str) -> int:
    """A 128-bit key from the seed and the stream's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:16], "little")


def integer(seed: int, stream: str) -> int:
    """A 63-bit integer, to seed a library's own generator."""
    return key(seed, stream) >> 65
