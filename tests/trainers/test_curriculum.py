from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from hasten.trainers.curriculum import Curriculum, gaussian_share, pmf
from hasten.trainers.diffusion import Ddpm, alphas_bar

COSINE = alphas_bar(Ddpm(kind="ddpm", schedule="cosine", timesteps=1000))
LINEAR = alphas_bar(Ddpm(kind="ddpm", schedule="linear", timesteps=1000))
NUM_TIMESTEPS = 1000
ADAPTER: TypeAdapter[Curriculum] = TypeAdapter(Curriculum)


def spec(kind: str, **fields: Any) -> Curriculum:
    return ADAPTER.validate_python({"kind": kind, **fields})


def clts(**fields: Any) -> Curriculum:
    return spec("clts", **{"mu": 0.3, "sigma": 0.2, **fields})


def coordinate_of(name: str, signal: np.ndarray) -> np.ndarray:
    return {
        "timestep": np.arange(len(signal)) / len(signal),
        "noise_variance": 1.0 - signal,
        "noise_rate": np.sqrt(1.0 - signal),
    }[name]


def entropy(p: np.ndarray) -> float:
    positive = p[p > 0.0]
    return float(-(positive * np.log(positive)).sum())


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
    p = pmf(clts(sigma=sigma), 1.0, COSINE)
    for t, printed in ((0, at_0), (300, at_300), (700, at_700), (999, at_999)):
        assert_prints_as(NUM_TIMESTEPS * p[t], printed)
    assert_prints_as(p[:600].sum(), below_600)


@st.composite
def curricula(draw: st.DrawFn) -> Curriculum:
    kind = draw(st.sampled_from(["uniform", "clts", "reverse", "static"]))
    if kind == "uniform":
        return spec("uniform")
    unit = st.floats(0.0, 1.0)
    fields: dict[str, Any] = {
        "mu": draw(unit),
        # Down to widths far below the distance between two timesteps.
        "sigma": 10.0 ** draw(st.floats(-8.0, 1.0)),
        "coordinate": draw(st.sampled_from(["timestep", "noise_variance", "noise_rate"])),
    }
    if kind == "static":
        return spec(kind, **fields, weight=draw(unit))
    start = draw(st.floats(0.0, 0.99))
    ramp = draw(st.floats(start, 1.0, exclude_min=True).filter(lambda value: value > 0.0))
    return spec(kind, **fields, start=start, ramp=ramp, peak=draw(unit))


@given(
    curriculum=curricula(),
    progress=st.sampled_from([-1.0, 0.0, 1.0, 1.7]) | st.floats(-2.0, 3.0),
    schedule=st.sampled_from(["linear", "cosine"]),
    timesteps=st.sampled_from([2, 3, 10, 1000]),
)
def test_pmf_is_a_distribution(
    curriculum: Curriculum, progress: float, schedule: str, timesteps: int
) -> None:
    signal = alphas_bar(Ddpm.model_validate({"kind": "ddpm", "schedule": schedule, "timesteps": timesteps}))
    p = pmf(curriculum, progress, signal)
    assert p.shape == (timesteps,)
    assert np.isfinite(p).all()
    assert (p >= 0.0).all()
    assert p.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("coordinate", ["timestep", "noise_variance", "noise_rate"])
@pytest.mark.parametrize("mu", [0.0, 0.5, 1.0])
def test_narrow_gaussian_far_from_every_timestep_takes_the_nearest(coordinate: str, mu: float) -> None:
    signal = np.array([0.9, 0.7, 0.3])
    p = pmf(clts(mu=mu, sigma=1e-6, coordinate=coordinate), 1.0, signal)
    assert p.argmax() == np.abs(coordinate_of(coordinate, signal) - mu).argmin()
    assert p.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("coordinate", ["timestep", "noise_variance", "noise_rate"])
@pytest.mark.parametrize("signal", [COSINE, LINEAR], ids=["cosine", "linear"])
def test_from_uniform_to_the_gaussian(coordinate: str, signal: np.ndarray) -> None:
    curriculum = clts(coordinate=coordinate)
    x = coordinate_of(coordinate, signal)
    gaussian = np.exp(-((x - 0.3) ** 2) / (2 * 0.2**2))
    gaussian /= gaussian.sum()
    np.testing.assert_array_equal(pmf(curriculum, 0.0, signal), np.full(1000, 1e-3))
    np.testing.assert_allclose(pmf(curriculum, 1.0, signal), gaussian, rtol=1e-12)
    np.testing.assert_allclose(pmf(curriculum, 0.25, signal), 0.75e-3 + 0.25 * gaussian, rtol=1e-12)


def test_progress_outside_the_run_is_clamped() -> None:
    for kind in ("clts", "reverse"):
        curriculum = spec(kind, sigma=0.2)
        np.testing.assert_array_equal(pmf(curriculum, -1.0, COSINE), pmf(curriculum, 0.0, COSINE))
        np.testing.assert_array_equal(pmf(curriculum, 1.7, COSINE), pmf(curriculum, 1.0, COSINE))


@pytest.mark.parametrize("sigma", [0.15, 0.2, 0.5])
@pytest.mark.parametrize("coordinate", ["timestep", "noise_variance", "noise_rate"])
def test_entropy_falls_smoothly_and_nothing_collapses(sigma: float, coordinate: str) -> None:
    """Missing parentheses in a public re-implementation leave the draw uniform for 99 % of the run, and
    put all of it on t = 300 at the end."""
    curriculum = clts(sigma=sigma, coordinate=coordinate)
    densities = [pmf(curriculum, progress, COSINE) for progress in np.linspace(0.0, 1.0, 201)]
    entropies = np.array([entropy(p) for p in densities])
    falls = -np.diff(entropies)
    assert (falls > 0.0).all()
    assert falls.max() < 0.05 * falls.sum()
    # Half of the way is felt: a sixth of the fall at least.
    assert entropies[0] - entropies[100] > falls.sum() / 6.0
    # As many timesteps as a Gaussian of this width reaches remain in play to the end.
    assert np.exp(entropies[-1]) > 0.1 * NUM_TIMESTEPS
    assert max(p.max() for p in densities) < 0.01


