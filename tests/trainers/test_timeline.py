from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hasten.trainers import timeline
from hasten.trainers.specs import Eval, GridEval, LossEval, SampleEval

TOTALS = st.integers(1, 3000)
FRACTIONS = st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7, 1.0]) | st.floats(0.001, 1.0)


def walk(every: float, total: int, batch: int, *, begin: int = 0) -> list[tuple[int, int, int | None]]:
    """(before, after, mark) of each batch from image ``begin`` on."""
    steps, before = [], begin
    while before < total:
        after = min(before + batch, total)
        steps.append((before, after, timeline.crossed(before, after, every=every, total=total)))
        before = after
    return steps


def hits(steps: list[tuple[int, int, int | None]]) -> list[int]:
    return [mark for _, _, mark in steps if mark is not None]


def grid(every: float, total: int) -> list[int]:
    """Every mark of a budget, as met one image at a time."""
    return hits(walk(every, total, 1))


@given(every=FRACTIONS, total=TOTALS)
@example(every=0.1, total=25)
@example(every=0.01, total=2)
@example(every=0.05, total=382)
def test_one_image_at_a_time_meets_every_mark_once(every: float, total: int) -> None:
    marks = grid(every, total)
    nominal = [count * every * total for count in range(1, int(1.0 / every) + 1)] + [float(total)]
    assert marks == sorted(set(marks))
    for mark in marks:
        assert min(abs(mark - place) for place in nominal) <= 0.5 + 1e-9
    for place in nominal:
        if place > 0.5:
            assert min(abs(mark - place) for mark in marks) <= 0.5 + 1e-9


@given(every=FRACTIONS, total=TOTALS, batch=st.integers(1, 3000))
@example(every=0.1, total=25, batch=7)  # the mark of 7.5 rounds to 8 and must not hide the mark of 5
def test_every_batch_meets_the_newest_of_its_marks(every: float, total: int, batch: int) -> None:
    marks = grid(every, total)
    for before, after, mark in walk(every, total, batch):
        inside = [candidate for candidate in marks if before < candidate <= after]
        assert mark == (inside[-1] if inside else None), (before, after)


@given(every=FRACTIONS, total=TOTALS, data=st.data())
def test_grid_does_not_depend_on_the_batch_size(every: float, total: int, data: st.DataObject) -> None:
    marks = grid(every, total)
    closest = min((b - a for a, b in zip([0, *marks[:-1]], marks, strict=True)), default=1)
    batch = data.draw(st.integers(1, max(1, closest)))
    assert hits(walk(every, total, batch)) == marks


@given(every=FRACTIONS, total=TOTALS, batch=st.integers(1, 500), data=st.data())
def test_resumed_anywhere_it_meets_the_same_marks(
    every: float, total: int, batch: int, data: st.DataObject
) -> None:
    steps = walk(every, total, batch)
    begin = data.draw(st.sampled_from([before for before, _, _ in steps]))
    assert walk(every, total, batch, begin=begin) == [step for step in steps if step[0] >= begin]


@given(every=FRACTIONS, total=TOTALS)
def test_end_is_a_mark_and_nothing_follows(every: float, total: int) -> None:
    assert timeline.crossed(total - 1, total, every=every, total=total) == total
    assert timeline.crossed(total, total, every=every, total=total) is None


@pytest.mark.parametrize(
    ("before", "after", "mark"),
    [
        (0, 99, None),
        (0, 100, 100),
        (99, 100, 100),
        (100, 164, None),
        (164, 228, 200),
        (0, 350, 300),
        (936, 1000, 1000),
        (1000, 1000, None),
    ],
)
def test_crossed(before: int, after: int, mark: int | None) -> None:
    assert timeline.crossed(before, after, every=0.1, total=1000) == mark


@pytest.mark.parametrize(
    ("before", "after", "mark"),
    [(0, 299, None), (0, 300, 300), (300, 700, None), (256, 320, 300), (0, 1000, 1000), (990, 1000, 1000)],
)
def test_reached(before: int, after: int, mark: int | None) -> None:
    assert timeline.reached(before, after, fractions=(0.3, 1.0), total=1000) == mark


@given(
    fractions=st.lists(st.floats(0.01, 1.0), max_size=4),
    total=st.integers(100, 3000),
    batch=st.integers(1, 9),
)
def test_every_fraction_is_reached_once(fractions: list[float], total: int, batch: int) -> None:
    marks = {round(fraction * total) for fraction in fractions}
    seen = []
    for before in range(0, total, batch):
        after = min(before + batch, total)
        mark = timeline.reached(before, after, fractions=fractions, total=total)
        inside = [candidate for candidate in marks if before < candidate <= after]
        assert mark == max(inside, default=None)
        seen += [] if mark is None else [mark]
    assert len(seen) == len(set(seen))


def test_evaluations_join_the_three() -> None:
    spec = Eval(loss=LossEval(every=0.1), samples=SampleEval(at=(0.25, 1.0)), grid=GridEval(every=0.5))
    marks = timeline.evaluations(spec, 192, 256, 1000)
    assert marks == timeline.Marks(loss=200, samples=250, sheet=None)
    assert marks
    assert not timeline.evaluations(spec, 256, 280, 1000)
    end = timeline.evaluations(spec, 960, 1000, 1000)
    assert end == timeline.Marks(loss=1000, samples=1000, sheet=1000)


def test_nothing_is_scored_by_samples_at_the_start() -> None:
    assert timeline.Marks(loss=0, samples=None, sheet=0) == timeline.AT_START
    assert timeline.AT_START  # image 0 is a mark, though 0 is falsy
