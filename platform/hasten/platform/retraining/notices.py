"""A webhook is told of decisions: in Slack's form, signed, at least once.

A notice is written down together with the decision that it is about, and sent afterwards; what cannot be sent
is sent by a later tick, under the same id. A webhook that fails never fails a tick.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    String,
    Table,
    Text,
    insert,
    select,
    update,
)
from standardwebhooks.webhooks import Webhook
from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)

from hasten.platform import database
from hasten.platform.retraining.pipeline import Notify
from hasten.trainers.errors import ConfigError

log = logging.getLogger(__name__)
# It logs the path of every request where debugging is on, which is a secret here.
logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)

_ATTEMPTS: Final = 4
_TIMEOUT: Final = 10.0
_MOST: Final = 20  # that are sent at once
_DAYS: Final = 7.0  # after which nobody wants to hear it any more
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

_NOTICES: Final = Table(
    "hasten_notices",
    database.TABLES,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("pipeline", String(200), nullable=False, index=True),
    Column("written", Float(53), nullable=False),
    Column("sent", Float(53)),
    Column("body", Text, nullable=False),
)


class _Unanswered(Exception):
    """The webhook may answer later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """Where to send, and the key to sign with; both are secrets."""

    url: str
    secret: str | None

    def __repr__(self) -> str:
        return f"Hook({self.host})"

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or "?"


def hook(spec: Notify) -> Hook | None:
    """The webhook that the environment names; None where it names none.

    Raises:
        ConfigError: its address or key is none.
    """
    url, secret = os.environ.get(spec.url_variable), os.environ.get(spec.secret_variable)
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ConfigError(
            spec.url_variable, "must be an https:// address", "http:// is for this machine only."
        )
    if secret and not _is_key(secret):
        remedy = 'Make one: echo "whsec_$(head -c 32 /dev/urandom | base64)"'
        raise ConfigError(spec.secret_variable, "must be whsec_ and 24 to 64 bytes in base64", remedy)
    return Hook(url=url, secret=secret or None)


def _is_key(secret: str) -> bool:
    """As the specification of Standard Webhooks has it; the library takes anything."""
    try:
        return 24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64
    except ValueError:
        return False


def body(pipeline: str, decision: str, reason: str, version: str | None) -> dict[str, Any]:
    """A message that Slack shows, and that a program can read: Slack ignores what it does not know."""
    title = f"{pipeline}: {decision}" + (f", version {version}" if version else "")
    return {
        "text": f"{title}. {reason}",
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": f"*{_plain(title)}*\n{_plain(reason)}"}}
        ],
        "pipeline": pipeline,
        "decision": decision,
        "reason": reason,
        "version": version,
    }


def _plain(text: str) -> str:
    """Without the three characters that mean something to Slack; shortened to what it takes."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")[:2900]


def write(connection: Connection, pipeline: str, message: Mapping[str, Any]) -> None:
    """Write a notice down in the transaction of what it is about."""
    row = {"pipeline": pipeline, "written": database.now(connection), "body": json.dumps(dict(message))}
    connection.execute(insert(_NOTICES).values(row))


def send(engine: Engine, pipeline: str, to: Hook) -> int:
    """Send what was not sent yet, the oldest first; how many were. What fails is left for the next tick.

    Raises:
        Fault: the database failed.
    """
    with database.writing(engine) as connection:
        since = database.now(connection) - _DAYS * 86_400
        waiting = (_NOTICES.c.pipeline == pipeline) & _NOTICES.c.sent.is_(None) & (_NOTICES.c.written > since)
        chosen = select(_NOTICES).where(waiting).order_by(_NOTICES.c.id).limit(_MOST)
        rows = connection.execute(chosen).mappings().all()
    done = 0
    with requests.Session() as client:
        for row in rows:
            problem = _post(client, to, f"hasten-{pipeline}-{row['id']}", row["body"])
            if problem:
                log.warning("the webhook at %s %s; the next tick sends again", to.host, problem)
                break
            with database.writing(engine) as connection:
                sent = {"sent": database.now(connection)}
                connection.execute(update(_NOTICES).where(_NOTICES.c.id == row["id"]).values(sent))
            done += 1
    return done


def _post(client: requests.Session, to: Hook, identity: str, content: str) -> str:
    """Send one message, patiently; what is wrong if it was not taken. Never names the address."""
    wait = wait_exponential_jitter(initial=0.5, max=8.0)
    patient = Retrying(
        stop=stop_after_attempt(_ATTEMPTS), wait=wait, retry=retry_if_exception_type(_Unanswered)
    )
    try:
        return patient(_once, client, to, identity, content)
    except RetryError as error:
        return str(error.last_attempt.exception())


def _once(client: requests.Session, to: Hook, identity: str, content: str) -> str:
    headers = {"content-type": "application/json", "webhook-id": identity}
    now = datetime.now(UTC)
    headers["webhook-timestamp"] = str(int(now.timestamp()))
    if to.secret:
        headers["webhook-signature"] = Webhook(to.secret).sign(identity, now, content)
    try:
        answer = client.post(
            to.url, data=content.encode(), headers=headers, timeout=_TIMEOUT, allow_redirects=False
        )
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _Unanswered(f"does not answer ({type(error).__name__})") from None
    except requests.RequestException as error:
        return f"cannot be asked ({type(error).__name__})"
    if answer.status_code == 429 or answer.status_code >= 500:
        raise _Unanswered(f"answers {answer.status_code}")
    return "" if 200 <= answer.status_code < 300 else f"refuses with {answer.status_code}"
