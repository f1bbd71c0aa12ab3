from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from hasten.trainers import randomness, samplers
from hasten.trainers.curriculum import Curriculum, pmf
from hasten.trainers.diffusion import Ddpm, Edm, Flow, Prediction, alphas_bar, levels, prediction
from hasten.trainers.weighting import Weighting, conflict, constant, epsilon_error, weights
from hasten.trainers.worker import Worker

COSINE = alphas_bar(Ddpm(kind="ddpm", schedule="cosine"))
LINEAR = alphas_bar(Ddpm(kind="ddpm", schedule="linear"))
EDM = alphas_bar(Edm(kind="edm"))
FLOW = alphas_bar(Flow(kind="flow"))
SNR = LINEAR / (1.0 - LINEAR)
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
CLTS = {"kind": "clts", "sigma": 0.2}
EVERY_KIND: dict[str, dict[str, Any]] = {
    "none": {},
    "p2": {},
    "min_snr": {},
    "soft_min_snr": {},
    "change_aware": {},
    "sigma_sqrt": {},
    "cosmap": {},
    "twin": {"of": CLTS},
}
ADAPTER: TypeAdapter[Weighting] = TypeAdapter(Weighting)
CURRICULA: TypeAdapter[Curriculum] = TypeAdapter(Curriculum)


def spec(kind: str, **fields: Any) -> Weighting:
    return ADAPTER.validate_python({"kind": kind, **fields})


def drawn(kind: str, **fields: Any) -> Curriculum:
    return CURRICULA.validate_python({"kind": kind, **fields})


def test_every_kind_is_tested_here() -> None:
    assert ADAPTER.json_schema()["discriminator"]["mapping"].keys() == EVERY_KIND.keys()


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("signal", [COSINE, LINEAR, EDM, FLOW], ids=["cosine", "linear", "edm", "flow"])
def test_weights_are_finite_factors_of_every_level(
    kind: str, predict: Prediction, signal: np.ndarray
) -> None:
    """A vector: a public Min-SNR keeps one number of it."""
    for progress in (-1.0, 0.0, 0.5, 1.0, 2.0):
        factor = weights(spec(kind, **EVERY_KIND[kind]), signal, predict, progress=progress)
        assert factor.dtype == np.float64
        assert factor.shape == signal.shape
        assert (np.isfinite(factor) & (factor >= 0.0)).all()
        assert (factor.std() > 0.0) == (kind != "none" and not (kind == "twin" and progress <= 0.0))


@given(
    process=st.sampled_from(["ddpm", "edm", "flow"]),
    kind=st.sampled_from([kind for kind in EVERY_KIND if kind != "twin"]),
    abar=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=5),
)
def test_levels_of_no_signal_or_no_noise_give_no_nan(process: str, kind: str, abar: list[float]) -> None:
    predict: dict[str, Prediction] = {"ddpm": "epsilon", "edm": "edm", "flow": "velocity"}
    factor = weights(spec(kind), np.sort(np.array(abar))[::-1], predict[process])
    assert not np.isnan(factor).any()
    assert (factor >= 0.0).all()


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_unweighted_is_one_for_every_prediction(predict: Prediction) -> None:
    np.testing.assert_array_equal(weights(spec("none"), COSINE, predict), np.ones(1000))


