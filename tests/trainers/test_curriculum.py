from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from hasten.trainers.curriculum import Clusters, Curriculum, adaptive, constant, corrects, pmf, share, stages
from hasten.trainers.diffusion import Ddpm, Diffusion, Edm, Flow, alphas_bar

COSINE = alphas_bar(Ddpm(kind="ddpm", schedule="cosine", timesteps=1000))
LINEAR = alphas_bar(Ddpm(kind="ddpm", schedule="linear", timesteps=1000))
EDM = alphas_bar(Edm(kind="edm"))
FLOW = alphas_bar(Flow(kind="flow"))
SHIFTED = alphas_bar(Flow(kind="flow", shift=3.0))
GRIDS = {"linear": LINEAR, "cosine": COSINE, "edm": EDM, "flow": FLOW, "shifted": SHIFTED}
NUM_TIMESTEPS = 1000
# One of every kind, none with the numbers that make mistakes cancel (a width of 1, a centre of 0).
EVERY_KIND: dict[str, dict[str, Any]] = {
    "uniform": {},
    "clts": {"sigma": 0.2},
    "reverse": {"sigma": 0.2},
    "static": {"sigma": 0.2},
    "shuffled": {"sigma": 0.2, "permutation_seed": 5},
    "return": {"sigma": 0.2, "ramp": 0.4, "hold": 0.1, "end": 0.8},
    "two_phase": {"switch": 0.6, "std": 0.7},
    "speed": {},
    "edm_lognormal": {},
    "logit_normal": {"mean": 0.3, "std": 0.8},
    "mode": {},
    "cosmap": {},
    "beta": {},
    "laplace": {"mu": 0.5, "scale": 0.75},
    "second_moment": {},
    "clusters": {},
}
ADAPTER: TypeAdapter[Curriculum] = TypeAdapter(Curriculum)
PROCESSES: TypeAdapter[Diffusion] = TypeAdapter(Diffusion)


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


def test_every_kind_is_tested_here() -> None:
    schema = ADAPTER.json_schema()
    assert schema["discriminator"]["mapping"].keys() == EVERY_KIND.keys()


UNIT = st.floats(0.0, 1.0)
CENTRE = st.floats(-100.0, 100.0)  # far beyond every grid too
WIDTH = st.floats(-8.0, 2.0).map(lambda exponent: 10.0**exponent)  # far below the distance of two levels too
GAUSSIAN = {
    "mu": UNIT,
    "sigma": WIDTH.filter(lambda width: width <= 10.0),
    "coordinate": st.sampled_from(["timestep", "noise_variance", "noise_rate"]),
}
ON_UNIT = {"coordinate": st.sampled_from(["flow", "timestep"])}
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "static": {**GAUSSIAN, "weight": UNIT},
    "two_phase": {**ON_UNIT, "mean": CENTRE, "std": WIDTH, "switch": UNIT},
    "speed": {"factor": WIDTH, "tau": UNIT, "pairing": st.booleans()},
    "edm_lognormal": {"p_mean": CENTRE, "p_std": WIDTH},
    "logit_normal": {**ON_UNIT, "mean": CENTRE, "std": WIDTH},
    "mode": {**ON_UNIT, "scale": st.floats(-1.0, 1.75)},
    "cosmap": ON_UNIT,
    "beta": {**ON_UNIT, "alpha": st.floats(1e-3, 10.0)},
    "laplace": {"mu": CENTRE, "scale": WIDTH},
    "clusters": {"clusters": st.integers(2, 50), "coordinate": st.sampled_from(["timestep", "log_snr"])},
}


@st.composite
def curricula(draw: st.DrawFn) -> Curriculum:
    kind = draw(st.sampled_from(sorted(EVERY_KIND)))
    if kind not in ("clts", "reverse", "shuffled", "return"):
        return spec(kind, **{key: draw(values) for key, values in FIELDS.get(kind, {}).items()})
    fields: dict[str, Any] = {key: draw(values) for key, values in GAUSSIAN.items()}
    start = draw(st.floats(0.0, 0.49))
    ramp = draw(st.floats(start, 0.5 if kind == "return" else 1.0, exclude_min=True).filter(bool))
    if kind == "return":
        fields |= {"hold": draw(st.floats(0.0, 0.2)), "end": draw(st.floats(0.71, 1.0))}
    return spec(kind, **fields, start=start, ramp=ramp, peak=draw(UNIT))


