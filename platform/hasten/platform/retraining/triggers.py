"""When a tick trains: a pure function of what is known, so that a dry run and a real one cannot differ."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from hasten.platform.retraining.pipeline import Trigger

Changed = Literal["data", "recipe", "hasten"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a decision to train rests on.

    Attributes:
        now: with its time zone.
        forced: somebody asks for it.
        known: what was decided about this very recipe, data and version, None where nothing was.
        changed: what differs from the last decision; meaningless without one.
        new_images: that the last decision did not know; None where nobody can tell.
        champion: the champion's version, None where there is none.
        age: of the champion, in hours; None where nobody can tell.
    """

    now: datetime
    forced: bool
    known: str | None
    changed: frozenset[Changed]
    new_images: int | None
    champion: str | None
    age: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Train, and why. ``window`` tells this training from others of the same data and recipe."""

    reason: str
    window: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotDue:
    """Nothing to do, and why."""

    decision: Literal["unchanged", "not_due"]
    reason: str


def decide(trigger: Trigger, facts: Facts) -> Due | NotDue:
    """Whether to train.

    A forced training has the hour as its window and an aged champion's one its age in units of ``max_age``:
    a tick that is repeated within either does not train again.
    """
    if facts.forced:
        return Due(reason="it was asked for", window=f"forced {facts.now:%Y-%m-%dT%H}")
    aged = _aged(trigger, facts)
    if facts.known is not None:
        return aged or NotDue(decision="unchanged", reason=facts.known)
    if facts.champion is None:
        return Due(reason="there is no champion yet")
    if words := _changes(trigger, facts):
        return Due(reason=words)
    # New data have a key of their own, with no need for a window.
    return Due(reason=aged.reason) if aged else NotDue(decision="not_due", reason=_why_not(trigger, facts))


def _changes(trigger: Trigger, facts: Facts) -> str:
    words = []
    if "data" in facts.changed and trigger.data_changed and _enough(trigger, facts):
        count = "" if facts.new_images is None else f", {facts.new_images:,} images are new"
        words.append(f"the data changed{count}")
    if "recipe" in facts.changed:
        words.append("the recipe changed")
    if "hasten" in facts.changed:
        words.append("hasten is another version")
    return "; ".join(words)


def _enough(trigger: Trigger, facts: Facts) -> bool:
    return facts.new_images is None or facts.new_images >= trigger.min_new_samples


def _aged(trigger: Trigger, facts: Facts) -> Due | None:
    if trigger.max_age is None or facts.age is None or facts.age < trigger.max_age:
        return None
    times = int(facts.age // trigger.max_age)
    reason = f"the champion is {facts.age:,.1f} h old, {trigger.max_age:g} h are allowed"
    return Due(reason=reason, window=f"age {facts.champion} {times}")


def _why_not(trigger: Trigger, facts: Facts) -> str:
    if not trigger.data_changed:
        return "trigger.data_changed is off"
    return (
        f"{facts.new_images:,} images are new, trigger.min_new_samples asks for {trigger.min_new_samples:,}"
    )