@pytest.mark.parametrize(
    "process",
    [
        Ddpm(kind="ddpm"),
        Ddpm(kind="ddpm", predict="x0"),
        Ddpm(kind="ddpm", predict="v"),
        Edm(kind="edm", sigma_data=0.3),
        Flow(kind="flow"),
        Flow(kind="flow", shift=3.0),
    ],
    ids=["epsilon", "x0", "v", "edm", "flow", "shifted"],
)
def test_errors_of_all_predictions_are_multiples_of_epsilons(process: Ddpm | Edm | Flow) -> None:
    """The conversion that this module derives from abar is the one that the process's own tables imply."""
    found = epsilon_error(alphas_bar(process), prediction(process), sigma_data=0.3)
    np.testing.assert_allclose(found, levels(process).epsilon_error ** 2, rtol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_in_its_three_published_forms(gamma: float) -> None:
    clamped = np.minimum(SNR, gamma)
    epsilon, x0, v = (weights(spec("min_snr", gamma=gamma), LINEAR, p) for p in ("epsilon", "x0", "v"))
    np.testing.assert_allclose(epsilon, clamped / SNR, rtol=1e-12)
    np.testing.assert_allclose(x0, clamped, rtol=1e-12)
    np.testing.assert_allclose(v, clamped / (SNR + 1.0), rtol=1e-12)
    np.testing.assert_array_equal(epsilon[gamma >= SNR], 1.0)
    assert (epsilon[gamma < SNR] < 1.0).all()


def test_min_snr_at_known_ratios() -> None:
    signal = np.array([100.0, 10.0, 5.0, 1.0, 0.01])
    signal = signal / (1.0 + signal)
    for predict, expected in (
        ("epsilon", [0.05, 0.5, 1.0, 1.0, 1.0]),
        ("x0", [5.0, 5.0, 5.0, 1.0, 0.01]),
        ("v", [5.0 / 101.0, 5.0 / 11.0, 5.0 / 6.0, 0.5, 0.01 / 1.01]),
    ):
        np.testing.assert_allclose(weights(spec("min_snr"), signal, predict), expected, rtol=1e-9)


def test_p2_and_soft_min_snr_identities() -> None:
    np.testing.assert_allclose(weights(spec("p2"), LINEAR, "epsilon"), 1.0 / (1.0 + SNR), rtol=1e-12)
    # With k = gamma = 1 that is 1 - abar: on v, whose error is eps's over abar, (1 - abar) abar.
    np.testing.assert_allclose(weights(spec("p2"), LINEAR, "v"), (1.0 - LINEAR) * LINEAR, rtol=1e-12)
    np.testing.assert_allclose(
        weights(spec("p2", k=2.0, gamma=0.5), LINEAR, "epsilon"), (2.0 + SNR) ** -0.5, rtol=1e-12
    )
    np.testing.assert_array_equal(weights(spec("p2", gamma=0.0), LINEAR, "epsilon"), 1.0)
    soft = weights(spec("soft_min_snr", gamma=5.0), LINEAR, "x0")
    np.testing.assert_allclose(soft, 5.0 * SNR / (5.0 + SNR), rtol=1e-12)
    # Soft: never above the hard clamp, and half of it at SNR = gamma.
    hard = weights(spec("min_snr", gamma=5.0), LINEAR, "x0")
    assert (soft <= hard).all()
    assert (soft >= 0.5 * hard * (1.0 - 1e-12)).all()


def test_flow_weights_in_closed_form() -> None:
    u = (np.arange(1000) + 0.5) / 1000
    np.testing.assert_allclose(weights(spec("sigma_sqrt"), FLOW, "velocity"), u**-2, rtol=1e-9)
    expected = 2.0 / (np.pi * (1.0 - 2.0 * u + 2.0 * u**2))
    np.testing.assert_allclose(weights(spec("cosmap"), FLOW, "velocity"), expected, rtol=1e-9)
    np.testing.assert_allclose(weights(spec("cosmap"), FLOW, "epsilon"), expected / (1.0 - u) ** 2, rtol=1e-9)


@pytest.mark.parametrize("lam", [0.6, 0.8, 0.5])
def test_change_aware_weight_of_speed(lam: float) -> None:
    factor = weights(spec("change_aware", lam=lam, tau=0.7), LINEAR, "epsilon")
    np.testing.assert_array_equal(factor[700:], 1.0)
    growth = np.gradient(1.0 - LINEAR)
    assert factor[growth.argmax()] == pytest.approx(lam)
    assert (factor[:700] >= min(lam, 1.0 - lam) - 1e-12).all()
    assert (factor[:700] <= max(lam, 1.0 - lam) + 1e-12).all()


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_twin_is_the_density_relative_to_uniform(predict: Prediction) -> None:
    """Whatever is predicted: the sampler weights the network's own error too."""
    for progress in (0.0, 0.3, 1.0):
        factor = weights(spec("twin", of=CLTS), COSINE, predict, progress=progress)
        np.testing.assert_array_equal(factor, 1000 * pmf(drawn(**CLTS), progress, COSINE))
        assert factor.mean() == pytest.approx(1.0)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_twin_has_the_expected_gradient_of_its_sampler(progress: float) -> None:
    """By Monte Carlo over one batch law: squared error of a linear model, whose gradient varies with t."""

    def gradient(curriculum: Curriculum, weighting: Weighting) -> torch.Tensor:
        sampler = samplers.build(curriculum, COSINE, device=torch.device("cpu"), worker=Worker())
        images = np.arange(40_000)
        t, _ = sampler.draw(progress, torch.from_numpy(randomness.uniform(1, "t", images)))
        noise = torch.from_numpy(randomness.noise(1, "noise", images, (2,)).astype(np.float64))
        signal = torch.from_numpy(COSINE)[t].sqrt()
        seen = torch.stack([signal, (1.0 - signal**2).sqrt()], dim=1) * noise
        model = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
        error = (seen @ model - noise[:, 1]).square()
        weight = torch.from_numpy(weights(weighting, COSINE, "epsilon", progress=progress))[t]
        (found,) = torch.autograd.grad((weight * error).mean(), model)
        return found

    uniform, clts = drawn("uniform"), drawn(**CLTS)
    sampled, weighted = gradient(clts, spec("none")), gradient(uniform, spec("twin", of=CLTS))
    torch.testing.assert_close(weighted, sampled, rtol=0.0, atol=0.03)
    if progress == 1.0:  # and that is another objective than the plain one, and than both at once
        for other in (gradient(uniform, spec("none")), gradient(clts, spec("twin", of=CLTS))):
            assert (other - sampled).abs().max() > 0.09


def test_which_weights_change_with_progress() -> None:
    for kind, fields in EVERY_KIND.items():
        weighting = spec(kind, **fields)
        moves = not np.array_equal(
            weights(weighting, COSINE, "epsilon"), weights(weighting, COSINE, "epsilon", progress=0.7)
        )
        assert constant(weighting) != moves
    assert constant(spec("twin", of={"kind": "logit_normal"}))


@pytest.mark.parametrize("kind", ["second_moment", "clusters"])
def test_an_adaptive_curriculum_has_no_twin(kind: str) -> None:
    with pytest.raises(ValidationError, match=f"of: {kind} depends on the losses"):
        spec("twin", of={"kind": kind})


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "p2", "k": 0.0},
        {"kind": "p2", "gamma": -1.0},
        {"kind": "min_snr", "gamma": 0.0},
        {"kind": "change_aware", "lam": 1.5},
        {"kind": "twin"},
        {"kind": "twin", "of": {"kind": "none"}},
        {"kind": "none", "gamma": 5.0},
    ],
)
def test_impossible_weightings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(fields)


