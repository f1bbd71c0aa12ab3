"""The write-ahead log: what was appended comes back in order, whatever was torn off, and once."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.platform import spool
from hasten.platform.identity import Dataset, RunIdentity
from hasten.platform.spool import Segment

ENTRIES = st.lists(
    st.fixed_dictionaries(
        {
            "metrics": st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False), max_size=3),
            "step": st.integers(0, 10**9),
        }
    ),
    max_size=12,
)
ROUNDS = settings(max_examples=60, deadline=None)


@pytest.fixture
def segment(tmp_path):
    made = Segment.create(tmp_path / "run", header={"attempt": 1})
    yield made
    made.release()


@ROUNDS
@given(entries=ENTRIES, data=st.data())
def test_a_torn_log_gives_back_a_prefix(entries, data):
    with tempfile.TemporaryDirectory() as folder:
        written = Segment.create(Path(folder) / "run", header={})
        written.append(entries)
        path = written.folder / "log.jsonl"
        cut = data.draw(st.integers(0, path.stat().st_size))
        os.truncate(path, cut)
        read, _ = written.read(limit=100)
        whole = path.read_bytes().count(b"\n")
        assert read == entries[:whole]
        written.release()


@ROUNDS
@given(batches=st.lists(ENTRIES, max_size=5), limit=st.integers(1, 7), data=st.data())
def test_confirmed_entries_come_once_and_in_order(batches, limit, data):
    """Some reads are confirmed and some are not, as where a server answers only now and then."""
    with tempfile.TemporaryDirectory() as folder:
        written = Segment.create(Path(folder) / "run", header={})
        arrived = []
        for batch in batches:
            written.append(batch)
            if data.draw(st.booleans()):
                entries, offset = written.read(limit=limit)
                if data.draw(st.booleans()):
                    written.confirm(offset)
                    arrived += entries
        while True:
            entries, offset = written.read(limit=limit)
            if not entries:
                break
            arrived += entries
            written.confirm(offset)
        assert arrived == [entry for batch in batches for entry in batch]
        assert written.is_sent()
        written.release()


def test_a_line_that_is_garbage_is_left_out(segment):
    segment.append([{"step": 1}])
    with (segment.folder / "log.jsonl").open("ab") as log:
        log.write(b"\x00\x00{\n")
    segment.append([{"step": 2}])
    assert segment.read(limit=10)[0] == [{"step": 1}, {"step": 2}]


def test_not_a_number_survives(segment):
    segment.append([{"metrics": {"a": float("nan"), "b": float("inf")}}])
    values = segment.read(limit=1)[0][0]["metrics"]
    assert values["a"] != values["a"]
    assert values["b"] == float("inf")


def test_a_payload_is_seen_whole_or_not_at_all(segment):
    segment.append_file({"image": "a", "step": 0}, b"first")
    segment.append_file({"image": "a", "step": 1}, b"second")
    (segment.folder / "files" / "000009.bin").write_bytes(b"its entry was never written")
    (segment.folder / "files" / "000008.part").write_text("{")
    (segment.folder / "files" / "000007.json").write_text("{")
    payloads = list(segment.files())
    assert [(payload.entry["step"], payload.path.read_bytes()) for payload in payloads] == [
        (0, b"first"),
        (1, b"second"),
    ]
    for payload in payloads:
        segment.confirm_file(payload)
    assert segment.is_sent()


def test_a_living_segment_cannot_be_claimed_and_a_released_one_can(tmp_path, segment):
    run = tmp_path / "run"
    assert spool.is_alive(run)
    assert list(spool.abandoned(run)) == []
    segment.append([{"step": 1}])
    segment.release()
    assert not spool.is_alive(run)
    (claimed,) = spool.abandoned(run)
    assert claimed.read(limit=9)[0] == [{"step": 1}]
    assert list(spool.abandoned(run)) == []
    claimed.remove()
    assert not run.exists()


def test_segments_of_one_run_come_oldest_first(tmp_path):
    run = tmp_path / "run"
    for step in range(5):
        made = Segment.create(run, header={})
        made.append([{"step": step}])
        made.release()
    left = list(spool.abandoned(run))
    assert [segment.read(limit=9)[0][0]["step"] for segment in left] == [0, 1, 2, 3, 4]
    for segment in left:
        segment.remove()
    assert spool.runs(tmp_path) == []


WRITER = """
import sys, time
from pathlib import Path
from hasten.platform.spool import Segment
segment = Segment.create(Path(sys.argv[1]), header={"attempt": 3})
step = 0
while True:
    segment.append([{"step": step}])
    step += 1
    if step == 200:
        print("ready", flush=True)
"""


def test_what_was_appended_survives_a_kill(tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(run)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    assert spool.is_alive(run)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (segment,) = spool.abandoned(run)
    entries, _ = segment.read(limit=10**6)
    assert len(entries) >= 200
    assert [entry["step"] for entry in entries] == list(range(len(entries)))
    assert segment.header() == {"attempt": 3}
    segment.release()


def test_an_identity_survives_the_header():
    identity = RunIdentity(
        experiment="paper",
        name="clts, seed 0",
        kind="trial",
        tags={"hasten.study": "paper", "hasten.trial": "clts-0"},
        params={"curriculum.mu": 0.4, "channels": [1, 2], "attention": False},
        dataset=Dataset(name="digits", digest="abc", source="s3://hasten/digits"),
    )
    again = RunIdentity.from_document(identity.document())
    assert again.params == {"curriculum.mu": "0.4", "channels": "[1, 2]", "attention": "false"}
    assert again.document() == identity.document()
    assert again.slug() == identity.slug()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"tags": {"hasten.study": "s", "hasten.trial": "t", "commit": "other"}}, True),
        ({"note": "another note", "params": {"a": 2}}, True),
        ({"tags": {"hasten.study": "s", "hasten.trial": "u"}}, False),
        ({"experiment": "other"}, False),
        ({"kind": "run"}, False),
    ],
)
def test_only_identity_makes_another_run(change, same):
    plain = {
        "experiment": "e",
        "name": "n",
        "kind": "trial",
        "tags": {"hasten.study": "s", "hasten.trial": "t"},
    }
    assert (RunIdentity(**plain).slug() == RunIdentity(**(plain | change)).slug()) is same


def test_a_study_with_other_arms_is_the_same_study():
    first = RunIdentity(experiment="s", name="s", kind="study", tags={"hasten.study": "s"})
    second = RunIdentity(
        experiment="s", name="s (2 arms)", kind="study", tags={"hasten.study": "s", "hasten.fingerprint": "f"}
    )
    assert first.slug() == second.slug()


def test_a_segment_whose_removal_was_killed_is_removed(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path / "run", header={"attempt": 1})
    segment.release()
    (segment.folder / "header.json").unlink()
    assert list(spool.abandoned(tmp_path / "run")) == []
    assert not (tmp_path / "run").exists()
