"""Gradient statistics, convergence and directions on cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hasten.trainers import randomness
from hasten.trainers.analyses import difficulty, probe
from hasten.trainers.diffusion import Ddpm
from hasten.trainers.models import networks
from hasten.trainers.models.architectures import Mlp
from hasten.trainers.process import Process

CPU = torch.device("cpu")
PROCESS = Process(Ddpm(kind="ddpm", timesteps=100), CPU)
SHAPE = (3, 1, 1)


class Constant(networks.Network):
    """Answers with its weights, whatever it sees: an image's gradient is linear in its noise."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), shape=SHAPE, classes=None)
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        del condition, labels
        return self.weight.reshape(1, 3, 1, 1).expand(x.shape)


def images(count: int) -> torch.Tensor:
    return torch.from_numpy(0.5 * randomness.noise(0, "images", np.arange(count), SHAPE))


def test_a_linear_gradients_norm_variance_and_noise_scale_are_those_of_the_answers() -> None:
    """Error |w - eps|^2 / 3 has gradient 2 (w - eps) / 3: norm^2 4/9 |w|^2, an image's variance 4/9 * 3."""
    found = difficulty.gradient_statistics(Constant(), PROCESS, images(4000), ranges=2, batch=20)
    for each in found.ranges:
        for interval, value in (
            (each.squared_norm, 4 / 9),
            (each.variance, 4 / 3),
            (each.loss, 1.0 + 1 / 3),
        ):
            assert interval.low is not None
            assert interval.high is not None
            assert interval.low < value < interval.high
            assert interval.high - interval.low < 0.3 * value
        assert each.noise_scale == pytest.approx(3.0, rel=0.2)


def test_estimates_are_unbiased_and_intervals_cover_whatever_the_batch() -> None:
    """A plain norm of a mini-batch's gradient would grow with its noise, a plain variance shrink."""
    for batch in (4, 20):
        found = [
            difficulty.gradient_statistics(
                Constant(), PROCESS, images(240), ranges=1, batch=batch, seed=seed
            ).ranges[0]
            for seed in range(100)
        ]
        for values, truth in (
            ([each.squared_norm for each in found], 4 / 9),
            ([each.variance for each in found], 4 / 3),
        ):
            assert np.mean([each.mean for each in values]) == pytest.approx(truth, rel=0.1)
            covered = [
                each.low is not None and each.high is not None and each.low < truth < each.high
                for each in values
            ]
            assert 0.87 <= np.mean(covered) <= 1.0


def test_statistics_agree_with_their_definitions_on_a_real_network() -> None:
    network = networks.build(Mlp(kind="mlp", width=8, layers=1), shape=SHAPE, classes=None, seed=0).eval()
    clean = images(24)
    found = difficulty.gradient_statistics(network, PROCESS, clean, ranges=3, batch=4, seed=5)
    t = probe.spread(34, 67, 24, seed=5, stream="analyses/timestep")
    given = probe.task(PROCESS, clean, t, seed=5, stream="analyses/difficulty")
    weights = list(network.parameters())
    gradients = np.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(probe.errors(network, part).mean(), weights)])
            for part in given.parts(4)
        ]
    ).astype(np.float64)
    variance = 4 * gradients.var(axis=0, ddof=1).sum()
    norm = (gradients.mean(axis=0) ** 2).sum() - gradients.var(axis=0, ddof=1).sum() / 6
    assert found.ranges[1].variance.mean == pytest.approx(variance, rel=1e-6)
    assert found.ranges[1].squared_norm.mean == pytest.approx(norm, rel=1e-6)
    assert all(weight.grad is None for weight in weights)


class Halves(networks.Network):
    """Sees the noise level: answers with one of two vectors below and above the middle, tied by a sign."""

    def __init__(self, sign: float) -> None:
        super().__init__(torch.nn.Identity(), shape=SHAPE, classes=None)
        self.weight = torch.nn.Parameter(torch.full((3,), 4.0))
        self.sign = sign

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        del labels
        sign = torch.where(condition < 50, 1.0, self.sign)[:, None]
        return (sign * self.weight + (sign - 1.0) * 4.0).reshape(x.shape)


