"""The command line. Everything heavy is imported by the command that needs it: ``--help`` answers at once."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Console

from hasten.platform import analyzing, registry_cli, stack_cli, store_cli, tracking_cli
from hasten.platform.saying import say
from hasten.platform.scheduling import cli as schedule_cli
from hasten.trainers import config
from hasten.trainers.errors import ConfigError, Fault, HastenError

app = typer.Typer(
    name="hasten",
    help="Trains diffusion models faster, and finds out honestly which schedule made them faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets in the store.")
app.add_typer(data_app, name="data")
app.add_typer(schedule_cli.app, name="schedule", rich_help_panel="Keep models fresh")
app.add_typer(registry_cli.app, name="registry", rich_help_panel="Keep models fresh")
app.add_typer(analyzing.app, name="analyze", rich_help_panel="Use a model")
app.add_typer(tracking_cli.app, name="tracking", rich_help_panel="Keep models fresh")
for command in (stack_cli.up, stack_cli.down, store_cli.status, stack_cli.doctor):
    app.command(rich_help_panel="The local stack")(command)
app.command(rich_help_panel="Keep models fresh")(store_cli.clean)

_UsageError: type[Any] = typer.BadParameter.__bases__[
    0
]  # Typer does not export the class of all wrong command lines

_INTERRUPTED: Final = 130  # what Typer makes of a KeyboardInterrupt

Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a dotted key.")
]
Json = Annotated[bool, typer.Option("--json", help="End standard output with one JSON object.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Source = Annotated[str, typer.Argument(metavar="RUN|URI|models:/NAME@ALIAS")]
Raw = Annotated[bool, typer.Option("--raw", help="The last weights instead of the averaged ones.")]
Probe = Annotated[bool, typer.Option("--probe", help="Say what it costs, after twenty steps of it here.")]
EmaStd = Annotated[float | None, typer.Option("--ema-std", help="Averaged with another relative width.")]


@app.command(rich_help_panel="Train and compare")
def demo(json: Json = False) -> None:
    """The whole story on this machine: stack, data, sweep, comparison, report."""
    from hasten.platform import demonstration

    finish(demonstration.demo(console(json)), json)


@app.command(rich_help_panel="Train and compare")
def check(
    file: str,
    set: Overrides = None,  # noqa: A002  the option's name
    plot: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Draw the schedules: .html, .png, .svg, or a folder for the page."),
    ] = None,
    probe: Probe = False,
    json: Json = False,
) -> None:
    """Validate a recipe or a study, print what it means and what it costs; touches no cluster."""
    from hasten.platform import checking
    from hasten.trainers.specs import RunSpec

    loaded = checking.load(file, config.parse_overrides(set or []))
    show = console(json)
    if isinstance(loaded, RunSpec):
        if probe:
            raise ConfigError("--probe", "is for studies", "`hasten train` shows an estimate as it runs.")
        found = checking.check_run(loaded, show)
    else:
        found = checking.check_study(loaded, show, probe=probe)
    if plot is not None:
        found["plot"] = checking.plot(loaded, plot, show)
    finish(found, json)


@app.command(rich_help_panel="Train and compare")
def train(recipe: str, set: Overrides = None, dry_run: DryRun = False, json: Json = False) -> None:  # noqa: A002
    """Train one run. Again: it resumes, or says that it is finished."""
    from hasten.trainers import specs

    spec = specs.load(recipe, config.parse_overrides(set or []))
    if dry_run:
        from hasten.platform import checking

        return finish(checking.check_run(spec, console(json)), json)
    from hasten.platform import training

    found = training.train(spec, console=console(json))
    scores = ", ".join(
        f"{key} {value:.4f}" for key, value in found["metrics"].items() if key.startswith("eval/")
    )
    console(json).print(f"{found['run']}: {found['status']} after {found['images']:,} images, {scores}")
    finish(found, json)


@app.command(rich_help_panel="Train and compare")
def sweep(
    study: str,
    set: Overrides = None,  # noqa: A002
    dry_run: DryRun = False,
    probe: Probe = False,
    json: Json = False,
) -> None:
    """Run a study. Again: it resumes; finished, it does nothing. `-s base.KEY=V` changes the base recipe."""
    from hasten.sweeps import plan as plans
    from hasten.sweeps import study as study_files

    plan = plans.plan(study_files.load(study, config.parse_overrides(set or [])))
    show = console(json)
    if dry_run or probe:
        from hasten.platform import study_checking

        return finish(study_checking.check_study(plan, show, probe=probe), json)
    from hasten.platform import sweeping

    found, told = sweeping.sweep(plan, console=show)
    from hasten.platform import study_reports

    show.print(study_reports.rendered(told))
    show.print(f"report: {study_reports.page(told)}", soft_wrap=True)
    finish(found, json)


@app.command(rich_help_panel="Train and compare")
def compare(
    what: Annotated[list[str], typer.Argument(metavar="STUDY...|RUN...")],
    set: Overrides = None,  # noqa: A002
    json: Json = False,
) -> None:
    """Compare arms, points, studies or runs; writes plots and a report; names no winner without proof."""
    from hasten.platform import study_reports

    show = console(json)
    told, found, paths = study_reports.compare(what, config.parse_overrides(set or []), console=show)
    show.print(told)
    for path in paths:
        show.print(f"{path.name}: {path}", soft_wrap=True)
    finish(found, json)


@app.command(rich_help_panel="Keep models fresh")
def retrain(
    pipeline: str,
    set: Overrides = None,  # noqa: A002
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Explain the decision and the cost.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Train although nothing changed, under another seed.")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="Show the ticks so far, and do nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """One idempotent tick: train on the current data if something changed, promote if it is better."""
    from hasten.platform.retraining import pipeline as pipelines

    spec, show = pipelines.load(pipeline, config.parse_overrides(set or [])), console(json)
    from hasten.platform.retraining import telling, tick  # with torch: not for a file with a mistake in it

    if history:
        return finish(telling.history(spec, console=show), json)
    if dry_run:
        return finish(telling.dry_run(spec, forced=force, console=show), json)
    found = tick.tick(spec, forced=force, console=show)
    show.print(f"{found['pipeline']}: {found['decision']}: {found['reason']}", soft_wrap=True, markup=False)
    finish(found, json)


@app.command(rich_help_panel="Use a model")
def sample(
    source: Source,
    out: Annotated[Path, typer.Argument(help="A .png sheet, an .npz of arrays, or a new folder of images.")],
    count: Annotated[int, typer.Option(min=1)] = 36,
    seed: int = 0,
    label: Annotated[list[int] | None, typer.Option("--label", help="A class; again for more.")] = None,
    guidance: Annotated[float | None, typer.Option(help="As evaluated, where it is not given.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Network evaluations an image.")] = None,
    sampler: Literal["ddim", "dpm++", "heun"] | None = None,
    raw: Raw = False,
    ema_std: EmaStd = None,
    json: Json = False,
) -> None:
    """Make images from addressed noise: the same seed gives the same noise for every model."""
    from hasten.platform import picturing

    found = picturing.sample(
        source,
        out,
        count=count,
        seed=seed,
        labels=label or (),
        guidance=guidance,
        steps=steps,
        sampler=sampler,
        raw=raw,
        ema_std=ema_std,
        console=console(json),
    )
    finish(found, json)


@app.command(rich_help_panel="Use a model")
def export(
    source: Source,
    folder: Path,
    raw: Raw = False,
    ema_std: EmaStd = None,
    licence: Annotated[str, typer.Option("--license", help="Goes into the model card.")] = "unknown",
    json: Json = False,
) -> None:
    """Write a model as a folder that diffusers loads: safetensors, JSON and a model card."""
    from hasten.platform import exporting

    show = console(json)
    found = exporting.export(source, folder, raw=raw, ema_std=ema_std, licence=licence, console=show)
    finish(found, json)


@data_app.command("import")
def data_import(
    source: Annotated[str, typer.Argument(help="digits, or a folder, file or pattern on a disk or in S3.")],
    name: Annotated[str | None, typer.Argument(help="What recipes call it.")] = None,
    format: Annotated[  # noqa: A002  the option's name
        str, typer.Option(help="auto, imagefolder, parquet, webdataset, arrays or latents.")
    ] = "auto",
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Side in pixels; by default as it is.")
    ] = None,
    fit: Annotated[
        Literal["crop", "pad", "stretch"], typer.Option(help="How images become square.")
    ] = "crop",
    channels: Annotated[int | None, typer.Option(help="1 or 3; by default as they are.")] = None,
    labels: Annotated[str, typer.Option(help="auto, none, or a Parquet column.")] = "auto",
    max_rejected: Annotated[float, typer.Option(help="Share of images that may be refused.")] = 0.01,
    scale: Annotated[float | None, typer.Option(help="Of latents; by default 1/standard deviation.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Files read at once, on Ray.")] = None,
    json: Json = False,
) -> None:
    """Import images or latents into the store as the data set NAME; again: only if something changed."""
    from hasten.platform import importing
    from hasten.platform.connection import connected
    from hasten.trainers.datasets.data import BUILT_IN

    if name is None and source not in BUILT_IN:
        raise ConfigError("NAME", "is missing", f"Say what to call it: hasten data import {source} NAME.")
    show = console(json)
    services = connected(show)
    manifest, changed = importing.import_dataset(
        source,
        name or source,
        services.storage_uri,
        format=format,
        resolution=resolution,
        fit=fit,
        channels=channels,
        labels=labels,
        max_rejected=max_rejected,
        scale=scale,
        workers=workers,
        console=show,
    )
    what = "imported" if changed else "unchanged"
    show.print(
        f"{manifest.name}: {what}, {manifest.count:,} images, digest {manifest.digest[:12]}", markup=False
    )
    for kind, number in manifest.report.items():
        show.print(f"  {kind}: {number:,}", markup=False)
    finish({"status": what, **manifest.model_dump(mode="json")}, json)


@data_app.command("describe")
def data_describe(
    name: str,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything, and check it.")] = False,
    json: Json = False,
) -> None:
    """What a data set in the store holds."""
    from hasten.platform.connection import connected
    from hasten.trainers.datasets import data

    show = console(json)
    services = connected(show)
    location = data.uri(name, services.storage_uri)
    manifest = data.read_manifest(location)
    channels, height, width = manifest.shape
    size = f"{height}x{width}x{channels} ({manifest.dtype})"
    show.print(
        f"{manifest.name}: {manifest.count:,} images of {size}, digest {manifest.digest}",
        soft_wrap=True,
        markup=False,
    )
    classes = f"{manifest.classes} classes" if manifest.classes else "no labels"
    show.print(f"from {manifest.source}, {classes}, in {len(manifest.shards)} shard(s)", markup=False)
    for kind, number in manifest.report.items():
        show.print(f"  {kind}: {number:,}", markup=False)
    problems = data.verify(location) if verify else []
    for problem in problems:
        show.print(f"  damaged: {problem}", markup=False)
    if verify and not problems:
        show.print("everything was read and is as it was written")
    finish({**manifest.model_dump(mode="json"), "problems": problems}, json)
    if problems:
        raise Fault(location, f"{len(problems)} problem(s) found", "Import the data set again.")


def console(json: bool) -> Console:
    """Where people read: standard output, or standard error where a program reads the other one.

    Of the processes that torchrun starts only the first one speaks.
    """
    return Console(stderr=json, highlight=False, quiet=not _speaks())


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"


def finish(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json and _speaks():
        sys.stdout.write(json.dumps(found) + "\n")


def main() -> None:
    """Run a command; its failures speak to the user and set the exit code."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        code = app(standalone_mode=False) or 0
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except HastenError as error:
        say(error)
        sys.exit(error.exit_code)
    except _UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        Console(stderr=True).print("stopped; the same command goes on")
        sys.exit(3)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does: it tidies up first."""
    del frame
    raise KeyboardInterrupt(number)
