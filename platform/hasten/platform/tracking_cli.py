"""``hasten tracking``: the tracking server's view of what the store holds."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="MLflow's view of what the store holds.")


@app.callback()
def tracking() -> None:
    """MLflow's view of what the store holds."""


@app.command()
def rebuild(
    what: Annotated[list[str] | None, typer.Argument(metavar="[STUDY|RUN]...")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every study and every run in the store.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be told, and tell nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="End standard output with one JSON object.")] = False,
) -> None:
    """Make MLflow's view again from the store: what it lacks is told again, what is alive is left alone."""
    from hasten.platform import rebuilding

    console = Console(stderr=json, highlight=False)
    found = rebuilding.rebuild(what or (), everything=everything, dry_run=dry_run, console=console)
    if json:
        typer.echo(json_module.dumps(found))
