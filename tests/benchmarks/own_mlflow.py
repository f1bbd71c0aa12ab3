"""An MLflow server beside the local stack's, on a database of its own, for one benchmark or some tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_SETTINGS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


@contextmanager
def started(folder: Path, *, backend: str = "", artifacts: str = "") -> Iterator[str]:
    """Its address. ``backend`` is SQLAlchemy's URL, SQLite in ``folder`` by default, as are the artifacts.

    As in the local stack it is one worker; the environment says how it reaches artifacts in a bucket.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, folder = f"http://127.0.0.1:{port}", folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", backend or f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", artifacts or str(folder / "artifacts")]
    variables = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(command, env=variables | _SETTINGS, stdout=log, stderr=log, cwd=folder)
    try:
        _await(address, server, folder / "server.log")
        yield address
    finally:
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        server.wait()
        psutil.wait_procs(family, timeout=10)


def _await(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
            return
        if server.poll() is not None:
            raise RuntimeError(log.read_text())
        time.sleep(0.1)
    raise RuntimeError("the server did not start")