@given(
    curriculum=curricula(),
    progress=st.sampled_from([-1.0, 0.0, 1.0, 1.7]) | st.floats(-2.0, 3.0),
    process=st.sampled_from(
        [
            {"kind": "ddpm", "schedule": "linear"},
            {"kind": "ddpm", "schedule": "cosine"},
            {"kind": "edm"},
            {"kind": "edm", "sigma_min": 1e-12, "sigma_max": 1e12},
            {"kind": "flow"},
            {"kind": "flow", "shift": 3.0},
        ]
    ),
    timesteps=st.sampled_from([2, 3, 10, 1000]),
)
def test_pmf_is_a_distribution(
    curriculum: Curriculum, progress: float, process: dict[str, Any], timesteps: int
) -> None:
    signal = alphas_bar(PROCESSES.validate_python(process | {"timesteps": timesteps}))
    p = pmf(curriculum, progress, signal)
    assert p.dtype == np.float64
    assert p.shape == (timesteps,)
    assert np.isfinite(p).all()
    assert (p >= 0.0).all()
    assert p.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_kind_on_every_process(kind: str, grid: str) -> None:
    curriculum = spec(kind, **EVERY_KIND[kind])
    densities = [pmf(curriculum, progress, GRIDS[grid]) for progress in np.linspace(-0.5, 1.5, 41)]
    for p in densities:
        assert (np.isfinite(p) & (p >= 0.0)).all()
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
    moves = any(not np.array_equal(p, densities[0]) for p in densities[1:])
    # What a caller may keep is what does not move.
    assert constant(curriculum) == (not moves and not adaptive(curriculum))
    assert np.array_equal(densities[0], pmf(curriculum, 0.0, GRIDS[grid]))
    assert np.array_equal(densities[-1], pmf(curriculum, 1.0, GRIDS[grid]))


def test_which_adapt_and_which_correct() -> None:
    kinds = {kind: spec(kind, **fields) for kind, fields in EVERY_KIND.items()}
    assert {kind for kind, curriculum in kinds.items() if adaptive(curriculum)} == {
        "second_moment",
        "clusters",
    }
    assert {kind for kind, curriculum in kinds.items() if corrects(curriculum)} == {"second_moment"}
    assert {curriculum.draws for curriculum in kinds.values()} == {"stratified"}


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
    assert share(spec("static", sigma=0.2), 0.0) == 0.5


@pytest.mark.parametrize(
    ("fields", "progress", "expected"),
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
def test_share_of_the_gaussian(fields: dict[str, float], progress: float, expected: float) -> None:
    assert share(clts(**fields), progress) == pytest.approx(expected)
    peak = fields.get("peak", 1.0)
    reverse = share(spec("reverse", sigma=0.2, **fields), progress)
    assert reverse == pytest.approx(peak - expected)


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


def test_shuffled_deals_out_the_same_probabilities() -> None:
    """The placebo: as far from uniform as CLTS at every moment, but with no meaning to which timesteps."""
    for progress in (0.0, 0.4, 1.0):
        shuffled = pmf(spec("shuffled", sigma=0.2, permutation_seed=1), progress, COSINE)
        np.testing.assert_array_equal(np.sort(shuffled), np.sort(pmf(clts(), progress, COSINE)))
    ones = [pmf(spec("shuffled", sigma=0.2, permutation_seed=seed), 1.0, COSINE) for seed in range(20)]
    correlations = np.corrcoef([*ones, pmf(clts(), 1.0, COSINE)]) - np.eye(21)
    assert np.abs(correlations).max() < 4.5 / np.sqrt(1000)
    # The permutation is the same all along: what moves is the share.
    half = pmf(spec("shuffled", sigma=0.2), 0.5, COSINE)
    full = pmf(spec("shuffled", sigma=0.2), 1.0, COSINE)
    np.testing.assert_allclose(half, 0.5e-3 + 0.5 * full, rtol=1e-12)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 0.0),
        (0.2, 0.5),
        (0.4, 1.0),
        (0.45, 1.0),
        (0.5, 1.0),
        (0.65, 0.5),
        (0.8, 0.0),
        (1.0, 0.0),
        (2.0, 0.0),
    ],
)
def test_return_goes_up_stays_and_comes_back(progress: float, expected: float) -> None:
    curriculum = spec("return", sigma=0.2, ramp=0.4, hold=0.1, end=0.8)
    assert share(curriculum, progress) == pytest.approx(expected)
    assert share(spec("return", sigma=0.2, ramp=0.4, hold=0.1, end=0.8, peak=0.5), progress) == pytest.approx(
        0.5 * expected
    )


