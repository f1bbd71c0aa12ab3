from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hasten.trainers import philox, randomness


@given(
    seed=st.integers(0, 2**63 - 1),
    images=st.lists(st.integers(0, 2**40), min_size=1, max_size=3),
    count=st.integers(1, 33),
)
def test_words_are_numpys(seed: int, images: list[int], count: int) -> None:
    """A counter a word's place: numpy's generator, set to each image's counter, says the same."""
    made = philox.words(seed, "noise", torch.tensor(images), count).numpy().view(np.uint64)
    for row, image in zip(made, images, strict=True):
        bits = np.random.Philox(key=randomness.key(seed, "noise"), counter=image * -(-count // 4))
        assert (row == bits.random_raw(count)).all()


def test_noise_is_the_hosts_to_rounding() -> None:
    images = np.array([3, 4, 9, 100])
    host = randomness.noise(5, "noise", images, (3, 5, 5))
    elsewhere = mock.Mock(type="accelerator")
    with mock.patch.object(torch.Tensor, "to", lambda tensor, *_: tensor):  # the arithmetic, on this device
        made = philox.noise(5, "noise", images, (3, 5, 5), elsewhere)
    assert made.dtype == torch.float32
    assert made.numpy() == pytest.approx(host, rel=1e-6, abs=1e-6)
    assert torch.equal(
        philox.noise(5, "noise", images, (3, 5, 5), torch.device("cpu")), torch.from_numpy(host)
    )
