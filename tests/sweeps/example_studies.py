"""Studies that never ran, with curves as real ones have them: what reports are tested on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hasten.sweeps import space as spaces
from hasten.sweeps.conducting.ledger import OpenTrial, StudyNote
from hasten.sweeps.conducting.limits import Spent
from hasten.sweeps.records import TrialRecord, TrialResult, Verdict
from hasten.sweeps.study import StudySpec
from hasten.trainers.records import Point, RunResult

TOTAL = 96_000
HOSTILE = "</script><script>alert(1)</script>"

ARMS = {
    "baseline": ({}, 1.0),
    "clts": ({"curriculum": {"kind": "clts", "mu": 0.3, "sigma": 0.2}}, 0.90),
    "static": ({"curriculum": {"kind": "static", "mu": 0.3, "sigma": 0.2, "weight": 0.5}}, 0.93),
    "mdlrc": ({"momentum": {"kind": "mdlrc", "beta": 0.9}}, 0.985),
    "lr-only": ({"momentum": {"kind": "lr_only", "beta": 0.9}}, 1.005),
    "both": (
        {
            "curriculum": {"kind": "clts", "mu": 0.3, "sigma": 0.2},
            "momentum": {"kind": "mdlrc", "beta": 0.9},
        },
        0.88,
    ),
}


def curve(
    factor: float, seed: int, own: int, *, until: int = TOTAL, points: int = 20
) -> list[tuple[int, float]]:
    """A held-out loss that falls to ``factor`` times 0.1; seeds share most of their noise."""
    steps = np.linspace(0.0, 1.0, points + 1)
    shared = np.random.default_rng(seed).normal(0.0, 0.0025, size=points + 1)
    noise = shared + np.random.default_rng([seed, own]).normal(0.0, 0.0008, size=points + 1)
    speed = 7.0 / factor**1.5
    values = 0.1 * factor + (1.0 - 0.1 * factor) * np.exp(-speed * steps) + noise
    return [
        (round(TOTAL * step), float(value))
        for step, value in zip(steps, values, strict=True)
        if TOTAL * step <= until
    ]


def record(
    arm: str, seed: int, factor: float, *, own: int = 0, until: int = TOTAL, **changes: Any
) -> TrialRecord:
    """How a trial ended; ``until`` says how far it came."""
    losses = curve(factor, seed, own, until=until)
    pace = 0.00062 * (1.0 + 0.05 * math.sin(seed + own))
    seconds = [(images, images * pace) for images, _ in losses]
    fields: dict[str, Any] = {
        "trial": f"{arm}-s{seed}",
        "arm": arm,
        "seed": seed,
        "run": f"digits-{own:04x}{seed:08x}",
        "fingerprint": f"{own:04x}{seed:08x}",
        "state": "finished" if until == TOTAL else "stopped",
        "images": losses[-1][0],
        "total": TOTAL,
        "seconds": seconds[-1][1],
        "occupied": seconds[-1][1] + 4.0,
        "metrics": {
            "eval/loss": losses[-1][1],
            "eval/frechet": 12.0 * factor + seed,
            "cost/params": 1e5 / factor,
        },
        "curves": {"eval/loss": losses, "perf/seconds": seconds},
    }
    return TrialRecord(**{**fields, **changes})


def result(of: TrialRecord, changes: dict[str, Any] | None = None) -> TrialResult:
    """The same as what the run itself left behind, with its record."""
    history = [
        Point(step=images, metrics={"eval/loss": value}) for images, value in of.curves.get("eval/loss", [])
    ]
    clock = dict(of.curves.get("perf/seconds", []))
    for point in history:
        if point.step in clock:
            point.metrics["perf/seconds"] = clock[point.step]
    found = RunResult(
        run=of.run,
        fingerprint=of.fingerprint,
        status="finished" if of.state == "finished" else "failed",
        images=of.images,
        seconds=of.seconds,
        metrics=of.metrics,
        history=history,
        spec={
            "name": "digits",
            "budget": {"images": of.total, "seed": of.seed},
            "curriculum": {"kind": "uniform"},
            "momentum": {"kind": "constant", "beta": 0.9},
            "eval": {"loss": {"every": 0.05, "images": 360}},
        }
        | (changes or {}),
        data_digest="sha256:4f2a9c",
        environment={"torch": "2.9.0", "device": "cpu", "threads": "1"},
    )
    return TrialResult(trial=of.trial, arm=of.arm, seed=of.seed, result=found, record=of)


def arms(seeds: int = 3, **factors: float) -> list[TrialResult]:
    """Finished trials: of the shipped study's arms, or of the arms that are named."""
    chosen = {
        name: (ARMS.get(name, ({"optimizer": {"lr": 1e-3}}, 1.0))[0], factor)
        for name, factor in factors.items()
    }
    return [
        result(record(arm, seed, factor, own=own), changes)
        for own, (arm, (changes, factor)) in enumerate((chosen or ARMS).items())
        for seed in range(seeds)
    ]


