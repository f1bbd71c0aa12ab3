"""Does a study come to the same end whatever is killed on the way?

A study runs once undisturbed. Then it runs anew, round after round, each with servers and a store of its own,
and at random moments its driver is ended (``kill -9`` or SIGTERM), processes of its trials are killed, and
servers go away for a while, MLflow or the object store: killed, or silent. The same command is given again
until it is done. In the end points, records, results and MLflow's runs are held against the undisturbed ones:
nothing but clocks may differ, and nothing may be left running. What is random is addressed by ``--seed``: a
round can be had again, as far as the machine's pace allows.

    space         Optuna proposes and ASHA stops, on simulated trials
    arms          real training: arms that share their beginning, two seeds
    population    members take over each other's weights, on simulated trials

    python tests/benchmarks/chaos.py --study space --rounds 5 --out infra/measurements/chaos.json
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal

import harness
import numpy as np
import own_stack
import psutil
import remains
from outage import Outage
from remains import Remains

from hasten.platform import services, settings
from hasten.platform.stack import processes
from hasten.sweeps import plan as plans
from hasten.sweeps import study as study_files
from hasten.trainers import config, randomness

_RATE: Final = {"log_uniform": [3e-4, 1e-2]}
_SIMULATED: Final = {"model.seconds": 2.0, "execution.checkpoint_every": 0.1}
_LATE: Final = {"kind": "clts", "mu": 0.3, "sigma": 0.2}
STUDIES: Final[dict[str, dict[str, Any]]] = {
    "space": {
        "base": "simulated",
        "base_overrides": _SIMULATED,
        "space": {"optimizer.lr": _RATE, "optimizer.batch": {"choice": [32, 64, 128]}},
        "search": {"kind": "optuna", "trials": 16, "startup": 4},
        "stopping": {"kind": "asha", "grace": 0.1, "reduction": 2},
    },
    "arms": {
        "base": "digits-demo",
        "base_overrides": {
            "budget.images": 12_800,
            "model.channels": 8,
            "eval.loss.images": 64,
            "eval.samples": {"at": [1.0], "images": 64, "steps": 4},
            "eval.grid": {"every": 0.5, "images": 4, "steps": 4},
            "execution.checkpoint_every": 0.1,
        },
        "arms": {
            "baseline": {},
            "late": {"curriculum": {**_LATE, "start": 0.5}},
            "later": {"curriculum": {**_LATE, "start": 0.7}},
            "decay": {"momentum": {"kind": "mdlrc", "delay": 0.4}},
        },
        "seeds": [0, 1],
    },
    "population": {
        "base": "simulated",
        "base_overrides": _SIMULATED,
        "space": {"optimizer.lr": _RATE, "momentum.beta": {"uniform": [0.5, 0.95]}},
        "search": {"kind": "pbt", "members": 4, "interval": 0.25},
    },
}

Kind = Literal["driver, kill -9", "driver, SIGTERM", "trial's process", "MLflow away", "object store away"]

_ENDS: Final[dict[Kind, tuple[int, ...]]] = {
    "driver, kill -9": (-signal.SIGKILL,),
    # Nobody listens to it while Python starts and when it ends, and Ray does for a moment at the beginning.
    "driver, SIGTERM": (3, -signal.SIGTERM, signal.SIGTERM),
    "trial's process": (),
    "MLflow away": (),
    "object store away": (1,),  # a driver that cannot write down what happens ends
}
_SERVERS: Final[dict[Kind, str]] = {"MLflow away": "tracking", "object store away": "storage"}
_MOST_TRIALS: Final = 2  # in one command: three deaths of one trial in vain would be a failure, which counts
_FOLLOWED: Final = 1 / 3  # of all SIGTERM by kill -9, as impatient supervisors do, within _GRACE seconds
_GRACE: Final = 5.0
_LOOKS: Final = 0.2  # seconds between two looks
_PATIENCE: Final = 900.0  # seconds for one command


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Blow:
    """What is killed, so many seconds after the command's start; ``aim`` in [0, 1) picks one of several."""

    moment: float
    kind: Kind
    aim: float = 0.0


@dataclass(slots=True, kw_only=True)
class Round:
    """What happened until a study was done.

    ``recovered`` are the seconds from a kill until a new process of a trial works. ``wrong`` is what should
    not be: other ends of commands, other remains, something left running.
    """

    seconds: float = 0.0
    commands: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    recovered: dict[str, list[float]] = field(default_factory=dict)
    attempts: int = 0
    wrong: list[str] = field(default_factory=list)


