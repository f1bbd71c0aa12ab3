"""The embedded object store as one process tree: ``python -m ... FOLDER account=PORT container=PORT ...``.

Swift is imported once and forked into its four servers. They live and die together: when one ends,
or this process is killed in whatever way, the others end too, and the next command starts them anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import logging.handlers
import os
import signal
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def main(arguments: list[str]) -> int:
    """Build the rings, run the servers, and wait until the first of them ends."""
    folder = Path(arguments[0])
    ports = {name: int(port) for name, port in (item.split("=") for item in arguments[1:])}
    _build_rings(folder, ports)
    children: dict[int, str] = {}

    def end(signum: int, frame: types.FrameType | None) -> None:  # noqa: ARG001
        for child in children:
            _kill(child)
        os._exit(0)

    # A signal between fork and bookkeeping would lose a child: let it wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for number in _SIGNALS:
        signal.signal(number, end)
    for server in (*ports, "proxy"):
        children[_fork(server, folder)] = server
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    child, status = os.wait()
    name, code = children.pop(child), os.waitstatus_to_exitcode(status)
    sys.stderr.write(f"the {name} server ended with status {code}; so do the others\n")
    for other in children:
        _kill(other)
    return 1


def log_to_stderr(*hook: Any) -> None:
    """Swift's hook for log handlers: keep its messages in our log file, away from the machine's syslog.

    Swift calls it with (conf, name, log_to_console, log_route, fmt, logger, adapted_logger).
    """
    name: str = hook[1]
    logger: logging.Logger = hook[5]
    for handler in list(logger.handlers):
        if isinstance(handler, logging.handlers.SysLogHandler):
            logger.removeHandler(handler)
            handler.close()
        else:
            handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {name}: %(message)s"))


def _build_rings(folder: Path, ports: Mapping[str, int]) -> None:
    """Say where each kind of data lies: one device, one replica."""
    from swift.common.ring import RingBuilder

    for server, port in ports.items():
        builder = RingBuilder(4, 1, 0)
        address = {"ip": "127.0.0.1", "port": port}
        replication = {"replication_ip": "127.0.0.1", "replication_port": port}
        place = {"id": 0, "region": 1, "zone": 1, "device": "disk", "weight": 1.0, "meta": ""}
        builder.add_dev({**place, **address, **replication})
        builder.rebalance(seed=1)
        builder.get_ring().save(str(folder / f"{server}.ring.gz"))


def _fork(server: str, folder: Path) -> int:
    """Start one server as a child of this process; its process number."""
    from swift.common import wsgi

    # It runs as its user already, who in a container may have no name to look up.
    wsgi.drop_privileges = lambda _: None
    # By default two servers may share a port, and each gets some of the other's requests.
    wsgi.listen = functools.partial(wsgi.listen, reuse_port=False)
    launcher = os.getpid()
    child = os.fork()
    if child:
        return child
    _serve_until_orphaned(launcher)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os._exit(_run(wsgi.run_wsgi, str(folder / f"{server}.conf"), f"{server}-server"))


def _run(run_wsgi: Any, configuration: str, section: str) -> int:
    try:
        return int(run_wsgi(configuration, section, verbose=True))
    except BaseException as error:
        sys.__stderr__.write(f"{section}: {error}\n")  # type: ignore[union-attr]
        return 1


def _serve_until_orphaned(launcher: int) -> None:
    """Have the kernel end this process when its parent ends, also by SIGKILL."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        os._exit(1)


def _kill(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def _exit() -> NoReturn:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    _exit()
