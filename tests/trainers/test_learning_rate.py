from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from hasten.trainers.learning_rate import LearningRate, factor, warmup

ADAPTER: TypeAdapter[LearningRate] = TypeAdapter(LearningRate)
KINDS = ["constant", "cosine", "linear", "inverse_sqrt"]


def spec(kind: str, **fields: Any) -> LearningRate:
    return ADAPTER.validate_python({"kind": kind, **fields})


def torchs(scheduler: Any, num_steps: int, **options: Any) -> np.ndarray:
    """The rates that one of torch's own schedulers gives before each of ``num_steps`` + 1 steps, for lr 1."""
    optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=1.0)
    schedule = scheduler(optimizer, **options)
    rates = []
    for _ in range(num_steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return np.array(rates)


def ours(schedule: LearningRate, num_steps: int) -> np.ndarray:
    return np.array([factor(schedule, step / num_steps) for step in range(num_steps + 1)])


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_is_torchs_cosine_annealing(final: float) -> None:
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    expected = torchs(cosine, 40, T_max=40, eta_min=final)
    np.testing.assert_allclose(ours(spec("cosine", final=final), 40), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_linear_is_torchs_linear(final: float) -> None:
    linear = torch.optim.lr_scheduler.LinearLR
    expected = torchs(linear, 40, start_factor=1.0, end_factor=final, total_iters=40)
    np.testing.assert_allclose(ours(spec("linear", final=final), 40), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("images", "batch"), [(2048 << 20, 2048), (2048 << 20, 512)])
def test_inverse_sqrt_is_edm2s_formula_at_any_batch(images: int, batch: int) -> None:
    """ref_lr / sqrt(max(n / (ref_batches batch), 1)) with n images, arXiv 2312.02696; in progress, the batch
    only matters for what `reference` is."""
    ref_batches = 70_000
    schedule = spec("inverse_sqrt", reference=ref_batches * batch / images)
    for n in (0, 10_000_000, 143_000_000, 144_000_000, 500_000_000, images):
        expected = 1.0 / np.sqrt(max(n / (ref_batches * batch), 1.0))
        assert factor(schedule, n / images) == pytest.approx(expected, rel=1e-12)


def test_default_reference_is_edm2s() -> None:
    assert spec("inverse_sqrt") == spec("inverse_sqrt", reference=0.07)
    assert round(70_000 / (1 << 20), 2) == 0.07


@pytest.mark.parametrize(
    ("schedule", "at_0", "at_half", "at_1"),
    [
        (spec("constant"), 1.0, 1.0, 1.0),
        (spec("cosine"), 1.0, 0.5, 0.0),
        (spec("cosine", final=0.2), 1.0, 0.6, 0.2),
        (spec("linear"), 1.0, 0.5, 0.0),
        (spec("linear", final=0.1), 1.0, 0.55, 0.1),
        (spec("inverse_sqrt", reference=0.125), 1.0, 0.5, 0.125**0.5),
        (spec("inverse_sqrt", reference=1.0), 1.0, 1.0, 1.0),
    ],
)
def test_table(schedule: LearningRate, at_0: float, at_half: float, at_1: float) -> None:
    found = [factor(schedule, progress) for progress in (0.0, 0.5, 1.0)]
    assert found == pytest.approx([at_0, at_half, at_1], abs=1e-15)
    # A run that is continued past its end keeps the last rate, whatever comes before the start the first.
    assert factor(schedule, 1.7) == factor(schedule, 1.0)
    assert factor(schedule, -0.5) == factor(schedule, 0.0)


@given(kind=st.sampled_from(KINDS), first=st.floats(0.0, 1.0), second=st.floats(0.0, 1.0))
def test_rates_never_rise_nor_leave_the_unit_range(kind: str, first: float, second: float) -> None:
    earlier, later = sorted((first, second))
    assert 1.0 >= factor(spec(kind), earlier) >= factor(spec(kind), later) >= 0.0


def test_linear_to_a_tenth_is_mdlrcs_rate() -> None:
    """eta0 (1 - b0 tau), method.md 2.2.1: the same control by another name."""
    from hasten.trainers import momentum

    control = momentum.LrOnly(kind="lr_only", beta=0.9)
    for tau in np.linspace(0.0, 1.0, 11):
        assert factor(spec("linear", final=0.1), tau) == pytest.approx(
            momentum.at(control, tau)[1], rel=1e-12
        )


@pytest.mark.parametrize(
    ("progress", "share", "expected"),
    [(0.01, 0.04, 0.25), (0.04, 0.04, 1.0), (0.5, 0.04, 1.0), (0.001, 0.0, 1.0), (1.0, 0.0, 1.0)],
)
def test_warmup(progress: float, share: float, expected: float) -> None:
    assert warmup(progress, share) == pytest.approx(expected)


@given(batch=st.integers(1, 64), share=st.floats(1e-6, 0.99))
def test_warmup_never_trains_at_rate_zero(batch: int, share: float) -> None:
    """And bit for bit what the loop computed before."""
    assert warmup(batch / 1000, share) == min(1.0, (batch / 1000) / share) > 0.0


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "constant", "final": 0.1},
        {"kind": "cosine", "final": 1.1},
        {"kind": "linear", "final": -0.1},
        {"kind": "inverse_sqrt", "reference": 0.0},
        {"kind": "polynomial"},
    ],
)
def test_impossible_schedules_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(fields)
