"""The local MLflow server: SQLite for what is written in it, the object store or a folder for artifacts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from hasten.platform.stack import environment, processes


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowServer:
    """The part of the stack that serves ``tracking``. It has no password, so it listens on loopback only."""

    name: ClassVar[str] = "tracking"
    title: ClassVar[str] = "MLflow"
    ports: ClassVar[Mapping[str, int]] = {"http": 5000}
    home: Path
    artifacts: str
    storage: Mapping[str, str | None] = field(default_factory=dict)

    def launch(self, ports: Mapping[str, int]) -> tuple[tuple[str, ...], dict[str, str]]:
        """The command and environment that start the server."""
        arguments = [
            *("--backend-store-uri", f"sqlite:///{self.home / 'mlflow.db'}"),
            *("--artifacts-destination", self.artifacts),
            *("--host", processes.LOOPBACK, "--port", str(ports["http"]), "--workers", "1"),
            # A line for each of some thousand requests tells nobody anything.
            *("--uvicorn-opts", "--log-level warning"),
        ]
        change = {
            **self.storage,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            # Seven processes of some 230 MB each, for evaluation jobs that nothing here asks for.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            # A server that is its own client would wait for itself.
            "MLFLOW_TRACKING_URI": None,
        }
        command = processes.python_module("mlflow", "server", *arguments)
        return command, environment.applied(environment.servers(os.environ), change)

    def listens_on(self, ports: Mapping[str, int]) -> tuple[int, ...]:
        """The ports that must accept connections before the server is ready."""
        return (ports["http"],)

    def answers(self, ports: Mapping[str, int]) -> bool:
        """Whether the server says that it is well."""
        return environment.answers(f"{self.url(ports)}/health")

    def fits(self, command: Sequence[str], variables: Mapping[str, str]) -> bool:
        """Whether a running server keeps its artifacts where this command wants them."""
        if self.artifacts not in command:
            return False
        return not self.storage or environment.same_access(
            variables, environment.applied(os.environ, self.storage)
        )

    def busy(self) -> bool:
        """Never in the way of a restart: trackers keep what they cannot send, and send it later."""
        return False

    def url(self, ports: Mapping[str, int]) -> str:
        """The tracking URI."""
        return f"http://{processes.LOOPBACK}:{ports['http']}"
