"""What a study's file means: what it tries, in which order, what is stopped, shared and done, the cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from hasten.platform import forecast, settings
from hasten.platform.forecast import Forecast
from hasten.platform.services import look
from hasten.sweeps import plan as plans
from hasten.sweeps.conducting.limits import Speed
from hasten.sweeps.plan import Plan
from hasten.sweeps.space import Distribution
from hasten.sweeps.study import Pbt, StudySpec
from hasten.trainers.errors import ConfigError
from hasten.trainers.specs import flatten

if TYPE_CHECKING:
    from hasten.platform.probing import Probe
    from hasten.platform.study_status import Earlier


def check_study(plan: Plan, console: Console, *, probe: bool = False) -> dict[str, Any]:
    """Print a study's plan: what it tries, in which order, what is stopped, shared and known, what it costs.

    With ``probe`` some trials are begun here, to see how long they take.

    Raises:
        ConfigError: the stopping rule could stop nobody; of the probe: the data is missing or does not fit.
    """
    study = plan.study
    found = forecast.forecast(plan)  # refuses what it can before anything is asked or measured
    earlier = _earlier(plan)
    measured = _probed(plan, console) if probe else None
    if (speed := _speed(measured, earlier)) is not None:
        found = forecast.forecast(plan, speed)
    console.print(f"[bold]{study.name}[/]: {study.question or 'a study'}", highlight=False)
    console.print(_arms(plan) if study.arms else _space(study))
    for constraint in study.constraints:
        console.print(f"only where {constraint}", markup=False)
    notes = [*found.notes, *plans.missing_controls(plan), *(measured.notes if measured else ())]
    if found.estimate is not None:
        notes += found.estimate.notes
    lines = (
        *_work(plan, found),
        *_order(plan, found),
        *_done(plan, earlier),
        *_cost(study, found, measured, earlier),
    )
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    trials = [
        {"trial": t.name, "arm": t.arm, "seed": t.seed, "images": t.spec.budget.images} for t in plan.trials
    ]
    return {
        "kind": "study",
        "name": study.name,
        "trials": trials,
        "total": plan.total,
        **asdict(found),
        "notes": notes,
        "earlier": None if earlier is None else asdict(earlier),
        "probe": None if measured is None else asdict(measured),
    }


def _probed(plan: Plan, console: Console) -> Probe:
    from hasten.platform import probing  # with torch

    return probing.probe(plan, console=console)


def _earlier(plan: Plan) -> Earlier | None:
    """What the store has of the study, where that can be told without starting anything."""
    try:
        current = settings.load()
        services = look(current)
    except ConfigError:  # whoever needs the services will say so
        return None
    folder = current.storage.folder
    if current.storage.embedded and not services.endpoint:
        return None
    if folder is not None and not (folder / "studies" / plan.study.name).is_dir():
        return None
    from hasten.platform import study_status  # with pyarrow: not for those who have no store yet

    return study_status.earlier(plan)


def _speed(measured: Probe | None, earlier: Earlier | None) -> Speed | None:
    """How fast trials are: as measured now, else as they were."""
    if measured is not None:
        return measured.speed
    if earlier is None or earlier.seconds_per_image is None:
        return None
    return Speed(seconds_per_image=earlier.seconds_per_image)


def _arms(plan: Plan) -> Table:
    """The arms of a study, and in what they differ from their base."""
    table = _table("arm", "seeds", "differs from the base in")
    for arm in plan.arms:
        trials = [trial for trial in plan.trials if trial.arm == arm]
        changes = ", ".join(f"{key}={value}" for key, value in flatten(trials[0].changes).items())
        table.add_row(arm, ", ".join(str(trial.seed) for trial in trials), changes or "nothing")
    return table


def _space(study: StudySpec) -> Table:
    """The keys of a space, their distributions, and where they are looked at."""
    table = _table("key", "values", "only where")
    for key, distribution in study.space.items():
        when = [f"{other} is {_values(wanted)}" for other, wanted in distribution.when.items()]
        table.add_row(key, _distribution(distribution), " and ".join(when))
    return table


def _distribution(distribution: Distribution) -> str:
    """What a key may be, in words."""
    if distribution.choice is not None:
        return _values(list(distribution.choice))
    low, high = distribution.range
    words = [f"{low:g} to {high:g}"]
    words += ["logarithmic"] if distribution.logarithmic else []
    words += ["whole"] if distribution.whole else []
    words += [f"in steps of {distribution.step:g}"] if distribution.step else []
    return ", ".join(words)


def _values(wanted: Any) -> str:
    return " or ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _work(plan: Plan, found: Forecast) -> Iterator[str]:
    """How much there is to do, and how much of it is done once for several trials."""
    each = plan.trials[0].spec.budget.images
    yield f"{_points(plan)}: {plan.total} trials" + (
        f", of which {plan.proposed} are proposed as others end" if plan.proposed else ""
    )
    yield (
        f"{found.images:,} images in {found.updates:,} updates, {each:,} images until the end of the first"
        f" trial, {plan.study.execution.workers} worker(s) a trial"
    )
    if found.sharing:
        yield (
            f"{found.sharing} trials go on from a checkpoint of another one that is the same until then:"
            f" {found.shared:,} images ({found.shared / found.images:.0%}) need not be computed"
        )


def _points(plan: Plan) -> str:
    """What is tried how often."""
    study, seeds = plan.study, len(plan.study.seeds)
    if isinstance(study.search, Pbt):
        return f"a population of {study.search.members}, {round(1 / study.search.interval)} generations"
    if study.arms:
        return f"{len(plan.arms)} arms x {seeds} seeds"
    return f"{study.search.kind} search, {plan.total // seeds} points x {seeds} seed(s)"


def _order(plan: Plan, found: Forecast) -> Iterator[str]:
    """What runs at a time, what waits for what, and where trials are stopped."""
    study, execution = plan.study, plan.study.execution
    needs = f"{execution.workers * execution.cpus:g} CPU(s)"
    needs += f" and {execution.workers * execution.gpus:g} GPU(s)" if execution.gpus else ""
    many = "as many as the cluster holds" if execution.concurrent == "auto" else str(execution.concurrent)
    yield f"at a time: {many}, {needs} a trial; {found.concurrent} on this machine"
    if isinstance(study.search, Pbt):
        yield "a generation begins when all members have ended the one before"
    elif study.adaptive:
        yield f"a point starts when all are over that lie {study.ahead} or more before it"
    if study.stopping is not None:
        rungs = ", ".join(
            f"{rung.images:,}" + (f" (about {rung.left} go on)" if rung.left is not None else "")
            for rung in found.rungs
        )
        metric = study.stopping.metric or study.objective.metric
        yield f"stopping: {study.stopping.kind} by {metric} after {rungs} images"


def _done(plan: Plan, earlier: Earlier | None) -> Iterator[str]:
    """What the store has already, and what ran before but counts no more."""
    if earlier is None:
        return
    over = sum(earlier.counts.values())
    states = ", ".join(f"{count} {state}" for state, count in sorted(earlier.counts.items()))
    yield f"done already: {over} of {plan.total} trials" + (f" ({states})" if states else "")
    for reason, trials in earlier.again.items():
        yield f"run again, because {reason}: {', '.join(trials)}"


def _cost(
    study: StudySpec, found: Forecast, measured: Probe | None, earlier: Earlier | None
) -> Iterator[str]:
    """What it takes, as far as that was measured, and what it may take."""
    if measured is None and earlier is not None and earlier.seconds_per_image is not None:
        yield f"finished trials took {earlier.seconds_per_image:.3g} s an image, evaluations included"
    if measured is not None:
        yield (
            f"measured on {measured.machine}: {measured.speed.seconds_per_image:.3g} s an image"
            f" ({measured.low:.3g} to {measured.high:.3g})"
        )
        for kind in measured.kinds if len(measured.kinds) > 1 else ():
            yield f"  {kind.differs}: {kind.speed.seconds_per_image:.3g} s an image"
    if (cost := found.estimate) is not None:
        used = [f"{cost.cpu_hours:.3g} CPU-hours"]
        used += [f"{cost.gpu_hours:.3g} GPU-hours"] if cost.gpu_hours else []
        used += [f"{cost.cost:.2f} {study.prices.currency}"] if study.prices is not None else []
        yield (
            f"takes about {_duration(cost.hours)} with {cost.concurrent} at a time,"
            f" {_duration(cost.seconds / 3600.0)} a trial: {', '.join(used)}"
        )
    limits = study.limits.model_dump(exclude_none=True)
    if limits:
        yield "limits: " + ", ".join(f"{key} {value:g}" for key, value in limits.items())


def _duration(hours: float) -> str:
    if hours < 1.0 / 30.0:
        return f"{hours * 3600.0:.0f} s"
    return f"{hours * 60.0:.0f} min" if hours < 2.0 else f"{hours:.1f} h"
