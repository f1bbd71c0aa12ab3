"""``hasten registry``: versions of models, which of them is the champion, and whether they are sound."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hasten.platform.store_cli import Json, console, finish
from hasten.trainers.errors import ConfigError, Fault

if TYPE_CHECKING:
    from hasten.platform.registry import Registry, Version

app = typer.Typer(no_args_is_help=True, help="Registered models: their versions, champion, and soundness.")

_MODEL: Final = re.compile(r"(?:models:/)?(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))?")
_ROLLED_BACK: Final = "hasten.rolled_back"


@app.command("list")
def list_models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None, json: Json = False
) -> None:
    """Show the registered models, or the versions of one."""
    show = console(json)
    uri = _uri(show)
    from hasten.platform.registry import Registry, models

    if name is None:
        found = models(uri)
        for model, aliases in found.items():
            show.print(f"{model}: {_named(aliases) or 'no champion'}", markup=False)
        if not found:
            show.print("no model is registered; hasten retrain PIPELINE registers one")
        return finish({"models": [{"name": each, "aliases": known} for each, known in found.items()]}, json)
    registry = Registry(uri, name)
    versions = _versions(registry)
    rows = [_row(version, registry.aliases()) for version in versions]
    show.print(_table(name, rows))
    finish({"name": name, "versions": rows}, json)


@app.command()
def promote(
    name: str, version: Annotated[str, typer.Argument(metavar="VERSION")], json: Json = False
) -> None:
    """Make a version the champion, whatever any gate says; the one before keeps the alias `previous`."""
    show = console(json)
    registry = _registry(name, show)
    chosen = _chosen(registry, version)
    registry.promote(chosen)
    _said(registry, show, json)


@app.command()
def rollback(name: str, json: Json = False) -> None:
    """Make the previous version the champion again; a second time takes that back."""
    show = console(json)
    registry = _registry(name, show)
    aliases = registry.aliases()
    if "previous" not in aliases:
        raise ConfigError(name, "has no previous champion", "hasten registry promote NAME VERSION names any.")
    demoted = _chosen(registry, aliases["champion"]) if "champion" in aliases else None
    registry.promote(_chosen(registry, aliases["previous"]))
    if demoted is not None:
        registry.tag(demoted, {_ROLLED_BACK: datetime.now(UTC).isoformat(timespec="seconds")})
    _said(registry, show, json)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(metavar="NAME[@ALIAS|/VERSION]")], json: Json = False
) -> None:
    """Check a version's files, what it answers, and that the first steps of its training come again."""
    show = console(json)
    asked = _MODEL.fullmatch(model)
    if asked is None:
        raise ConfigError(model, "is no model", "Write NAME, NAME@ALIAS or NAME/VERSION.")
    registry = _registry(asked["name"], show)
    wanted = asked["number"] or registry.aliases().get(asked["alias"] or "champion")
    if wanted is None:
        raise ConfigError(model, f"has no {asked['alias'] or 'champion'}", "Name a version: NAME/VERSION.")
    chosen = _chosen(registry, wanted)
    from hasten.platform.registry import verification

    checks = []
    for check in verification.verify(registry, chosen, console=show):
        checks.append(check)
        mark = "[green]✓[/]" if check.ok else "[red]✗[/]"
        show.print(mark, Text(f"{check.name:<8} {check.said}"), soft_wrap=True)
    wrong = [check.name for check in checks if not check.ok]
    told = [{"check": check.name, "ok": check.ok, "said": check.said} for check in checks]
    finish({"name": registry.model, "version": chosen.number, "ok": not wrong, "checks": told}, json)
    if wrong:
        raise Fault(f"models:/{registry.model}/{chosen.number}", f"is not sound: {', '.join(wrong)}")


def _uri(show: Console) -> str:
    from hasten.platform.connection import connected

    return connected(show, tracking=True).tracking_uri


def _registry(name: str, show: Console) -> Registry:
    uri = _uri(show)
    from hasten.platform.registry import Registry

    return Registry(uri, name)


def _versions(registry: Registry) -> list[Version]:
    versions = registry.versions()
    if not versions:
        raise ConfigError(registry.model, "no such registered model", "hasten registry list names them.")
    return versions


def _chosen(registry: Registry, number: str) -> Version:
    versions = _versions(registry)
    for version in versions:
        if version.number == number:
            return version
    known = ", ".join(version.number for version in versions)
    raise ConfigError(f"{registry.model}/{number}", f"no such version; there are {known}")


def _said(registry: Registry, show: Console, json: bool) -> None:
    aliases = registry.aliases()
    show.print(f"{registry.model}: {_named(aliases)}", markup=False)
    finish({"name": registry.model, "aliases": aliases}, json)


def _named(aliases: dict[str, str]) -> str:
    return ", ".join(f"{alias} is version {number}" for alias, number in sorted(aliases.items()))


def _row(version: Version, aliases: dict[str, str]) -> dict[str, Any]:
    from hasten.platform.registry import RUN_URI

    tags = version.tags
    return {
        "version": version.number,
        "aliases": sorted(alias for alias, number in aliases.items() if number == version.number),
        "made": version.made,
        "run": tags.get(RUN_URI, "").rpartition("/")[2],
        "study": tags.get("hasten.study"),
        "data_digest": tags.get("hasten.data.digest"),
        "decision": tags.get("hasten.retrain.decision"),
        "reason": tags.get("hasten.retrain.reason"),
        "rolled_back": tags.get(_ROLLED_BACK),
    }


def _table(name: str, rows: list[dict[str, Any]]) -> Table:
    from hasten.platform.saying import duration

    table = Table(title=f"model {name}", title_justify="left", box=None, pad_edge=False)
    for heading in ("version", "aliases", "age", "run", "data", "decision"):
        table.add_column(heading, justify="right" if heading in ("version", "age") else "left")
    for row in rows:
        decision = f"{row['decision'] or ''}{', rolled back' if row['rolled_back'] else ''}"
        table.add_row(
            row["version"],
            ", ".join(row["aliases"]),
            duration(time.time() - row["made"]),
            row["run"],
            (row["data_digest"] or "")[:12],
            decision,
        )
    return table
