"""What memcached is to Swift's proxy, inside the proxy: enough for the one proxy of the local stack."""

from __future__ import annotations

import json
import time as clock
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

_LIMIT: Final = 10_000

# A WSGI application.
Application = Callable[[dict[str, Any], Any], Any]


class LocalCache:
    """The methods of ``swift.common.memcached.MemcacheRing``; parameters that mean nothing here are ignored.

    Values are kept as JSON, as there: what a caller does to a value afterwards changes nothing here.
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, float]] = {}

    def get(self, key: str, **_: Any) -> Any:
        """The value under ``key``, or None when there is none or its time is over."""
        text, expires = self._values.get(key, ("null", 0.0))
        if expires and expires < clock.time():
            self._values.pop(key, None)
            return None
        return json.loads(text)

    def set(self, key: str, value: Any, *_: Any, time: float = 0, **__: Any) -> bool:
        """Keep ``value`` for ``time`` seconds, or for good when 0."""
        if len(self._values) >= _LIMIT:
            self._values.clear()
        self._values[key] = (json.dumps(value), clock.time() + float(time) if time else 0.0)
        return True

    def delete(self, key: str, **_: Any) -> None:
        """Forget ``key``."""
        self._values.pop(key, None)

    def incr(self, key: str, delta: int = 1, time: float = 0) -> int:
        """Add ``delta`` to a counter that never falls below 0."""
        value = max(int(self.get(key) or 0) + int(delta), 0)
        self.set(key, value, time=time)
        return value

    def decr(self, key: str, delta: int = 1, time: float = 0) -> int:
        """Subtract ``delta`` from a counter that never falls below 0."""
        return self.incr(key, -int(delta), time)

    def set_multi(self, mapping: Mapping[str, Any], *_: Any, time: float = 0, **__: Any) -> None:
        """Keep several values."""
        for key, value in mapping.items():
            self.set(key, value, time=time)

    def get_multi(self, keys: Iterable[str], *_: Any) -> list[Any]:
        """Several values, None where there is none."""
        return [self.get(key) for key in keys]


def filter_factory(*_: Mapping[str, str], **__: str) -> Callable[[Application], Application]:
    """Paste's entry point: puts one cache into every request's environment."""
    cache = LocalCache()

    def wrap(application: Application) -> Application:
        def handle(environment: dict[str, Any], start_response: Any) -> Any:
            environment["swift.cache"] = cache
            return application(environment, start_response)

        return handle

    return wrap
