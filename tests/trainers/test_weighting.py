from __future__ import annotations

import numpy as np
import pytest

from hasten.trainers.diffusion import Ddpm, alphas_bar
from hasten.trainers.weighting import Unweighted, weights


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_unweighted_is_one_at_every_timestep(schedule: str) -> None:
    signal = alphas_bar(Ddpm.model_validate({"kind": "ddpm", "schedule": schedule, "timesteps": 50}))
    factor = weights(Unweighted(kind="none"), signal, "epsilon")
    assert factor.dtype == np.float64
    np.testing.assert_array_equal(factor, np.ones(50))
