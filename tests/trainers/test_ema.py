from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from hasten.trainers import averaging
from hasten.trainers.averaging import Averaging
from hasten.trainers.ema import Average, build, gamma, std

ADAPTER: TypeAdapter[Averaging] = TypeAdapter(Averaging)


def spec(kind: str, **fields: Any) -> Averaging:
    return ADAPTER.validate_python({"kind": kind, **fields})


def power(network: torch.nn.Module, stds: tuple[float, ...]) -> Average:
    return build(spec("power", stds=stds), network)


@given(width=st.floats(0.005, 0.285))
def test_width_and_exponent_are_inverse(width: float) -> None:
    assert gamma(width) > -1.0
    assert std(gamma(width)) == pytest.approx(width, rel=1e-6)


@pytest.mark.parametrize(("width", "exponent"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_of_the_paper(width: float, exponent: float) -> None:
    """EDM2 names these two: 5 % and 10 % of the training length."""
    assert gamma(width) == pytest.approx(exponent, abs=0.01)


def profile(kind: Averaging, batches: list[int]) -> np.ndarray:
    """The share of each update's weights in the average, found by averaging unit vectors."""
    network = torch.nn.Linear(len(batches), 1, bias=False).double()
    torch.nn.init.zeros_(network.weight)
    ema, images = build(kind, network), 0
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
    shares = profile(spec("power", stds=(width,)), batches)
    np.testing.assert_allclose(shares, expected, atol=1e-12)
    assert shares.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("width", [0.05, 0.10, 0.20])
def test_profile_is_the_closed_form(width: float) -> None:
    shares = profile(spec("power", stds=(width,)), [1] * 2000)
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
    ema = power(network, (0.05, 0.1))
    with torch.no_grad():
        network.weight.fill_(2.0)
    ema.update(images=64, batch=64)
    for average in ema.networks:
        torch.testing.assert_close(average.weight, network.weight, rtol=0.0, atol=0.0)


def test_average_ignores_the_granularity_of_updates() -> None:
    """The same weights for 100 images: one update of 100 or a hundred of one."""
    network = torch.nn.Linear(2, 2).double()
    coarse, fine = power(network, (0.1,)), power(network, (0.1,))
    for images in range(100, 501, 100):
        with torch.no_grad():
            network.weight.normal_(generator=torch.Generator().manual_seed(images))
        coarse.update(images=images, batch=100)
        for single in range(images - 99, images + 1):
            fine.update(images=single, batch=1)
    torch.testing.assert_close(coarse.networks[0].weight, fine.networks[0].weight)


def test_state_survives_a_round_trip() -> None:
    network = torch.nn.Linear(2, 2)
    ema = power(network, (0.05, 0.1))
    for images in (10, 20, 30):
        with torch.no_grad():
            network.weight.add_(1.0)
        ema.update(images=images, batch=10)
    state = copy.deepcopy(ema.state_dict())
    other = power(network, (0.05, 0.1))
    other.load_state_dict(state)
    with torch.no_grad():
        network.weight.add_(1.0)
    for average in (ema, other):
        average.update(images=40, batch=10)
    for first, second in zip(ema.networks, other.networks, strict=True):
        torch.testing.assert_close(first.weight, second.weight, rtol=0.0, atol=0.0)
    assert not torch.equal(ema.networks[0].weight, ema.networks[1].weight)


def test_averages_are_never_trained() -> None:
    ema = power(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()), (0.05,))
    assert not ema.networks[0].training
    assert not any(parameter.requires_grad for parameter in ema.networks[0].parameters())


@pytest.mark.parametrize("batches", [[64] * 12, [64] * 9 + [23]])
def test_power_average_has_its_numbers_of_old(batches: list[int]) -> None:
    """Bit for bit: a lerp by 1 - (1 - batch/images)^(gamma + 1), a parameter at a time."""
    network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    ema, images = power(network, (0.05, 0.1)), 0
    expected = [[p.detach().clone() for p in network.parameters()] for _ in range(2)]
    random = torch.Generator().manual_seed(1)
    for batch in batches:
        images += batch
        for parameter in network.parameters():
            parameter.data.normal_(generator=random)
        ema.update(images=images, batch=batch)
        for width, averages in zip((0.05, 0.1), expected, strict=True):
            beta = (1.0 - batch / images) ** (gamma(width) + 1.0)
            for average, parameter in zip(averages, network.parameters(), strict=True):
                average.lerp_(parameter.detach(), 1.0 - beta)
    for averages, network_of in zip(expected, ema.networks, strict=True):
        for average, parameter in zip(averages, network_of.parameters(), strict=True):
            torch.testing.assert_close(parameter.detach(), average, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_classic_average_decays_by_update(decay: float) -> None:
    """Update i of n has the share (1 - d) d^(n - i), whatever the batch; the rest is the initial weights'."""
    shares = profile(spec("classic", decay=decay), [64] * 19 + [5])
    np.testing.assert_allclose(shares, (1.0 - decay) * decay ** np.arange(19, -1, -1), rtol=1e-9, atol=1e-15)
    assert shares.sum() == pytest.approx(1.0 - decay**20)


@pytest.mark.parametrize("batch", [1, 64])
def test_classic_warmup_is_tensorflows(batch: int) -> None:
    """The decay of update n is min(decay, (1 + n)/(10 + n)), at any batch size."""
    decays = [min(0.9, (1.0 + n) / (10.0 + n)) for n in range(1, 121)]
    assert decays[78] < decays[79] == 0.9  # both bounds count
    expected = [(1.0 - d) * np.prod(decays[index + 1 :]) for index, d in enumerate(decays)]
    shares = profile(spec("classic", decay=0.9, warmup=True), [batch] * 120)
    np.testing.assert_allclose(shares, expected, rtol=1e-9)
    # Of the initial weights, nothing to speak of is left: 0.9999 alone would keep 99 % of them.
    assert 1.0 - profile(spec("classic", warmup=True), [batch] * 120).sum() < 1e-9
    assert 1.0 - profile(spec("classic"), [batch] * 120).sum() > 0.98


def test_short_last_batch_has_a_short_share_in_the_warmup() -> None:
    full = profile(spec("classic", warmup=True), [64] * 500)[-1]
    short = profile(spec("classic", warmup=True), [64] * 499 + [16])[-1]
    assert short == pytest.approx(full / 4.0, rel=0.05)


@pytest.mark.parametrize("kind", [spec("power", stds=(0.05, 0.1)), spec("classic")])
def test_buffers_come_along_as_they_are(kind: Averaging) -> None:
    """Running statistics and counts are not averaged, also where they are whole numbers."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    ema = build(kind, network)
    for images in (8, 16):
        network(torch.randn(8, 3))
        ema.update(images=images, batch=8)
    for average in ema.networks:
        for ours, theirs in zip(average.buffers(), network.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0)
            assert ours.data_ptr() != theirs.data_ptr()
    assert int(ema.networks[0][1].num_batches_tracked) == 2


@pytest.mark.parametrize(
    "kind", [spec("power", stds=(0.05, 0.2)), spec("classic", decay=0.9), spec("classic", warmup=True)]
)
@pytest.mark.parametrize("batches", [[1] * 60, [10] * 5 + [3]])
def test_drawn_profile_is_what_is_averaged(kind: Averaging, batches: list[int]) -> None:
    """The torch-free profile, in as many bins as there are images, sums to the shares of the updates."""
    images, batch = sum(batches), batches[0]
    drawn = averaging.profiles(kind, images=images, batch=batch, bins=images)
    edges = np.cumsum([0, *batches])
    by_update = np.add.reduceat(drawn[0], edges[:-1])
    np.testing.assert_allclose(by_update, profile(kind, batches), atol=1e-12)
    assert len(drawn) == len(build(kind, torch.nn.Linear(1, 1)).networks)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"kind": "power", "stds": []}, "at least 1"),
        ({"kind": "power", "stds": [0.3]}, "less than 0.289"),
        ({"kind": "power", "stds": [0.05], "snapshots": 0.1}, "two different widths"),
        ({"kind": "power", "stds": [0.05, 0.05], "snapshots": 0.1}, "two different widths"),
        ({"kind": "power", "stds": [0.05, 0.1], "snapshots": 0.0}, "greater than 0"),
        ({"kind": "classic", "decay": 1.0}, "less than 1"),
        ({"kind": "classic", "stds": [0.05]}, "Extra inputs"),
        ({"kind": "swa"}, "classic"),
    ],
)
def test_impossible_averages_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ADAPTER.validate_python(fields)
