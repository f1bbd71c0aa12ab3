"""Each density against its closed form, and against the numbers that are known of its source."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy import stats

from hasten.trainers.curriculum import Curriculum, pmf
from hasten.trainers.densities import flow_time, log_sigma, pivot
from hasten.trainers.diffusion import Ddpm, Edm, Flow, alphas_bar

COSINE = alphas_bar(Ddpm(kind="ddpm", schedule="cosine"))
LINEAR = alphas_bar(Ddpm(kind="ddpm", schedule="linear"))
EDM = alphas_bar(Edm(kind="edm"))
FLOW = alphas_bar(Flow(kind="flow"))
SHIFTED = alphas_bar(Flow(kind="flow", shift=3.0))
GRIDS = {"linear": LINEAR, "cosine": COSINE, "edm": EDM, "flow": FLOW, "shifted": SHIFTED}
NUM_TIMESTEPS = 1000
ADAPTER: TypeAdapter[Curriculum] = TypeAdapter(Curriculum)


def spec(kind: str, **fields: Any) -> Curriculum:
    return ADAPTER.validate_python({"kind": kind, **fields})


def assert_prints_as(value: float, printed: str) -> None:
    """``value`` rounds to ``printed``, which may have an exponent."""
    unit = 10.0 ** int(Decimal(printed).as_tuple().exponent)
    assert abs(value - float(printed)) <= 0.5 * unit * (1.0 + 1e-9), (value, printed)


@pytest.mark.parametrize(
    ("sigma", "at_0", "at_300", "at_700", "at_999", "below_600"),
    [
        (0.15, "0.37", "2.72", "0.078", "1e-4", ".977"),
        (0.2, "0.69", "2.14", "0.289", ".005", ".928"),
        (0.3, "0.97", "1.60", "0.657", ".106", ".821"),
        (0.5, "1.03", "1.24", "0.898", ".465", ".700"),
        (1.0, "1.01", "1.06", "0.979", ".831", ".627"),
    ],
)
def test_table_of_the_gaussian_relative_to_uniform(
    sigma: float, at_0: str, at_300: str, at_700: str, at_999: str, below_600: str
) -> None:
    p = pmf(spec("clts", mu=0.3, sigma=sigma), 1.0, COSINE)
    for t, printed in ((0, at_0), (300, at_300), (700, at_700), (999, at_999)):
        assert_prints_as(NUM_TIMESTEPS * p[t], printed)
    assert_prints_as(p[:600].sum(), below_600)


@pytest.mark.parametrize(("pairing", "below_tau"), [(False, ".824"), (True, ".912")])
def test_mass_of_speed_below_tau(pairing: bool, below_tau: str) -> None:
    p = pmf(spec("speed", factor=2.0, tau=0.7, pairing=pairing), 0.0, LINEAR)
    assert_prints_as(p[:700].sum(), below_tau)


def test_realised_marginal_of_speed() -> None:
    """Its antithetic pairs are not drawn from the density that it publishes."""
    assert pivot(LINEAR) == 642
    p = NUM_TIMESTEPS * pmf(spec("speed"), 0.0, LINEAR)
    for first, last, printed in (
        (1, 57, "1.76"),
        (58, 357, "1.47"),
        (358, 642, "1.18"),
        (643, 699, ".59"),
        (700, 999, ".29"),
    ):
        for t in (first, last):
            assert_prints_as(p[t], printed)
    plain = pmf(spec("speed", pairing=False), 0.0, LINEAR)
    np.testing.assert_allclose(plain[:700], 2.0 / 1700.0, rtol=1e-12)
    np.testing.assert_allclose(plain[700:], 1.0 / 1700.0, rtol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("step", [1, 10, 499])
def test_pivot_lies_where_partners_exist(grid: str, step: int) -> None:
    signal = GRIDS[grid][::step]
    middle = pivot(signal)
    t = np.arange(len(signal))
    partner = np.where(t < middle, middle - t, t - middle)
    assert 1 <= middle < len(signal)
    assert ((partner >= 0) & (partner < len(signal))).all()
    if step == 1:  # where noise has grown, not where a process starts flat
        assert np.sqrt(1.0 - signal[middle]) > 0.9


@pytest.mark.parametrize(
    ("p_mean", "p_std"), [(-1.2, 1.2), (-0.4, 1.0), (-0.8, 1.6), (0.5, 0.3), (-2.0, 0.02)]
)
def test_log_sigma_of_edm_is_normal(p_mean: float, p_std: float) -> None:
    """With a width that is not 1: a public copy multiplies by s^2 where it should divide."""
    p = pmf(spec("edm_lognormal", p_mean=p_mean, p_std=p_std), 0.0, EDM)
    x = log_sigma(EDM)
    np.testing.assert_allclose(x, np.linspace(np.log(0.002), np.log(80.0), 1000), atol=1e-8)
    half = 0.5 * (x[1] - x[0])
    cdf = stats.norm(p_mean, p_std).cdf(np.append(x - half, x[-1] + half))
    np.testing.assert_allclose(np.cumsum(p), (cdf[1:] - cdf[0]) / (cdf[-1] - cdf[0]), atol=1e-9)


@pytest.mark.parametrize("signal", [COSINE, LINEAR], ids=["cosine", "linear"])
def test_edms_noise_on_a_ddpm_grid(signal: np.ndarray) -> None:
    """The grid's spacing counts: without it, EDM's density would follow the grid's."""
    p = pmf(spec("edm_lognormal", p_mean=-0.5, p_std=0.7), 0.0, signal)
    x = log_sigma(signal)
    assert p @ x == pytest.approx(-0.5, abs=0.01)
    for quantile in (0.1, 0.5, 0.9):
        t = int(np.searchsorted(np.cumsum(p), quantile))
        assert x[t] == pytest.approx(stats.norm(-0.5, 0.7).ppf(quantile), abs=0.03)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.6), (-0.5, 1.7)])
