"""A local stack for one benchmark: its own home, free ports, gone when it is over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hasten.platform import services, settings
from hasten.platform.services import Services
from hasten.platform.stack import launcher

_SOMEBODY_ELSES = ("HASTEN_", "AWS_", "MLFLOW_", "RAY_")


@contextmanager
def started(home: Path, *, tracking: bool = False, ray: bool = False) -> Iterator[Services]:
    """The embedded object store, and what else is asked for; libraries find them through the environment."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(_SOMEBODY_ELSES)]:
        del os.environ[name]
    os.environ["HASTEN_HOME"] = str(home)
    try:
        yield services.connect(settings.load(), tracking=tracking, ray=ray)
    finally:
        os.environ["HASTEN_HOME"] = str(home)
        launcher.down()
        os.environ.clear()
        os.environ.update(before)


def through(port: int) -> None:
    """Lead this process's S3 clients to a port of this machine, behind which the object store is."""
    address = f"http://127.0.0.1:{port}"
    os.environ.update({"AWS_ENDPOINT_URL": address, "MLFLOW_S3_ENDPOINT_URL": address})
