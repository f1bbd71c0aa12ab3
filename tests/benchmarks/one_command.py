"""One hasten command in a process of its own, which notes when it asked MLflow for what, and what it used.

    python one_command.py NOTES.json sweep STUDY --json

Started by ``watched.py``. Times are the machine's monotonic clock, the same in all processes.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from hasten.platform import cli


def main() -> None:
    notes, sys.argv = Path(sys.argv[1]), ["hasten", *sys.argv[2:]]
    asked: list[tuple[float, str]] = []
    request = requests.Session.request

    def noted(session: requests.Session, method: str, url: str, *rest: Any, **more: Any) -> Any:
        asked.append((time.monotonic(), f"{method} {urlsplit(url).path.rpartition('/mlflow/')[2]}"))
        return request(session, method, url, *rest, **more)

    requests.Session.request = noted  # type: ignore[method-assign]
    try:
        cli.main()
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        told = {
            "asked": asked,
            "peak_mib": used.ru_maxrss / 1024,
            "cpu_seconds": used.ru_utime + used.ru_stime,
        }
        notes.write_text(json.dumps(told))


if __name__ == "__main__":
    main()
