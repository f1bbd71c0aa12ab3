"""``hasten up | down | status | doctor``: the local stack on a terminal and, with ``--json``, for scripts."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from hasten.platform import services, settings
from hasten.platform.saying import duration
from hasten.platform.stack import launcher, parts, ray_head
from hasten.platform.stack.parts import Event, Status
from hasten.trainers.errors import Stopped

Json = Annotated[bool, typer.Option("--json", help="One JSON object on the last line of standard output.")]

# Each state's mark and words.
_STATES: Final = {
    "running": ("[green]●[/]", "running"),
    "external": ("[cyan]●[/]", "named in the settings"),
    "silent": ("[yellow]●[/]", "does not answer"),
    "dead": ("[red]●[/]", "died"),
    "stopped": ("[dim]○[/]", "stopped"),
}
_NAMES: Final = {"storage": "S3 store", "tracking": "MLflow", "ray": "Ray"}


def up(json: Json = False) -> None:
    """Start the local S3 store, MLflow and Ray, those that settings do not name; find them when they run."""
    console = _console(json)
    current = settings.load()
    started = time.monotonic()
    if not parts.local(current):
        console.print("Nothing to start: the settings name all three services.")
    with _interrupts(), StackProgress(console) as progress:
        services.connect(current, tracking=True, ray=True, tell=progress.tell)
    found = launcher.status(current)
    console.print()
    _show(console, found)
    _notes(console, found, time.monotonic() - started)
    _finish(json, {"status": "finished", "home": str(settings.home()), "parts": _plain(found)})


def down(json: Json = False) -> None:
    """Stop the local stack and every process that it started; all data stays."""
    console = _console(json)
    started = time.monotonic()
    with _interrupts(), StackProgress(console) as progress:
        ran = launcher.down(tell=progress.tell)
    if ran:
        console.print(f"Stopped in {time.monotonic() - started:.1f} s; no process is left, all data is kept.")
    else:
        console.print(f"Nothing runs for {escape(str(settings.home()))}.")
    _finish(json, {"status": "finished", "home": str(settings.home()), "stopped": ran})


def status(json: Json = False) -> None:
    """Show what runs, where, since when, and where its log is; starts nothing."""
    console = _console(json)
    found = launcher.status(settings.load())
    _show(console, found)
    if any(part.state in ("dead", "silent") for part in found):
        console.print("`hasten up` starts what is missing; the logs say what happened.")
    elif any(part.state == "stopped" for part in found):
        console.print("[dim]`hasten up` starts what is missing; so does any command that needs it.[/]")
    from hasten.platform.retraining import status as pipelines

    kept = pipelines.show(settings.load().database, console)
    answer = {"status": "finished", "home": str(settings.home()), "parts": _plain(found)}
    _finish(json, {**answer, "pipelines": kept})


def doctor(json: Json = False) -> None:
    """Try everything that a run needs with a real round trip, and say what to do about each failure."""
    from hasten.platform import doctor as doctor_module

    console = _console(json)
    done = []
    with console.status("Trying each service..."):
        for check in doctor_module.checks(settings.load()):
            done.append(check)
            mark = "[green]✓[/]" if check.ok else "[red]✗[/]"
            console.print(f"{mark} {check.name:<9} {escape(check.detail)}  [dim]{check.seconds:.1f} s[/]")
            for line in check.remedy.splitlines():
                console.print(f"            {escape(line.strip())}")
    bad = [check.name for check in done if not check.ok]
    verdict = "All is well." if not bad else f"{len(bad)} of {len(done)} failed: {', '.join(bad)}."
    console.print(f"\n[bold {'green' if not bad else 'red'}]{verdict}[/]")
    plain = [asdict(check) for check in done]
    _finish(json, {"status": "failed" if bad else "finished", "home": str(settings.home()), "checks": plain})
    if bad:
        raise typer.Exit(1)


class StackProgress:
    """Lines that say what happens; on a terminal with a spinner for what is under way."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.spinner = console.status("")
        self.under_way: dict[str, str] = {}

    def __enter__(self) -> StackProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.spinner.stop()

    def tell(self, event: Event) -> None:
        """Show one event."""
        name = _NAMES.get(event.part, event.part)
        match event.kind:
            case "waiting":
                self.console.print("Another hasten is at the stack; waiting for it...")
            case "starting" | "restarting":
                self.under_way[event.part] = name
                again = " again, on a free port" if event.kind == "restarting" else ""
                self.console.print(
                    f"[dim]…[/] Starting {event.title}{again} [dim](log {escape(event.log)})[/]"
                )
            case "ready":
                self.under_way.pop(event.part, None)
                where = f"[cyan]{event.url}[/]"
                self.console.print(f"[green]✓[/] {event.title} ready after {event.seconds:.1f} s at {where}")
            case "found":
                self.under_way.pop(event.part, None)
                self.console.print(f"[green]✓[/] {event.title} runs already at [cyan]{event.url}[/]")
            case "stopping":
                self.under_way[event.part] = name
            case "stopped":
                self.under_way.pop(event.part, None)
                self.console.print(f"[green]✓[/] {name} stopped")
        if self.under_way and self.console.is_terminal:
            self.spinner.update(f"Waiting for {', '.join(self.under_way.values())}...")
            self.spinner.start()
        else:
            self.spinner.stop()


@contextmanager
def _interrupts() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(
            "hasten", "stopped; what this command had started was stopped too", "Run it again."
        ) from None


def _console(json: bool) -> Console:
    # With --json the last line of standard output is an object, and everything else is for people.
    return Console(stderr=json, highlight=False, soft_wrap=True)


def _show(console: Console, found: list[Status]) -> None:
    """Two lines a service, of which the first fits 80 columns; paths may be longer than any table."""
    for part in found:
        mark, words = _STATES[part.state]
        line = f"{mark} [bold]{_NAMES[part.part]:<9}[/] {words}"
        if part.url:
            line += f"{'':<{max(9 - len(words), 0)}} [cyan]{part.url:<23}[/]"
        if part.since is not None:
            line += f" {part.memory_bytes / 1e6:>5.0f} MB {duration(time.time() - part.since):>10}"
        console.print(line)
        if part.dashboard:
            console.print(f"            dashboard [cyan]{part.dashboard}[/]")
        if part.log:
            console.print(f"            [dim]log       {escape(part.log)}[/]")


def _notes(console: Console, found: list[Status], seconds: float) -> None:
    running = {part.part: part for part in found if part.state == "running"}
    console.print()
    if "tracking" in running:
        console.print(
            "MLflow has no password: it and the other services listen on this machine's loopback only."
        )
    if "ray" in running:
        token = escape(str(ray_head.token_file(settings.home())))
        console.print(f"Ray's dashboard asks for the token in [dim]{token}[/]")
    if running:
        console.print(f"Ready after {seconds:.1f} s. `hasten down` stops everything and keeps the data.")


def _plain(found: list[Status]) -> list[dict[str, Any]]:
    return [asdict(part) for part in found]


def _finish(json: bool, result: dict[str, Any]) -> None:
    if json:
        typer.echo(json_module.dumps(result))
