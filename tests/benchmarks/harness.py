"""One way to measure for all benchmarks: arms take turns in blocks, and a document says all that was seen.

Import it before torch: it sets the number of threads that torch and its libraries start with.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

THREADS: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ.update(THREADS)

import machine  # noqa: E402
import ratios  # noqa: E402
from machine import Clocks, Processes  # noqa: E402
from ratios import Aim  # noqa: E402

AGAIN: Final = "ours, again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What an arm did in a block: so many images, and whatever else it has to tell.

    An arm that times itself, because its block has a beginning and an end that do not count, says for how
    long it worked steadily; otherwise the whole block counts.
    """

    images: int
    seconds: float | None = None
    cpu_seconds: float | None = None
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One arm's turn in one round. ``foreign`` and ``stolen`` are cores, on average over the turn."""

    round: int
    arm: str
    images: int
    seconds: float
    cpu_seconds: float
    foreign: float
    stolen: float
    load_average: float
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        return self.images / self.seconds

    @property
    def thrift(self) -> float:
        """Images per second of processor time."""
        return self.images / max(self.cpu_seconds, 1e-9)


Arm = Callable[[], Work]


def options(description: str, *, seconds: float, pairs: int = 8) -> argparse.ArgumentParser:
    """The command line that all benchmarks have; some add to it.

    From now on SIGTERM ends the process as an exception does, so that no server outlives its benchmark.
    """
    signal.signal(signal.SIGTERM, _end)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pairs", type=int, default=pairs, help="rounds in which each arm has one block")
    parser.add_argument("--seconds", type=float, default=seconds, help="about how long a block takes")
    parser.add_argument("--out", type=Path, help="a JSON file for everything that was measured")
    return parser


def take_turns(
    arms: Mapping[str, Arm], rounds: int, *, others: Processes = tuple, warm_up: int = 1
) -> list[Block]:
    """Let the arms take turns; the first ``warm_up`` blocks of each are not counted."""
    for arm in arms.values():
        for _ in range(warm_up):
            arm()
    clocks, blocks = Clocks(others), []
    for number, turn in enumerate(ratios.turns(list(arms), rounds)):
        for name in turn:
            clocks.restart()
            work = arms[name]()
            span = clocks.span()
            blocks.append(
                Block(
                    round=number,
                    arm=name,
                    images=work.images,
                    seconds=span.wall_seconds if work.seconds is None else work.seconds,
                    cpu_seconds=span.cpu_seconds if work.cpu_seconds is None else work.cpu_seconds,
                    foreign=span.foreign,
                    stolen=span.stolen,
                    load_average=os.getloadavg()[0],
                    details=work.details,
                )
            )
            _say(f"round {number + 1}/{rounds}  {name:24} {blocks[-1].speed:10,.0f} images/s")
    return blocks


def compare(
    blocks: Sequence[Block],
    *,
    ours: str,
    aims: Mapping[str, Aim | None],
    tolerance: float,
    control: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Our speed over each other arm's, by both clocks, each judged only where its own control holds.

    ``control`` are two arms that do the same, ``ours`` and its repetition unless given.
    """
    first, again = control or (ours, AGAIN)
    found: dict[str, Any] = {}
    for clock, of in (("wall", lambda block: block.speed), ("cpu", lambda block: block.thrift)):
        series = {name: [of(block) for block in of_arm(blocks, name)] for name in {ours, first, again, *aims}}
        itself = ratios.ratio(series[first], series[again])
        holds = ratios.holds(itself, tolerance)
        found[clock] = {
            "control": asdict(itself) | {"tolerance": tolerance, "holds": holds},
            "arms": {
                name: asdict(against := ratios.ratio(series[ours], series[name]))
                | {
                    "aim": asdict(aim) if aim else None,
                    "verdict": ratios.verdict(against.low, against.high, aim, control_holds=holds),
                }
                for name, aim in aims.items()
            },
        }
    return found


def cost(values: Sequence[float], aim: Aim) -> dict[str, Any]:
    """The mean of what was measured in each round, judged without a control: it is no comparison."""
    found = ratios.mean(values)
    judged = ratios.verdict(found.low, found.high, aim)
    return {"mean": found.mean, "low": found.low, "high": found.high, "most": max(values), "n": found.n} | {
        "aim": asdict(aim),
        "verdict": judged,
    }


def of_arm(blocks: Iterable[Block], arm: str) -> list[Block]:
    """One arm's blocks by round."""
    return sorted((block for block in blocks if block.arm == arm), key=lambda block: block.round)


def surroundings(blocks: Iterable[Block]) -> dict[str, float]:
    """How quiet the machine was, in cores that others kept busy."""
    foreign = [block.foreign for block in blocks]
    stolen = [block.stolen for block in blocks]
    return {
        "mean_foreign_cores": sum(foreign) / len(foreign),
        "most_foreign_cores": max(foreign),
        "most_stolen_cores": max(stolen),
    }


def document(name: str, *, blocks: Sequence[Block], results: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was measured, ready to be written."""
    return {
        "benchmark": name,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "environment": machine.fingerprint(),
        "surroundings": surroundings(blocks) if blocks else {},
        "results": dict(results),
        "blocks": [
            asdict(block) | {"images_per_second": block.speed, "images_per_cpu_second": block.thrift}
            for block in blocks
        ],
    }


def conclude(document: Mapping[str, Any], out: Path | None) -> None:
    """Print the results and write the document."""
    print(json.dumps({"surroundings": document["surroundings"], **document["results"]}, indent=2))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=2) + "\n")


def missing(problem: str, remedy: str) -> int:
    """Say what a benchmark lacks here, and give back the exit code for that."""
    print(f"{problem}\n{remedy}", file=sys.stderr)
    return 2


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + number)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
