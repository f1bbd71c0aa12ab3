"""Which runs of a study have an untrue status, as a value that somebody then acts on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hasten.platform.identity import ATTEMPT, KIND, NAME, STOPPED_BY, TRIAL, RunIdentity
from hasten.platform.spool import is_alive
from hasten.trainers.tracker import EndStatus

STATUS: Mapping[EndStatus, str] = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A run as the server has it."""

    run_id: str
    status: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What to set on a run; an empty ``status`` or ``stopped_by`` leaves that as it is."""

    run_id: str
    name: str
    status: str
    stopped_by: str
    is_orphan: bool = False


def corrections(
    runs: Iterable[Seen],
    statuses: Mapping[str, EndStatus],
    *,
    stopped_by: Mapping[str, str],
    alive: Collection[str],
    spool: Path,
    experiment: str,
) -> list[Correction]:
    """What makes the statuses of a study's runs true; ``statuses`` and ``stopped_by`` go by trial.

    A listed trial gets the status that is listed. Any other run that is RUNNING is KILLED, unless its trial
    is in ``alive`` or a living process of this machine tracks it. A run that nobody ever took up, beside
    one of the same identity that somebody did, is an orphan.
    """
    plan: list[Correction] = []
    adopted: set[str] = set()
    for run in sorted(runs, key=lambda run: ATTEMPT not in run.tags):
        tags, trial = run.tags, run.tags.get(TRIAL, "")
        name = tags.get(NAME, "")
        identity = RunIdentity(experiment=experiment, name=name, kind=tags.get(KIND, "run"), tags=tags)
        slug = identity.slug()
        is_orphan = ATTEMPT not in tags and slug in adopted
        adopted.add(slug)
        listed = statuses.get(trial)
        if trial in alive or (listed is None and not is_orphan and is_alive(spool / slug)):
            continue
        wanted = STATUS[listed or "stopped"] if listed or run.status == "RUNNING" else run.status
        cause = stopped_by.get(trial, "")
        change = Correction(
            run_id=run.run_id,
            name=name,
            status=wanted if wanted != run.status else "",
            stopped_by=cause if cause != tags.get(STOPPED_BY, "") else "",
            is_orphan=is_orphan,
        )
        if change.status or change.stopped_by or is_orphan:
            plan.append(change)
    return plan
