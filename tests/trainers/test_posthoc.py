from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from hasten.trainers import averaging, posthoc
from hasten.trainers.averaging import gamma
from hasten.trainers.ema import build
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.posthoc import Profile, Snapshot, coefficients, inner_product, reconstruct

STORED = (0.05, 0.10)
OTHERS = (0.04, 0.07, 0.13, 0.18)
NUM_STEPS, BATCH, EVERY = 2000, 16, 100
MOMENTS = (1500, 2000)


def density(profile: Profile, times: np.ndarray) -> np.ndarray:
    """p(t) = (g + 1) t^g / T^(g + 1) up to T, nothing after."""
    g = gamma(profile.std)
    inside = times <= profile.images
    return np.where(inside, (g + 1.0) * (times / profile.images) ** g / profile.images, 0.0)


def stored(count: int = 20, images: int = 100, stds: tuple[float, ...] = STORED) -> list[Profile]:
    """The profiles of ``count`` snapshots, evenly over a run of ``count * images`` images."""
    return [Profile(images=(index + 1) * images, std=std) for index in range(count) for std in stds]


@functools.cache
def trajectory() -> tuple[list[Snapshot], dict[tuple[float, int], dict[str, torch.Tensor]]]:
    """A small network's training on noisy batches: snapshots of the stored widths, other widths tracked too.

    The tracked averages are kept at three quarters and at the end.
    """
    random = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, 2)).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=random)
    teacher = torch.randn(6, 2, generator=random, dtype=torch.float64)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    kept = build(averaging.PowerEma(kind="power", stds=STORED), network)
    others = build(averaging.PowerEma(kind="power", stds=OTHERS), network)
    snapshots: list[Snapshot] = []
    tracked: dict[tuple[float, int], dict[str, torch.Tensor]] = {}
    for step in range(1, NUM_STEPS + 1):
        x = torch.randn(BATCH, 6, generator=random, dtype=torch.float64)
        noise = torch.randn(BATCH, 2, generator=random, dtype=torch.float64)
        optimizer.zero_grad()
        (network(x) - torch.sin(x @ teacher) - noise).square().mean().backward()
        optimizer.step()
        for average in (kept, others):
            average.update(images=step * BATCH, batch=BATCH)
        if step % EVERY == 0:
            snapshots += posthoc.take(kept, step * BATCH)
        if step in MOMENTS:
            tracked |= {(one.std, one.images): dict(one.state) for one in posthoc.take(others, step * BATCH)}
    return snapshots, tracked


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    apart = torch.cat([(first[key] - second[key]).flatten() for key in first])
    return float(apart.norm())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Profile(images=100, std=0.05), Profile(images=100, std=0.05)),
        (Profile(images=100, std=0.05), Profile(images=100, std=0.2)),
        (Profile(images=70, std=0.05), Profile(images=100, std=0.2)),
        (Profile(images=70, std=0.25), Profile(images=100, std=0.02)),
    ],
)
def test_inner_product_is_the_integral(first: Profile, second: Profile) -> None:
    def product(t: float) -> float:
        return float(density(first, np.array([t]))[0] * density(second, np.array([t]))[0])

    expected, _ = integrate.quad(product, 0.0, min(first.images, second.images), epsabs=1e-14)
    assert inner_product(first, second) == pytest.approx(expected, rel=1e-6)
    assert inner_product(first, second) == inner_product(second, first)


@pytest.mark.parametrize("std", [0.05, 0.1])
@pytest.mark.parametrize("images", [1000, 2000])
def test_a_stored_width_is_its_own_snapshot(std: float, images: int) -> None:
    weights = coefficients(stored(), std, images)
    expected = [float(one == Profile(images=images, std=std)) for one in stored()]
    np.testing.assert_allclose(weights, expected, atol=1e-7)


@pytest.mark.parametrize("std", [0.04, 0.07, 0.15, 0.2])
def test_reconstructed_profile_is_the_closed_form(std: float) -> None:
    """The weighted sum of the stored profiles, drawn out, is the power function of the new width."""
    weights = coefficients(stored(), std, 2000)
    times = np.arange(1.0, 2001.0) - 0.5
    made = sum(weight * density(profile, times) for weight, profile in zip(weights, stored(), strict=True))
    wanted = density(Profile(images=2000, std=std), times)
    error = np.linalg.norm(made - wanted) / np.linalg.norm(wanted)
    found = posthoc.misfit(stored(), weights, Profile(images=2000, std=std))
    assert error < 0.02
    # The misfit that decides over acceptance is this error, by inner products.
    assert error == pytest.approx(found, rel=0.05)
    mean = (made * times).sum() / 2000
    spread = np.sqrt((made * (times / 2000 - mean) ** 2).sum())
    assert spread == pytest.approx(std, rel=0.01)


@given(std=st.floats(0.045, 0.19), count=st.integers(10, 40))
def test_coefficients_sum_to_one_and_are_the_least_squares(std: float, count: int) -> None:
    """No other weights of sum 1 fit better: a step in any such direction makes the misfit worse."""
    profiles, target = stored(count), Profile(images=100 * count, std=std)
    weights = coefficients(profiles, std, 100 * count)
    assert weights.sum() == pytest.approx(1.0, abs=1e-9)
    best = posthoc.misfit(profiles, weights, target)
    for index in range(0, len(profiles) - 1, 7):
        step = np.zeros(len(profiles))
        step[[index, index + 1]] = 0.05, -0.05
        assert posthoc.misfit(profiles, weights + step, target) > best
        assert posthoc.misfit(profiles, weights - step, target) > best


