"""The one door to bucket administration: make a bucket, check it, try it with a real round trip.

Objects are read and written through pyarrow, elsewhere. Credentials come from where boto3 looks for them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from hasten.trainers.errors import ConfigError, Fault, HastenError

_SOURCES: Final = (
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or AWS_SHARED_CREDENTIALS_FILE"
)
_MISSING: Final = {"404", "NoSuchBucket"}
_FORBIDDEN: Final = {
    "401",
    "403",
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "Unauthorized",
}
_MOVED: Final = {
    "301",
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}
_FULL: Final = {"507", "InsufficientStorage", "XMinioStorageFull", "QuotaExceeded"}
_UNABLE: Final = {"503", "ServiceUnavailable", "InternalError", "500"}


def split(uri: str) -> tuple[str, str]:
    """Bucket and prefix of ``s3://bucket/prefix``."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix.strip("/")


def create(uri: str, *, endpoint: str | None, region: str) -> None:
    """Have the bucket of ``uri`` exist.

    Raises:
        ConfigError: the credentials are refused.
        Fault: the endpoint does not answer, or refuses for another reason.
    """
    bucket, _ = split(uri)
    with _explained(uri, endpoint):
        s3 = client(endpoint, region)
        try:
            s3.head_bucket(Bucket=bucket)
        except ClientError as error:
            if _code(error) not in _MISSING:
                raise
            s3.create_bucket(Bucket=bucket)


def check(uri: str, *, endpoint: str | None, region: str) -> None:
    """Make sure that the bucket of ``uri`` is there and ours to use; changes nothing.

    Raises:
        ConfigError: the bucket is missing or lies in another region, or the credentials are refused.
        Fault: the endpoint does not answer.
    """
    bucket, _ = split(uri)
    with _explained(uri, endpoint):
        client(endpoint, region).head_bucket(Bucket=bucket)


def round_trip(uri: str, *, endpoint: str | None, region: str) -> str:
    """Put, get and delete a small object below ``uri``; says what was done.

    Raises:
        ConfigError: the bucket is missing, or the credentials are refused.
        Fault: the endpoint does not answer, is full, or gives back something else.
    """
    bucket, prefix = split(uri)
    key = "/".join(filter(None, (prefix, f"hasten-doctor/{secrets.token_hex(8)}")))
    content = secrets.token_bytes(64)
    with _explained(uri, endpoint):
        s3 = client(endpoint, region)
        s3.put_object(Bucket=bucket, Key=key, Body=content)
        try:
            found = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        finally:
            s3.delete_object(Bucket=bucket, Key=key)
    if found != content:
        raise Fault(_where(endpoint), f"gave back other bytes than were put in {uri}")
    return f"put, got and deleted an object in {uri}"


def client(endpoint: str | None, region: str) -> Any:
    """boto3's client for ``endpoint``, with the credentials that the environment leads to now."""
    # A session of its own: the default one remembers the credentials of an earlier environment.
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        config=Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 3}),
    )


@contextmanager
def _explained(uri: str, endpoint: str | None) -> Iterator[None]:
    """Turn boto3's errors into ours. None of them carries a secret, but only their code is kept anyway."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        explained = _explain(error, uri, endpoint)
        raise explained from None


def _explain(error: Exception, uri: str, endpoint: str | None) -> HastenError:
    where, (bucket, _) = _where(endpoint), split(uri)
    match error:
        case ClientError() if _code(error) in _MISSING:
            return ConfigError(
                "storage.uri",
                f"the bucket {bucket!r} does not exist at {where}",
                "Create it there, or name another one (storage.uri in settings.yaml, or HASTEN_STORAGE_URI).",
            )
        case ClientError() if _code(error) in _FORBIDDEN:
            return ConfigError(
                where,
                f"refuses the credentials for {uri} ({_code(error)})",
                f"Check {_SOURCES}, and that they may read, write and delete there.",
            )
        case ClientError() if _code(error) in _MOVED:
            return ConfigError(
                "storage.region",
                f"the bucket {bucket!r} lies in another region",
                "Set storage.region to its region.",
            )
        case ClientError() if _code(error) in _FULL:
            return Fault(
                where, "has no space left", "Free some space there, for example with `hasten clean`."
            )
        case ClientError() if _code(error) in _UNABLE:
            return Fault(
                where,
                f"cannot do it now ({_code(error)}), as when its disk is full",
                "Make room on its disk; the local store's log says more (`hasten status` tells where it is).",
            )
        case NoCredentialsError() | PartialCredentialsError() | ProfileNotFound():
            return ConfigError(
                where,
                f"there are no credentials for {uri}",
                f"Set {_SOURCES}.",
            )
        case ConnectionError() | HTTPClientError():
            return Fault(
                where,
                "does not answer",
                "If it is the local store, run `hasten up`; else check storage.endpoint and the network.",
            )
    reason = _code(error) if isinstance(error, ClientError) else type(error).__name__
    return Fault(where, f"failed for {uri} ({reason})", "Run `hasten doctor` to see what works.")


def _where(endpoint: str | None) -> str:
    return endpoint or "AWS S3"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))