@pytest.mark.parametrize(("sign", "cosine"), [(1.0, 1.0), (-1.0, 1.0)])
def test_interference_is_the_cosine_of_expected_gradients(sign: float, cosine: float) -> None:
    """With sign -1 the answer above is -w - 8 = -12: its error's gradient by w is 2/3 * 12 > 0 as well."""
    found = difficulty.gradient_statistics(Halves(sign), PROCESS, images(300), ranges=2, batch=30)
    assert found.interference[0][1] == pytest.approx(cosine, abs=0.01)
    assert found.interference[0][0] == 1.0


def test_ranges_that_pull_apart_have_a_negative_cosine() -> None:
    network = Halves(-1.0)
    with torch.no_grad():
        network.weight.fill_(-4.0)  # answers -4 below and -4 above, where it falls with w
    found = difficulty.gradient_statistics(network, PROCESS, images(300), ranges=2, batch=30)
    assert found.interference[0][1] == pytest.approx(-1.0, abs=0.01)


def test_a_gradient_that_noise_hides_has_no_noise_scale_and_no_cosine() -> None:
    network = Constant()
    with torch.no_grad():
        network.weight.zero_()  # the best answer to eps that does not look: nothing is left but noise
    found = difficulty.gradient_statistics(network, PROCESS, images(60), ranges=2, batch=6)
    assert [each.noise_scale for each in found.ranges] == [None, None]
    assert found.interference == ((None, None), (None, None))


def test_a_jackknife_needs_three_mini_batches() -> None:
    with pytest.raises(ValueError, match="less than 3 mini-batches"):
        difficulty.gradient_statistics(Constant(), PROCESS, images(10), ranges=1, batch=4)


def test_convergence_is_the_first_moment_from_which_the_loss_stays() -> None:
    losses = np.array(
        # comes and stays, comes and goes, there from the start, still falling
        [
            [9.0, 1.00, 1.0, 9.0],
            [1.04, 9.0, 1.0, 5.0],
            [0.97, 1.02, 1.0, 3.0],
            [1.0, 1.0, 1.0, 1.0],
        ]
    )
    assert difficulty.images_to_convergence([0, 10, 20, 30], losses, within=0.05) == [10, 20, 0, None]


def test_a_direction_is_named_only_by_three_runs_that_agree() -> None:
    rising = [[1.0, 2.0, 4.0, 8.0], [1.1, 2.0, 4.1, 8.0], [0.9, 2.1, 4.0, 8.2]]

    def finding(values: list[list[float | None]]) -> str:
        (found,) = difficulty.directions({"loss": values})
        return found.finding

    assert finding([*rising]) == "much noise is harder"
    assert finding([run[::-1] for run in rising]) == "little noise is harder"
    assert finding(rising[:2]) == "open"
    assert finding([[1.0, 2.0], [2.0, 1.0], [1.0, 1.1]]) == "open"


def test_a_contrast_is_of_logarithms_and_leaves_out_incomplete_runs() -> None:
    (found,) = difficulty.directions({"loss": [[math.e, 5.0, 1.0], [1.0, None, 2.0], [1.0, 0.0, -1.0]]})
    assert found.contrast.n == 1
    assert found.contrast.mean == pytest.approx(1.0)
    assert difficulty.directions({"loss": [[None, 1.0]]}) == []


def test_more_measures_ask_for_wider_intervals() -> None:
    runs = [[1.0, 2.0], [1.0, 2.2], [1.0, 2.5]]
    (alone,) = difficulty.directions({"a": runs})
    first, _ = difficulty.directions({"a": runs, "b": runs})
    assert first.contrast.low is not None
    assert alone.contrast.low is not None
    assert first.contrast.low < alone.contrast.low


def test_levels_of_a_range_are_spread_evenly_and_all_within() -> None:
    t = probe.spread(20, 30, 200, seed=1, stream="x")
    assert np.bincount(t, minlength=30)[20:].tolist() == [20] * 10
    assert len(t) == 200
    assert (np.diff(t) < 0).any()