def test_return_is_clts_until_it_turns() -> None:
    for progress in (0.0, 0.1, 0.5):
        np.testing.assert_array_equal(
            pmf(spec("return", sigma=0.2), progress, COSINE), pmf(clts(ramp=0.5), progress, COSINE)
        )
    np.testing.assert_allclose(pmf(spec("return", sigma=0.2), 1.0, COSINE), 1e-3, rtol=1e-12)


def test_two_phase_is_middle_biased_then_uniform() -> None:
    curriculum = spec("two_phase", switch=0.6)
    middle = pmf(spec("logit_normal", coordinate="timestep"), 0.0, COSINE)
    np.testing.assert_array_equal(pmf(curriculum, 0.599, COSINE), middle)
    np.testing.assert_array_equal(pmf(curriculum, 0.6, COSINE), np.full(1000, 1e-3))
    assert middle.argmax() in (499, 500)
    np.testing.assert_allclose(middle, middle[::-1], rtol=1e-9)


def test_stages_of_the_clusters() -> None:
    plain = Clusters(kind="clusters")
    np.testing.assert_array_equal(stages(plain, COSINE), np.arange(50, 1001, 50))
    by_snr = stages(Clusters(kind="clusters", clusters=4, coordinate="log_snr"), EDM)
    np.testing.assert_array_equal(by_snr, [250, 500, 750, 1000])  # EDM's levels are even in log SNR
    for signal in GRIDS.values():
        for coordinate in ("timestep", "log_snr"):
            for clusters in (2, 7, 30):
                for every in (1, 100, 400):
                    sizes = stages(
                        Clusters.model_validate(
                            {"kind": "clusters", "clusters": clusters, "coordinate": coordinate}
                        ),
                        signal[::every],
                    )
                    assert sizes.shape == (clusters,)
                    assert sizes[0] >= 1
                    assert sizes[-1] == len(signal[::every])
                    assert (np.diff(sizes) >= 0).all()
    first = pmf(plain, 0.7, COSINE)
    np.testing.assert_array_equal(first[:950], 0.0)
    np.testing.assert_allclose(first[950:], 0.02)


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
        {"kind": "shuffled", "sigma": 0.2, "permutation_seed": -1},
        {"kind": "return", "sigma": 0.2, "ramp": 0.5, "hold": 0.5},
        {"kind": "return", "sigma": 0.2, "ramp": 0.5, "end": 0.5},
        {"kind": "edm_lognormal", "p_std": 0.0},
        {"kind": "logit_normal", "coordinate": "log_snr"},
        {"kind": "mode", "scale": 1.76},
        {"kind": "mode", "scale": -1.1},
        {"kind": "beta", "alpha": 0.0},
        {"kind": "laplace", "scale": -1.0},
        {"kind": "speed", "tau": 1.5},
        {"kind": "second_moment", "history": 0},
        {"kind": "clusters", "clusters": 1},
        {"kind": "clusters", "patience": 0.0},
        {"kind": "uniform", "draws": "antithetic"},
    ],
)
def test_impossible_curricula_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(fields)
