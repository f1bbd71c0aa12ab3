"""Whether a stopping rule will have anything to judge, known before anything runs."""

from __future__ import annotations

from typing import Final

from hasten.sweeps.conducting import stopping
from hasten.sweeps.conducting.stopping import Halving
from hasten.sweeps.study import Objective, Stopping, Wilcoxon
from hasten.trainers.errors import ConfigError
from hasten.trainers.specs import Eval, RunSpec

_LOSSES: Final = ("loss", "excess_loss")


def check(spec: Stopping, objective: Objective, run: RunSpec) -> tuple[str, ...]:
    """What a study should know of its stopping rule beforehand, as sentences about one of its runs.

    Raises:
        ConfigError: nobody could ever be stopped.
    """
    metric, total = stopping.metric_of(spec, objective), run.budget.images
    key = "stopping.metric" if spec.metric else "objective.metric"
    evaluated = evaluations(run, metric)
    if not evaluated:
        remedy = "Name it in eval.samples.metrics, or judge by eval/loss."
        raise ConfigError(key, f"{metric} is not measured by these runs: nobody could be stopped", remedy)
    if isinstance(spec, Wilcoxon) and _bare(metric) not in _LOSSES:
        problem = f"wilcoxon compares held-out errors group by group, which {metric} does not have"
        raise ConfigError(key, problem, "Use eval/loss, or another rule.")
    every = "eval.loss.every" if _bare(metric) in _LOSSES else "spacing in eval.samples.at"
    rule = stopping.rule(spec, objective)
    marks = rule.marks(total, evaluated)
    if not marks:
        problem = f"{metric} is not measured between {spec.grace:g} of the budget and its end"
        raise ConfigError("stopping.grace", problem, f"Use a smaller {every}, or a smaller grace.")
    notes = []
    if marks[0] > (grace := round(spec.grace * total)):
        notes.append(
            f"grace ends at {grace:,} images, but {metric} is measured next at {marks[0]:,}: "
            "trials are judged from there"
        )
    if isinstance(rule, Halving):
        if lost := len(rule.rungs(total)) - len(marks):
            notes.append(f"{lost} of the rungs fall on another or on the end: use a smaller {every}")
        if len(marks) == 1:
            notes.append(f"there is only one rung, at {marks[0]:,} images: use a smaller stopping.grace")
    return tuple(notes)


def evaluations(run: RunSpec, metric: str) -> tuple[int, ...]:
    """After how many images a run tells a held-out metric, under the steps that it records; () for never.

    What is measured of samples is told with the held-out loss of the same step. The untrained network's
    evaluation is left out.
    """
    if metric.startswith("eval/raw_") and not run.eval.raw:
        return ()
    losses = _loss_marks(run)
    if _bare(metric) in _LOSSES:
        return losses
    if _bare(metric) in _of_samples(run.eval):
        due = {max(1, round(fraction * run.budget.images)) for fraction in run.eval.samples.at}
        return tuple(images for images in losses if images in due)
    return ()


def _loss_marks(run: RunSpec) -> tuple[int, ...]:
    total, batch = run.budget.images, run.optimizer.batch
    spacing = run.eval.loss.every * total
    marks = {round(number * spacing) for number in range(1, int(total / spacing) + 2)}
    due = [*sorted(mark for mark in marks if 1 <= mark < total), total]
    # Of several marks within a batch, the newest is the one that is measured (see trainers.timeline).
    return tuple({-(-mark // batch): mark for mark in due}.values())


def _bare(metric: str) -> str:
    """A held-out metric's name, whichever weights it is of."""
    return metric.removeprefix("eval/").removeprefix("raw_")


def _of_samples(spec: Eval) -> set[str]:
    """What is measured of samples; of an analytic mixture the energy distance too."""
    named: set[str] = set(spec.samples.metrics)
    return named | {"energy_distance"} | ({"nearest_unseen"} if "memorization" in named else set())
