"""The short form of the benchmark: no false winners, intervals that hold, and one judgement by two ways.

python tests/benchmarks/false_winners.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import false_winners
import numpy as np
import synthetic_studies

from hasten.sweeps.compare import compare


@pytest.mark.parametrize("noise", false_winners.NOISES)
@pytest.mark.parametrize(("seeds", "arms"), [(3, 1), (3, 6), (5, 3), (20, 6)])
def test_arms_that_do_nothing_do_not_win(noise: synthetic_studies.Noise, seeds: int, arms: int) -> None:
    """1,000 studies each, of which some also by ``compare``; bounds have three standard errors of room."""
    row = false_winners.nothing_to_find(noise, seeds, arms, studies=1000, through=3)
    assert row["false_winners"] <= false_winners.MOST_FALSE_WINNERS
    assert row["either_side"] <= 0.05 + 3 * 0.0069
    covered = row["covered"]
    for name in ("difference", "speedup", "seconds_speedup", "control"):
        assert covered[name] >= 0.95 - 3 * 0.0069, name
    if noise != "skewed":  # a mean of so skewed values has no honest interval of a few seeds
        assert covered["mean"] >= 0.95 - 3 * 0.0069


@pytest.mark.parametrize(("seeds", "arms"), [(5, 1), (5, 6), (10, 6)])
def test_large_effects_are_found_with_the_right_sign(seeds: int, arms: int) -> None:
    row = false_winners.something_to_find(seeds, arms, 10.0, studies=500)
    assert row["found"] >= 0.99
    assert row["wrong_arm"] <= 0.01
    assert row["wrong_sign"] == 0.0


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.5])
def test_speedups_hold_the_truth_where_they_are_shown(ratio: float) -> None:
    row = false_winners.speed_covered("gaussian", 10, ratio, studies=2000)
    assert row["covered"] >= 0.925
    assert row["in_seconds"] >= 0.925
    if ratio == 1.5:
        assert row["all_reached_covered"] < 0.9  # the obvious way, which is why it is not ours


def test_the_check_finds_a_comparison_that_says_something_else() -> None:
    drawn = synthetic_studies.draw(
        np.random.default_rng(1), "gaussian", studies=2, seeds=3, ratios=np.ones(3)
    )
    judged = synthetic_studies.judge(drawn)
    comparison = compare(list(synthetic_studies.results(drawn, 0)), study="nothing")
    false_winners.agree(judged, 0, comparison)
    with pytest.raises(AssertionError):
        false_winners.agree(judged, 1, comparison)


def test_the_whole_document_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "false_winners.json"
    monkeypatch.setattr(
        sys, "argv", ["false_winners.py", "--studies", "40", "--through", "1", "--out", str(out)]
    )
    false_winners.main()
    document = json.loads(out.read_text())
    assert document["environment"]["cores"] >= 1
    assert len(document["results"]["nothing_to_find"]) == 3 * 4 * 6
    assert document["results"]["summary"]["judged_by_compare_too"] == 24
