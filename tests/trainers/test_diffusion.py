from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from hasten.trainers.diffusion import Ddpm, alphas_bar, betas

Schedule = Literal["linear", "cosine"]


def ddpm(schedule: Schedule, timesteps: int = 1000) -> Ddpm:
    return Ddpm(kind="ddpm", schedule=schedule, timesteps=timesteps)


@pytest.mark.parametrize("timesteps", [50, 250, 1000])
@pytest.mark.parametrize(("schedule", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_diffusers_has_the_same_chain(schedule: Schedule, theirs: str, timesteps: int) -> None:
    scale = 1000 / timesteps
    oracle = DDPMScheduler(
        num_train_timesteps=timesteps, beta_start=1e-4 * scale, beta_end=0.02 * scale, beta_schedule=theirs
    )
    spec = ddpm(schedule, timesteps)
    np.testing.assert_allclose(betas(spec), oracle.betas.numpy(), rtol=2e-4, atol=1e-8)
    np.testing.assert_allclose(alphas_bar(spec), oracle.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-8)


def first_at(values: np.ndarray, level: float) -> int:
    return int(np.argmax(values >= level))


@pytest.mark.parametrize(
    ("schedule", "variance_index", "rate_index", "variance_at_300", "rate_at_300"),
    [("linear", 184, 92, 0.606, 0.778), ("cosine", 363, 187, 0.214, 0.463)],
)
def test_where_0_3_sits(
    schedule: Schedule, variance_index: int, rate_index: int, variance_at_300: float, rate_at_300: float
) -> None:
    """A curriculum's centre of 0.3 is another timestep in each coordinate and noise schedule."""
    variance = 1.0 - alphas_bar(ddpm(schedule))
    assert first_at(variance, 0.3) == pytest.approx(variance_index, abs=1)
    assert first_at(np.sqrt(variance), 0.3) == pytest.approx(rate_index, abs=1)
    assert variance[300] == pytest.approx(variance_at_300, abs=5e-4)
    assert np.sqrt(variance[300]) == pytest.approx(rate_at_300, abs=5e-4)


@given(schedule=st.sampled_from(["linear", "cosine"]), timesteps=st.integers(2, 3000))
def test_signal_falls_from_nearly_one_towards_zero(schedule: Schedule, timesteps: int) -> None:
    variance, signal = betas(ddpm(schedule, timesteps)), alphas_bar(ddpm(schedule, timesteps))
    assert variance.shape == signal.shape == (timesteps,)
    assert ((variance > 0.0) & (variance < 1.0)).all()
    assert ((signal > 0.0) & (signal <= 1.0)).all()
    assert (np.diff(signal) < 0.0).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("timesteps", [10, 100, 1000, 4000])
def test_every_chain_ends_in_noise(schedule: Schedule, timesteps: int) -> None:
    assert alphas_bar(ddpm(schedule, timesteps))[-1] < 1e-3