def arms_study(**changes: Any) -> StudySpec:
    """A study of the arms above."""
    fields = {
        "name": "paper",
        "question": "Do CLTS and MDLRC reach the baseline's quality in fewer images?",
        "base": "digits",
        "arms": {name: changed for name, (changed, _) in ARMS.items()},
        "seeds": [0, 1, 2],
        "prices": {"cpu_hour": 0.05, "currency": "EUR"},
    }
    return StudySpec.model_validate(fields | changes)


def search_study(**changes: Any) -> StudySpec:
    """A study that searches a space with a condition, and stops early."""
    fields = {
        "name": "search",
        "question": "Which curriculum and learning rate give the lowest held-out loss?",
        "base": "digits",
        "space": {
            "curriculum.kind": {"choice": ["uniform", "clts"]},
            "curriculum.mu": {"uniform": [0.1, 0.9], "when": {"curriculum.kind": "clts"}},
            "curriculum.sigma": {"choice": [0.15, 0.2, 0.3, 0.5], "when": {"curriculum.kind": "clts"}},
            "optimizer.lr": {"log_uniform": [3e-4, 1e-2]},
            "optimizer.batch": {"choice": [32, 64, 128]},
        },
        "search": {"kind": "optuna", "trials": 64},
        "stopping": {"kind": "asha", "grace": 0.1, "reduction": 3},
        "limits": {"cpu_hours": 2.0, "cost": 4.0},
        "prices": {"cpu_hour": 0.05, "gpu_hour": 2.5, "currency": "EUR"},
    }
    return StudySpec.model_validate(fields | changes)


def quality(settings: dict[str, Any]) -> float:
    """How much worse than the best a point of the space ends."""
    far = (math.log10(settings["optimizer.lr"]) - math.log10(2.5e-3)) ** 2
    if settings["curriculum.kind"] == "clts":
        far += (
            0.4 * (settings["curriculum.mu"] - 0.35) ** 2
            - 0.06
            + 0.05 * abs(settings["curriculum.sigma"] - 0.2)
        )
    return 0.92 + 0.5 * far + {32: 0.02, 64: 0.0, 128: 0.05}[settings["optimizer.batch"]]


def points(study: StudySpec, count: int = 64, *, seeds: int = 1, stop: bool = True) -> list[TrialRecord]:
    """How the points of a search ended: the worse ones stopped at a rung, some broke."""
    found = []
    for number in range(count):
        settings = spaces.random(study.space, seed=1, trial=number)
        factor = quality(settings)
        rung = (
            TOTAL
            if factor < 1.05 or number < 4 or not stop
            else TOTAL // 10
            if factor > 1.15
            else 3 * TOTAL // 10
        )
        for seed in range(seeds):
            fields: dict[str, Any] = {"settings": settings}
            if rung < TOTAL:
                value = curve(factor, seed, number, until=rung)[-1][1]
                reason = f"{value:.3f} is not in the best third of 12 (at most {value - 0.02:.3f})"
                fields["verdict"] = Verdict(
                    rule="asha", images=rung, value=value, threshold=value - 0.02, reason=reason
                )
            if number % 23 == 11:
                fields |= {
                    "state": "failed",
                    "failure": "diverged",
                    "error": "the loss is NaN",
                    "verdict": None,
                }
            if number % 29 == 5:
                fields |= {"attempts": 2, "lost": 1}
            if number % 10 == 7:
                fields |= {"forked_from": f"{number - 1:04d}-s{seed}", "forked_images": 4_800}
            found.append(record(f"{number:04d}", seed, factor, own=number, until=rung, **fields))
    return found


def note(study: StudySpec, records: list[TrialRecord], *, trials: int, **changes: Any) -> StudyNote:
    """What the driver of a study says that is on its way."""
    opened = {
        f"{len(records) + index:04d}-s0": OpenTrial(
            fingerprint="f",
            running=True,
            images=24_000 * (index + 1),
            total=TOTAL,
            value=0.213,
            attempts=1 + index,
        )
        for index in range(2)
    }
    fields: dict[str, Any] = {
        "name": study.name,
        "spec": study.model_dump(mode="json"),
        "state": "running",
        "host": "node-7",
        "pid": 4711,
        "started": 1_000.0,
        "heartbeat": 2_000.0,
        "trials": trials,
        "over": len(records),
        "spent": Spent(cpu_hours=1.71, cost=0.0855, trials=len(records), hours=0.28),
        "open": opened,
    }
    return StudyNote(**{**fields, **changes})
