"""The one door to Ray in this room: attach to a cluster, try it, ask what it has."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, Final
from urllib.parse import urlencode, urlsplit

import ray
import ray.exceptions
from ray._private import ray_constants

from hasten.platform.services import Services
from hasten.platform.settings import home
from hasten.trainers.errors import ConfigError, Fault, Stopped

# What workers of a foreign cluster must know to find the object store and MLflow. Addresses only: their
# credentials are the cluster's own.
_ADDRESSES: Final = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI")
# Attempts to reach a cluster that listens but does not let us in; by itself Ray makes 20, of 40 s each.
_ATTEMPTS: Final = 3
_REFUSALS: Final = ("InvalidAuthToken", "Unauthenticated", "authentication")

SECONDS_OF_SILENCE: Final = 20.0
_SECONDS_BETWEEN_KNOCKS: Final = 2.0
_SECONDS_TO_LEAVE: Final = 15.0

_log = logging.getLogger(__name__)


def attach(services: Services) -> None:
    """Connect this process to the cluster of ``services``; once is enough, twice does no harm.

    Raises:
        ConfigError: the cluster refuses the token.
        Fault: the cluster does not answer.
    """
    if ray.is_initialized():
        return
    where = f"Ray at {services.ray_address}"
    _knock(services.ray_address, where)
    _reread_variables(local=_is_local(services))
    on_terminate = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryFile("w+") as chatter:
        try:
            with _stderr_into(chatter):
                ray.init(
                    address=services.ray_address,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    runtime_env=_runtime_environment(services),
                )
        except (ConnectionError, TimeoutError, RuntimeError, ray.exceptions.RayError) as error:
            said = f"{error}\n{_text(chatter)}"
            _log.debug("%s said: %s", where, said)
            raise _explain(where, error, said) from None
        _log.debug("%s said: %s", where, _text(chatter))
    # Ray has put its own handler there, which exits without letting a command end its runs.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)


@contextlib.contextmanager
def watched(services: Services, last_words: Callable[[], None]) -> Iterator[threading.Event]:
    """An event that is set once nobody has answered at the cluster's address for ``SECONDS_OF_SILENCE``.

    Ray itself waits for a minute, as a head that keeps its books elsewhere may come back, and then ends this
    process without a word to anybody. Until then a thread that asks it for anything hangs. So where the block
    has not ended ``_SECONDS_TO_LEAVE`` after the event, ``last_words`` is called from another thread, and
    this process ends as one that was stopped.
    """
    lost, over = threading.Event(), threading.Event()

    def watch() -> None:
        heard = time.monotonic()
        while not over.wait(_SECONDS_BETWEEN_KNOCKS):
            with contextlib.suppress(Fault):
                _knock(services.ray_address, "Ray")
                heard = time.monotonic()
            if time.monotonic() - heard > SECONDS_OF_SILENCE:
                # Said here: what waits for Ray may wait until Ray ends this process.
                _log.warning(
                    "Ray at %s does not answer any more; trials stop at a checkpoint, and this command ends. "
                    "Have Ray run again; then the same command goes on.",
                    services.ray_address,
                )
                lost.set()
                break
        if lost.is_set() and not over.wait(_SECONDS_TO_LEAVE):
            try:
                last_words()
            finally:
                os._exit(Stopped.exit_code)  # Ray would hold up every other way out

    threading.Thread(target=watch, name="ray-watch", daemon=True).start()
    try:
        yield lost
    finally:
        over.set()


def detach() -> None:
    """Let go of the cluster."""
    ray.shutdown()


def round_trip() -> str:
    """Run a trivial task and say where it ran.

    Raises:
        Fault: the task did not come back in time.
    """
    task = ray.remote(num_cpus=0.01)(_where)
    try:
        host, pid = ray.get(task.remote(), timeout=60)
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise Fault(
            "Ray", f"did not run a task ({_first_line(error)})", "Its dashboard and its logs say why."
        ) from None
    cpus, gpus = (resources().get(name, 0.0) for name in ("CPU", "GPU"))
    return f"ran a task in process {pid} on {host}; {cpus:g} CPUs, {gpus:g} GPUs"


def resources() -> Mapping[str, float]:
    """What the whole cluster has, busy or not, by resource name (``CPU``, ``GPU``, ``memory`` in bytes)."""
    return dict(ray.cluster_resources())


def scratch(services: Services) -> str:
    """Where Ray keeps its own books on a run: a folder of this machine, or the bucket, which every host of
    somebody else's cluster reaches. A URI as Ray's ``storage_path`` takes it; it holds no secret.
    """
    if _is_local(services) or not services.storage_uri.startswith("s3://"):
        return str(home() / "ray")
    options = {"allow_delayed_open": "true"}
    if services.endpoint:
        endpoint = urlsplit(services.endpoint)
        options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
    return f"{services.storage_uri}/ray?{urlencode(options)}"


def _knock(address: str, where: str) -> None:
    """Fail at once where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise Fault(
            where,
            f"does not answer ({error.strerror or error})",
            "If it is the local one, run `hasten up`; else check ray.address and the network.",
        ) from None


def _reread_variables(*, local: bool) -> None:
    """Ray reads ``RAY_*`` variables when it is first imported, which may have been before they were set.

    Its own token set-up does the first of these. There is no public way.
    """
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    ray_constants.NUM_REDIS_GET_RETRIES = _ATTEMPTS
    if local:
        ray_constants.ENABLE_RAY_CLUSTER = False


def _explain(where: str, error: Exception, said: str) -> ConfigError | Fault:
    if any(word in said for word in _REFUSALS):
        return ConfigError(
            where,
            "refuses the token",
            "For a cluster of your own, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its token's file; "
            "for the local one, run `hasten down` and `hasten up`.",
        )
    return Fault(
        where,
        f"does not let this process in ({_first_line(error)})",
        "Check that ray.address is a Ray cluster of the same Ray and Python versions; "
        "for the local one, run `hasten down` and `hasten up`.",
    )


def _is_local(services: Services) -> bool:
    return "RAY_AUTH_TOKEN_PATH" in services.environment


def _runtime_environment(services: Services) -> dict[str, Any] | None:
    known = {name: services.environment[name] for name in _ADDRESSES if name in services.environment}
    # Workers of the local head inherit all of it; naming it again would cost each of them a second.
    return None if _is_local(services) or not known else {"env_vars": known}


@contextlib.contextmanager
def _stderr_into(file: IO[str]) -> Iterator[None]:
    """Ray's C++ side writes to file descriptor 2, which no logging setting stops; only there is a reason."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _where() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
