"""Everything that one asks of a tracking server, said without knowing which one it is.

``tracking.Tracking`` is this with MLflow behind it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hasten.platform import shared_view
from hasten.platform.identity import FINGERPRINT, NOTE, STUDY, RunIdentity
from hasten.platform.observer import Gauge, Observer
from hasten.platform.outage import check_uri, spoken
from hasten.platform.reconciliation import Correction, Seen, corrections
from hasten.platform.replay import TrialDoor, replay
from hasten.platform.scores import Sample
from hasten.platform.tracker import MlflowTracker
from hasten.trainers.errors import Fault
from hasten.trainers.tracker import EndStatus


class Server(TrialDoor, Protocol):
    """A door through which one can also look around. Raises Unreachable, Refused or Gone."""

    def probe(self) -> None:
        """One small request with a short limit, so that a dead server is told within seconds."""

    def existing(self, identity: RunIdentity) -> Seen | None:
        """The run of an identity, or None; makes nothing."""

    def seen(self, experiment: str | None, tags: Mapping[str, str]) -> list[Seen]:
        """The runs of an experiment, or of all, that have all of these tags."""

    def correct(self, correction: Correction) -> None:
        """Set what a correction says."""

    def experiment_id(self, name: str) -> str:
        """The id of the experiment, made where there is none."""

    def experiment_of(self, run_id: str) -> str:
        """The id of the experiment that a run belongs to."""

    def tag_experiment(self, name: str, tags: Mapping[str, str]) -> None:
        """Set tags on an experiment."""

    def files(self, run_id: str, folder: str) -> list[str]:
        """The paths of the artifacts in a folder of a run."""

    def gauges(self) -> list[Gauge]:
        """What measures this machine; asks no server."""


@dataclass(frozen=True, slots=True)
class Tracks(ABC):
    """Where runs are tracked. A plain value: it pickles, and holds neither a secret nor a connection.

    ``spool`` is a folder of this machine. ``close_seconds`` bounds how long a tracker's ``close`` waits.
    """

    uri: str
    spool: Path
    close_seconds: float = 30.0

    @abstractmethod
    def _server(self) -> Server:
        """A door to the server, made anew for each call so that the value stays plain."""

    def __post_init__(self) -> None:
        check_uri(self.uri)

    def open(
        self,
        identity: RunIdentity,
        *,
        required: bool = True,
        fresh: bool = False,
        observed: bool = False,
        files: Mapping[str, bytes] | None = None,
    ) -> MlflowTracker:
        """The tracker of a run, which is made, or found again and continued as one more attempt.

        With ``required=False`` a server that does not answer is no obstacle: the spool keeps everything
        and the run is looked up when the server is back. Once a study runs, its trials ask for that. A
        ``fresh`` run is not looked for: the caller knows that there is none, and that nobody else makes it.
        Where the run is ``observed``, it computes here: the packages and the load of this machine belong to
        it. ``files`` are small ones, by path, that belong to it as well.

        Raises:
            Fault: the server does not answer or refuses us, or the spool cannot be written.
        """
        server = self._server()
        run = ("", 0)
        if required:
            with spoken(self.uri):
                server.probe()
                run = server.attempt(identity, fresh=fresh)
        try:
            folder = self.spool / identity.slug()
            tracker = MlflowTracker(
                server,
                identity,
                folder,
                run=run,
                fresh=fresh,
                close_seconds=self.close_seconds,
                observer=Observer(server.gauges) if observed else None,
            )
        except OSError as error:
            raise Fault(
                str(self.spool), f"cannot be written: {error.strerror}", "It holds the spool."
            ) from None
        for path, content in (files or {}).items():
            tracker.artifact(path, content)
        return tracker

    def status(self, identity: RunIdentity) -> str:
        """The run's status as MLflow says it, or an empty string where there is no such run.

        Raises:
            Fault: the server does not answer or refuses us.
        """
        with spoken(self.uri):
            found = self._server().existing(identity)
        return found.status if found else ""

    def lacks(
        self, identity: RunIdentity, points: Collection[tuple[str, int]], files: Mapping[str, int]
    ) -> str:
        """What a run lacks, in words; an empty string where it has all of it.

        Args:
            identity: the run.
            points: metrics, each with its step.
            files: how many files are in each of these folders, at the least.

        Raises:
            Fault: the server does not answer or refuses us.
        """
        with spoken(self.uri):
            server = self._server()
            found = server.existing(identity)
            if found is None:
                return "the run"
            there = {(point.key, point.step) for point in server.history(found.run_id)}
            if missing := set(points) - there:
                return f"{len(missing):,} points"
            for folder, count in files.items():
                if len(server.files(found.run_id, folder)) < count:
                    return f"files in {folder}"
        return ""

    def run_id(self, identity: RunIdentity) -> str | None:
        """The run's id, or None where there is no such run.

        Raises:
            Fault: the server does not answer or refuses us.
        """
        with spoken(self.uri):
            found = self._server().existing(identity)
        return found.run_id if found else None

    def end(self, identity: RunIdentity, status: EndStatus) -> None:
        """Say from outside how a run ended whose own process can no longer say it.

        Raises:
            Fault: the server does not answer or refuses us.
        """
        with spoken(self.uri):
            server = self._server()
            found = server.existing(identity)
            if found and found.status == "RUNNING":
                server.end(found.run_id, status, time=time.time_ns() // 1_000_000)

    def attach(self, fingerprint: str, files: Mapping[str, bytes]) -> int:
        """Add small files, by path, to every run of this fingerprint; how many runs that were.

        A study's trial and a run by itself may be the same run. Neither status nor times change.

        Raises:
            Fault: the server does not answer or refuses us.
        """
        with spoken(self.uri):
            server = self._server()
            found = server.seen(None, {FINGERPRINT: fingerprint})
            for run in found:
                for path, content in files.items():
                    server.upload(run.run_id, {"artifact": path}, content)
        return len(found)

    def replay(self) -> int:
        """Send what dead processes and outages left in this machine's spool; how many runs that were.

        A run whose process was killed ends KILLED. Never raises for a server that is down: it warns.
        """
        return replay(self._server(), self.spool)

    def reconcile(
        self,
        study: str,
        statuses: Mapping[str, EndStatus],
        *,
        stopped_by: Mapping[str, str] | None = None,
        alive: Collection[str] = (),
        experiment: str = "",
        seen: Sequence[Seen] | None = None,
    ) -> list[str]:
        """Make the statuses of a study's runs true; the names of the runs that were not.

        ``statuses`` and ``stopped_by`` go by trial. A run that is RUNNING and not listed is KILLED, unless
        its trial is in ``alive`` or a living process of this machine tracks it. ``experiment`` is the
        study's name when empty; ``seen`` are its runs, where they are known already.

        Raises:
            Fault: the server does not answer or refuses us.
        """
        if seen is None:
            seen = self.seen(study, experiment=experiment)
        with spoken(self.uri):
            server = self._server()
            plan = corrections(
                seen,
                statuses,
                stopped_by=stopped_by or {},
                alive=alive,
                spool=self.spool,
                experiment=experiment or study,
            )
            for correction in plan:
                server.correct(correction)
        return [correction.name for correction in plan if correction.status]

    def seen(self, study: str, *, experiment: str = "") -> list[Seen]:
        """The runs of a study as the server has them; ``experiment`` is the study's name when empty.

        Raises:
            Fault: the server does not answer or refuses us.
        """
        with spoken(self.uri):
            return self._server().seen(experiment or study, {STUDY: study})

    def log_final(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Record ``final/`` copies of metrics from outside, as for a trial that was ended by the scheduler.

        The table shows the value of the largest ``step`` (images seen).
        """
        now = time.time_ns() // 1_000_000
        with spoken(self.uri):
            samples = [Sample(f"final/{key}", value, step, now) for key, value in metrics.items()]
            self._server().log(run_id, samples, {})

    def experiment_id(self, name: str) -> str:
        """The id of the experiment, which is made where there is none, and restored where it was deleted."""
        with spoken(self.uri):
            return self._server().experiment_id(name)

    def set_shared_view(
        self,
        experiment: str,
        metrics: Sequence[str],
        params: Sequence[str],
        *,
        axes: Sequence[str] = (),
        image_step: int = 0,
        kind: str = "trial",
        note: str = "",
    ) -> None:
        """Write the view that ``link`` opens: the runs of ``kind``, best first by the first of ``metrics``.

        ``metrics`` and ``params`` become columns in this order. ``axes`` are the parameters of the parallel
        coordinates, all of ``params`` when empty: MLflow leaves a run out that lacks one of them.
        ``image_step`` is where the image grid opens; ``note`` is Markdown for the experiment's page.
        """
        value = shared_view.state(
            kind=kind, metrics=metrics, params=params, axes=axes or params, image_step=image_step
        )
        tags = {shared_view.TAG: value} | ({NOTE: note} if note else {})
        with spoken(self.uri):
            self._server().tag_experiment(experiment, tags)

    def link(self, experiment: str, *, charts: bool = True) -> str:
        """The address that opens the experiment's runs in the shared view, as charts or as a table."""
        return shared_view.study_url(self.uri, experiment_id=self.experiment_id(experiment), charts=charts)

    def run_link(self, run_id: str) -> str:
        """The address of one run's page."""
        with spoken(self.uri):
            experiment_id = self._server().experiment_of(run_id)
        return shared_view.run_url(self.uri, experiment_id=experiment_id, run_id=run_id)

    def compare_link(self, experiment: str, run_ids: Sequence[str]) -> str:
        """The address that shows these runs of an experiment side by side."""
        return shared_view.compare_url(
            self.uri, experiment_ids=[self.experiment_id(experiment)], run_ids=run_ids
        )
