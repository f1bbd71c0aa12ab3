"""Does a pipeline keep a model fresh whatever happens to it?

Simulated days go by: data arrive or do not, somebody makes a mistake in the recipe, somebody improves it.
Each day several ticks are started at once, on servers of their own. The days pass once undisturbed, a tick a
day, and once more with ticks that are ended at random moments (``kill -9`` or SIGTERM) and servers that go
away (MLflow or the object store, killed or silent); ticks are started again until one comes to a decision.
All along somebody looks at the champion. In the end decisions, versions, trainings and aliases are held
against the undisturbed ones: a training may happen once, and once there is a champion there must always be a
valid one.

    python tests/benchmarks/days.py --days 12 --ticks 3 --kills 2 --out infra/measurements/days.json
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

import harness
import numpy as np
import own_stack
from mlflow import MlflowClient
from outage import Outage

from hasten.platform import settings
from hasten.platform.registry import Registry
from hasten.platform.retraining.assessment import DECISION, KEY
from hasten.platform.services import Services, connect
from hasten.trainers import randomness
from hasten.trainers.datasets import data
from hasten.trainers.errors import HastenError
from hasten.trainers.store import Folder

NAME: Final = "days"
_SOURCE: Final = "arrivals"
_FIRST, _STEP, _ENOUGH = 800, 60, 100  # images: there at first, a day's post, what makes a tick due
_TINY: Final[dict[str, Any]] = {
    "data.source": _SOURCE,
    "model.channels": 8,
    "budget.images": 2560,
    "eval.loss": {"every": 0.25, "images": 200},
    "eval.samples": {"images": 100, "steps": 4},
    "eval.grid": {"every": 1.0, "images": 4, "steps": 4},
    "execution.checkpoint_every": 0.1,
}
_RAILS: Final = dict.fromkeys(("max_frechet_ratio", "min_diversity", "min_unseen", "max_latency_ratio"))
_PATIENCE: Final = 300.0  # seconds for one tick
_MOST: Final = 40  # rounds of ticks for one day
_ENDED: Final = {0, 1, 3, -signal.SIGKILL, -signal.SIGTERM}
_LOOKS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """So many images are there, and this is the recipe's budget."""

    images: int
    budget: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """How often a day's ticks are ended at most, how often they meet an outage, and in what time."""

    kills: int = 0
    outages: float = 0.0
    span: float = 0.0


