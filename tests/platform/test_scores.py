"""Which points are sent: each (key, step) once, best copies in the right direction, forty keys at most."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.platform.scores import MAX_KEYS, Sample, Scores, mode_of


def best(scores, key, values):
    sent = [scores.accept({key: value}, step=step, time=step) for step, value in enumerate(values)]
    return [sample.value for batch in sent for sample in batch if sample.key == f"best/{key}"]


def test_a_best_loss_is_the_smallest_and_a_best_recall_the_largest():
    assert best(Scores(), "eval/loss", [3.0, 2.0, 2.5, 1.0, float("nan"), 1.0]) == [3.0, 2.0, 1.0]
    assert best(Scores(), "eval/frechet", [3.0, 5.0, 2.0]) == [3.0, 2.0]
    assert best(Scores(), "eval/recall", [0.1, 0.3, 0.2]) == [0.1, 0.3]
    assert best(Scores(), "eval/something_new", [3.0, 2.0]) == []
    assert best(Scores(), "train/loss", [3.0, 2.0]) == []


@pytest.mark.parametrize(
    ("key", "mode"),
    [
        ("eval/loss", "min"),
        ("eval/loss_raw", "min"),
        ("eval/lossless", None),
        ("eval/images_to_target", None),
    ],
)
def test_a_direction_is_known_or_not_claimed(key, mode):
    assert mode_of(key) == mode


def test_final_copies_are_the_last_values_whatever_the_order():
    scores = Scores()
    for step, loss in [(10, 1.0), (30, 3.0), (20, 2.0)]:
        scores.accept({"eval/loss": loss, "train/loss": 9.0}, step=step, time=0)
    assert scores.finals(time=5) == [Sample("final/eval/loss", 3.0, 30, 5)]
    assert scores.finals(time=6) == []


POINTS = st.lists(st.tuples(st.sampled_from(["train/loss", "eval/loss"]), st.integers(0, 30)), max_size=60)


@given(points=POINTS, cut=st.integers(0, 60))
def test_a_resumed_run_sends_what_an_uninterrupted_one_would(points, cut):
    """Whatever was sent before a kill, going over the same ground again sends each key and step once."""
    whole, first = Scores(), Scores()
    expected = [s for key, step in points for s in whole.accept({key: -step}, step=step, time=0)]
    before = [s for key, step in points[:cut] for s in first.accept({key: -step}, step=step, time=0)]
    resumed = Scores()
    resumed.load(before)
    after = [s for key, step in points for s in resumed.accept({key: -step}, step=step, time=0)]
    assert sorted(before + after, key=str) == sorted(expected, key=str)


def test_a_run_has_at_most_forty_keys_and_says_which_are_left_out():
    scores = Scores()
    sent = scores.accept({f"train/k{i:02}": 0.0 for i in range(45)}, step=0, time=0)
    assert len(sent) == MAX_KEYS
    assert scores.refused == {f"train/k{i:02}" for i in range(40, 45)}
    assert len(scores.accept({f"train/k{i:02}": 0.0 for i in range(45)}, step=1, time=0)) == MAX_KEYS
