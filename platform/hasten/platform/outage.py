"""What a tracking server can do to us, told apart by what to do about it, and said in the user's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from hasten.trainers.errors import ConfigError, Fault, HastenError


class Unreachable(Exception):
    """The server did not take it now; the same again may work later. ``status`` is HTTP's, 0 for none."""

    def __init__(self, reason: str, *, status: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class Refused(Exception):
    """The server will never take this."""


class Gone(Exception):
    """Somebody deleted the run."""


_REASONS: Final = (
    ("Connection refused", "connection refused"),
    ("Read timed out", "it takes the connection and gives no answer"),
    ("timed out", "no answer"),
    ("Name or service not known", "unknown host"),
    ("Failed to resolve", "unknown host"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not trusted"),
    ("Connection reset", "it drops the connection"),
    ("Remote end closed", "it drops the connection"),
)


def reason(message: str) -> str:
    """The cause in few words: the messages of HTTP libraries nest four levels deep."""
    for part, words in _REASONS:
        if part in message:
            return words
    return " ".join(message.split())[:200]


def fault(uri: str, error: Unreachable | Refused | Gone) -> Fault:
    """What a person is told when a server that they configured cannot be used."""
    status = error.status if isinstance(error, Unreachable) else 0
    if status == 403 and "Host" in str(error):
        return Fault(
            uri,
            "MLflow refuses this host name (403)",
            "Start the server with --allowed-hosts naming it, or use an address of a private network.",
        )
    if status in (401, 403):
        return Fault(
            uri,
            f"MLflow refuses the credentials ({status})",
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
        )
    if status in (404, 405):
        return Fault(uri, f"something answers, but not MLflow ({status})", "Check tracking.uri.")
    if isinstance(error, Unreachable):
        return Fault(
            uri,
            f"MLflow cannot be used: {error.reason}",
            "`hasten status` shows the local stack and `hasten up` starts it; or set tracking.uri.",
        )
    return Fault(uri, f"MLflow refuses: {error}", "Look at the server's log.")


def check_uri(uri: str) -> None:
    """Refuse what cannot be a tracking server's address.

    Raises:
        ConfigError: it is not http(s), or holds credentials, which would end up in logs and pickles.
    """
    parts = urlsplit(uri)
    if parts.username or parts.password:
        raise ConfigError(
            "tracking.uri",
            "holds a user name or a password",
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment instead.",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("tracking.uri", f"{uri!r} is not the http(s) address of an MLflow server")


@contextmanager
def judged() -> Iterator[None]:
    """Whatever went wrong, as one of the three kinds that one can act on.

    MLflow's own errors know an HTTP status; artifact stores raise what their vendors do.
    """
    try:
        yield
    except (Unreachable, Refused, Gone, HastenError):
        raise
    except Exception as error:
        status = _status(error)
        words = reason(str(getattr(error, "message", error)))
        if status in (400, 413):
            raise Refused(words) from error
        raise Unreachable(words, status=status) from error


@contextmanager
def spoken(uri: str) -> Iterator[None]:
    """The same as a Fault, for those who need the server now."""
    try:
        with judged():
            yield
    except (Unreachable, Refused, Gone) as error:
        raise fault(uri, error) from None


def _status(error: Exception) -> int:
    code = getattr(error, "get_http_status_code", None)
    return int(code() if code else getattr(getattr(error, "response", None), "status_code", 0))
