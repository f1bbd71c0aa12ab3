"""What is referenced stays, whatever else is there; what nobody needs goes, with a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.trainers import retention
from hasten.trainers.retention import Decision, Item, Policy, References, Run, Standing, Study

NOW = 10_000_000.0
OLD = NOW - 30 * 86_400.0
NAMES = [f"run-{index:012x}" for index in range(5)]
KINDS: tuple[retention.Kind, ...] = ("checkpoint", "fork", "average")

ages = st.sampled_from([0.0, 3000.0, 4000.0, 80_000.0, 90_000.0, 1e6])
values = st.none() | st.sampled_from([0.1, 0.2, 0.3])
scores = st.lists(st.tuples(st.sampled_from([0, 100, 200, 300]), st.floats(0.0, 1.0)), max_size=4).map(tuple)


@st.composite
def runs(draw: st.DrawFn) -> list[Run]:
    made = []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True)):
        items = [
            Item(
                place=f"{kind}s/{number}",
                kind=kind,
                images=draw(st.sampled_from([50, 100, 200, 300, 300])),
                bytes=1,
                written=NOW - draw(ages),
                whole=draw(st.integers(0, 4)) > 0,
            )
            for kind in KINDS
            for number in range(draw(st.integers(0, 4)))
        ]
        made.append(Run(name=name, items=tuple(items), over=draw(st.booleans())))
    return made


standings = st.builds(Standing, value=values, scores=scores)
studies = st.builds(
    Study,
    name=st.sampled_from(["a", "b", "c"]),
    runs=st.dictionaries(st.sampled_from(NAMES), standings),
    running=st.booleans(),
    over=st.booleans(),
)
references = st.builds(
    References,
    studies=st.lists(studies, max_size=3, unique_by=lambda study: study.name).map(tuple),
    registered=st.frozensets(st.sampled_from(NAMES), max_size=2),
)
counts = st.integers(0, 3)
policies = st.builds(
    Policy,
    study_best=counts,
    trial_best=counts,
    trial_latest=counts,
    averages=st.booleans(),
    orphans=st.booleans(),
)


def kept(decisions: tuple[Decision, ...]) -> set[tuple[str, str]]:
    return {(each.run, each.item.place) for each in decisions if each.keep}


def newest(run: Run) -> str | None:
    checkpoints = [item for item in run.items if item.kind == "checkpoint" and item.whole]
    return max(checkpoints, key=lambda item: (item.images, item.place)).place if checkpoints else None


@given(runs(), references, policies)
def test_what_is_referenced_stays(known: list[Run], needed: References, policy: Policy) -> None:
    decisions = retention.plan(known, needed, policy, now=NOW)
    assert [(each.run, each.item) for each in decisions] == [
        (run.name, item) for run in known for item in run.items
    ]
    stays = kept(decisions)
    for run in known:
        mine = [study for study in needed.studies if run.name in study.runs]
        last = newest(run)
        if last is not None and (not run.over or policy.trial_latest or run.name in needed.registered):
            assert (run.name, last) in stays
        for item in run.items:
            untouchable = (
                NOW - item.written < 3600.0
                or (not item.whole and NOW - item.written < 86_400.0)
                or any(study.running for study in mine)
                or (item.kind == "fork" and item.whole and not all(study.over for study in mine))
                or (item.kind == "average" and item.whole and not policy.averages)
                or (item.whole and not mine and not policy.orphans)
                or (item.whole and item.kind == "checkpoint" and run.name in needed.registered)
            )
            assert not untouchable or (run.name, item.place) in stays


@given(runs(), references, policies)
def test_the_best_of_a_study_stay(known: list[Run], needed: References, policy: Policy) -> None:
    stays = kept(retention.plan(known, needed, policy, now=NOW))
    for study in needed.studies:
        of_study = {run.name: run for run in known if run.name in study.runs}
        valued = {name: one.value for name, one in study.runs.items() if one.value is not None}
        for name in of_study.keys() & valued.keys():
            no_worse = sum(other <= valued[name] for other in valued.values())
            last = newest(of_study[name])
            assert last is None or no_worse > policy.study_best or (name, last) in stays


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6, unique=True), st.booleans())
def test_the_best_checkpoint_stays_in_a_leading_trial(quality: list[float], leads: bool) -> None:
    """One evaluation for each checkpoint: the one with the least error is kept, wherever it is."""
    run = Run(name="a-0", items=tuple(item(100 * n) for n in range(len(quality))), over=True)
    scores = tuple((100 * n, value) for n, value in enumerate(quality))
    study = replace(DONE, runs={"a-0": Standing(value=0.5, scores=scores)})
    policy = Policy(study_best=int(leads), trial_best=0 if leads else 1, trial_latest=0)
    decisions = retention.plan([run], References(studies=(study,)), policy, now=NOW)
    best = 100 * quality.index(min(quality))
    last = {100 * (len(quality) - 1)} if leads else set()
    assert {each.item.images for each in decisions if each.keep} == {best} | last


@given(runs(), references, policies)
def test_cleaning_twice_is_cleaning_once(known: list[Run], needed: References, policy: Policy) -> None:
    stays = kept(retention.plan(known, needed, policy, now=NOW))
    left = [replace(run, items=tuple(i for i in run.items if (run.name, i.place) in stays)) for run in known]
    assert all(each.keep for each in retention.plan(left, needed, policy, now=NOW))


@given(runs(), references, policies, st.sampled_from(["study_best", "trial_best", "trial_latest"]))
def test_keeping_more_keeps_what_was_kept(
    known: list[Run], needed: References, policy: Policy, key: str
) -> None:
    more = replace(policy, **{key: getattr(policy, key) + 1})
    assert kept(retention.plan(known, needed, policy, now=NOW)) <= kept(
        retention.plan(known, needed, more, now=NOW)
    )


def item(images: int, *, kind: retention.Kind = "checkpoint", age: float = 1e6, whole: bool = True) -> Item:
    return Item(place=f"{kind}s/{images}", kind=kind, images=images, bytes=10, written=NOW - age, whole=whole)


TRIAL = Run(
    name="a-0",
    items=(item(100), item(200), item(300), item(150, kind="fork"), item(250, whole=False)),
    over=True,
)
DONE = Study(
    name="s",
    runs={"a-0": Standing(value=0.5, scores=((0, 9.0), (100, 0.4), (200, 0.6), (300, 0.5)))},
    running=False,
    over=True,
)
Change = Callable[[Run, Study], tuple[Run, Study]]

CASES: dict[str, tuple[Change, Policy, dict[int, str]]] = {
    "best and last of a leading trial": (
        lambda run, study: (run, study),
        Policy(),
        {
            100: "best of its study",
            200: "older than those kept",
            300: "best of its study",
            150: "no trial starts here any more",
            250: "never completed",
        },
    ),
    "best and last of any trial": (
        lambda run, study: (run, study),
        Policy(study_best=0),
        {100: "best of its trial", 200: "older than those kept", 300: "last of its trial"},
    ),
    "nothing of a trial that is not among the best": (
        lambda run, study: (run, study),
        Policy(study_best=0, trial_best=0, trial_latest=0),
        dict.fromkeys((100, 200, 300), "of a trial beyond those kept"),
    ),
    "a run that is not over": (
        lambda run, study: (replace(run, over=False), replace(study, over=False)),
        Policy(study_best=0, trial_best=0, trial_latest=0),
        {
            100: "older than those kept",
            300: "an unfinished run goes on here",
            150: "other trials may start here",
        },
    ),
    "a study that is running": (
        lambda run, study: (run, replace(study, running=True)),
        Policy(study_best=0, trial_best=0, trial_latest=0),
        dict.fromkeys((100, 200, 300, 150, 250), "its study is running"),
    ),
    "a study that has more to run": (
        lambda run, study: (run, replace(study, over=False)),
        Policy(),
        {200: "older than those kept", 150: "other trials may start here"},
    ),
    "of no study": (
        lambda run, study: (run, replace(study, runs={})),
        Policy(),
        {**dict.fromkeys((100, 200, 300, 150), "of no study"), 250: "never completed"},
    ),
    "of no study, and those are asked for": (
        lambda run, study: (run, replace(study, runs={})),
        Policy(orphans=True),
        {100: "older than those kept", 200: "older than those kept", 300: "last of its trial"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_reasons(case: str) -> None:
    change, policy, expected = CASES[case]
    run, study = change(TRIAL, DONE)
    decisions = retention.plan([run], References(studies=(study,)), policy, now=NOW)
    told = {each.item.images: each.reason for each in decisions}
    assert {images: told[images] for images in expected} == expected


def test_a_run_that_two_studies_share_is_kept_for_either() -> None:
    other = replace(DONE, name="t", runs={"a-0": Standing(scores=((200, 0.1), (100, 0.2)))}, running=False)
    policy = Policy(study_best=0, trial_best=1, trial_latest=0)
    decisions = retention.plan([TRIAL], References(studies=(DONE, other)), policy, now=NOW)
    assert {each.item.images for each in decisions if each.keep} == {100, 300}
    assert decisions[0].studies == ("s", "t")


def test_averages_go_only_when_asked_and_never_those_of_a_model() -> None:
    run = Run(name="a-0", items=(item(100, kind="average"),), over=True)
    rest = Policy(study_best=0, averages=True)
    study = (DONE,)
    assert retention.plan([run], References(studies=study), Policy(study_best=0), now=NOW)[0].keep
    assert not retention.plan([run], References(studies=study), rest, now=NOW)[0].keep
    registered = References(studies=study, registered=frozenset({"a-0"}))
    assert retention.plan([run], registered, rest, now=NOW)[0].reason == "registered model"
    assert retention.plan([replace(run, over=False)], References(studies=study), rest, now=NOW)[0].keep
