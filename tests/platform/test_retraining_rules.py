"""When to train and when to promote: the rules alone, without a server."""

from __future__ import annotations

import base64
import json
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from standardwebhooks.webhooks import Webhook

from hasten.platform import database
from hasten.platform.retraining import gate, notices, pipeline, triggers
from hasten.platform.retraining.gate import Deviation, Measured
from hasten.platform.retraining.notices import Hook
from hasten.platform.retraining.pipeline import Gate, Guardrails, Notify, Trigger
from hasten.platform.retraining.triggers import Due, Facts, NotDue
from hasten.trainers.errors import ConfigError

NOW = datetime(2026, 3, 29, 2, 30, tzinfo=UTC)
NOTHING_NEW = Facts(
    now=NOW,
    forced=False,
    known="version 4 was promoted",
    changed=frozenset(),
    new_images=0,
    champion="4",
    age=5.0,
)
NEW_DATA = replace(NOTHING_NEW, known=None, changed=frozenset({"data"}), new_images=50)
KEY = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.mark.parametrize(
    ("trigger", "facts", "expected"),
    [
        ({}, NOTHING_NEW, "unchanged"),
        ({}, replace(NOTHING_NEW, champion=None, age=None), "unchanged"),
        ({}, NEW_DATA, ""),
        ({}, replace(NEW_DATA, champion=None), ""),
        ({"min_new_samples": 50}, NEW_DATA, ""),
        ({"min_new_samples": 51}, NEW_DATA, "not_due"),
        ({"min_new_samples": 51}, replace(NEW_DATA, new_images=None), ""),
        ({"min_new_samples": 51}, replace(NEW_DATA, changed=frozenset({"data", "recipe"})), ""),
        ({"min_new_samples": 51, "max_age": 5.0}, NEW_DATA, ""),
        ({"data_changed": False}, NEW_DATA, "not_due"),
        ({"data_changed": False}, replace(NEW_DATA, changed=frozenset({"hasten"})), ""),
        ({"max_age": 5.1}, NOTHING_NEW, "unchanged"),
        ({"max_age": 5.0}, NOTHING_NEW, "age 4 1"),
        ({"max_age": 2.0}, NOTHING_NEW, "age 4 2"),
        ({"max_age": 2.0}, replace(NOTHING_NEW, age=None), "unchanged"),
        ({}, replace(NOTHING_NEW, forced=True), "forced 2026-03-29T02"),
        ({"data_changed": False}, replace(NEW_DATA, forced=True), "forced 2026-03-29T02"),
    ],
)
def test_when_a_tick_trains(trigger: dict[str, Any], facts: Facts, expected: str) -> None:
    found = triggers.decide(Trigger(**trigger), facts)
    if isinstance(found, NotDue):
        assert found.decision == expected
        assert found.reason
    else:
        assert found.window == expected
        assert found.reason


def test_a_reason_names_everything_that_changed() -> None:
    facts = replace(NEW_DATA, changed=frozenset({"data", "recipe", "hasten"}), new_images=1234)
    found = triggers.decide(Trigger(), facts)
    assert isinstance(found, Due)
    assert (
        found.reason
        == "the data changed, 1,234 images are new; the recipe changed; hasten is another version"
    )


def test_the_deviation_is_pooled_within_groups() -> None:
    groups = [[1.0, 2.0, 3.0], [11.0, 13.0], [7.0]]
    found = gate.deviation(groups, "somewhere")
    assert found is not None
    assert found.value == pytest.approx(math.sqrt((2.0 + 2.0) / 3.0))
    assert found.freedom == 3


@pytest.mark.parametrize("groups", [[], [[1.0]], [[1.0, 2.0]], [[1.0, math.nan, 2.0]], [[2.0, 2.0, 2.0]]])
def test_a_deviation_that_nobody_knows(groups: list[list[float]]) -> None:
    assert gate.deviation(groups, "nowhere") is None
    verdict = gate.verdict(
        Gate(), ours=0.1, theirs=9.0, version="1", deviation=gate.deviation(groups, "nowhere")
    )
    assert not verdict.promoted
    assert "cannot tell" in verdict.reason


@given(st.floats(1e-6, 1e3), st.integers(2, 100), st.floats(2.0, 10.0), st.floats(0.5, 0.999))
def test_the_margin_is_at_least_what_was_asked_for(
    value: float, freedom: int, deviations: float, confidence: float
) -> None:
    rules = Gate(deviations=deviations, confidence=confidence)
    margin = gate.margin(rules, Deviation(value=value, freedom=freedom, source=""))
    assert margin >= deviations * value
    assert margin >= math.sqrt(2.0) * stats.t.ppf(confidence, freedom) * value * (1 - 1e-12)


