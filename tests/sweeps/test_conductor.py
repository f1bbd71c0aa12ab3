"""What is started when, what becomes of every end, and what a later command makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.sweeps.conducting.ledger import Ledger
from hasten.sweeps.conducting.prefixes import Donor
from hasten.sweeps.conducting.terms import Ending
from hasten.sweeps.records import FailureKind

Raw = dict[str, Any]

ARMS: Raw = {"baseline": {}, "slow": {"optimizer.lr": 1e-4}, "fast": {"optimizer.lr": 1e-2}}
SPACE: Raw = {"optimizer.lr": {"log_uniform": [1e-4, 1e-2]}}
ASHA: Raw = {"kind": "asha", "grace": 0.2, "reduction": 2}


def search(trials: int = 6, **more: Any) -> Raw:
    return {"space": SPACE, "search": {"kind": "random", "trials": trials}, **more}


def begin(stage: Any, conductor: Any) -> Any:
    """The next trial, as an attempt at it."""
    assignment = conductor.next()
    assert assignment is not None
    return stage.attempt(assignment)


def play(conductor: Any, attempt: Any, reports: int) -> None:
    """Let a trial make some reports that nobody minds."""
    for _ in range(reports):
        assert not conductor.report(attempt.trial, next(attempt.reports))


def end(stage: Any, conductor: Any, attempt: Any, how: str, **more: Any) -> None:
    attempt.leave()
    conductor.ended(attempt.trial, Ending(how=how, seconds=more.pop("seconds", 36.0), **more))


def finish(stage: Any, conductor: Any, attempt: Any) -> None:
    for report in attempt.reports:
        assert not conductor.report(attempt.trial, report)
    attempt.leave()
    conductor.ended(attempt.trial, stage.ending(attempt, None))


def fail(stage: Any, conductor: Any, attempt: Any, failure: FailureKind, **more: Any) -> None:
    end(stage, conductor, attempt, "failed", failure=failure, error="as planned", **more)


# What is started when.


def test_arms_start_seed_by_seed_and_the_points_of_a_search_that_stops_one_by_one(stage: Any) -> None:
    paired = stage(arms=ARMS, seeds=[0, 1])
    paired.perform()
    assert paired.started == ["baseline-s0", "slow-s0", "fast-s0", "baseline-s1", "slow-s1", "fast-s1"]
    judged = stage(**search(2, seeds=[5, 1], stopping=ASHA))
    judged.perform()
    assert judged.started == ["0000-s5", "0000-s1", "0001-s5", "0001-s1"]


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_point_waits_until_all_that_it_is_judged_by_are_over(stage: Any, ahead: int) -> None:
    played = stage(**search(stopping=ASHA, ahead=ahead))
    conductor = played.conductor()
    attempts = [begin(played, conductor) for _ in range(ahead)]
    assert conductor.next() is None
    assert not conductor.over
    if ahead > 1:  # the second is over, but not the first
        finish(played, conductor, attempts[1])
        assert conductor.next() is None
    finish(played, conductor, attempts[0])
    assert conductor.next() is not None


def test_without_stopping_all_points_of_a_random_search_may_run_at_once(stage: Any) -> None:
    conductor = stage(**search(6)).conductor()
    assert [conductor.next().trial.name for _ in range(6)] == [f"{number:04d}-s0" for number in range(6)]
    assert conductor.next() is None


def test_two_points_that_are_one_run_never_run_at_once_and_it_is_computed_once(stage: Any) -> None:
    spellings = [{"kind": "uniform"}, {"kind": "uniform", "draws": "stratified"}]
    played = stage(space={"curriculum": {"choice": spellings}})
    assert len({played.bind(trial).run for trial in played.plan.trials}) == 1
    records = played.perform(concurrent=2)
    assert {record.state for record in records.values()} == {"finished"}
    assert played.started == ["0000-s0"]
    assert sum(played.trained.values()) == 640


# Extensions: only what is new runs.


def test_more_seeds_arms_and_trials_run_only_what_is_new(stage: Any) -> None:
    arms = stage(arms={key: ARMS[key] for key in ("baseline", "slow")}, seeds=[0])
    arms.perform()
    arms.started.clear()
    arms.edit(arms=ARMS, seeds=[0, 7])
    assert len(arms.perform()) == 6
    assert arms.started == ["fast-s0", "baseline-s7", "slow-s7", "fast-s7"]

    points = stage(**search(3))
    points.perform()
    points.started.clear()
    points.edit(**search(5))
    assert len(points.perform()) == 5
    assert points.started == ["0003-s0", "0004-s0"]


def test_more_seeds_do_not_ask_the_searcher_again(stage: Any) -> None:
    raw = {"space": SPACE, "search": {"kind": "optuna", "trials": 6, "startup": 2}, "ahead": 1}
    played = stage(**raw, seeds=[0])
    before = played.perform()
    played.started.clear()
    played.edit(**raw, seeds=[0, 1])
    after = played.perform()
    assert played.started == [f"{number:04d}-s1" for number in range(6)]
    assert all(after[name].settings == record.settings for name, record in before.items())


def test_a_longer_horizon_or_other_data_is_new_altogether(stage: Any) -> None:
    played = stage(arms=ARMS)
    played.perform()
    played.edit(arms=ARMS, base_overrides={"budget.images": 1280})
    played.started.clear()
    assert {record.images for record in played.perform().values()} == {1280}
    played.data = "other data"
    played.perform()
    assert len(played.started) == 6


def test_trials_go_on_where_a_rule_that_the_study_no_longer_has_stopped_them(stage: Any) -> None:
    played = stage(**search(8, stopping=ASHA, ahead=1))
    stopped = {name for name, record in played.perform().items() if record.state == "stopped"}
    assert stopped
    played.started.clear()
    played.edit(**search(8))
    assert {record.state for record in played.perform().values()} == {"finished"}
    assert set(played.started) == stopped


# What is done already.


def test_a_run_that_is_finished_without_a_record_is_not_started(stage: Any) -> None:
    played = stage(arms=ARMS)
    expected = played.perform()
    played.store.files.clear()
    played.started.clear()
    found = played.perform()
    assert not played.started
    assert {name: record.curves for name, record in found.items()} == {
        name: record.curves for name, record in expected.items()
    }
    assert all(found[name].items == record.items for name, record in expected.items())


def test_a_run_that_another_study_finished_is_stopped_here_if_the_rule_says_so(stage: Any, same: Any) -> None:
    judged = stage(**search(8, stopping=ASHA, ahead=1))
    expected = same(judged.perform())
    shared = stage(**search(8))
    shared.perform()
    shared.store.files.clear()
    shared.edit(**search(8, stopping=ASHA, ahead=1))
    shared.started.clear()
    assert same(shared.perform()) == expected
    assert not shared.started


def test_what_has_a_record_is_not_looked_for(stage: Any) -> None:
    played = stage(**search(6))
    played.perform()
    played.asked.clear()
    played.edit(**search(7))
    played.perform()
    assert len(played.asked) == 1


# Failures.


@pytest.mark.parametrize("failure", ["diverged", "memory", "program", "data"])
def test_what_fails_by_itself_is_over_for_this_command(stage: Any, failure: FailureKind) -> None:
    played = stage(arms=ARMS)
    conductor = played.conductor()
    attempt = begin(played, conductor)
    play(conductor, attempt, 3)
    fail(played, conductor, attempt, failure)
    record = conductor.roster.records()["baseline-s0"]
    assert (record.state, record.failure, record.error) == ("failed", failure, "as planned")
    assert conductor.next().trial.name == "slow-s0"
    conductor.close()

    later = played.conductor()
    retried = failure in ("program", "data")
    assert later.next().trial.name == ("baseline-s0" if retried else "slow-s0")


def test_what_ran_out_of_memory_is_tried_again_on_another_size(stage: Any) -> None:
    played = stage(arms=ARMS)
    conductor = played.conductor()
    fail(played, conductor, begin(played, conductor), "memory")
    conductor.close()
    played.edit(arms=ARMS, execution={"cpus": 2.0})
    again = begin(played, later := played.conductor())
    assert again.trial == "baseline-s0"
    finish(played, later, again)
    assert later.roster.records()["baseline-s0"].attempts == 2


def test_a_lost_process_starts_again_twice_without_getting_further(stage: Any) -> None:
    played = stage(arms={"baseline": {}})
    conductor = played.conductor()
    for reports in (4, 2, 6, 3, 4):  # only the third start gets further than all before
        attempt = begin(played, conductor)
        play(conductor, attempt, reports)
        fail(played, conductor, attempt, "lost")
    assert conductor.next() is None
    assert conductor.over
    record = conductor.roster.records()["baseline-s0"]
    assert (record.failure, record.attempts, record.occupied) == ("lost", 5, 5 * 36.0)


def test_a_lost_node_is_not_counted(stage: Any) -> None:
    played = stage(arms={"baseline": {}})
    conductor = played.conductor()
    for _ in range(8):
        fail(played, conductor, begin(played, conductor), "lost", blameless=True)
    finish(played, conductor, begin(played, conductor))
    record = conductor.roster.records()["baseline-s0"]
    assert (record.state, record.attempts, record.lost) == ("finished", 9, 8)


def test_an_end_without_a_result_is_a_failure(stage: Any) -> None:
    played = stage(arms={"baseline": {}})
    conductor = played.conductor()
    end(played, conductor, begin(played, conductor), "finished")
    assert conductor.roster.records()["baseline-s0"].error == "the run ended without a result"


# Verdicts.


def test_a_verdict_ends_a_trial_where_it_fell_however_late_it_is_heard(stage: Any) -> None:
    played = stage(**search(8, stopping=ASHA, ahead=1))
    conductor = played.conductor()
    while True:
        attempt = begin(played, conductor)
        if any(conductor.report(attempt.trial, report) for report in attempt.reports):
            break
        attempt.leave()
        conductor.ended(attempt.trial, played.ending(attempt, None))
    assert all(conductor.report(attempt.trial, report) for report in attempt.reports)
    attempt.leave()
    conductor.ended(attempt.trial, played.ending(attempt, None))  # it even finished
    record = conductor.roster.records()[attempt.trial]
    assert record.state == "stopped"
    assert record.verdict is not None
    assert record.images == record.verdict.images == record.curves["eval/loss"][-1][0] < 640
    assert record.metrics["eval/loss"] == record.verdict.value
    assert record.verdict.reason == conductor.roster.reasons()[attempt.trial]


# Signals.


def test_a_stopped_command_leaves_trials_open_and_the_next_goes_on(stage: Any) -> None:
    played = stage(arms=ARMS)
    conductor = played.conductor()
    attempt = begin(played, conductor)
    play(conductor, attempt, 5)
    conductor.stop("SIGTERM")
    assert conductor.over
    assert conductor.next() is None
    assert conductor.report(attempt.trial, next(attempt.reports))
    end(played, conductor, attempt, "stopped")
    conductor.close()
    assert conductor.roster.states() == {"baseline-s0": "open", "slow-s0": "waiting", "fast-s0": "waiting"}
    note = Ledger(played.store).note()
    assert (note.state, note.why, list(note.open)) == ("stopped", "SIGTERM", ["baseline-s0"])
    finished = played.perform()["baseline-s0"]
    assert (finished.state, finished.attempts, finished.occupied) == ("finished", 2, 36.0 + 11.0)


# Forks.


def test_a_trial_waits_for_the_one_whose_checkpoint_it_starts_from(stage: Any) -> None:
    played = stage(arms=ARMS)
    conductor = played.conductor(donors={"slow-s0": Donor(trial="baseline-s0", images=128)})
    donor = begin(played, conductor)
    assert donor.job.forks == (128,)
    assert conductor.next().trial.name == "fast-s0"
    play(conductor, donor, 5)  # 0, 64, 64, 128, 128
    assert conductor.next() is None
    play(conductor, donor, 1)
    child = begin(played, conductor)
    assert (child.job.origin.uri, child.job.origin.images) == (donor.job.uri, 128)
    finish(played, conductor, child)
    record = conductor.roster.records()["slow-s0"]
    assert (record.forked_from, record.forked_images) == ("baseline-s0", 128)
    assert played.trained[child.name] == 640 - 128


def test_a_trial_starts_at_its_beginning_when_its_donor_ends_before(stage: Any) -> None:
    played = stage(arms=ARMS)
    conductor = played.conductor(donors={"slow-s0": Donor(trial="baseline-s0", images=128)})
    donor = begin(played, conductor)
    play(conductor, donor, 2)
    fail(played, conductor, donor, "diverged")
    assignment = conductor.next()
    assert assignment.trial.name == "slow-s0"
    assert assignment.job.origin is None


def test_a_donor_that_is_lost_for_a_while_is_waited_for(stage: Any) -> None:
    played = stage(arms={key: ARMS[key] for key in ("baseline", "slow")})
    conductor = played.conductor(donors={"slow-s0": Donor(trial="baseline-s0", images=128)})
    donor = begin(played, conductor)
    assert conductor.next() is None
    fail(played, conductor, donor, "lost")
    assert conductor.next().trial.name == "baseline-s0"
    assert conductor.next() is None


# Populations.


def test_a_generation_is_over_at_its_end_and_all_wait_for_it(stage: Any) -> None:
    played = stage(space=SPACE, search={"kind": "pbt", "members": 3, "interval": 0.5})
    conductor = played.conductor()
    first = [begin(played, conductor) for _ in range(3)]
    assert conductor.next() is None
    for attempt in first:
        reports = list(attempt.reports)
        assert reports[-1].stopped
        assert not any(conductor.report(attempt.trial, report) for report in reports)
        end(played, conductor, attempt, "finished")
    second = begin(played, conductor)
    assert second.job.spec.start.images == 320
    assert {record.images for record in conductor.roster.records().values()} == {320}
    second.leave()
    conductor.close()
    records = played.perform()
    assert {record.parent for record in records.values()} > {None}
    assert sorted(record.images for record in records.values()) == [320] * 3 + [640] * 3


# What displays see.


def test_a_snapshot_says_how_far_a_study_is(stage: Any) -> None:
    played = stage(arms=ARMS, seeds=[0, 1])
    conductor = played.conductor()
    finish(played, conductor, begin(played, conductor))
    attempt = begin(played, conductor)
    play(conductor, attempt, 11)  # to the half
    seen = conductor.snapshot()
    assert seen.counts == {"finished": 1, "running": 1, "waiting": 4}
    assert (seen.over, seen.trials, seen.why_stopped) == (1, 6, None)
    (running,) = seen.running
    assert (running.trial, running.images, running.total) == ("slow-s0", 320, 640)
    assert running.seconds_left == pytest.approx(32.0)
    assert running.value is not None
    values = {view.trial: view.value for view in conductor.roster.views()}
    assert values["slow-s0"] == running.value != values["baseline-s0"] is not None
    assert values["fast-s0"] is None
    assert seen.seconds_left == pytest.approx(4.5 * 11.0)
