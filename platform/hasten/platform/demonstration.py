"""``hasten demo``: the whole story on this machine, on real images and real services."""

from __future__ import annotations

import time
from typing import Any, Final

from rich.console import Console

from hasten.platform import studies, study_reports, sweeping, training
from hasten.platform.identity import STUDY
from hasten.sweeps import plan as plans
from hasten.sweeps import study as study_files
from hasten.sweeps.plan import Plan
from hasten.sweeps.reports import table
from hasten.sweeps.statistics.comparison import Comparison
from hasten.trainers import config, specs
from hasten.trainers.specs import RunSpec

_FRESH_SEED: Final = 1000
_WORKERS: Final = 2


def demo(console: Console) -> dict[str, Any]:
    """Compare four arms on three seeds, then train the best longer by DDP on two workers."""
    started = time.monotonic()
    plan = plans.plan(study_files.load("demo"))
    _say(console, 1, "Sweep", plan.study.question)
    found, told = sweeping.sweep(plan, console=console)
    comparison = told.comparison
    assert comparison is not None, "the demo's study has arms"

    swept = time.monotonic()
    arm = best_arm(comparison)
    proof = "" if comparison.winner == arm else " (the best mean; no proof, the verdict is open)"
    spec = long_run(plan, arm)
    what = f"arm {arm}{proof}, seed {_FRESH_SEED}, {spec.budget.images:,} images on {_WORKERS} workers"
    _say(console, 2, "Train by Ray Train", what)
    run = training.train(spec, console=console, experiment=plan.study.name, tags={STUDY: plan.study.name})
    trained = time.monotonic()
    scores = {key: value for key, value in run["metrics"].items() if key.startswith("eval/")}
    console.print(f"{run['run']}: " + ", ".join(f"{key} {value:.4f}" for key, value in scores.items()))

    _say(console, 3, "Result", f"after {time.monotonic() - started:.0f} s")
    console.print(table.render(comparison))
    report = studies.report_folder(plan.study.name)
    sheet = study_reports.save_sheet(run["run"], report / "samples.png")
    console.print(f"samples  {sheet}", soft_wrap=True)
    console.print(f"report   {report / 'report.html'}", soft_wrap=True)
    console.print(f"MLflow   {studies.link(plan.study.name)}", soft_wrap=True)
    console.print("The services stay up: `hasten status` shows them, `hasten down` stops them.")
    return {
        "sweep": found,
        "comparison": comparison.as_json(),
        "train": run,
        "report": str(report / "report.html"),
        "seconds": {"sweep": swept - started, "train": trained - swept},
    }


def best_arm(comparison: Comparison) -> str:
    """The arm with the best mean, whether or not that proves anything."""
    sign = 1.0 if comparison.mode == "min" else -1.0
    measured = {arm.name: sign * arm.mean for arm in comparison.arms if arm.mean is not None}
    return min(measured, key=lambda name: measured[name])


def long_run(plan: Plan, arm: str) -> RunSpec:
    """The arm's recipe on a fresh seed, with twice the images, by Ray Train."""
    changes = dict(plan.study.arms[arm])
    raw = config.override(specs.load_raw(plan.study.base, plan.study.base_overrides), changes)
    images = raw["budget"]["images"]
    raw = config.override(
        raw,
        {
            "name": f"{plan.study.name}-{arm}",
            "budget.images": 2 * images,
            "budget.seed": _FRESH_SEED,
            "execution.launcher": "ray",
            "execution.workers": _WORKERS,
        },
    )
    return config.validate(RunSpec, raw)


def _say(console: Console, number: int, title: str, text: str) -> None:
    console.print(f"\n[bold]{number} · {title}[/]  {text}")
