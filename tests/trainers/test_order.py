from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.trainers import randomness
from hasten.trainers.datasets import order

WINDOWED = st.tuples(
    st.integers(1, 6000), st.sampled_from([1024, 1500, 2048, 3000, 4096]), st.integers(0, 1023)
)


def epoch(number: int, size: int, window: int, lead: int = 0, seed: int = 3) -> np.ndarray:
    return order.rows(seed, np.arange(number * size, (number + 1) * size), size, window, lead)


@given(shape=WINDOWED, number=st.integers(0, 5))
def test_every_epoch_visits_every_row_once(shape: tuple[int, int, int], number: int) -> None:
    size, window, lead = shape
    np.testing.assert_array_equal(np.sort(epoch(number, size, window, lead)), np.arange(size))


@given(size=st.integers(1, 3000), number=st.integers(0, 3), seed=st.integers(0, 2**63 - 1))
def test_up_to_a_window_it_is_one_permutation(size: int, number: int, seed: int) -> None:
    """The order of every run before there were windows: digits keep their numbers."""
    found = epoch(number, size, max(size, 1024), lead=7, seed=seed)
    np.testing.assert_array_equal(found, randomness.permutation(seed, "order", number, size))


def test_known_numbers() -> None:
    """An order that changed silently would break every run that resumes."""
    assert epoch(0, 10, 1024).tolist() == [7, 5, 0, 8, 6, 3, 1, 2, 4, 9]
    assert order.rows(0, np.array([0, 1, 2, 5000, 99_999]), 5000, 2048, 100).tolist() == [
        3206,
        3258,
        3327,
        179,
        3062,
    ]


@given(shape=WINDOWED, images=st.lists(st.integers(0, 40_000), min_size=1, max_size=40))
def test_a_row_depends_on_its_address_alone(shape: tuple[int, int, int], images: list[int]) -> None:
    """Whoever asks, for whatever images in whatever order and batches, hears the same."""
    size, window, lead = shape
    together = order.rows(1, np.array(images), size, window, lead)
    alone = [int(order.rows(1, np.array([image]), size, window, lead)[0]) for image in images]
    assert together.tolist() == alone


@given(shape=WINDOWED, image=st.integers(0, 40_000))
def test_a_window_is_what_a_reader_needs_at_hand(shape: tuple[int, int, int], image: int) -> None:
    """Windows tile an epoch, are no larger than asked for and consist of whole blocks."""
    size, window, lead = shape
    at = order.window_at(2, image, size, window, lead)
    assert at.first <= image < at.first + len(at.rows)
    assert len(at.rows) <= window
    assert at.first // size == (at.first + len(at.rows) - 1) // size
    if size > window:
        row_blocks = (np.arange(size) - lead) // order.BLOCK
        blocks, counts = np.unique(row_blocks[at.rows], return_counts=True)
        assert len(blocks) <= window // order.BLOCK
        assert counts.tolist() == [int((row_blocks == block).sum()) for block in blocks]
    follower = order.window_at(2, at.first + len(at.rows), size, window, lead)
    assert follower.first == at.first + len(at.rows)


def lanes(image: int, size: int, window: int, lead: int) -> list[np.ndarray]:
    """The rows of each lane of a window, in the order of their images."""
    at = order.window_at(2, image, size, window, lead)
    images = at.first + np.arange(len(at.rows))
    return [at.rows[images % order.LANES == lane] for lane in range(order.LANES)]


@given(shape=WINDOWED, image=st.integers(0, 40_000))
def test_lanes_are_equal_contiguous_slices_of_their_window(shape: tuple[int, int, int], image: int) -> None:
    size, window, lead = shape
    if size <= window:
        return
    found = lanes(image, size, window, lead)
    assert max(map(len, found)) - min(map(len, found)) <= 1
    layout = order._layout(2, image // size, size, window, lead)
    begins = {int(begin): place for place, begin in enumerate(layout.begins)}
    row_block = np.searchsorted(np.sort(layout.begins), np.arange(size), side="right") - 1
    first_rows = np.sort(layout.begins)[row_block]
    # A row's rank in the epoch before lanes are shuffled: its block's place, then its place in the block.
    rank = np.array([begins[int(begin)] for begin in first_rows]) * order.BLOCK + np.arange(size) - first_rows
    ranges = [(rank[lane].min(), rank[lane].max()) for lane in found if len(lane)]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


def test_a_lane_of_a_full_window_is_one_block() -> None:
    """So a rank of sixteen reads a sixteenth of the data, each row group as a whole."""
    size, window, lead = 1000 + 40 * 1024, 16 * 1024, 1000
    blocks = [
        np.unique((lane - lead) // order.BLOCK)
        for image in (0, size // 2)
        for lane in lanes(image, size, window, lead)
    ]
    whole = [len(found) == 1 for found in blocks]
    assert sum(whole) >= 16
    # The one window that holds the short first block is out of step with blocks, at worst by one.
    assert max(map(len, blocks)) <= 2


def test_rows_are_shuffled() -> None:
    """Between epochs, between windows and within them; neighbours rarely stay neighbours."""
    size, window = 20_000, 4096
    first, second = epoch(0, size, window), epoch(1, size, window)
    assert (first == second).mean() < 0.01
    for one in (first, second):
        assert (np.abs(np.diff(one)) == 1).mean() < 0.01
    # Where a window's rows come from differs between epochs: blocks move.
    assert set((first[:window] // 1024).tolist()) != set((second[:window] // 1024).tolist())
    # Lanes mix evenly: over the halves of a window, rows of every block appear about equally often.
    halves = [
        np.bincount(first[:window][half] // 1024, minlength=20) for half in (slice(2048), slice(2048, None))
    ]
    assert np.abs(halves[0] - halves[1]).max() < 5 * np.sqrt(256)


def test_what_is_kept_cannot_be_changed() -> None:
    at = order.window_at(0, 0, 100, 1024)
    with pytest.raises(ValueError, match="read-only"):
        at.rows[0] = 1
