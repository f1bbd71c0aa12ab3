"""Agreement of networks on cases whose answer is known, and the linear denoiser that it is held against."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from scipy.stats import binomtest

from hasten.trainers import randomness
from hasten.trainers.analyses import consistency, gaussian, similarity
from hasten.trainers.analyses.consistency import Agreement
from hasten.trainers.analyses.intervals import mean_of, share_of
from hasten.trainers.diffusion import Ddpm, Diffusion, Edm, Flow
from hasten.trainers.generation import sampling
from hasten.trainers.process import Process

CPU = torch.device("cpu")
PROCESSES: list[Diffusion] = [
    Ddpm(kind="ddpm", schedule="cosine", predict="epsilon"),
    Ddpm(kind="ddpm", schedule="linear", predict="x0"),
    Ddpm(kind="ddpm", schedule="cosine", predict="v"),
    Edm(kind="edm"),
    Flow(kind="flow"),
    Flow(kind="flow", shift=3.0),
]
NAMES = ["epsilon", "x0", "v", "edm", "flow", "shifted flow"]
SHAPE = (1, 6, 6)


def images(count: int, stream: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return 0.3 * randomness.noise(0, stream, np.arange(count), shape)


def correlated(count: int, stream: str) -> np.ndarray:
    """Data in 4 dimensions with variances from 1 to 1/100 along directions that are no axes."""
    z = randomness.noise(1, stream, np.arange(count), (4,)).astype(np.float64)
    rotation, _ = np.linalg.qr(randomness.noise(2, "rotation", np.arange(4), (4,)).astype(np.float64))
    points = 0.5 + (z * np.sqrt([1.0, 0.3, 0.1, 0.01])) @ rotation.T
    return points.astype(np.float32).reshape(-1, 4, 1, 1)


def agreements(
    first: np.ndarray, second: np.ndarray, linear: tuple[np.ndarray, np.ndarray] | None = None
) -> dict[str, Agreement]:
    baselines = linear or (images(len(first), "linear a"), images(len(first), "linear b"))
    (pair,) = consistency.compare(
        {"a": first, "b": second},
        {"a": baselines[0], "b": baselines[1]},
        data_range=2.0,
        permutations=200,
    )
    assert (pair.first, pair.second) == ("a", "b")
    return {each.measure: each for each in pair.agreements}


def test_a_network_agrees_with_itself_perfectly_and_beyond_every_null() -> None:
    same = images(40, "same")
    found = agreements(same, same)
    perfect = {
        "mse": 0.0,
        "psnr": similarity.MOST_PSNR,
        "ssim": 1.0,
        "cosine": 1.0,
        "retrieval": 1.0,
        "retrieval_features": 1.0,
    }
    assert found.keys() == perfect.keys()
    for measure, value in perfect.items():
        each = found[measure]
        assert each.value.mean == pytest.approx(value, abs=1e-12), measure
        assert each.shuffled.p == pytest.approx(1 / 201), measure
        assert not each.shuffled.low <= value <= each.shuffled.high, measure
        assert each.beyond_linear.excludes_zero, measure


def test_wrong_seeds_agree_as_the_shuffled_null_does() -> None:
    first = images(60, "same")
    found = agreements(first, np.roll(first, 7, axis=0))
    for measure, each in found.items():
        assert each.shuffled.low <= each.value.mean <= each.shuffled.high, measure
        assert each.shuffled.p > 0.05, measure
    assert found["retrieval"].value.mean == 0.0
    assert found["retrieval"].shuffled.mean == pytest.approx(1 / 60, rel=0.3)


def test_p_values_of_independent_networks_are_no_smaller_than_chance() -> None:
    """Under the null a one-sided p-value is uniform: small ones are no more frequent than they say."""
    p = [agreements(images(12, f"first {k}"), images(12, f"second {k}"))["mse"].shuffled.p for k in range(60)]
    assert 0.3 < np.mean(p) < 0.7
    assert np.mean(np.array(p) < 0.1) < 0.25


def test_partial_agreement_lies_between_and_beyond_linear_is_paired() -> None:
    shared, rest = images(50, "shared"), images(50, "rest")
    linear = 0.5 * shared
    found = agreements(shared + 0.2 * rest, shared - 0.2 * rest, (linear, linear))
    assert 0.8 < found["cosine"].value.mean < 1.0
    assert found["retrieval"].value.mean > 0.9
    mse = found["mse"]
    assert mse.value.mean == pytest.approx(float((0.4 * rest).var()), rel=0.05)
    assert mse.beyond_linear.mean == pytest.approx(mse.value.mean - mse.linear.mean)
    assert mse.beyond_linear.excludes_zero


def test_features_decide_what_the_cosine_compares() -> None:
    first = images(20, "a")
    second = first.copy()
    second[:, :, 3:] = images(20, "b")[:, :, 3:]

    def top(batch: np.ndarray) -> np.ndarray:
        return batch[:, :, :3].reshape(len(batch), -1)

    baselines = {"a": images(20, "c"), "b": images(20, "d")}
    (pair,) = consistency.compare(
        {"a": first, "b": second}, baselines, data_range=2.0, featurize=top, permutations=50
    )
    found = {each.measure: each for each in pair.agreements}
    assert found["cosine"].value.mean == pytest.approx(1.0)
    assert found["mse"].value.mean > 0.01


def test_every_two_networks_are_compared_and_points_have_no_ssim() -> None:
    samples = {name: images(8, name, (2, 1, 1)) for name in "abc"}
    pairs = consistency.compare(samples, samples, data_range=1.0, permutations=20)
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert "ssim" not in {each.measure for each in pairs[0].agreements}


def test_seeds_are_shuffled_within_their_label() -> None:
    """Two networks that share nothing but what a label says are no more alike than the null."""
    labels = np.arange(60) % 3
    common = 3.0 * images(3, "classes")[labels]
    first, second = common + images(60, "a"), common + images(60, "b")
    baselines = {"a": images(60, "c"), "b": images(60, "d")}
    within, without = (
        consistency.compare(
            {"a": first, "b": second}, baselines, data_range=2.0, labels=given, permutations=200
        )[0].agreements[0]
        for given in (labels, None)
    )
    assert within.shuffled.p > 0.05
    assert without.shuffled.p < 0.01


def test_a_longer_noise_bank_begins_with_the_shorter_one() -> None:
    short, longer = (consistency.noise_bank(count, SHAPE, 3) for count in (5, 9))
    assert np.array_equal(short, longer[:5])
    assert not np.array_equal(short, consistency.noise_bank(5, SHAPE, 4))


@pytest.mark.parametrize("size", [8, 16])
def test_ssim_is_the_papers_formula(size: int) -> None:
    """Against local moments by scipy's correlation, written out separately."""
    first, second = (images(3, name, (2, size, size)).astype(np.float64) for name in ("x", "y"))
    length = 11 if size >= 13 else 5
    offsets = np.arange(length) - length // 2
    kernel = np.exp(-(offsets**2) / (2.0 * (1.5 * length / 11) ** 2))
    kernel /= kernel.sum()
    border = length // 2

    def local(values: np.ndarray) -> np.ndarray:
        smooth = correlate1d(correlate1d(values, kernel, axis=-1), kernel, axis=-2)
        return smooth[..., border:-border, border:-border]

    found = similarity.ssim(first, second, 2.0)
    c1, c2 = 0.02**2, 0.06**2
    for i, x in enumerate(first):
        for j, y in enumerate(second):
            mx, my = local(x), local(y)
            vx, vy, cov = local(x * x) - mx**2, local(y * y) - my**2, local(x * y) - mx * my
            value = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
            assert found[i, j] == pytest.approx(value.mean(), abs=1e-12)


