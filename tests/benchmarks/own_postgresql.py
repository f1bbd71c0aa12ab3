"""A PostgreSQL server for one benchmark or some tests: its own folder, a free port, gone when it is over."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError


def is_installed() -> bool:
    return shutil.which("initdb") is not None and shutil.which("postgres") is not None


@contextmanager
def started() -> Iterator[str]:
    """The URL of a server of our own; only its owner's loopback is trusted."""
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    with tempfile.TemporaryDirectory(prefix="hasten-pg-") as folder:
        if os.geteuid() == 0:
            shutil.chown(folder, user, user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        as_user: dict[str, Any] = {"user": user, "group": user} if os.geteuid() == 0 else {}
        files = ["-D", f"{folder}/data"]
        subprocess.run(
            ["initdb", *files, "-U", "hasten", "-A", "trust", "-N"],
            check=True,
            capture_output=True,
            cwd=folder,
            **as_user,
        )
        command = ["postgres", *files, "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
        with Path(folder, "log").open("w") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **as_user)
        try:
            url = f"postgresql://hasten@127.0.0.1:{port}/postgres"
            waiting = create_engine(url.replace("://", "+psycopg://"))
            for _ in range(200):
                with suppress(OperationalError), waiting.connect():
                    break
                time.sleep(0.1)
            waiting.dispose()
            yield url
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(20)
