"""What a trial costs the platform itself: trials that only sleep and report, ten of them and a thousand.

    growth      studies of several sizes: processor seconds and memory a trial, start, resumption, report,
                questions to MLflow
    goodput     useful seconds over the seconds that two workers were held, for trials of some seconds
    ratios      against plain Ray Tune, with reused actors and without, and Optuna with processes

A trial's overhead is the seconds that one of the two workers needs for it, less those in which it slept. It
is taken from the end of each worker's first trial to the end of the last of all, so that a command's start
and end do not count; these are told apart.

    python tests/benchmarks/sweep_scale.py --out infra/measurements/sweep_scale.json
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import harness
import own_stack
import ratios
import yaml
from harness import Block, Work
from other_sweeps import REPORTS, WORKERS
from ratios import Aim
from watched import Mark, Stack, Watched

from hasten.platform.services import Services
from hasten.sweeps.conducting.ledger import Ledger
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.store import Folder

OVERHEAD: Final = Aim(bound=0.25, kind="at most")  # seconds a trial
GOODPUT: Final = {8.0: Aim(bound=0.95), 4.0: Aim(bound=0.90)}  # by seconds of a trial
WAIT: Final = Aim(bound=10.0, kind="at most")  # seconds, for resumption and report
SLOPE: Final = Aim(bound=0.1, kind="at most")  # of processor seconds a trial over trials, both as logarithms
_TOLERANCE: Final = 0.05  # of our arm against itself
_ASKED: Final = 8  # trials of a study whose results are looked at
_HERE: Final = Path(__file__).parent


@dataclass(slots=True)
class Studies:
    """Makes studies of simulated trials, each of them new: nothing of an earlier one is there already."""

    folder: Path
    _made: int = 0

    def new(self, trials: int, seconds: float) -> Path:
        """The file of a study of so many trials that sleep for so long."""
        self._made += 1
        return self.write(f"scale-{self._made}", trials=trials, seconds=seconds, seed=self._made)

    def write(self, name: str, *, trials: int, seconds: float, seed: int) -> Path:
        path = self.folder / f"{name}.yaml"
        study = {
            "name": name,
            "question": "What does a trial cost the platform itself?",
            "base": "simulated",
            "base_overrides": {
                "model.seconds": seconds,
                "model.reports": REPORTS,
                "eval.loss.every": 0.1,
            },
            "space": {"optimizer.lr": {"log_uniform": [3e-4, 1e-2]}},
            "search": {"kind": "random", "trials": trials, "seed": seed},
            "execution": {"concurrent": WORKERS},
        }
        path.write_text(yaml.safe_dump(study))
        return path

    def extended(self, study: Path, trials: int) -> Path:
        """The same study with more trials."""
        whole = yaml.safe_load(study.read_text())
        whole["search"]["trials"] = trials
        study.write_text(yaml.safe_dump(whole))
        return study


def main() -> int:
    parser = harness.options(__doc__ or "", seconds=1.0, pairs=4)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="trials of a study")
    parser.add_argument("--trials", type=int, default=40, help="of a block, and for goodput")
    parser.add_argument("--goodput", type=float, nargs="*", default=[4.0, 8.0], help="seconds of a trial")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        with own_stack.started(Path(folder) / "home", tracking=True, ray=True) as services:
            stack, studies = Stack(Path(folder) / "home"), Studies(Path(folder))
            stack.run("sweep", str(studies.new(4, 0.0)))  # the data set is made, files are in memory
            results: dict[str, Any] = {
                "growth": growth(stack, studies, services, given.sizes),
                "goodput": [goodput(stack, studies, given.trials, each) for each in given.goodput],
            }
            blocks = _blocks(stack, studies, given.trials, given.seconds, given.pairs)
        results["ratios"] = _ratios(blocks)
    harness.conclude(harness.document("sweep_scale", blocks=blocks, results=results), given.out)
    return 0


def growth(stack: Stack, studies: Studies, services: Services, sizes: Sequence[int]) -> dict[str, Any]:
    """Studies of trials that hardly sleep, and what becomes of the cost of one as they are more."""
    rows = [_size(stack, studies, services, size) for size in sizes]
    smallest, largest = rows[0], rows[-1]
    slope = math.log(largest["cpu_seconds"]["all"] / smallest["cpu_seconds"]["all"]) / math.log(
        largest["trials"] / smallest["trials"]
    )
    return {
        "sizes": rows,
        "slope": _judged(slope, SLOPE),
        "overhead": _judged(largest["overhead"], OVERHEAD),
        **{key: _judged(largest[key], WAIT) for key in ("resumed", "extended", "compared")},
    }


def _size(stack: Stack, studies: Studies, services: Services, trials: int) -> dict[str, Any]:
    """A study of one size from its start to its report, run again, and run with two more trials."""
    study = studies.new(trials, 0.05)
    whole = stack.run("sweep", str(study))
    again = stack.run("sweep", str(study))
    compared = stack.run("compare", str(study))
    extended = stack.run("sweep", str(studies.extended(study, trials + 2)))
    first, last = whole.steady
    return {
        "trials": trials,
        "seconds": whole.seconds,
        "until_first_end": whole.marks[0].moment - whole.began,
        "after_last_end": whole.ended - last.moment,
        "overhead": pace(whole) - useful(whole),
        "breakdown": breakdown(whole, services, study.stem),
        "cpu_seconds": spent(first, last),
        "cpu_seconds_by_tenth": [spent(*pair)["all"] for pair in itertools.pairwise(whole.marks[WORKERS:])],
        "driver_peak_mib": whole.peak_mib,
        "driver_kib_a_trial": _kib(first, last, "driver"),
        "head_kib_a_trial": _kib(first, last, "head"),
        "resumed": again.when("nothing to run"),
        "extended": extended.when("trials to run"),
        "extended_until_first_end": extended.marks[0].moment - extended.began,
        "compared": compared.seconds,
        "queries": {
            **whole.queries(),
            "again": len(again.asked),
            "compare": len(compared.asked),
        },
    }


def goodput(stack: Stack, studies: Studies, trials: int, seconds: float) -> dict[str, Any]:
    """The share of two workers' time in which trials of so many seconds slept: steadily, and of a command."""
    watched = stack.run("sweep", str(studies.new(trials, seconds)))
    slept = useful(watched)
    return {
        "trial_seconds": seconds,
        "trials": trials,
        "steady": _judged(slept / pace(watched), GOODPUT.get(seconds)),
        "of_the_command": slept * trials / (WORKERS * watched.seconds),
        "cpu_seconds": spent(*watched.steady),
    }


