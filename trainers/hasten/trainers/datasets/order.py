"""Which training row comes as the i-th image ever: every epoch visits each row once, in a new random order.

Up to ``window`` rows are permuted freely. More are shuffled in windows, as a reader with little memory must:

1. The rows are cut into blocks of 1024, and each epoch permutes the blocks.
2. Consecutive blocks form a window of at most ``window`` rows.
3. A window's rows, block after block, are cut into 16 contiguous lanes, each lane's rows are permuted, and
   image i of all images ever takes its row from lane i mod 16.

A rank of n that trains on every n-th image, n dividing 16, thus reads its own lanes only, and the order never
depends on n. Rows of a data set are sorted by their images' hashes, so a block is a random sample and what
a window leaves unmixed has no meaning.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hasten.trainers import randomness

BLOCK: Final = 1024
LANES: Final = 16

Rows = NDArray[np.int64]


class Window(NamedTuple):
    """Images ``first`` to ``first + len(rows)`` of all images ever, and the training row of each."""

    first: int
    rows: Rows


def rows(seed: int, images: NDArray[np.int64], size: int, window: int, lead: int = 0) -> Rows:
    """The training row, in [0, ``size``), of each image: a pure function of the arguments.

    Args:
        seed: the run's seed.
        images: indices of images ever trained on, from 0, epochs included; in any order.
        size: how many training rows there are.
        window: within how many rows a larger data set is shuffled, at least 1024.
        lead: rows in the first block, where it is short: it makes blocks of training rows the data set's
            row groups although the training rows start within one (:func:`lead_of`).
    """
    found = np.empty(len(images), dtype=np.int64)
    missing = np.arange(len(images))
    while len(missing):
        at = window_at(seed, int(images[missing[0]]), size, window, lead)
        place = images[missing] - at.first
        inside = (place >= 0) & (place < len(at.rows))
        found[missing[inside]] = at.rows[place[inside]]
        missing = missing[~inside]
    return found


def lead_of(start: int) -> int:
    """The ``lead`` of training rows that start at row ``start`` of the data set."""
    return -start % BLOCK


def window_at(seed: int, image: int, size: int, window: int, lead: int = 0) -> Window:
    """The window that holds an image: as large as what a reader must have at hand."""
    epoch, position = divmod(image, size)
    if size <= window:
        return Window(epoch * size, _epoch(seed, epoch, size))
    starts = _layout(seed, epoch, size, window, lead).starts
    number = int(np.searchsorted(starts, position, side="right")) - 1
    first = epoch * size + int(starts[number])
    return Window(first, _shuffled(seed, epoch, number, size, window, lead))


class _Layout(NamedTuple):
    """An epoch's blocks in their order, and each window's first position."""

    begins: Rows
    ends: Rows
    starts: Rows


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, size: int) -> Rows:
    order = randomness.permutation(seed, "order", epoch, size)
    order.flags.writeable = False  # every caller gets this very array
    return order


@functools.lru_cache(maxsize=4)
def _layout(seed: int, epoch: int, size: int, window: int, lead: int) -> _Layout:
    edges = np.concatenate([[0], np.arange(lead or BLOCK, size, BLOCK), [size]])
    order = randomness.permutation(seed, "blocks", epoch, len(edges) - 1)
    begins, ends = edges[order], edges[order + 1]
    starts = np.concatenate([[0], np.cumsum(ends - begins)[:-1]])[:: window // BLOCK]
    return _Layout(begins, ends, starts)


@functools.lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, number: int, size: int, window: int, lead: int) -> Rows:
    """A window's rows in the order of their images."""
    layout, blocks = _layout(seed, epoch, size, window, lead), window // BLOCK
    own = slice(number * blocks, (number + 1) * blocks)
    pairs = zip(layout.begins[own], layout.ends[own], strict=True)
    window_rows = np.concatenate([np.arange(begin, end) for begin, end in pairs])
    # Lanes follow the image's index, not its place in the window: a rank's lanes are the same in all windows.
    first = epoch * size + int(layout.starts[number])
    shuffled, taken = np.empty_like(window_rows), 0
    for lane in range(LANES):
        mine = shuffled[(lane - first) % LANES :: LANES]
        stream = f"lane/{number}/{lane}"
        mine[:] = window_rows[taken + randomness.permutation(seed, stream, epoch, len(mine))]
        taken += len(mine)
    shuffled.flags.writeable = False
    return shuffled