def test_psnr_is_in_decibels_of_the_range() -> None:
    assert similarity.psnr(np.array([0.04]), 2.0)[0] == pytest.approx(20.0)


def test_nothing_is_retrieved_from_images_that_are_all_alike() -> None:
    assert similarity.retrieved(np.zeros((3, 3))).tolist() == [-1, -1, -1]
    assert similarity.retrieved(np.array([[2.0, 1.0], [0.0, 3.0]])).tolist() == [1, 0]


@pytest.mark.parametrize(
    "spec", [PROCESSES[0], *(pytest.param(each, marks=pytest.mark.slow) for each in PROCESSES[1:])], ids=NAMES
)
def test_the_gaussian_denoisers_samples_have_the_datas_moments(spec: Diffusion) -> None:
    """For Gaussian data it is the exact denoiser, so the ODE carries noise to the data's distribution."""
    data = correlated(4000, "data")
    network = gaussian.GaussianDenoiser(gaussian.moments(data), Process(spec, CPU), (4, 1, 1)).eval()
    noise = randomness.noise(5, "bank", np.arange(3000), (4, 1, 1))
    # Whitened: the samples' own moments are then those of the ODE, without the noise bank's.
    flat = noise.reshape(-1, 4).astype(np.float64)
    flat = (flat - flat.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(flat.T, bias=True))).T
    samples = sampling.sample(
        network,
        Process(spec, CPU),
        flat.astype(np.float32).reshape(noise.shape),
        steps=200,
        sampler="heun" if spec.kind != "ddpm" else "ddim",
        clip=False,
    )
    made = samples.double().numpy().reshape(-1, 4)
    wanted = np.cov(data.reshape(-1, 4).T, bias=True)
    assert np.abs(made.mean(axis=0) - data.reshape(-1, 4).mean(axis=0)).max() < 0.03
    assert np.abs(np.cov(made.T, bias=True) - wanted).max() < 0.03 * wanted.max()