def test_logit_normal_in_flow_time(mean: float, std: float) -> None:
    u = (np.arange(1000) + 0.5) / 1000
    np.testing.assert_allclose(flow_time(FLOW), u, rtol=1e-9)
    p = pmf(spec("logit_normal", mean=mean, std=std), 0.0, FLOW)
    borders = np.arange(1, 1000) / 1000
    expected = stats.norm(mean, std).cdf(np.log(borders / (1.0 - borders)))
    np.testing.assert_allclose(np.cumsum(p)[:-1], expected, atol=1e-9)
    # logit(u) is ln sigma: in flow time, EDM's density is SD3's.
    edm = pmf(spec("edm_lognormal", p_mean=mean, p_std=std), 0.0, FLOW)
    assert 0.5 * np.abs(p - edm).sum() < 2e-3


@pytest.mark.parametrize("kind", ["logit_normal", "mode", "cosmap", "beta"])
def test_flow_time_and_timestep_differ_by_the_process(kind: str) -> None:
    """They agree on a flow without shift; in flow time the noise is the same for every process."""
    in_time, by_index = spec(kind, coordinate="flow"), spec(kind, coordinate="timestep")
    np.testing.assert_allclose(pmf(in_time, 0.0, FLOW), pmf(by_index, 0.0, FLOW), rtol=1e-6)
    np.testing.assert_allclose(pmf(by_index, 0.0, COSINE), pmf(by_index, 0.0, FLOW), rtol=1e-12)
    for signal in (COSINE, SHIFTED):
        cdf = np.interp(flow_time(FLOW), flow_time(signal), np.cumsum(pmf(in_time, 0.0, signal)))
        inner = slice(50, 950)
        np.testing.assert_allclose(cdf[inner], np.cumsum(pmf(in_time, 0.0, FLOW))[inner], atol=0.02)
    assert np.abs(pmf(by_index, 0.0, SHIFTED) - pmf(in_time, 0.0, SHIFTED)).sum() > 0.2


@pytest.mark.parametrize("scale", [-1.0, -0.5, 0.5, 1.29, 1.75])
def test_mode_is_the_map_of_uniform_numbers(scale: float) -> None:
    v = (np.arange(2_000_000) + 0.5) / 2_000_000
    mapped = 1.0 - v - scale * (np.cos(np.pi * v / 2.0) ** 2 - 1.0 + v)
    expected = np.histogram(mapped, bins=1000, range=(0.0, 1.0))[0] / len(v)
    np.testing.assert_allclose(pmf(spec("mode", scale=scale), 0.0, FLOW), expected, atol=2e-6)


