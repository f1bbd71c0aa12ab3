"""``hasten status [STUDY]`` and ``hasten clean``: what the store says of a study, and what may go from it."""

from __future__ import annotations

import functools
import json as json_module
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

from hasten.platform import stack_cli
from hasten.trainers.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="End standard output with one JSON object.")]


def status(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay with the study until it ends.")] = False,
    json: Json = False,
) -> None:
    """Show how far a STUDY is, or what of the local stack runs and where its logs are; starts nothing."""
    if study is None:
        if watch:
            raise ConfigError("--watch", "needs a study", "Write hasten status STUDY --watch.")
        return stack_cli.status(json)
    from hasten.platform import study_status

    finish(study_status.status(study, watch=watch, console=console(json)), json)


def clean(
    delete: Annotated[bool, typer.Option("--delete", help="Remove what can go, after a question.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Answer the question beforehand.")] = False,
    study_best: Annotated[int, typer.Option(min=0, help="Best trials of a study, kept whatever else.")] = 3,
    trial_best: Annotated[int, typer.Option(min=0, help="Best checkpoints of each trial.")] = 1,
    trial_latest: Annotated[int, typer.Option(min=0, help="Last checkpoints of each trial.")] = 1,
    averages: Annotated[bool, typer.Option("--averages", help="Averages kept for others may go.")] = False,
    orphans: Annotated[bool, typer.Option("--orphans", help="Runs of no study are like trials.")] = False,
    json: Json = False,
) -> None:
    """Show which checkpoints nobody needs any more, and their size; removes nothing unless told to."""
    if delete and not yes and not sys.stdin.isatty():
        raise ConfigError("--delete", "asks before it removes anything, and nobody can answer", "Add --yes.")
    from hasten.platform import cleaning
    from hasten.trainers.retention import Policy

    policy = Policy(
        study_best=study_best,
        trial_best=trial_best,
        trial_latest=trial_latest,
        averages=averages,
        orphans=orphans,
    )
    confirm = None if yes else functools.partial(typer.confirm, err=json)
    finish(cleaning.clean(policy, delete=delete, confirm=confirm, console=console(json)), json)


def console(json: bool) -> Console:
    # With --json the last line of standard output is an object, and everything else is for people.
    return Console(stderr=json, highlight=False)


def finish(found: Mapping[str, Any], json: bool) -> None:
    if json:
        typer.echo(json_module.dumps(found))
