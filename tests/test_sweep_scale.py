"""The benchmark of sweeps, with next to no trials: that it works, and that its parts add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "sweep_scale.py"


@pytest.mark.slow
@pytest.mark.stack
@pytest.mark.timeout(900)
def test_sweep_scale(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    options = ["--sizes", "3", "6", "--trials", "4", "--goodput", "0.3", "--seconds", "0.2", "--pairs", "1"]
    command = [sys.executable, str(SCRIPT), *options, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())["results"]
    assert [row["trials"] for row in results["growth"]["sizes"]] == [3, 6]
    for row in results["growth"]["sizes"]:
        parts = row["breakdown"]
        assert sum(parts.values()) == pytest.approx(parts["useful"] + row["overhead"])
        assert parts["useful"] >= 0.05, "trials sleep for that long"
        assert row["queries"]["running"] == 0, "the driver asks MLflow nothing a trial"
    assert 0.0 < results["goodput"][0]["steady"]["value"] < 1.0
    assert set(results["ratios"]["overhead"]) == {
        "ours",
        "ours, again",
        "tune",
        "tune, reused actors",
        "optuna, processes",
    }
