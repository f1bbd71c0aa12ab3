from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hasten.trainers.ema import PowerEma, gamma, std


@given(width=st.floats(0.005, 0.285))
def test_width_and_exponent_are_inverse(width: float) -> None:
    assert gamma(width) > -1.0
    assert std(gamma(width)) == pytest.approx(width, rel=1e-6)


@pytest.mark.parametrize(("width", "exponent"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_of_the_paper(width: float, exponent: float) -> None:
    """EDM2 names these two: 5 % and 10 % of the training length."""
    assert gamma(width) == pytest.approx(exponent, abs=0.01)


def profile(width: float, batches: list[int]) -> np.ndarray:
    """The share of each update's weights in the average, found by averaging unit vectors."""
    network = torch.nn.Linear(len(batches), 1, bias=False).double()
    ema, images = PowerEma(network, (width,)), 0
    for index, batch in enumerate(batches):
        images += batch
        with torch.no_grad():
            network.weight.zero_()
            network.weight[0, index] = 1.0
        ema.update(images=images, batch=batch)
    average: torch.Tensor = ema.networks[0].weight
    return average.detach().numpy()[0]


@pytest.mark.parametrize("width", [0.05, 0.10, 0.25])
@pytest.mark.parametrize(
    "batches", [[1] * 20, [64] * 10, [64] * 9 + [23], [10, 3, 50, 7]], ids=["ones", "even", "short", "mixed"]
)
def test_average_is_the_explicit_power_law(width: float, batches: list[int]) -> None:
    """Update i, from image a to image b of n, has the share of t^gamma's mass: (b/n)^(g+1) - (a/n)^(g+1)."""
    edges = np.concatenate([[0.0], np.cumsum(batches) / sum(batches)])
    expected = np.diff(edges ** (gamma(width) + 1.0))
    shares = profile(width, batches)
    np.testing.assert_allclose(shares, expected, atol=1e-12)
    assert shares.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("width", [0.05, 0.10, 0.20])
def test_profile_is_the_closed_form(width: float) -> None:
    shares = profile(width, [1] * 2000)
    times = (np.arange(2000) + 0.5) / 2000
    mean = (shares * times).sum()
    spread = np.sqrt((shares * (times - mean) ** 2).sum())
    exponent = gamma(width)
    assert mean == pytest.approx((exponent + 1.0) / (exponent + 2.0), rel=1e-4)
    # The relative width is what the recipe's `stds` names.
    assert spread == pytest.approx(width, rel=1e-3)
    density = (exponent + 1.0) * times**exponent
    np.testing.assert_allclose(shares * 2000, density, atol=0.02 * density.max())


def test_nothing_of_the_initial_weights_is_left_after_one_update() -> None:
    network = torch.nn.Linear(3, 3)
    ema = PowerEma(network, (0.05, 0.1))
    with torch.no_grad():
        network.weight.fill_(2.0)
    ema.update(images=64, batch=64)
    for average in ema.networks:
        torch.testing.assert_close(average.weight, network.weight, rtol=0.0, atol=0.0)


def test_average_ignores_the_granularity_of_updates() -> None:
    """The same weights for 100 images: one update of 100 or a hundred of one."""
    network = torch.nn.Linear(2, 2).double()
    coarse, fine = PowerEma(network, (0.1,)), PowerEma(network, (0.1,))
    for images in range(100, 501, 100):
        with torch.no_grad():
            network.weight.normal_(generator=torch.Generator().manual_seed(images))
        coarse.update(images=images, batch=100)
        for single in range(images - 99, images + 1):
            fine.update(images=single, batch=1)
    torch.testing.assert_close(coarse.networks[0].weight, fine.networks[0].weight)


def test_state_survives_a_round_trip() -> None:
    network = torch.nn.Linear(2, 2)
    ema = PowerEma(network, (0.05, 0.1))
    for images in (10, 20, 30):
        with torch.no_grad():
            network.weight.add_(1.0)
        ema.update(images=images, batch=10)
    state = copy.deepcopy(ema.state_dict())
    other = PowerEma(copy.deepcopy(network), (0.05, 0.1))
    other.load_state_dict(state)
    with torch.no_grad():
        network.weight.add_(1.0)
    for average in (ema, other):
        average._source = ema._source  # both go on with the same weights
        average.update(images=40, batch=10)
    for first, second in zip(ema.networks, other.networks, strict=True):
        torch.testing.assert_close(first.weight, second.weight, rtol=0.0, atol=0.0)
    assert not torch.equal(ema.networks[0].weight, ema.networks[1].weight)


def test_averages_are_never_trained() -> None:
    ema = PowerEma(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()), (0.05,))
    assert not ema.networks[0].training
    assert not any(parameter.requires_grad for parameter in ema.networks[0].parameters())
