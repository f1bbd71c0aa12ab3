"""How far a study has come, point by point: which points are known, which may start, which are over."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hasten.sweeps.conducting.ledger import StoredPoint
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.searching.proposals import Point, Proposals


@dataclass(slots=True)
class _Tried:
    """A known point: for how many trials it waits, and how they ended, by seed."""

    trials: int
    outcomes: dict[int, TrialRecord] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return len(self.outcomes) == self.trials


class Frontier:
    """Points in order of their numbers: each becomes known, may start, and is over.

    A point is known once those are over that it is proposed from. One that an earlier command proposed from
    the same runs is taken as it was, although some of these may have to be tried again: so nothing that is
    done is done in vain.

    Args:
        proposals: where points come from.
        stored: points that earlier commands have proposed, by number.
        digest: of what is searched, see :func:`hasten.sweeps.plan.study_digest`.
        window: how many points may run ahead of those that are all over; None for as many as there are.
        keep: told of each point that was proposed anew.
    """

    def __init__(
        self,
        proposals: Proposals,
        stored: Mapping[int, StoredPoint],
        *,
        digest: str,
        window: int | None,
        keep: Callable[[StoredPoint], None],
    ) -> None:
        self._proposals = proposals
        self._stored = stored
        self._keep = keep
        self._window = window
        self._bases = [digest]  # of the first 0, 1, 2, ... points
        self._tried: list[_Tried] = []
        self._outcomes: list[dict[int, TrialRecord]] = []  # of the points that lead: over, and all before too
        self._started = 0

    @property
    def leading(self) -> Sequence[Mapping[int, TrialRecord]]:
        """How the first points ended, by seed, up to the first that is not over."""
        return self._outcomes

    def tell(self) -> Point | None:
        """The next point, once it can be known; its trials are then to be expected."""
        number = len(self._tried)
        if number >= self._proposals.count:
            return None
        needed = self._proposals.needs(number)
        if needed == 0:
            return self._proposals.point(number, ())
        basis, stored = self._bases[needed], self._stored.get(number)
        if stored is not None and stored.basis == basis:
            return stored.point
        if len(self._outcomes) < needed:
            return None
        point = self._proposals.point(number, self._outcomes[:needed])
        self._keep(StoredPoint(point=point, basis=basis))
        return point

    def expect(self, fingerprints: Sequence[str]) -> None:
        """The point that was told last is over when runs with these ``fingerprints`` are, one a seed.

        More seeds later make no other study of it: what is proposed from a point rests on its first.
        """
        self._bases.append(_digest(self._bases[-1], fingerprints[0]))
        self._tried.append(_Tried(trials=len(fingerprints)))

    def starts(self) -> Iterator[int]:
        """The numbers of points whose trials may start from now on, each once.

        With a stopping rule those at least the window before must be over: a trial is judged by them.
        """
        while self._started < len(self._tried):
            if self._window is not None and len(self._outcomes) < self._started + 1 - self._window:
                return
            yield self._started
            self._started += 1

    def end(self, number: int, record: TrialRecord) -> None:
        """A trial of a point is over."""
        self._tried[number].outcomes[record.seed] = record
        while len(self._outcomes) < len(self._tried) and self._tried[len(self._outcomes)].is_over:
            self._outcomes.append(self._tried[len(self._outcomes)].outcomes)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