@pytest.mark.parametrize("seeds", [3, 4, 10])
def test_a_challenger_that_is_only_lucky_is_seldom_promoted(seeds: int) -> None:
    """Twenty thousand pairs of champions and challengers of one recipe: at most one in twenty is promoted."""
    random, rules, trials = np.random.default_rng(seeds), Gate(), 20_000
    champions, challengers = random.normal(1.0, 0.05, (2, trials))
    spreads = random.normal(1.0, 0.05, (trials, seeds)).std(axis=1, ddof=1)
    unit = gate.margin(rules, Deviation(value=1.0, freedom=seeds - 1, source=""))
    promoted = float(np.mean(champions - challengers > unit * spreads))
    assert promoted < 0.05 + 3.0 * math.sqrt(0.05 * 0.95 / trials)
    twice_alone = float(np.mean(champions - challengers > 2.0 * spreads))
    assert twice_alone > 0.05, "two deviations alone would promote more than one in twenty"


def test_what_a_verdict_says() -> None:
    luck = Deviation(value=0.01, freedom=3, source="between 4 seeds of the champion's recipe")
    worse = gate.verdict(Gate(), ours=0.5, theirs=0.4, version="2", deviation=luck)
    assert not worse.promoted
    assert "not better" in worse.reason
    equal = gate.verdict(Gate(), ours=0.39, theirs=0.4, version="2", deviation=luck)
    assert not equal.promoted
    assert "lower by 0.01, the margin is 0.033: 3.33 standard deviations of 0.01 (between 4" in equal.reason
    better = gate.verdict(Gate(), ours=0.3, theirs=0.4, version="2", deviation=luck)
    assert better.promoted
    wished = gate.verdict(Gate(min_improvement=0.5), ours=0.3, theirs=0.4, version="2", deviation=luck)
    assert not wished.promoted
    assert "gate.min_improvement 0.5" in wished.reason
    assert not gate.verdict(Gate(), ours=math.nan, theirs=0.4, version="2", deviation=luck).promoted


CHAMPION = Measured(
    loss=1.0,
    quality={"eval/frechet": 2.0, "eval/recall": 0.5, "eval/nearest_unseen": 1.0},
    megabytes=1.0,
    seconds=0.1,
)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"loss": math.nan}, "eval/loss: not a finite number"),
        ({"quality": {"eval/frechet": math.inf}}, "eval/frechet: not a finite number"),
        ({"quality": {"eval/frechet": 3.1}}, "Fréchet distance over the champion's 1.55 is above"),
        ({"quality": {"eval/recall": 0.3}}, "recall over the champion's 0.6 is below"),
        ({"quality": {"eval/nearest_unseen": 0.2}}, "eval/nearest_unseen 0.2 is below guardrails.min_unseen"),
        ({"megabytes": 11.0}, "megabytes 11 is above guardrails.max_megabytes 10"),
        ({"seconds": 0.21}, "seconds a sample over the champion's 2.1 is above"),
    ],
)
def test_guardrails(changes: dict[str, Any], problem: str) -> None:
    ours = replace(CHAMPION, **changes)
    found = gate.problems(Guardrails(max_megabytes=10.0), ours, CHAMPION)
    assert bool(found) == bool(problem)
    assert problem in "".join(found)
    off = Guardrails(
        max_frechet_ratio=None,
        min_diversity=None,
        min_unseen=None,
        max_megabytes=None,
        max_latency_ratio=None,
    )
    assert bool(gate.problems(off, ours, CHAMPION)) == ("finite" in problem)


def test_a_first_champion_has_absolute_guardrails_only() -> None:
    assert not gate.problems(Guardrails(), replace(CHAMPION, seconds=99.0), None)
    copied = replace(CHAMPION, quality={"eval/nearest_unseen": 0.1})
    assert gate.problems(Guardrails(), copied, None)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("schedule={cron: '61 * * * *'}", "schedule.cron"),
        ("schedule={cron: '0 3 * * *', timezone: Mars/Olympus}", "schedule.timezone"),
        ("schedule={cron: '0 3 * * *', catchup: some}", "schedule.catchup"),
        ("origin={config: study}", "origin"),
        ("origin={run_study: true}", "origin"),
        ("gate.deviations=1.5", "gate.deviations"),
        ("gate.calibration_seeds=2", "gate.calibration_seeds"),
        ("trigger.max_age=-1", "trigger.max_age"),
        ("guardrails.min_unseen=no", "guardrails.min_unseen"),
        ("limits.gpu_hours=0", "limits.gpu_hours"),
        ("notify={url_variable: 'https://hooks.slack.com/services/x'}", "notify.url_variable"),
        ("budget=3", "budget"),
    ],
)
def test_a_pipeline_with_a_mistake_in_it(change: str, key: str) -> None:
    from hasten.trainers import config

    with pytest.raises(ConfigError) as caught:
        pipeline.load("digits", config.parse_overrides([change]))
    assert caught.value.subject.startswith(key)


