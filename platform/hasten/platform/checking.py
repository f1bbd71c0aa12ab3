"""``hasten check``: what a file means, what differs from the defaults, and what it would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from hasten.platform.study_checking import check_study
from hasten.sweeps import plan as plans
from hasten.sweeps import study as studies
from hasten.sweeps.plan import Plan
from hasten.trainers import config, curriculum, diffusion, learning_rate, momentum, specs
from hasten.trainers.errors import ConfigError
from hasten.trainers.specs import RunSpec, flatten

__all__ = ["check_run", "check_study", "differences", "is_study", "load", "plot"]

_MOMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def is_study(file: str) -> bool:
    """Whether a path or a shipped name means a study rather than a recipe.

    Raises:
        ConfigError: it means neither.
    """
    path = Path(file)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        raw = config.read_yaml(path)
        return "arms" in raw or "space" in raw
    rooms = (specs.RECIPES, studies.STUDIES)
    for room, answer in zip(rooms, (False, True), strict=True):
        if (room / f"{file}.yaml").is_file():
            return answer
    names = sorted({shipped.stem for room in rooms for shipped in room.glob("*.yaml")})
    raise ConfigError(file, "no such file, recipe or study", f"Shipped: {', '.join(names)}.")


def check_run(spec: RunSpec, console: Console) -> dict[str, Any]:
    """Print a recipe as it will be run."""
    console.print(f"[bold]{spec.name}[/]: a run, resolved with all defaults", highlight=False)
    console.print(
        yaml.safe_dump(
            spec.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100
        ).rstrip(),
        highlight=False,
    )
    console.print(_schedules(spec))
    steps = -(-spec.budget.images // spec.optimizer.batch)
    console.print(
        f"{spec.budget.images:,} images in {steps:,} updates of {spec.optimizer.batch},"
        f" by {spec.execution.workers} worker(s) under the launcher {spec.execution.launcher}"
    )
    return {
        "kind": "run",
        "name": spec.name,
        "spec": spec.model_dump(mode="json"),
        "images": spec.budget.images,
    }


def _schedules(spec: RunSpec) -> Table:
    """The schedules over the run: how the curriculum, the rate and the momentum move."""
    alphas_bar = diffusion.alphas_bar(spec.diffusion)
    table = Table(title="schedules", box=None, padding=(0, 2, 0, 0), title_justify="left")
    for heading in ("progress", "beta1", "lr", "lr/(1-beta1)", "easy half", "entropy", "max/min"):
        table.add_column(heading, justify="right")
    for progress in _MOMENTS:
        beta1, factor = momentum.at(spec.momentum, progress)
        lr = spec.optimizer.lr * factor * learning_rate.factor(spec.optimizer.schedule, progress)
        pmf = curriculum.pmf(spec.curriculum, progress, alphas_bar)
        entropy = -np.sum(pmf * np.log(np.maximum(pmf, 1e-300))) / np.log(len(pmf))
        table.add_row(
            f"{progress:.0%}",
            f"{beta1:.3f}",
            f"{lr:.2e}",
            f"{lr / (1.0 - beta1):.2e}",
            f"{pmf[len(pmf) // 2 :].sum():.1%}",
            f"{entropy:.3f}",
            f"{pmf.max() / pmf.min():.3g}" if pmf.min() > 0.0 else "inf",
        )
    notes = [
        "lr: after the warm-up; easy half: share of draws at the noisier half of the timesteps;"
        " entropy: 1 is uniform"
    ]
    if curriculum.adaptive(spec.curriculum):
        notes.append(f"{spec.curriculum.kind} adapts to the losses: its draws are shown as they start")
    table.caption = "\n".join(notes)
    table.caption_justify = "left"
    return table


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The dotted keys in which two resolved configurations differ, as ``key: old -> new``."""
    old, new = flatten(before), flatten(after)
    keys = sorted(old.keys() | new.keys())
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def load(file: str, overrides: dict[str, Any]) -> RunSpec | Plan:
    """A recipe, or the plan of a study, from a path or a shipped name."""
    if is_study(file):
        return plans.plan(studies.load(file, overrides))
    return specs.load(file, overrides)


def plot(loaded: RunSpec | Plan, path: Path, console: Console) -> str:
    """Draw the schedules of a run, or of a study's arms, and say where they are; see ``schedule_plot``.

    Raises:
        ConfigError: the path ends in something that cannot be drawn.
        Fault: it cannot be written.
    """
    from hasten.platform import schedule_plot

    if isinstance(loaded, RunSpec):
        drawn = schedule_plot.draw(loaded, path)
    else:
        drawn = schedule_plot.draw_plan(loaded, path)
    console.print(f"schedules: {drawn}", soft_wrap=True, highlight=False)
    return str(drawn)
