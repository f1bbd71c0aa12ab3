"""Sending what dead processes and outages left in this machine's spool; and trying a server out."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from hasten.platform import spool
from hasten.platform.identity import RunIdentity
from hasten.platform.outage import Gone, Refused, Unreachable
from hasten.platform.scores import Sample, Scores
from hasten.platform.shipment import Door, Shipment
from hasten.platform.spool import Segment
from hasten.trainers.errors import Fault

DOCTOR: Final = "hasten-doctor"

log = logging.getLogger(__name__)


class TrialDoor(Door, Protocol):
    """A door through which one can also take things away again."""

    def download(self, run_id: str, path: str) -> bytes:
        """The content of an artifact."""

    def delete_experiment(self, name: str) -> None:
        """Delete an experiment with its runs."""


def replay(door: Door, folder: Path) -> int:
    """Send what lies in a spool and belongs to no living process; how many runs that were.

    A server that is down is no error: it warns, and everything stays for the next command.
    """
    count = 0
    for run_folder in spool.runs(folder):
        left = list(spool.abandoned(run_folder))
        try:
            if left:
                _replay_run(door, run_folder, left)
                count += 1
        except (Unreachable, Refused, Gone) as trouble:
            log.warning("tracking: %s; what is in %s waits for the next command", trouble, run_folder)
            if isinstance(trouble, Unreachable):
                break
        except (KeyError, TypeError, ValueError) as error:
            log.warning("tracking: %s holds no spool of hasten and is left alone: %s", run_folder, error)
        finally:
            for segment in left:
                segment.release()
    return count


def visit(door: TrialDoor) -> None:
    """Write a run with a metric and a file, read both back, delete it.

    Raises:
        Fault: what was read back is not what was written.
    """
    experiment = f"{DOCTOR}-{uuid.uuid4().hex[:8]}"  # two doctors do not tread on each other's toes
    run_id, _ = door.attempt(RunIdentity(experiment=experiment, name=DOCTOR))
    try:
        metric, file = Sample("doctor/metric", 1.5, 7, 1), ("doctor/file.txt", b"hasten")
        door.log(run_id, [metric], {})
        door.upload(run_id, {"artifact": file[0]}, file[1])
        same = door.history(run_id) == [metric] and door.download(run_id, file[0]) == file[1]
        door.end(run_id, "finished", time=0)
    finally:
        door.delete_experiment(experiment)
    if not same:
        raise Fault("tracking", "MLflow gave back other values than were written", "See the server's log.")


def _replay_run(door: Door, run_folder: Path, left: Sequence[Segment]) -> None:
    """Send what dead processes left of one run, oldest first, and make its status true.

    A run ends as its last process said, and KILLED where that was killed; a process that has taken the
    run over since, here or on another machine, is left to say how it ends.

    Raises:
        Unreachable: the server did not take all of it.
        Gone: the run has been deleted in the meantime.
    """
    headers = [segment.header() for segment in left]
    run_id, attempt = door.find(RunIdentity.from_document(headers[-1]["identity"]))
    has_successor = len(spool.segments(run_folder)) > len(
        left
    )  # whoever lives has a segment that is not left
    is_last = max(1, *(header["attempt"] for header in headers)) >= attempt and not has_successor
    scores = Scores()
    scores.load(door.history(run_id))
    ended = False
    for segment in left:
        shipment = Shipment(door, run_id, scores, segment, takes_end=is_last and segment is left[-1])
        shipment.send()
        ended = shipment.ended
    if is_last and not ended:
        door.kill(run_id)
    for segment in left:
        segment.remove()
