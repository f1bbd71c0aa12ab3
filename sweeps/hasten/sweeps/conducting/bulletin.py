"""What a driver says of itself in its study's ledger, and what it takes from what earlier ones said."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from hasten.sweeps import plan as plans
from hasten.sweeps.conducting.ledger import Ledger, OpenTrial, StudyNote, StudyState
from hasten.sweeps.conducting.limits import Meter, Spent, spent_before
from hasten.sweeps.plan import Plan
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.study import StudySpec

_SECONDS: Final = 5.0  # between two notes: a third of the ledger's beat


class Bulletin:
    """Tells the ledger how far a study is.

    Args:
        ledger: the study's.
        plan: what is run.
        clock: seconds; only differences matter.
    """

    def __init__(self, ledger: Ledger, plan: Plan, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._told = -_SECONDS
        self._first = StudyNote(
            name=plan.study.name,
            spec=plan.study.model_dump(mode="json"),
            digest=plans.study_digest(plan.study, plan.base),
            state="running",
            host=socket.gethostname(),
            pid=os.getpid(),
            started=time.time(),
            trials=plan.total,
        )

    @property
    def digest(self) -> str:
        """Of what the study's points rest on."""
        return self._first.digest

    @property
    def is_due(self) -> bool:
        """Whether it is time to tell something again."""
        return self._clock() - self._told >= _SECONDS

    def tell(
        self, state: StudyState, *, over: int, spent: Spent, opened: Mapping[str, OpenTrial], why: str
    ) -> None:
        """Say how many trials are over, what has been spent, and which trials have begun."""
        self._told = self._clock()
        now = {"state": state, "over": over, "spent": spent, "open": dict(opened), "why": why}
        self._ledger.tell(self._first.model_copy(update=now))


def meter(
    study: StudySpec,
    note: StudyNote | None,
    records: Mapping[str, TrialRecord],
    clock: Callable[[], float],
) -> Meter:
    """What counts a study's costs, on top of what it has cost so far."""
    execution = study.execution
    cpus, gpus = execution.workers * execution.cpus, execution.workers * execution.gpus
    held = {name: (record.occupied, record.cpus, record.gpus) for name, record in records.items()}
    for name, trial in note.open.items() if note else ():
        if name not in records or records[name].attempts < trial.attempts:
            held[name] = (trial.occupied, cpus, gpus)
    earlier = spent_before(note.spent if note else Spent(), held.values())
    return Meter(cpus=cpus, gpus=gpus, prices=study.prices, earlier=earlier, clock=clock)
