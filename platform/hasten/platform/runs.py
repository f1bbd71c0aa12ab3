"""Runs by name: whatever lies under the store's ``runs/``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from hasten.platform import settings
from hasten.platform.connection import connected
from hasten.platform.services import Services
from hasten.sweeps import compare as comparisons
from hasten.sweeps.records import TrialResult
from hasten.sweeps.reports import build
from hasten.sweeps.reports.build import StudyReport
from hasten.sweeps.statistics.comparison import Comparison
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.errors import ConfigError
from hasten.trainers.records import RunResult
from hasten.trainers.specs import RunSpec, flatten
from hasten.trainers.store import Folder

FINGERPRINT: Final = re.compile(r"-[0-9a-f]{12}$")  # at the end of a run's full name


def locate(name: str, storage_uri: str) -> str:
    """The URI of the run that ``name`` means: a URI or path, NAME-FINGERPRINT, or a NAME with one run.

    Raises:
        ConfigError: there is none, or more than one.
    """
    if "://" in name:
        return name.rstrip("/")
    if name.startswith((".", "/")):
        return str(Path(name).absolute())
    folder = f"{storage_uri.rstrip('/')}/runs"
    known = Folder(folder).names()
    if name in known:
        return f"{folder}/{name}"
    meant = [run for run in known if FINGERPRINT.sub("", run) == name]
    if len(meant) > 1:
        raise ConfigError(name, f"is the name of {len(meant)} runs", f"Say which: {', '.join(meant)}.")
    if not meant:
        remedy = "A run's name is printed by `hasten train` and shown in MLflow: RECIPE-FINGERPRINT."
        raise ConfigError(name, "no study or run of that name", remedy)
    return f"{folder}/{meant[0]}"


def store(run: str, services: Services) -> RunStore:
    """The folder of the run that ``run`` means, see :func:`locate`."""
    return RunStore(locate(run, services.storage_uri))


def result(run: str, services: Services) -> RunResult:
    """The result of a finished run.

    Raises:
        ConfigError: there is no finished run of that name.
    """
    found = store(run, services).result()
    if found is None:
        raise ConfigError(run, "is not finished", f"Go on with it: hasten train {FINGERPRINT.sub('', run)}")
    return found


def compare(names: Sequence[str], *, console: Console) -> tuple[Comparison, list[Path]]:
    """Compare runs: those that differ in their seed alone are one arm; the first one's arm is the baseline.

    Raises:
        ConfigError: a run does not exist or is not finished.
    """
    services = connected(console)
    results = {name: result(name, services) for name in names}
    arms = _arms(results)
    trials = [
        TrialResult(trial=name, arm=arms[name], seed=found.spec["budget"]["seed"], result=found)
        for name, found in results.items()
    ]
    compared = comparisons.compare(trials, study="runs", baseline=arms[names[0]])
    told = StudyReport(
        title="Runs",
        question=f"How do {', '.join(names)} compare?",
        comparison=compared,
        records=build.records_of(trials),
        links={"Repeat": f"hasten compare {' '.join(names)}"},
        sheets={arms[name]: store(name, services).sheet_files() for name in reversed(names)},
        provenance=build.provenance_of(trials),
    )
    folder = settings.home() / "reports" / "-".join(dict.fromkeys(results))[:100]
    return compared, build.write(told, folder, pictures=("learning", "differences", "speed"))


def _arms(results: dict[str, RunResult]) -> dict[str, str]:
    """An arm for each run, named by what sets it apart from the first run."""
    flat = {name: flatten(_identity(found)) for name, found in results.items()}
    first = next(iter(flat.values()))
    names = {}
    for run, fields in flat.items():
        keys = sorted(fields.keys() | first.keys())
        different = [
            f"{key}={fields[key]}" for key in keys if key in fields and fields[key] != first.get(key)
        ]
        names[run] = ", ".join(different) or "baseline"
    return names


def _identity(found: RunResult) -> dict[str, object]:
    fields = RunSpec.model_validate(found.spec).identity(found.data_digest)
    del fields["budget"]["seed"]
    plain: dict[str, object] = json.loads(json.dumps(fields))
    return plain
