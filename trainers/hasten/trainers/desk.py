"""What lies between the workers of a run and who waits for them, in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from hasten.trainers.job import Job
from hasten.trainers.records import Report
from hasten.trainers.tracker import EndStatus


class Desk:
    """Reports go one way, the wish to stop the other; neither side ever waits for the other here.

    The Ray launcher makes an actor of it.
    """

    def __init__(self) -> None:
        self._reports: asyncio.Queue[Report | None] = asyncio.Queue()
        self._controller: Any = None
        self._status: EndStatus | None = None
        self._stop = asyncio.Event()
        self._is_watched = False

    async def meet(self, controller: Any) -> None:
        """Remember who conducts the workers."""
        self._controller = controller

    async def controller(self) -> Any:
        """The actor that conducts the workers; None before it has begun."""
        return self._controller

    async def tell(self, report: Report | None) -> None:
        """Pass a report on; None only wakes up who waits for one."""
        self._reports.put_nowait(report)

    async def hear(self, seconds: float) -> list[Report]:
        """All reports that have come, after waiting up to ``seconds`` for the first."""
        told: list[Report | None] = []
        if self._reports.empty():
            with contextlib.suppress(TimeoutError):
                told.append(await asyncio.wait_for(self._reports.get(), seconds))
        while not self._reports.empty():
            told.append(self._reports.get_nowait())
        return [report for report in told if report is not None]

    async def ask(self, status: EndStatus) -> bool:
        """Ask the workers to stop, and to tell the tracker ``status``; whether one of them will hear it."""
        self._status = self._status or status
        self._stop.set()
        return self._is_watched

    async def asked(self) -> EndStatus | None:
        """Wait until the workers should stop."""
        self._is_watched = True
        await self._stop.wait()
        return self._status

    async def is_watched(self) -> bool:
        """Whether a worker waits to hear that it should stop."""
        return self._is_watched


def how_ended(job: Job, last: Report | None, asked: EndStatus | None) -> EndStatus:
    """What to tell the tracker of a run whose ``last`` report came before it ended by itself.

    As far as ``job.until`` is as far as it should go; else it is what was ``asked`` for.
    """
    if last is None or not last.stopped or last.images == job.until:
        return "finished"
    return asked or "stopped"