class _Receiver(ThreadingHTTPServer):
    """Remembers what it is sent, and answers as it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[int] = []
        self.heard: list[tuple[dict[str, str], bytes]] = []


class _Handler(BaseHTTPRequestHandler):
    server: _Receiver

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        self.server.heard.append(({key.lower(): value for key, value in self.headers.items()}, content))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002


@pytest.fixture
def receiver() -> Iterator[_Receiver]:
    server = _Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def ledger(folder: Path) -> Iterator[Any]:
    engine = database.opened(f"sqlite:///{folder}/hasten.db")
    try:
        yield engine
    finally:
        engine.dispose()


def hook_of(receiver: _Receiver) -> Hook:
    return Hook(url=f"http://127.0.0.1:{receiver.server_port}/services/T0/SECRET", secret=KEY)


def write(engine: Any, *decisions: str) -> None:
    for decision in decisions:
        with database.writing(engine) as connection:
            notices.write(connection, "fresh", notices.body("fresh", decision, "<why> & how", "3"))


def test_a_notice_is_signed_and_in_slacks_form(receiver: _Receiver, tmp_path: Path) -> None:
    with ledger(tmp_path) as engine:
        write(engine, "promoted")
        assert notices.send(engine, "another", hook_of(receiver)) == 0
        assert notices.send(engine, "fresh", hook_of(receiver)) == 1
        assert notices.send(engine, "fresh", hook_of(receiver)) == 0, "once is enough"
    ((headers, content),) = receiver.heard
    told = Webhook(KEY).verify(content, headers)
    assert told["text"] == "fresh: promoted, version 3. <why> & how"
    shown = told["blocks"][0]["text"]
    assert shown == {"type": "mrkdwn", "text": "*fresh: promoted, version 3*\n&lt;why&gt; &amp; how"}
    assert told["decision"] == "promoted"


def test_a_webhook_that_stumbles_is_asked_again(receiver: _Receiver, tmp_path: Path) -> None:
    receiver.answers = [503, 429, 200]
    with ledger(tmp_path) as engine:
        write(engine, "promoted")
        assert notices.send(engine, "fresh", hook_of(receiver)) == 1
    assert len(receiver.heard) == 3
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1, "it is one message"


def test_what_cannot_be_sent_waits_for_the_next_tick(
    receiver: _Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.answers = [404]
    with ledger(tmp_path) as engine:
        write(engine, "rejected", "promoted")
        assert notices.send(engine, "fresh", hook_of(receiver)) == 0
        assert len(receiver.heard) == 1, "a refusal is not repeated at once, and keeps the order"
        assert notices.send(engine, "fresh", hook_of(receiver)) == 2
    told = [json.loads(content)["decision"] for _, content in receiver.heard[1:]]
    assert told == ["rejected", "promoted"]
    first, second = (headers["webhook-id"] for headers, _ in receiver.heard[:2])
    assert first == second
    assert "refuses with 404" in caplog.text
    assert "SECRET" not in caplog.text
    assert "SECRET" not in repr(hook_of(receiver))


def test_a_webhook_that_is_not_there_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_ATTEMPTS", 2)
    with ledger(tmp_path) as engine:
        write(engine, "promoted")
        gone = Hook(url="http://127.0.0.1:9/services/SECRET", secret=None)
        assert notices.send(engine, "fresh", gone) == 0
    assert "does not answer" in caplog.text
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize(
    ("url", "secret", "subject"),
    [
        ("http://hooks.example.org/x", KEY, "HASTEN_WEBHOOK_URL"),
        ("file:///etc/passwd", KEY, "HASTEN_WEBHOOK_URL"),
        ("https://hooks.example.org/x", "guess", "HASTEN_WEBHOOK_SECRET"),
        ("https://hooks.example.org/x", "whsec_c2hvcnQ=", "HASTEN_WEBHOOK_SECRET"),
    ],
)
def test_a_wrong_webhook(url: str, secret: str, subject: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_WEBHOOK_URL", url)
    monkeypatch.setenv("HASTEN_WEBHOOK_SECRET", secret)
    with pytest.raises(ConfigError) as caught:
        notices.hook(Notify())
    assert caught.value.subject == subject
    assert url not in str(caught.value)
    assert secret not in str(caught.value)


def test_no_webhook_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HASTEN_WEBHOOK_URL", raising=False)
    assert notices.hook(Notify()) is None