def _judged(value: float, aim: Aim | None) -> dict[str, Any]:
    """One measurement, held against what it should be."""
    return {"value": value, "aim": aim and asdict(aim), "verdict": ratios.verdict(value, value, aim)}


# What is known of one study.


def pace(watched: Watched) -> float:
    """Seconds that a worker needs for a trial, from one end to the next."""
    first, last = watched.steady
    return WORKERS * (last.moment - first.moment) / (last.trials - first.trials)


def useful(watched: Watched) -> float:
    """Seconds that a trial slept, on average."""
    return statistics.mean(row["seconds"] for row in watched.found["trials"])


def breakdown(watched: Watched, services: Services, study: str) -> dict[str, float]:
    """Where a worker's seconds for a trial go.

    ``in_run``: reports that are waited for, the look for a checkpoint, the checkpoint; ``around_run``: from
    the message that starts a trial to the one that ends it, with the look for a result, recipe, tracker and
    result; ``between``: Tune's switch to the next one, which the driver chooses and describes meanwhile.
    """
    whole, slept = pace(watched), useful(watched)
    records = list(Ledger(Folder(f"{services.storage_uri}/studies/{study}")).records().values())
    held = statistics.mean(record.occupied for record in records)
    some = records[:: max(1, len(records) // _ASKED)]
    results = [RunStore(f"{services.storage_uri}/runs/{record.run}").result() for record in some]
    inside = statistics.mean(result.wall_seconds for result in results if result is not None)
    return {
        "useful": slept,
        "in_run": inside - slept,
        "around_run": held - inside,
        "between": whole - held,
    }


def spent(first: Mark, last: Mark) -> dict[str, float]:
    """Processor seconds a trial, by part of the stack, between two moments of a study."""
    used = last.used.since(first.used)
    return {part: seconds / (last.trials - first.trials) for part, seconds in used.items()}


def _kib(first: Mark, last: Mark, what: str) -> float:
    """How much more is held for each trial."""
    return 1024 * (last.used.mib[what] - first.used.mib[what]) / (last.trials - first.trials)


# Against others.


def _blocks(stack: Stack, studies: Studies, trials: int, seconds: float, rounds: int) -> list[Block]:
    def ours() -> Work:
        watched = stack.run("sweep", str(studies.new(trials, seconds)))
        return _work(pace(watched), seconds)

    def theirs(*arguments: str, trials: int) -> Callable[[], Work]:
        return lambda: _theirs(arguments, trials, seconds)

    arms = {
        "ours": ours,
        "tune, reused actors": theirs("tune", "--reuse", trials=trials),
        "tune": theirs("tune", trials=max(4, trials // 5)),  # each takes some seconds
        "optuna, processes": theirs("optuna", trials=trials),
        harness.AGAIN: ours,
    }
    return harness.take_turns(arms, rounds, warm_up=0)


def _theirs(arguments: Sequence[str], trials: int, seconds: float) -> Work:
    command = [sys.executable, str(_HERE / "other_sweeps.py"), *arguments]
    command += ["--trials", str(trials), "--seconds", str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    ends = json.loads(done.stdout.splitlines()[-1])
    needed = WORKERS * (ends[-1] - ends[WORKERS - 1]) / (len(ends) - WORKERS)  # as Watched.steady
    return _work(needed, seconds)


def _work(pace: float, seconds: float) -> Work:
    """A block as one trial of one worker: its speed is in trials a second."""
    return Work(images=1, seconds=pace, details={"overhead": pace - seconds})


def _ratios(blocks: Sequence[Block]) -> dict[str, Any]:
    """Our trials a second over each other's, and everybody's overhead."""
    others = ["tune, reused actors", "tune", "optuna, processes"]
    compared = harness.compare(blocks, ours="ours", aims=dict.fromkeys(others), tolerance=_TOLERANCE)
    return {
        "trials_a_second": compared["wall"],
        "overhead": {
            arm: harness.cost([block.details["overhead"] for block in harness.of_arm(blocks, arm)], OVERHEAD)
            for arm in ("ours", *others, harness.AGAIN)
        },
    }


if __name__ == "__main__":
    raise SystemExit(main())
