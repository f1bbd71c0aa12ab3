"""MLflow: runs found again by their tags, a study's shared view, true statuses, a spool for outages.

The only door to MLflow besides the model registry. Credentials come from the environment
(``MLFLOW_TRACKING_USERNAME`` and ``_PASSWORD``, or ``MLFLOW_TRACKING_TOKEN``) and are kept nowhere.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from hasten.platform import settings
from hasten.platform.identity import Dataset, RunIdentity
from hasten.platform.outage import check_uri, spoken
from hasten.platform.replay import visit
from hasten.platform.services import Services
from hasten.platform.tracker import MlflowTracker
from hasten.platform.tracking.door import Mlflow
from hasten.platform.tracks import Server, Tracks

__all__ = ["Dataset", "MlflowTracker", "RunIdentity", "Tracking", "round_trip", "tracker_of"]


@dataclass(frozen=True, slots=True)
class Tracking(Tracks):
    """Where runs are tracked, with MLflow at ``uri``."""

    def _server(self) -> Server:
        return Mlflow(self.uri)


def tracker_of(services: Services) -> Tracking:
    """The tracking server, after it was given what earlier outages kept from it."""
    tracking = Tracking(services.tracking_uri, settings.home() / "spool")
    tracking.replay()
    return tracking


def round_trip(uri: str) -> str:
    """Write a run with a metric and a file, read both back, delete it; what was seen, in one sentence.

    Raises:
        ConfigError: the address is not one of an MLflow server.
        Fault: nothing answers within a few seconds, the credentials are refused, or what was read back is
            not what was written.
    """
    check_uri(uri)
    started = time.perf_counter()
    with spoken(uri):
        server = Mlflow(uri)
        server.probe()
        visit(server)
    return f"MLflow at {uri} kept and gave back a metric and a file in {time.perf_counter() - started:.1f} s"