@dataclass(slots=True, kw_only=True)
class Lived:
    """What the days came to; ``wrong`` is what should not be, ``longest`` the longest tick."""

    decisions: list[str] = field(default_factory=list)
    versions: list[dict[str, str | None]] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    trainings: int = 0
    ticks: dict[str, int] = field(default_factory=dict)
    blows: dict[str, int] = field(default_factory=dict)
    looks: int = 0
    longest: float = 0.0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def calendar(days: int) -> list[Day]:
    """Post on two days of three; a mistake on every fifth day, and an improvement on every seventh."""
    planned, images, budget = [], _FIRST, int(_TINY["budget.images"])
    for number in range(days):
        if number % 3:
            images += _STEP
        if number % 7 == 6:
            budget *= 2
        planned.append(Day(images=images, budget=budget // 8 if number % 5 == 4 else budget))
    return planned


def main() -> int:
    """Live through it all, print what was seen, and write it where told; 1 when anything was wrong."""
    signal.signal(signal.SIGTERM, _end)  # no server outlives this process
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=int, default=12)
    parser.add_argument("--ticks", type=int, default=3, help="ticks that are started at once")
    parser.add_argument("--kills", type=int, default=2, help="how often a day's ticks are ended, at most")
    parser.add_argument("--outages", type=float, default=0.3, help="how often ticks meet one, in [0, 1]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for everything that was seen")
    asked = parser.parse_args()
    results = lived(asked.days, ticks=asked.ticks, kills=asked.kills, outages=asked.outages, seed=asked.seed)
    harness.conclude(harness.document("days", blocks=(), results=results), asked.out)
    return int(bool(results["wrong"]))


def lived(days: int, *, ticks: int, kills: int, outages: float, seed: int) -> dict[str, Any]:
    """So many days, undisturbed and disturbed, and how they differ."""
    planned = calendar(days)
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        calm = _live(Path(folder, "calm"), planned, ticks=1, strike=Strike(), seed=seed)
        strike = Strike(kills=kills, outages=outages, span=calm.longest * ticks)
        rough = _live(Path(folder, "rough"), planned, ticks=ticks, strike=strike, seed=seed)
    wrong = [f"undisturbed: {each}" for each in calm.wrong] + rough.wrong
    for what in ("decisions", "versions", "aliases", "trainings"):
        expected, found = getattr(calm, what), getattr(rough, what)
        if expected != found:
            wrong.append(f"{what}: {found}, undisturbed {expected}")
    return {"undisturbed": asdict(calm), "disturbed": asdict(rough), "wrong": wrong}


def _live(home: Path, planned: Sequence[Day], *, ticks: int, strike: Strike, seed: int) -> Lived:
    told, began = Lived(), time.monotonic()
    with own_stack.started(home, tracking=True) as services:
        watch = Watch(services)
        with watch:
            for number, day in enumerate(planned):
                _arrive(services, day.images)
                draws = iter(randomness.uniform(seed, f"days/{number}", np.arange(8 * _MOST)).tolist())
                told.decisions.append(_decided(home, day, told, draws, ticks=ticks, strike=strike))
                print(f"day {number + 1} of {len(planned)}: {told.decisions[-1]}", file=sys.stderr)
        told.looks, told.wrong = watch.looks, told.wrong + watch.wrong
        _look_back(connect(settings.load(), tracking=True), told)
    told.seconds = time.monotonic() - began
    return told


def _decided(home: Path, day: Day, told: Lived, draws: Iterator[float], *, ticks: int, strike: Strike) -> str:
    """Start ticks together, strike them, and begin again until one decides; what was decided this day."""
    before = _decisions()
    for attempt in range(_MOST):
        field = Field(home, told, strike if attempt < strike.kills else Strike(), draws)
        for answer in field.fight(day, ticks):
            if answer is not None and answer["decision"] != "running":
                # A tick may have been ended right after it had carried its decision out.
                made = _decisions().get(answer["key"])
                is_new = made is not None and answer["key"] not in before
                return str(made if is_new else answer["decision"])
    raise RuntimeError(f"no tick comes to a decision: {told.wrong}")


def _decisions() -> dict[str, str]:
    """What was decided about versions, by what they were made from."""
    versions = Registry(connect(settings.load(), tracking=True).tracking_uri, NAME).versions()
    return {version.tags[KEY]: version.tags[DECISION] for version in versions if DECISION in version.tags}


class Field:
    """Where ticks that are started together are struck, at moments drawn before."""

    def __init__(self, home: Path, told: Lived, strike: Strike, draws: Iterator[float]) -> None:
        self._home, self._told = home, told
        outage, part, moment, self._aim, end, how = (next(draws) for _ in range(6))
        self._part = "tracking" if part < 0.5 else "storage"
        self._outage_at = strike.span * moment if outage < strike.outages else None
        self._end_at, self._kill = (strike.span * end if strike.kills else None), how < 0.6
        self._away: Outage | None = None

    def fight(self, day: Day, ticks: int) -> list[dict[str, Any] | None]:
        """What ticks that were started at once answer; None for one that did not live to tell."""
        file = self._home / "days.yaml"
        file.write_text(json.dumps(_pipeline(day)))
        command = [sys.executable, "-m", "hasten.platform", "retrain", str(file), "--json"]
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(ticks)
        ]
        began = time.monotonic()
        while any(process.poll() is None for process in processes):
            self._look(time.monotonic() - began, processes)
            time.sleep(_LOOKS)
        self._told.longest = max(self._told.longest, time.monotonic() - began)
        if self._away is not None:
            self._away.look(over=True)
        return [self._answer(process) for process in processes]

    def _look(self, passed: float, processes: Sequence[subprocess.Popen[str]]) -> None:
        if self._outage_at is not None and passed > self._outage_at:
            self._away, self._outage_at = Outage(self._home, self._part, self._aim), None
            self._count(f"{self._part} away")
        if self._away is not None:
            self._away.look()
        if self._end_at is not None and passed > self._end_at:
            for process in processes:
                process.kill() if self._kill else process.terminate()
            self._count("kill -9" if self._kill else "SIGTERM")
            self._end_at = None
        if passed > _PATIENCE:
            self._told.wrong.append("a tick does not end")
            for process in processes:
                process.kill()

    def _count(self, blow: str) -> None:
        self._told.blows[blow] = self._told.blows.get(blow, 0) + 1

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any] | None:
        out, err = process.communicate()
        found: dict[str, Any] | None = json.loads(out.splitlines()[-1]) if process.returncode == 0 else None
        how = found["decision"] if found else f"exit {process.returncode}"
        self._told.ticks[how] = self._told.ticks.get(how, 0) + 1
        if process.returncode not in _ENDED or "Traceback" in err:
            self._told.wrong.append(
                f"a tick ended with {process.returncode}: {err.strip().splitlines()[-1:]}"
            )
        return found


def _pipeline(day: Day) -> dict[str, Any]:
    return {
        "name": NAME,
        "model": NAME,
        "recipe": "digits-demo",
        "overrides": _TINY | {"budget.images": day.budget},
        "trigger": {"min_new_samples": _ENOUGH},
        "guardrails": _RAILS,
    }


def _arrive(services: Services, count: int) -> None:
    """Let so many images be there."""
    pixels, labels = data.digits()
    folder = Folder(f"{services.storage_uri}/data/{_SOURCE}")
    data.write(folder, name=_SOURCE, source="the post", pixels=pixels[:count], labels=labels[:count])


class Watch:
    """Looks at the champion all the time."""

    def __init__(self, services: Services) -> None:
        self._registry, self._over = Registry(services.tracking_uri, NAME), threading.Event()
        self._thread, self._there = threading.Thread(target=self._look), False
        self.looks = 0
        self.wrong: list[str] = []

    def _look(self) -> None:
        while not self._over.wait(0.2):
            try:
                found = self._registry.champion()
            except HastenError:
                continue  # MLflow is away
            self.looks += 1
            self._there = self._there or found is not None
            if self._there and (found is None or "hasten.run_uri" not in found.tags):
                self.wrong.append("there was no valid champion")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _look_back(services: Services, told: Lived) -> None:
    """What the registry and MLflow know in the end."""
    client = MlflowClient(services.tracking_uri)
    tags = (KEY, DECISION, "hasten.retrain.reason")
    told.versions = [
        {tag: version.tags.get(tag) for tag in tags}
        for version in reversed(Registry(services.tracking_uri, NAME).versions())
    ]
    aliases = client.get_registered_model(NAME).aliases
    told.aliases = {alias: str(version) for alias, version in aliases.items()}
    experiment = client.get_experiment_by_name(f"retrain-{NAME}")
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'run'", max_results=1000)
    told.trainings = len(runs)
    names = Counter(run.info.run_name for run in runs)
    told.wrong += [f"{name} was begun {count} times" for name, count in names.items() if count > 1]
    told.wrong += [
        f"{run.info.run_name} is {run.info.status}" for run in runs if run.info.status != "FINISHED"
    ]


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
