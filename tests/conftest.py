"""The real local stack, started once for all tests that ask for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hasten.platform import services, settings
from hasten.platform.services import Services
from hasten.platform.stack import launcher, processes

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import own_postgresql


@contextmanager
def fresh_environment(home: Path) -> Iterator[None]:
    """An installation of its own: no settings of the caller, and the caller's environment back afterwards."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(("HASTEN_", "AWS_", "MLFLOW_", "RAY_")):
            del os.environ[name]
    os.environ["HASTEN_HOME"] = str(home)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Swift, MLflow and Ray on this machine; ``os.environ`` leads every library to them for the session."""
    home = tmp_path_factory.mktemp("stack") / "home"
    with fresh_environment(home):
        try:
            yield services.connect(settings.load(), tracking=True, ray=True)
        finally:
            os.environ["HASTEN_HOME"] = str(home)
            launcher.down()
        assert not processes.members(home)


@pytest.fixture
def own_home(tmp_path: Path) -> Iterator[Path]:
    """An empty installation for one test, with nothing running when it is over."""
    home = tmp_path / "home"
    with fresh_environment(home):
        try:
            yield home
        finally:
            os.environ["HASTEN_HOME"] = str(home)
            launcher.down()
        assert not processes.members(home)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The URL of a real PostgreSQL."""
    if not own_postgresql.is_installed():
        pytest.skip("PostgreSQL is not installed")
    with own_postgresql.started() as url:
        yield url