@pytest.mark.parametrize(("progress", "printed"), [(0.5, 1.57e-3), (0.99, 2.13e-3), (0.999, 2.14e-3)])
def test_density_at_the_centre_is_no_spike(progress: float, printed: float) -> None:
    assert pmf(clts(), progress, COSINE)[300] == pytest.approx(printed, rel=0.01)


@given(
    progress=st.floats(0.0, 1.0),
    start=st.floats(0.0, 0.45),
    ramp=st.floats(0.55, 1.0),
    peak=st.floats(0.0, 1.0),
)
def test_reverse_mirrors_clts(progress: float, start: float, ramp: float, peak: float) -> None:
    plain = pmf(spec("reverse", sigma=0.2), progress, COSINE)
    np.testing.assert_allclose(plain, pmf(clts(), 1.0 - progress, COSINE), atol=1e-15)
    backwards = spec("reverse", sigma=0.2, start=start, ramp=ramp, peak=peak)
    forwards = clts(start=1.0 - ramp, ramp=1.0 - start, peak=peak)
    np.testing.assert_allclose(
        pmf(backwards, progress, COSINE), pmf(forwards, 1.0 - progress, COSINE), atol=1e-15
    )


@pytest.mark.parametrize("ramp", [0.25, 0.5, 1.0])
def test_static_is_the_time_average_of_clts(ramp: float) -> None:
    """Over the run the Gaussian's mean share is 1 - ramp/2: the control for the ramp has the same draws."""
    midpoints = (np.arange(1000) + 0.5) / 1000
    average = np.mean([pmf(clts(ramp=ramp), progress, COSINE) for progress in midpoints], axis=0)
    static = pmf(spec("static", sigma=0.2, weight=1.0 - ramp / 2.0), 0.123, COSINE)
    np.testing.assert_allclose(static, average, atol=1e-12)


def test_default_weight_of_static_is_clts_with_ramp_1() -> None:
    assert gaussian_share(spec("static", sigma=0.2), 0.0) == 0.5


@pytest.mark.parametrize(
    ("fields", "progress", "share"),
    [
        ({}, 0.0, 0.0),
        ({}, 0.3, 0.3),
        ({}, 1.0, 1.0),
        ({}, 1.7, 1.0),
        ({"ramp": 0.5}, 0.25, 0.5),
        ({"ramp": 0.5}, 0.5, 1.0),
        ({"ramp": 0.5}, 0.9, 1.0),
        ({"start": 0.2, "ramp": 0.6}, 0.1, 0.0),
        ({"start": 0.2, "ramp": 0.6}, 0.2, 0.0),
        ({"start": 0.2, "ramp": 0.6}, 0.4, 0.5),
        ({"start": 0.2, "ramp": 0.6}, 0.6, 1.0),
        ({"peak": 0.8}, 0.5, 0.4),
        ({"peak": 0.8}, 1.0, 0.8),
        ({"peak": 0.0}, 1.0, 0.0),
    ],
)
def test_share_of_the_gaussian(fields: dict[str, float], progress: float, share: float) -> None:
    assert gaussian_share(clts(**fields), progress) == pytest.approx(share)
    peak = fields.get("peak", 1.0)
    reverse = gaussian_share(spec("reverse", sigma=0.2, **fields), progress)
    assert reverse == pytest.approx(peak - share)


def test_peak_keeps_a_uniform_floor() -> None:
    p = pmf(clts(sigma=0.05, peak=0.9), 1.0, COSINE)
    assert p.min() == pytest.approx(0.1 / NUM_TIMESTEPS, rel=1e-6)


def test_uniform_and_static_do_not_change() -> None:
    for curriculum in (spec("uniform"), spec("static", sigma=0.2, weight=0.7)):
        densities = [pmf(curriculum, progress, COSINE) for progress in (-1.0, 0.0, 0.5, 1.0, 1.7)]
        for density in densities[1:]:
            np.testing.assert_array_equal(density, densities[0])


@pytest.mark.parametrize("kind", ["clts", "reverse", "static"])
@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0])
def test_no_atoms_at_the_ends(kind: str, mu: float) -> None:
    """Clamped samples of N(0.3, 0.5) would put 27 % of the draws on the first timestep, 8 % on the last."""
    for progress in (0.0, 0.5, 1.0):
        p = pmf(spec(kind, mu=mu, sigma=0.5), progress, COSINE)
        assert p[0] == pytest.approx(p[1], rel=0.01)
        assert p[-1] == pytest.approx(p[-2], rel=0.01)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "clts"},
        {"kind": "clts", "sigma": 0.0},
        {"kind": "clts", "sigma": float("nan")},
        {"kind": "clts", "sigma": 0.2, "mu": 1.1},
        {"kind": "clts", "sigma": 0.2, "ramp": 0.0},
        {"kind": "clts", "sigma": 0.2, "start": 0.5, "ramp": 0.5},
        {"kind": "reverse", "sigma": 0.2, "start": 0.6, "ramp": 0.5},
        {"kind": "clts", "sigma": 0.2, "weight": 0.5},
        {"kind": "static", "sigma": 0.2, "ramp": 0.5},
        {"kind": "uniform", "mu": 0.3},
        {"kind": "clts", "sigma": 0.2, "coordinate": "snr"},
    ],
)
def test_impossible_curricula_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(fields)
