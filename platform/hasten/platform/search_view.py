"""A search as optuna-dashboard shows it: a view of the ledger in the database of the settings."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

from hasten.sweeps.records import TrialRecord
from hasten.sweeps.study import StudySpec
from hasten.trainers.errors import Fault

_SECONDS_BETWEEN_VIEWS: Final = 60.0

log = logging.getLogger(__name__)


class SearchView:
    """Brings the view up to date once a minute and at the end, on a thread of its own.

    A database that fails is no failure of the study. A study of arms has no such view.

    Args:
        url: the database, as SQLAlchemy writes it.
        study: the study as it is now.
        records: of the trials that are over; called on the thread that calls ``look``.
    """

    def __init__(self, url: str, study: StudySpec, records: Callable[[], Iterable[TrialRecord]]) -> None:
        self._url = url
        self._study = study
        self._records = records
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="search-view")
        self._last: Future[None] | None = None
        self._due = time.monotonic() + _SECONDS_BETWEEN_VIEWS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._update()
        self._thread.shutdown(wait=True)

    def look(self) -> None:
        """Have the view brought up to date if it is time to."""
        if time.monotonic() >= self._due and (self._last is None or self._last.done()):
            self._due = time.monotonic() + _SECONDS_BETWEEN_VIEWS
            self._update()

    def _update(self) -> None:
        if self._study.space:
            self._last = self._thread.submit(self._write, tuple(self._records()))

    def _write(self, records: tuple[TrialRecord, ...]) -> None:
        from hasten.sweeps.searching import optuna_search  # a second's import, off the driver's thread

        try:
            optuna_search.mirror(self._url, self._study, records)
        except Fault as fault:
            log.warning("%s; the study goes on without a view for optuna-dashboard", fault)
