"""A study comes to the same end whatever is killed, silent or away meanwhile.

The rounds are a short form of ``python tests/benchmarks/chaos.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from hasten.platform import services, settings
from hasten.platform.stack import launcher, processes
from hasten.sweeps import plan as plans
from hasten.sweeps import study as studies
from hasten.trainers import config

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import chaos
import remains
from chaos import Blow, Blows, Round
from remains import Remains

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]

CHANGES = ["search.trials=8"]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Round, Remains]:
    """A study of Optuna and ASHA, and what it comes to undisturbed."""
    folder = tmp_path_factory.mktemp("calm")
    file = folder / "space.yaml"
    file.write_text(json.dumps({"name": "space", **chaos.STUDIES["space"]}))
    told, found = chaos.perform(file, CHANGES, folder / "home", chaos.undisturbed)
    assert told.wrong == []
    return file, told, found


def disturbed(calm: tuple[Path, Round, Remains], home: Path, blows: Blows) -> dict[str, Any]:
    """The same study, its servers and its store new, struck by ``blows``."""
    file, told, expected = calm
    happened, found = chaos.perform(file, CHANGES, home, blows)
    happened.wrong += remains.differences(expected, found)
    return chaos.summary(told, expected, [happened])


def test_whatever_is_killed(calm: tuple[Path, Round, Remains], tmp_path: Path) -> None:
    """Driver and trials killed at random: the same points, records, results and MLflow runs as undisturbed,
    one run a trial, none RUNNING, and no process, actor or placement group left."""
    chance = chaos.Chance(1, "short", span=calm[1].seconds / 2, drivers=2, outages=0.0)
    found = disturbed(calm, tmp_path / "home", chance)
    assert sum(found["kills"].values()) > 0, "nothing was killed: nothing was proved"
    assert found["wrong"] == []


@pytest.mark.parametrize("aim", [0.3, 0.8], ids=["silent", "killed"])  # for 18 seconds
def test_whichever_server_is_away(calm: tuple[Path, Round, Remains], tmp_path: Path, aim: float) -> None:
    """In mid-study MLflow, then the object store, do not answer for a while: one command sees it through."""
    middle = calm[1].seconds / 2

    def blows(number: int) -> Iterable[Blow]:
        away: list[Blow] = []
        if number == 0:
            away.append(Blow(moment=middle, kind="MLflow away", aim=aim))
            away.append(Blow(moment=middle + 2.0, kind="object store away", aim=aim))
        return away

    found = disturbed(calm, tmp_path / "home", blows)
    assert found["kills"] == {"MLflow away": 1, "object store away": 1}
    assert found["wrong"] == []
    assert found["commands"] == 1


SLEEPS = {
    "name": "headless",
    "base": "simulated",
    "base_overrides": {"model.seconds": 4.0, "execution.checkpoint_every": 0.1},
    "space": {"optimizer.lr": {"log_uniform": [3e-4, 1e-2]}},
    "search": {"kind": "random", "trials": 8},
}


def test_a_lost_head_ends_the_command_and_nothing_else(own_home: Path, tmp_path: Path) -> None:
    """Ray's head is killed while its node goes on, as on a cluster with a head of its own: the command says
    so and ends in order, and goes on where it was once there is a head again."""
    file = tmp_path / "headless.yaml"
    file.write_text(json.dumps(SLEEPS))
    command = [sys.executable, "-m", "hasten.platform", "sweep", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "finished" in line:
            break
    minder = next(part.pid for part in launcher.status(settings.load()) if part.part == "ray")
    assert minder is not None
    psutil.Process(minder).suspend()  # or it would end the node too
    for member in processes.members(own_home, "ray"):
        if "gcs_server" in processes.title(member).split(" ")[0]:
            member.kill()
    rest, _ = process.communicate(timeout=150)
    said += rest
    assert process.returncode == 3, said
    assert "does not answer any more" in said
    assert "Traceback" not in said
    processes.stop(processes.members(own_home, "ray"), grace=0.0)

    connected = services.connect(settings.load(), tracking=True)
    client = MlflowClient(connected.tracking_uri)
    experiment = client.get_experiment_by_name("headless")
    before = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in before} <= {"FINISHED", "KILLED"}, "a run was left RUNNING"

    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    plan = plans.plan(config.validate(studies.StudySpec, SLEEPS))
    found = remains.of(plan)
    assert found.faults == ()
    assert {record["state"] for record in found.records.values()} == {"finished"}
    assert len(found.records) == 8