@pytest.mark.parametrize("spec", PROCESSES, ids=NAMES)
def test_its_closed_form_loss_is_the_one_it_has(spec: Diffusion) -> None:
    """On other images than it was fitted to, too; and no worse than any other gain on its own."""
    known, fresh = gaussian.moments(correlated(500, "data")), correlated(400, "fresh") * 1.3
    process = Process(spec, CPU)
    network = gaussian.GaussianDenoiser(known, process, (4, 1, 1))
    expected = gaussian.linear_loss(known, process.levels, fresh)
    clean = torch.from_numpy(np.tile(fresh, (50, 1, 1, 1)))
    eps = torch.from_numpy(randomness.noise(7, "eps", np.arange(len(clean)), (4, 1, 1)))
    for level in (50, 300, 600, 950):
        t = torch.full((len(clean),), level)
        x, condition, _ = process.corrupt(clean, eps, t)
        error = (process.epsilon(network(x, condition), x, t) - eps).square().mean()
        assert error.item() == pytest.approx(expected[level], rel=0.03)


def test_fewer_images_than_numbers_give_the_same_linear_denoiser() -> None:
    """The smaller Gram matrix spans the same directions: what it finds is the covariance."""
    few = images(5, "few")
    known = gaussian.moments(few)
    flat = few.reshape(5, -1).astype(np.float64)
    rebuilt = known.basis @ np.diag(known.variances) @ known.basis.T
    assert known.basis.shape[1] == 4
    assert np.allclose(rebuilt, np.cov(flat.T, bias=True), atol=1e-12)
    assert np.allclose(known.basis.T @ known.basis, np.eye(4), atol=1e-9)


def test_ranges_of_levels_are_where_floor_puts_them() -> None:
    for total, bins in ((1000, 10), (7, 3), (10, 10), (11, 4)):
        edges = gaussian.edges(total, bins)
        where = np.arange(total) * bins // total
        for number in range(bins):
            assert (where[edges[number] : edges[number + 1]] == number).all()
        assert (edges[0], edges[-1]) == (0, total)
    assert gaussian.by_bin(np.arange(10.0), 5).tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]


def test_intervals_cover_as_often_as_they_say() -> None:
    normal = randomness.noise(0, "coverage", np.arange(2000), (5,)).astype(np.float64)
    found = [mean_of(row) for row in normal]
    covered = np.mean([each.low <= 0.0 <= each.high for each in found])  # type: ignore[operator]
    assert 0.93 < covered < 0.97
    assert mean_of([3.0]).low is None


@pytest.mark.parametrize("hits", [0, 1, 7, 20])
def test_shares_have_wilsons_interval(hits: int) -> None:
    found = share_of([True] * hits + [False] * (20 - hits))
    expected = binomtest(hits, 20).proportion_ci(0.95, method="wilson")
    assert found.mean == hits / 20
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)