def test_mode_without_scale_is_uniform() -> None:
    np.testing.assert_allclose(pmf(spec("mode", scale=0.0), 0.0, FLOW), 1e-3, rtol=1e-9)


def test_cosmap_and_beta_in_closed_form() -> None:
    u = (np.arange(1000) + 0.5) / 1000
    expected = 2.0 / (np.pi * (1.0 - 2.0 * u + 2.0 * u**2))
    np.testing.assert_allclose(1000 * pmf(spec("cosmap"), 0.0, FLOW), expected, rtol=1e-5)
    borders = np.arange(1001) / 1000
    for alpha in (0.5, 0.8, 1.0, 2.0):
        p = pmf(spec("beta", alpha=alpha), 0.0, COSINE)
        np.testing.assert_allclose(np.cumsum(p), borders[1:] ** alpha, rtol=1e-9)


@pytest.mark.parametrize(("mu", "scale"), [(0.0, 0.5), (0.75, 0.75), (-2.0, 1.5)])
@pytest.mark.parametrize("grid", ["edm", "linear", "flow"])
def test_log_snr_of_laplace(mu: float, scale: float, grid: str) -> None:
    """The published sampler's quantiles, mu - b sgn(.5 - q) ln(1 - 2 abs(q - .5)), noise rising with q."""
    cdf = np.cumsum(pmf(spec("laplace", mu=mu, scale=scale), 0.0, GRIDS[grid]))
    log_snr = -2.0 * log_sigma(GRIDS[grid])
    for q in (0.1, 0.3, 0.5, 0.8):
        expected = mu - scale * np.sign(q - 0.5) * -np.log(1.0 - 2.0 * abs(q - 0.5))
        at = log_snr[int(np.searchsorted(cdf, q))]
        assert at == pytest.approx(expected, abs=0.05)


def test_both_tails_are_equally_precise() -> None:
    """In the upper tail a distribution function is 1 to the last bit, whatever lies beyond."""
    even = alphas_bar(Edm(kind="edm", sigma_min=0.02, sigma_max=50.0))
    for width in (0.3, 1.0):
        below = pmf(spec("edm_lognormal", p_mean=-9.0, p_std=width), 0.0, even)
        above = pmf(spec("edm_lognormal", p_mean=9.0, p_std=width), 0.0, even)
        assert 0.01 < below[1] < below[0]
        np.testing.assert_allclose(below, above[::-1], rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("kind", "fields", "level"),
    [
        ("edm_lognormal", {"p_mean": 50.0, "p_std": 0.01}, 999),
        ("edm_lognormal", {"p_mean": -50.0, "p_std": 0.01}, 0),
        ("edm_lognormal", {"p_mean": -9.0, "p_std": 0.2}, 0),
        ("edm_lognormal", {"p_mean": 7.0, "p_std": 0.2}, 999),
        ("laplace", {"mu": -80.0, "scale": 0.01}, 999),
        ("laplace", {"mu": 80.0, "scale": 0.01}, 0),
        ("logit_normal", {"mean": -90.0, "std": 0.01}, 0),
        ("logit_normal", {"mean": 90.0, "std": 0.01}, 999),
    ],
)
def test_a_density_beyond_the_grid_takes_the_nearest_level(
    kind: str, fields: dict[str, Any], level: int
) -> None:
    p = pmf(spec(kind, **fields), 0.0, EDM)
    assert p.argmax() == level
    assert p.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("edm_lognormal", {"p_mean": -6.0, "p_std": 2.0}), ("laplace", {"mu": 12.0, "scale": 3.0})],
)
def test_no_atom_where_a_density_goes_on_beyond_the_grid(kind: str, fields: dict[str, Any]) -> None:
    """Clamped, a third of the draws and more would lie on the first level."""
    p = pmf(spec(kind, **fields), 0.0, EDM)
    assert p[0] == pytest.approx(p[1], rel=0.02)
