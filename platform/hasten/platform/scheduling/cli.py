"""``hasten schedule``: run ticks by the clock, show when they come, or render them for another scheduler."""

from __future__ import annotations

import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.live import Live
from typer.core import TyperGroup

from hasten.platform.scheduling.manifests import Target
from hasten.platform.store_cli import Json, console, finish
from hasten.trainers import config
from hasten.trainers.errors import ConfigError, Stopped

if TYPE_CHECKING:
    from hasten.platform.retraining.pipeline import Pipeline
    from hasten.platform.scheduling.runner import Planned, Scheduler, Told

_SLICE: Final = 0.5  # seconds between two looks at the clock: it may jump

Pipelines = Annotated[list[str], typer.Argument(metavar="PIPELINE...")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a dotted key.")
]


class _RunUnlessNamed(TyperGroup):
    """``hasten schedule PIPELINE...`` runs: the word `run` goes without saying."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunUnlessNamed,
    no_args_is_help=True,
    help="Run ticks by the clock: `schedule PIPELINE...`; or `schedule render` them for another scheduler.",
)


@app.command()
def run(
    pipelines: Pipelines,
    set: Changes = None,  # noqa: A002
    once: Annotated[bool, typer.Option("--once", help="Do what is due now, and end.")] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Show last and next ticks, and do nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Run ticks by each pipeline's `schedule` until stopped; started again, it knows what was missed."""
    from hasten.platform import database, settings
    from hasten.platform.scheduling import page, runner

    planned = [_planned(file, set or []) for file in pipelines]
    _require_distinct(planned)
    show, engine = console(json), database.opened(settings.load().database)
    if status:
        told = [_known(engine, each) for each in planned]
        show.print(page.table(told, datetime.now(UTC)))
        return finish({"schedules": page.rows(told)}, json)
    live = show.is_terminal and not once

    def say(text: str) -> None:
        if not live:
            show.print(f"{datetime.now(UTC):%H:%M:%S} {text}", soft_wrap=True, markup=False)

    scheduler = runner.Scheduler(engine=engine, pipelines=planned, say=say)
    try:
        _drive(scheduler, show, once=once, live=live)
    except KeyboardInterrupt:
        show.print("stopping: ticks end at a checkpoint")
        raise Stopped("schedule", "stopped", "The same command goes on, and knows what was missed.") from None
    finally:
        scheduler.close()
    finish({"schedules": page.rows(each.told for each in scheduler.scheduled)}, json)


@app.command()
def render(
    target: Annotated[Target, typer.Argument(help="kubernetes, raycronjob, systemd or airflow.")],
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE")],
    set: Changes = None,  # noqa: A002
    out: Annotated[
        Path | None, typer.Option(help="A folder for the files; standard output without it.")
    ] = None,
    image: Annotated[str, typer.Option(help="With hasten in it.")] = "hasten:latest",
    namespace: Annotated[str, typer.Option(help="Of Kubernetes.")] = "default",
    cluster: Annotated[str, typer.Option(help="The RayCluster that ticks run on.")] = "hasten",
    json: Json = False,
) -> None:
    """Write what makes another scheduler run the same tick: `hasten retrain PIPELINE`."""
    from hasten.platform.scheduling import manifests

    spec = _loaded(pipeline, set or [])
    files = manifests.render(target, spec, image=image, namespace=namespace, cluster=cluster)
    show = console(json)
    for name, content in files.items():
        if out is None:
            show.print(content, markup=False, soft_wrap=True, end="")
        else:
            out.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(content, encoding="utf-8")
            show.print(f"{out / name}", soft_wrap=True)
    if Path(spec.recipe).suffix in (".yaml", ".yml"):
        Console(stderr=True).print(f"{spec.recipe} has to be where ticks run, too", soft_wrap=True)
    finish({"target": target.value, "pipeline": spec.name, "files": files}, json)


def _drive(scheduler: Scheduler, show: Console, *, once: bool, live: bool) -> None:
    """Look at the clock in short slices: with ``once`` until nothing is left to do, else for ever."""
    from hasten.platform.scheduling import page

    def shown() -> Any:
        return page.table([each.told for each in scheduler.scheduled], datetime.now(UTC))

    with Live(console=show, get_renderable=shown, refresh_per_second=2) if live else nullcontext():
        while True:
            busy = scheduler.step()
            if once and not busy:
                return
            time.sleep(_SLICE)


def _loaded(file: str, changes: list[str]) -> Pipeline:
    from hasten.platform.retraining import pipeline as pipelines

    spec = pipelines.load(file, config.parse_overrides(changes))
    if spec.schedule is None:
        remedy = 'Add one: schedule: {cron: "0 3 * * *", timezone: Europe/Berlin}'
        raise ConfigError("schedule", f"pipeline {spec.name} has none", remedy)
    return spec


def _planned(file: str, changes: list[str]) -> Planned:
    from hasten.platform.scheduling import runner

    spec = _loaded(file, changes)
    assert spec.schedule is not None, "it was just looked at"
    return runner.Planned(name=spec.name, schedule=spec.schedule, arguments=runner.arguments(file, changes))


def _require_distinct(planned: list[Planned]) -> None:
    names = [each.name for each in planned]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError("name", f"several pipelines are called {', '.join(sorted(twice))}")


def _known(engine: Any, planned: Planned) -> Told:
    """What the records say of a pipeline, and when its next tick comes."""
    from hasten.platform.scheduling import calendar, records, runner

    moment = next(calendar.planned(planned.schedule, datetime.now(UTC)))
    moment += calendar.delay(planned.schedule, planned.name, moment)
    record = records.read(engine, planned.name)
    working = record is not None and record.unfinished is not None
    return runner.Told(planned=planned, record=record, next=moment, working=working)
