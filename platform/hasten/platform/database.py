"""Our own tables at ``settings.database``: leases and the ledger of ticks. Never MLflow's.

SQLite for one machine, PostgreSQL where several share them. A module that needs a table declares it on
:data:`TABLES`; :func:`opened` makes what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from sqlalchemy import Connection, Engine, MetaData, event, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError, ProgrammingError, SQLAlchemyError

from hasten.trainers.errors import ConfigError, Fault

TABLES: Final = MetaData()
_MAKING: Final = 240_407_946  # a number of our own for a lock of PostgreSQL
_WAIT: Final = 30.0  # seconds for another writer


def opened(url: str) -> Engine:
    """The database at an SQLAlchemy URL, with the tables that were declared so far.

    Raises:
        ConfigError: it is no such URL, there is no driver for it, or it refuses the user.
        Fault: it does not answer, or its file cannot be written.
    """
    try:
        address = make_url(url)
        is_file = address.get_backend_name() == "sqlite"
        if is_file and address.database:
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        if address.drivername == "postgresql":
            address = address.set(drivername="postgresql+psycopg")
        wait: dict[str, Any] = {"timeout": _WAIT} if is_file else {"connect_timeout": 10}
        engine = sqlalchemy.create_engine(address, connect_args=wait, pool_pre_ping=not is_file)
    except ModuleNotFoundError as error:
        remedy = 'Install it: pip install "hasten[postgresql]".'
        raise ConfigError("database", f"needs the driver {error.name}", remedy) from None
    except (ArgumentError, ValueError) as error:  # a port that is no number, a driver that nobody knows
        raise ConfigError("database", f"is no address of a database: {error}") from None
    except OSError as error:
        raise Fault(
            str(error.filename), f"cannot be made: {error.strerror}", "Choose another HASTEN_HOME."
        ) from None
    if is_file:
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", _on_begin)
    with writing(engine) as connection:
        if not is_file:  # two that make the same table at once would both fail
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_MAKING})"))
        TABLES.create_all(connection)
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction, which no other writer of the same rows runs beside.

    Raises:
        Fault: the database failed; nothing of the transaction was kept, as far as it can tell.
    """
    with speaking(engine), engine.begin() as connection:
        yield connection


def now(connection: Connection) -> float:
    """Seconds since 1970 by the database's clock, the one that all machines share."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())


@contextmanager
def speaking(engine: Engine) -> Iterator[None]:
    """What goes wrong with a database, said to the user; its password is never part of it."""
    where = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except OperationalError as error:
        words = str(error.orig).strip().splitlines()[0][:200]
        if "authentication failed" in words or "no password supplied" in words:
            remedy = "Set PGUSER and PGPASSWORD, or write a ~/.pgpass."
            raise ConfigError("database", f"{where} refused: {words}", remedy) from None
        raise Fault(
            where, f"the database failed: {words}", "Is it there? See `database` in the settings."
        ) from None
    except ProgrammingError as error:
        raise Fault(where, f"the database refused: {str(error.orig).splitlines()[0][:200]}") from None
    except SQLAlchemyError as error:
        raise Fault(where, f"the database failed: {str(error).splitlines()[0][:200]}") from None


def _on_connect(connection: Any, record: Any) -> None:
    """Transactions are ours: pysqlite would begin one only before the first write."""
    del record
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _on_begin(connection: Connection) -> None:
    """Take the writer's place at once: two that read first and write then would both fail."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