@pytest.mark.parametrize(
    ("curriculum", "weighting", "reason"),
    [
        (drawn("clts", sigma=0.2), spec("twin", of=CLTS), "same clts"),
        (drawn("clts", sigma=0.2, draws="independent"), spec("twin", of=CLTS), "same clts"),
        (drawn("clts", sigma=0.3), spec("twin", of=CLTS), "two densities"),
        (drawn("clusters"), spec("twin", of=CLTS), "two densities"),
        (drawn("second_moment"), spec("twin", of=CLTS), "divides its own density out"),
        (drawn("cosmap"), spec("cosmap"), "twice"),
        (drawn("uniform"), spec("twin", of=CLTS), None),
        (drawn("uniform", draws="independent"), spec("twin", of=CLTS), None),
        (drawn("clts", sigma=0.2), spec("twin", of={"kind": "uniform"}), None),
        (drawn("clts", sigma=0.2), spec("min_snr"), None),
        (drawn("speed"), spec("change_aware"), None),
        (drawn("second_moment"), spec("p2"), None),
        (drawn("uniform"), spec("cosmap"), None),
    ],
)
def test_what_counts_twice_is_named(curriculum: Curriculum, weighting: Weighting, reason: str | None) -> None:
    found = conflict(curriculum, weighting)
    assert (found is None) if reason is None else (found is not None and reason in found)