Blows = Callable[[int], Iterable[Blow]]
"""What strikes the command of that number, from 0."""


def main() -> int:
    """Do it all, print what was seen, and write it where told; 1 when anything was wrong."""
    signal.signal(signal.SIGTERM, _end)  # no server outlives this process
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", action="append", choices=[*STUDIES], help="again for more; all by default")
    parser.add_argument("--rounds", type=int, default=5, help="disturbed runs of each study")
    parser.add_argument("--drivers", type=int, default=5, help="how often a round's driver is ended, at most")
    parser.add_argument("--outages", type=float, default=0.5, help="how often a command meets one, in [0, 1]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="in the study")
    parser.add_argument("--out", type=Path, help="a JSON file for everything that was seen")
    asked = parser.parse_args()
    results = {
        name: survived(
            name,
            asked.set,
            rounds=asked.rounds,
            drivers=asked.drivers,
            outages=asked.outages,
            seed=asked.seed,
        )
        for name in asked.study or STUDIES
    }
    harness.conclude(harness.document("chaos", blocks=(), results=results), asked.out)
    return int(any(found["wrong"] for found in results.values()))


def survived(
    name: str, changes: Sequence[str], *, rounds: int, drivers: int, seed: int, outages: float = 0.0
) -> dict[str, Any]:
    """One study, undisturbed and then disturbed so many times."""
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        file = Path(folder, f"{name}.yaml")
        file.write_text(json.dumps({"name": name, **STUDIES[name]}))
        calm, expected = perform(file, changes, Path(folder, "calm"), undisturbed)
        told = []
        for number in range(rounds):
            # A command that is ended within this time has done something, and left something to do.
            chance = Chance(seed, f"{name}/{number}", span=calm.seconds / 2, drivers=drivers, outages=outages)
            happened, found = perform(file, changes, Path(folder, f"round{number}"), chance)
            happened.wrong += remains.differences(expected, found)
            told.append(happened)
            seen = ", ".join(f"{count} x {kind}" for kind, count in happened.kills.items())
            print(
                f"{name}, round {number + 1} of {rounds}: {seen}: {happened.wrong or 'equal'}",
                file=sys.stderr,
            )
    return summary(calm, expected, told)


def undisturbed(number: int) -> list[Blow]:
    """No blows."""
    del number
    return []


class Chance:
    """Blows at random moments of ``span`` seconds after a command's start.

    The first ``drivers`` commands are ended, if they live so long; any may lose processes of its trials, and
    with probability ``outages`` a server.
    """

    def __init__(self, seed: int, stream: str, *, span: float, drivers: int, outages: float) -> None:
        self._seed, self._stream, self._span = seed, stream, span
        self._drivers, self._outages = drivers, outages

    def __call__(self, number: int) -> list[Blow]:
        addresses = np.arange(8 + 2 * _MOST_TRIALS)
        draw = iter(randomness.uniform(self._seed, f"chaos/{self._stream}/{number}", addresses).tolist())
        trials = int(next(draw) * (_MOST_TRIALS + 1))
        blows = [
            Blow(moment=next(draw) * self._span, kind="trial's process", aim=next(draw))
            for _ in range(trials)
        ]
        if number < self._drivers:
            moment, which, then = next(draw) * self._span, next(draw), next(draw)
            blows.append(Blow(moment=moment, kind="driver, kill -9" if which < 0.5 else "driver, SIGTERM"))
            if which >= 0.5 and then < _FOLLOWED:
                blows.append(Blow(moment=moment + _GRACE * then / _FOLLOWED, kind="driver, kill -9"))
        if next(draw) < self._outages:
            kind: Kind = "MLflow away" if next(draw) < 0.5 else "object store away"
            blows.append(Blow(moment=next(draw) * self._span, kind=kind, aim=next(draw)))
        return sorted(blows)


def perform(file: Path, changes: Sequence[str], home: Path, blows: Blows) -> tuple[Round, Remains]:
    """One study on servers of its own, by the same command again and again until it is done."""
    plan = plans.plan(study_files.load(str(file), config.parse_overrides(changes)))
    command = ["sweep", str(file), *(part for change in changes for part in ("-s", change)), "--json"]
    with own_stack.started(home, tracking=True):
        connected = services.connect(settings.load(), tracking=True, ray=True)
        field, began = Field(home, command), time.monotonic()
        while not field.fight(blows(field.told.commands)):
            pass
        told = field.told
        told.seconds = time.monotonic() - began
        told.wrong += [f"left running: {each}" for each in remains.left_running(home, connected)]
        found = remains.of(plan)
    told.attempts = found.attempts
    return told, found


class Field:
    """Where commands are struck; ``told`` is what happened.

    Args:
        home: of the servers that the commands use.
        command: arguments of ``hasten``.
    """

    def __init__(self, home: Path, command: Sequence[str]) -> None:
        self.told = Round()
        self._home = home
        self._command = command
        self._struck: tuple[Kind, float, set[int]] | None = None  # and which processes worked then
        self._outages: list[Outage] = []

    def fight(self, blows: Iterable[Blow]) -> bool:
        """Give the command, and strike it; whether it came to its end by itself."""
        self.told.commands += 1
        left, ends = list(blows), {0}
        log = self._home.with_suffix(".log")
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "hasten.platform", *self._command], stdout=output, stderr=output
            )
            began = time.monotonic()
            while process.poll() is None:
                self._look()
                passed = time.monotonic() - began
                if left and left[0].moment <= passed:
                    ends.update(self._strike(left.pop(0), process))
                if passed > _PATIENCE:
                    process.kill()
                time.sleep(_LOOKS)
        for outage in self._outages:
            outage.look(over=True)
        self._outages.clear()
        if process.returncode not in ends:
            last = log.read_text().strip().splitlines()[-1:]
            self.told.wrong.append(f"a command ended with {process.returncode}: {last}")
            if len(self.told.wrong) > 2:
                raise RuntimeError(f"it does not come to its end: {self.told.wrong}")
        return process.returncode == 0

    def _strike(self, blow: Blow, process: subprocess.Popen[bytes]) -> tuple[int, ...]:
        """Kill something; the exit codes that this may lead to."""
        working = self._working()
        match blow.kind:
            case "driver, kill -9":
                process.kill()
            case "driver, SIGTERM":
                process.terminate()
            case "trial's process":
                if not working:
                    return ()
                pid = sorted(working)[int(blow.aim * len(working))]
                working[pid].kill()
            case "MLflow away" | "object store away":
                self._outages.append(Outage(self._home, _SERVERS[blow.kind], blow.aim))
        self.told.kills[blow.kind] = self.told.kills.get(blow.kind, 0) + 1
        self._struck = blow.kind, time.monotonic(), set(working)
        return _ENDS[blow.kind]

    def _look(self) -> None:
        """See whether trials work again after the last blow, and have servers back in time."""
        for outage in self._outages:
            outage.look()
        if self._struck is not None:
            kind, moment, before = self._struck
            if self._working().keys() - before:
                self.told.recovered.setdefault(kind, []).append(time.monotonic() - moment)
                self._struck = None

    def _working(self) -> dict[int, psutil.Process]:
        """The processes that work on trials now."""
        found = remains.of_trials(self._home)
        return {process.pid: process for process in found if ".train" in processes.title(process)}


