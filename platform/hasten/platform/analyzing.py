"""``hasten analyze consistency | difficulty | landscape RUN...``: the paper's analyses of finished runs."""

from __future__ import annotations

import hashlib
import json as json_module
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from rich.console import Console
from rich.text import Text

from hasten.trainers.errors import Fault

if TYPE_CHECKING:
    from rich.table import Table

    from hasten.platform.analysis_charts import Figure
    from hasten.platform.services import Services
    from hasten.trainers.analyses.finished import Finished

app = typer.Typer(no_args_is_help=True, help="The paper's analyses of finished runs.")

Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Names, NAME-FINGERPRINT, or URIs.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the analysis' own noise.")]
Json = Annotated[bool, typer.Option("--json", help="End standard output with one JSON object.")]

_LONGEST: Final = 100  # characters of a folder's name

log = logging.getLogger(__name__)


@app.command()
def consistency(
    runs: Runs,
    count: Annotated[int, typer.Option(min=2, help="Seeds: images from the same noise.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations an image.")] = 25,
    features: Annotated[
        Literal["pixels", "classifier"], typer.Option(help="What cosines and retrieval compare.")
    ] = "pixels",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Do differently trained networks make the same images of the same noise?"""
    from hasten.platform import analysis_charts, analysis_tables
    from hasten.trainers.analyses import consistency_of_runs as analysis

    def work(found: Sequence[Finished], tell: Callable[[str], None]) -> Outcome:
        made = analysis.analyse(found, count=count, steps=steps, seed=seed, kind=features, tell=tell)
        figures = analysis_charts.consistency(made.found, made.samples, pixels=found[0].has_pixels)
        return Outcome(found=made.found, figures=figures, tables=analysis_tables.consistency(made.found))

    options = f"--count {count} --steps {steps} --features {features} --seed {seed}"
    lead = "The same noise through every network, by the same deterministic sampler."
    _command(
        "consistency", runs, work, analysis.check, analysis.phases, options=options, lead=lead, json=json
    )


@app.command()
def difficulty(
    runs: Runs,
    count: Annotated[int, typer.Option(min=3, help="Held-out images for gradients.")] = 512,
    bins: Annotated[
        int | None, typer.Option(min=2, max=100, help="Ranges of timesteps; the runs' own by default.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Which timesteps are hard: loss, convergence, gradients and their interference."""
    from hasten.platform import analysis_tables, difficulty_charts
    from hasten.trainers.analyses import difficulty_of_runs as analysis

    def work(found: Sequence[Finished], tell: Callable[[str], None]) -> Outcome:
        made = analysis.analyse(found, count=count, bins=bins, seed=seed, tell=tell)
        return Outcome(
            found=made, figures=difficulty_charts.figures(made), tables=analysis_tables.difficulty(made)
        )

    options = f"--count {count} --seed {seed}" + (f" --bins {bins}" if bins else "")
    lead = "Loss and gradients by range of timesteps, against the optimal linear denoiser."
    _command("difficulty", runs, work, analysis.check, analysis.phases, options=options, lead=lead, json=json)


@app.command()
def landscape(
    runs: Runs,
    count: Annotated[int, typer.Option(min=2, help="Images that the loss is taken over.")] = 256,
    points: Annotated[int, typer.Option(min=3, help="Points on a line between weights.")] = 21,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """How the loss is curved: along lines between weights, and against the optimizer's stability bound."""
    from hasten.platform import analysis_charts, analysis_tables
    from hasten.trainers.analyses import landscape_of_runs as analysis

    def work(found: Sequence[Finished], tell: Callable[[str], None]) -> Outcome:
        made = analysis.analyse(found, count=count, points=points, seed=seed, tell=tell)
        return Outcome(
            found=made, figures=analysis_charts.landscape(made), tables=analysis_tables.landscape(made)
        )

    options = f"--count {count} --points {points} --seed {seed}"
    lead = "Loss along straight lines between weights, and its sharpest direction."
    _command("landscape", runs, work, analysis.check, analysis.phases, options=options, lead=lead, json=json)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an analysis found, drawn and tabled."""

    found: dict[str, Any]
    figures: Sequence[Figure]
    tables: Sequence[Table]


Work = Callable[["Sequence[Finished]", Callable[[str], None]], Outcome]
Check = Callable[["Sequence[Finished]"], None]
Phases = Callable[["Sequence[Finished]"], int]


def _command(
    kind: str,
    names: Sequence[str],
    work: Work,
    check: Check,
    phases: Phases,
    *,
    options: str,
    lead: str,
    json: bool,
) -> None:
    """Find the runs, analyse them, leave files behind and say what they hold."""
    from hasten.platform import cli, settings
    from hasten.platform.connection import connected
    from hasten.platform.runs import locate
    from hasten.trainers import session

    console = cli.console(json)
    services = connected(console, tracking=True)
    addresses = dict.fromkeys(locate(name, services.storage_uri) for name in names)
    found = find(list(addresses), services)
    check(found)
    session.make_deterministic(found[0].spec.execution.threads)
    with _shown(console, kind, phases(found)) as tell:
        outcome = work(found, tell)
    folder = settings.home() / "analyses" / folder_name(kind, [run.uri for run in found])
    command = f"hasten analyze {kind} {' '.join(names)} {options}"
    paths = write(folder, outcome, title=kind.capitalize(), lead=lead, command=command)
    recorded = record(found, paths, folder=f"analyses/{folder.name}", services=services)
    for table in outcome.tables:
        console.print(table)
    for note in outcome.found["notes"]:
        console.print(Text(f"- {note}", style="dim"), soft_wrap=True)
    for path in paths:
        console.print(f"{path.name}: {path}", soft_wrap=True)
    summary = {"status": "finished", "files": [str(path) for path in paths], "recorded": recorded}
    cli.finish(outcome.found | summary, json)


def find(addresses: Sequence[str], services: Services) -> list[Finished]:
    """The finished runs at these URIs, each once, without their fingerprints where names suffice.

    Raises:
        ConfigError: one is not finished, or its data are gone.
        Fault: a checkpoint is damaged, or the storage failed.
    """
    import torch

    from hasten.platform.runs import FINGERPRINT
    from hasten.trainers.analyses import finished

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    full = {uri: uri.rpartition("/")[2] for uri in addresses}
    short = {uri: FINGERPRINT.sub("", name) for uri, name in full.items()}
    called = short if len(set(short.values())) == len(short) else full
    return [
        finished.load(name, uri, storage_uri=_storage(uri, services), device=device)
        for uri, name in called.items()
    ]


def _storage(run_uri: str, services: Services) -> str:
    """The storage that a run lies in, and its data beside it."""
    return run_uri.rpartition("/runs/")[0] or services.storage_uri


def folder_name(kind: str, uris: Sequence[str]) -> str:
    """Where the analysis of these runs lies: a readable name, cut and made unique where it is too long."""
    name = "-".join([kind, *(uri.rpartition("/")[2] for uri in uris)])
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name[: _LONGEST - 13]}-{digest}"


def write(folder: Path, outcome: Outcome, *, title: str, lead: str, command: str) -> list[Path]:
    """``analysis.html``, ``analysis.json`` and a PNG for each plot; what an earlier analysis left goes.

    Raises:
        Fault: the folder cannot be written.
    """
    from hasten.platform import analysis_page

    names = ", ".join(run["name"] for run in outcome.found["runs"])
    page = analysis_page.page(f"{title}: {names}", lead, outcome.figures, outcome.found["notes"], command)
    files = {
        "analysis.html": page.encode(),
        "analysis.json": json_module.dumps(outcome.found, indent=2, allow_nan=False).encode(),
        **{f"{figure.name}.png": figure.png for figure in outcome.figures},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.png"):
            stale.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise Fault(str(folder), f"cannot be written: {error.strerror or error}") from error
    return [folder / name for name in files]


def record(runs: Sequence[Finished], paths: Sequence[Path], *, folder: str, services: Services) -> list[str]:
    """Attach the files to the runs in MLflow that are there; the names of those runs.

    A tracking server that fails is no failure of the analysis: its files are on this machine.
    """
    from hasten.platform import tracking

    recorded: list[str] = []
    files = {f"{folder}/{path.name}": path.read_bytes() for path in paths}
    try:
        server = tracking.tracker_of(services)
        recorded = [run.name for run in runs if server.attach(run.result.fingerprint, files)]
    except Fault as fault:
        log.warning("%s; the files are on this machine only", fault)
    return recorded


@contextmanager
def _shown(console: Console, kind: str, total: int) -> Iterator[Callable[[str], None]]:
    """Tell what goes on: a bar with an ETA on a terminal, a line for each phase in a log."""
    from hasten.platform.progress import progress_bars

    started, done = time.monotonic(), -1
    with progress_bars(console, "{task.fields[text]}") as bars:
        task = bars.add_task(kind, total=total, text="")

        def tell(text: str) -> None:
            nonlocal done
            done += 1
            bars.update(task, completed=min(done, total), text=text)
            if not console.is_terminal:
                console.print(f"{kind}: {text} ({time.monotonic() - started:.0f} s)", soft_wrap=True)

        yield tell
