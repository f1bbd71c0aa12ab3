"""What a failure means: whether a trial is tried again, and when."""

from __future__ import annotations

import hashlib
import json
from typing import Final

from hasten.sweeps.records import FailureKind, TrialRecord
from hasten.trainers.specs import RunSpec

RETRIES: Final = 2
"""How often in a row a trial whose process was lost starts again without getting any further."""

_ABOUT_MEMORY: Final = {"workers", "cpus", "gpus", "micro_batch", "compile", "channels_last"}


def stands(record: TrialRecord, *, rule: str | None, size: str) -> bool:
    """Whether a later command takes a trial's record as it is, or tries the trial again.

    What diverged would diverge again; what did not fit into memory, on the same ``size``, too. Lost
    processes, data and programs may have been mended. What a stopping rule ended goes on once the study has
    no such ``rule``.
    """
    match record.state:
        case "finished":
            return True
        case "stopped":
            return record.verdict is not None and record.verdict.rule == rule
        case "failed":
            return record.failure == "diverged" or (record.failure == "memory" and record.size == size)


def size_of(run: RunSpec) -> str:
    """A digest of what decides whether a run fits into memory, beside what it computes."""
    text = json.dumps(run.execution.model_dump(mode="json", include=_ABOUT_MEMORY), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Patience:
    """Counts how often one trial was lost, to tell an unlucky one from one that kills its processes."""

    def __init__(self) -> None:
        self._furthest = -1
        self._in_vain = 0

    def again(self, failure: FailureKind, *, blameless: bool, images: int) -> bool:
        """Whether a trial that failed after ``images`` starts again, from its checkpoint.

        What is ``blameless``, a node's end or the store's, does not count, however often; otherwise each
        start must get further than all before it, but for ``RETRIES`` in a row. What fails by itself is not
        tried again at once.
        """
        if failure != "lost":
            return False
        if blameless:
            return True
        self._in_vain = 1 if images > self._furthest else self._in_vain + 1
        self._furthest = max(self._furthest, images)
        return self._in_vain <= RETRIES