@pytest.mark.parametrize("step", MOMENTS)
@pytest.mark.parametrize("std", OTHERS)
def test_reconstruction_is_the_tracked_average_of_a_training(std: float, step: int) -> None:
    """Of real weights: at least thirty times closer to the average that was tracked than any snapshot is."""
    (snapshots, tracked), images = trajectory(), step * BATCH
    truth = tracked[std, images]
    made = reconstruct(snapshots, std, images)
    nearest = min(distance(dict(one.state), truth) for one in snapshots)
    assert distance(made, truth) < nearest / 30.0
    assert {key: tensor.dtype for key, tensor in made.items()} == {
        key: tensor.dtype for key, tensor in truth.items()
    }


@pytest.mark.parametrize("std", [0.06, 0.12])
def test_weights_that_stand_still_are_given_back(std: float) -> None:
    """Even from two snapshots of the end, whose free least squares would scale all weights by up to 5 %."""
    state = {"weight": torch.linspace(-3.0, 3.0, 50), "count": torch.tensor(7)}
    snapshots = [Snapshot(images=1000, std=width, state=state) for width in STORED]
    made = reconstruct(snapshots, std, 1000)
    torch.testing.assert_close(made["weight"], state["weight"], rtol=1e-6, atol=1e-6)
    assert int(made["count"]) == 7
    assert made["count"].dtype == torch.int64


@pytest.mark.parametrize(
    ("std", "at", "reason"),
    [
        (0.01, 2000, "only to within"),
        (0.28, 2000, "only to within"),
        (0.05, 3000, "only to within"),
        (0.05, 20, "only to within"),
        (0.05, 1950, "only to within"),
        (0.3, 2000, "no width"),
        (0.0, 2000, "no width"),
    ],
)
def test_what_the_snapshots_do_not_tell_is_refused(std: float, at: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        coefficients(stored(), std, at)
    assert error.value.subject == f"std {std:g}"
    assert error.value.remedy


def test_refusal_says_which_widths_there_are() -> None:
    """And those widths are accepted, at their very edges."""
    with pytest.raises(ConfigError) as error:
        coefficients(stored(), 0.28, 2000)
    bounds = posthoc.reachable(stored(), 2000)
    assert bounds is not None
    least, greatest = bounds
    assert f"{least:.3f} to {greatest:.3f}" in error.value.remedy
    assert least < 0.03
    assert greatest > 0.2
    for width in bounds:
        coefficients(stored(), width, 2000)
    # More snapshots reach further.
    finer = posthoc.reachable(stored(count=100, images=20), 2000)
    assert finer is not None
    assert finer[0] < least
    assert finer[1] > greatest
    assert posthoc.reachable(stored(), 4000) is None


def test_no_snapshots_no_average() -> None:
    with pytest.raises(ConfigError, match="no snapshots"):
        coefficients([], 0.05, 100)


def test_snapshots_of_two_networks_are_refused() -> None:
    states = [{"weight": torch.ones(2)}, {"weight": torch.ones(3)}]
    snapshots = [
        Snapshot(images=100, std=std, state=state) for std, state in zip(STORED, states, strict=True)
    ]
    with pytest.raises(Fault, match="one network"):
        reconstruct(snapshots, 0.07, 100)


def test_a_snapshot_is_a_copy() -> None:
    network = torch.nn.Linear(2, 2)
    average = build(averaging.PowerEma(kind="power", stds=STORED), network)
    taken = posthoc.take(average, 10)
    assert [(one.images, one.std) for one in taken] == [(10, 0.05), (10, 0.1)]
    before = taken[0].state["weight"].clone()
    torch.nn.init.ones_(network.weight)
    average.update(images=20, batch=10)
    torch.testing.assert_close(taken[0].state["weight"], before, rtol=0.0, atol=0.0)
    assert posthoc.take(build(averaging.ClassicEma(kind="classic"), network), 10) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_file_gives_back_every_bit(dtype: torch.dtype) -> None:
    values = torch.arange(12).to(dtype).reshape(3, 4)
    shared = values.t()  # neither contiguous nor alone in its memory
    state = {"inner.weight": values, "tied": shared, "count": torch.tensor(3)}
    back = posthoc.unpack(posthoc.pack(state))
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert back[key].dtype == tensor.dtype
        torch.testing.assert_close(back[key], tensor, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("damage", [b"", b"no file", None])
def test_damaged_file_is_a_fault(damage: bytes | None) -> None:
    content = posthoc.pack({"weight": torch.ones(100)})[:-7] if damage is None else damage
    with pytest.raises(Fault, match="damaged"):
        posthoc.unpack(content)


@given(images=st.integers(1, 10**12 - 1), std=st.floats(1e-3, 0.288))
def test_names_of_files(images: int, std: float) -> None:
    profile = Profile(images=images, std=std)
    assert posthoc.parse(posthoc.file_name(profile)) == profile


def test_names_sort_by_time_and_others_are_refused() -> None:
    names = [posthoc.file_name(Profile(images=images, std=0.05)) for images in (90, 1000, 20_000)]
    assert names == sorted(names)
    assert names[0] == "000000000090-0.05.safetensors"
    for name in ("state.pt", "90-0.05.safetensors", "000000000090-0.0.5.safetensors"):
        with pytest.raises(Fault, match="not the name"):
            posthoc.parse(name)