def summary(calm: Round, expected: Remains, rounds: Sequence[Round]) -> dict[str, Any]:
    """What was seen of one study."""
    kills: Counter[str] = sum((Counter(each.kills) for each in rounds), Counter())
    recovered = {kind: [s for each in rounds for s in each.recovered.get(kind, ())] for kind in kills}
    return {
        "trials": len(expected.records),
        "states": dict(Counter(record["state"] for record in expected.records.values())),
        "rounds": len(rounds),
        "kills": dict(kills),
        "commands": sum(each.commands for each in rounds),
        "attempts_a_round": {
            "undisturbed": calm.attempts,
            "disturbed": statistics.mean([each.attempts for each in rounds]),
        },
        "seconds_a_round": {
            "undisturbed": calm.seconds,
            "disturbed": statistics.mean([each.seconds for each in rounds]),
        },
        "seconds_until_a_trial_works_again": {
            kind: {"n": len(seconds), "median": statistics.median(seconds), "max": max(seconds)}
            for kind, seconds in recovered.items()
            if seconds
        },
        "wrong": [line for each in (calm, *rounds) for line in each.wrong] + list(expected.faults),
        "every_round": [asdict(each) for each in rounds],
    }


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + number)


if __name__ == "__main__":
    raise SystemExit(main())
