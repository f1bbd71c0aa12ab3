"""A study whose driver and whose trials are killed again and again comes to the same end.

The short form of ``python tests/benchmarks/chaos.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import chaos

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]


def test_whatever_is_killed_a_study_comes_to_the_same_end() -> None:
    """Optuna and ASHA, driver and trials killed at random: the same points, records, results and MLflow
    runs as undisturbed, one run a trial, none RUNNING, and no process, actor or placement group left."""
    found = chaos.survived("space", ["search.trials=8"], rounds=1, drivers=2, seed=1)
    assert sum(found["kills"].values()) > 0, "nothing was killed: nothing was proved"
    assert found["wrong"] == []
