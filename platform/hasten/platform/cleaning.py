"""``hasten clean``: what of the store nobody needs any more, and, when asked, its removal.

Nothing is removed on the strength of what was true a while ago: who needs what is asked again while things
are removed, since a sweep may have started meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from hasten.platform import inventory, progress, references, settings
from hasten.platform.connection import connected
from hasten.platform.locks import only_one
from hasten.platform.services import Services
from hasten.trainers import retention
from hasten.trainers.errors import Fault
from hasten.trainers.retention import Decision, Policy, References

LOG: Final = "clean.log"
_NO_STUDY: Final = "(no study)"
_FRESH_SECONDS: Final = 5.0  # for so long what was heard of studies and models is believed

Confirm = Callable[[str], bool]


def clean(
    policy: Policy, *, delete: bool = False, confirm: Confirm | None = None, console: Console
) -> dict[str, Any]:
    """Show what can be removed, and with ``delete`` remove it; what ``hasten clean --json`` prints.

    ``confirm`` is asked before anything is removed; None means that the answer was given beforehand.

    Raises:
        Fault: a service failed, or the log of removals cannot be written; what was removed is in the log.
        ConfigError: the storage is wrong.
    """
    services = connected(console, tracking=True)
    store = Store(services)
    decisions = store.decide(policy)
    going = [decision for decision in decisions if not decision.keep]
    console.print(table(decisions))
    if not going:
        console.print("nothing can be removed")
    elif not delete:
        console.print(f"{size(_bytes(going))} can be removed; nothing was: hasten clean --delete removes it")
    gone: list[Decision] = []
    if (
        going
        and delete
        and (confirm is None or confirm(f"Remove {len(going)} items, {size(_bytes(going))}?"))
    ):
        with only_one(settings.home() / "locks" / "clean", what="hasten clean"):
            gone = remove(going, store, policy, log=settings.home() / LOG, console=console)
        console.print(f"{len(gone)} items removed, {size(_bytes(gone))}; the list: {settings.home() / LOG}")
    return {
        "status": "finished",
        "storage": services.storage_uri,
        "bytes": _bytes(decisions),
        "removable_bytes": _bytes(going),
        "removed_bytes": _bytes(gone),
        "removable": [_plain(decision) for decision in going],
        "removed": [_plain(decision) for decision in gone],
        "by_reason": [
            {"study": study, "reason": reason, "keep": keep, "items": len(same), "bytes": _bytes(same)}
            for (study, keep, reason), same in _grouped(decisions)
        ],
    }


@dataclass(slots=True)
class Store:
    """The runs of a store and who needs them; the latter is asked again when it was a while ago."""

    services: Services
    _needed: References = field(default_factory=References)
    _ended: frozenset[str] = frozenset()
    _heard: float = float("-inf")

    def decide(self, policy: Policy) -> tuple[Decision, ...]:
        """What becomes of everything that is there now."""
        # First what there is, then who needs it: a run that begins in between is not looked at at all.
        found = inventory.by_folder(inventory.files(self._uri("runs")))
        self._ask(list(found))
        runs = [inventory.run(name, files, over=name in self._ended) for name, files in found.items()]
        return retention.plan(runs, self._needed, policy, now=time.time())

    def decide_again(self, run: str, known: Sequence[str], policy: Policy) -> set[str]:
        """The places of one run that can still be removed, as of now; ``known`` are all runs."""
        if time.monotonic() - self._heard > _FRESH_SECONDS:
            self._ask(known)
        now = inventory.run(run, inventory.files(self.uri(run)), over=run in self._ended)
        return {
            decision.item.place
            for decision in retention.plan([now], self._needed, policy, now=time.time())
            if not decision.keep
        }

    def uri(self, run: str) -> str:
        return self._uri(f"runs/{run}")

    def forget(self) -> None:
        """Believe nothing that was heard before: somebody took his time to answer a question."""
        self._heard = float("-inf")

    def _ask(self, runs: Sequence[str]) -> None:
        self._needed, self._ended = references.gather(self.services, runs)
        self._heard = time.monotonic()

    def _uri(self, name: str) -> str:
        return f"{self.services.storage_uri.rstrip('/')}/{name}"


def remove(
    going: Sequence[Decision], store: Store, policy: Policy, *, log: Path, console: Console
) -> list[Decision]:
    """Remove what can still be removed, with a line in ``log`` for each; returns what was.

    Raises:
        Fault: the storage failed, or the log cannot be written.
    """
    gone: list[Decision] = []
    by_run = {run: list(same) for run, same in groupby(going, key=lambda decision: decision.run)}
    store.forget()
    with _appending(log) as note, progress.steps(console, "removing", by_run) as runs:
        for run in runs:
            still = store.decide_again(run, list(by_run), policy)
            for decision in by_run[run]:
                if decision.item.place in still:
                    inventory.remove(store.uri(run), decision.item)
                    note(f"{store.uri(run)}/{decision.item.place} {decision.item.bytes} {decision.reason}")
                    gone.append(decision)
    return gone


@contextmanager
def _appending(log: Path) -> Iterator[Callable[[str], None]]:
    """A function that adds a line with the time to a file.

    Raises:
        Fault: the file cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("a", buffering=1)
    except OSError as error:
        raise Fault(str(log), f"cannot be written: {error.strerror}", "Choose another HASTEN_HOME.") from None
    with file:

        def note(text: str) -> None:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")

        yield note


def table(decisions: Sequence[Decision]) -> Table:
    """What can be removed and what is kept, by study and reason, with bytes."""
    drawn = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("study", "", "why", "items", "size"):
        drawn.add_column(
            heading, justify="right" if heading in ("items", "size") else "left", overflow="fold"
        )
    for (study, keep, reason), same in _grouped(decisions):
        drawn.add_row(
            study,
            "kept" if keep else "can go",
            reason,
            f"{len(same):,}",
            size(_bytes(same)),
            style="dim" if keep else "",
        )
    return drawn


def size(count: int) -> str:
    """Bytes for people: ``1.2 GB``."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000.0
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000.0:.1f} TB"


def _grouped(decisions: Iterable[Decision]) -> list[tuple[tuple[str, bool, str], list[Decision]]]:
    """Decisions by study, fate and reason; what can go comes before what is kept."""

    def key(decision: Decision) -> tuple[str, bool, str]:
        return ", ".join(decision.studies) or _NO_STUDY, decision.keep, decision.reason

    return [(group, list(same)) for group, same in groupby(sorted(decisions, key=key), key=key)]


def _bytes(decisions: Iterable[Decision]) -> int:
    return sum(decision.item.bytes for decision in decisions)


def _plain(decision: Decision) -> dict[str, Any]:
    item = decision.item
    return {
        "run": decision.run,
        "place": item.place,
        "kind": item.kind,
        "images": item.images,
        "bytes": item.bytes,
        "reason": decision.reason,
        "studies": list(decision.studies),
    }
