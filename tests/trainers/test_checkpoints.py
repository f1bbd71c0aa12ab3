from __future__ import annotations

import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hasten.trainers.checkpoints import RunStore, State, StoreWriter, png
from hasten.trainers.errors import Fault, HastenError
from hasten.trainers.posthoc import Snapshot
from hasten.trainers.records import Point, RunResult


def state(images: int, loss: float | None = None) -> State:
    """A state after ``images``; ``loss`` was measured then, and a worse one at the start."""
    return {
        "images": images,
        "seconds": 1.5,
        "network": {"weight": torch.full((2, 3), float(images)), "steps": torch.tensor(images)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        "history": [[0, {"train/loss": 1.0}]] if loss is None else measured(images, loss),
    }


def measured(images: int, loss: float) -> list[list[Any]]:
    return [[0, {"eval/loss": loss + 1.0}], [images, {"eval/loss": loss}], [images, {"train/loss": 0.0}]]


def result(**changes: Any) -> RunResult:
    fields: dict[str, Any] = {
        "run": "tiny-0123456789ab",
        "fingerprint": "0123456789ab",
        "status": "finished",
        "images": 640,
        "seconds": 1.0,
        "metrics": {"eval/loss": 0.25},
        "history": [Point(step=640, metrics={"eval/loss": 0.25})],
        "spec": {"name": "tiny"},
        "data_digest": "d",
    }
    return RunResult(**(fields | changes))


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path / "runs" / "tiny"))


@pytest.fixture
def writer(store: RunStore) -> Iterator[StoreWriter]:
    writing = StoreWriter(store)
    yield writing
    writing.close()


def folder_of(store: RunStore, name: str) -> Path:
    return Path(store.uri) / "checkpoints" / name


def test_nothing_is_there_at_first(store: RunStore) -> None:
    assert store.latest() is None
    assert store.checkpoints() == []
    assert store.result() is None
    assert store.sheets() == []
    assert store.last_sheet() is None


def test_saved_state_is_loaded_bit_for_bit(store: RunStore, assert_same: Any) -> None:
    uri = store.save(state(100))
    latest = store.latest()
    assert latest is not None
    assert uri == f"{store.uri}/checkpoints/{latest}"
    assert_same(store.load(latest), state(100))


def test_latest_has_most_images(store: RunStore) -> None:
    for images in (900, 1000, 9, 80):
        store.save(state(images))
    latest = store.latest()
    assert latest is not None
    assert store.load(latest)["images"] == 1000


def test_only_two_are_kept(store: RunStore) -> None:
    for images in range(100, 600, 100):
        store.save(state(images))
    assert [store.load(name)["images"] for name in store.checkpoints()] == [400, 500]
    assert len(list((Path(store.uri) / "checkpoints").iterdir())) == 2


def test_the_best_is_kept_beside_the_two_newest(store: RunStore) -> None:
    """By the newest loss that was known when it was written; of equal ones the newest."""
    assert store.best() is None
    for images, loss in ((100, 0.5), (200, 0.3), (300, 0.4), (400, 0.3), (500, 0.6), (600, 0.7), (700, 0.8)):
        store.save(state(images, loss))
    kept = store.checkpoints()
    assert [store.load(name)["images"] for name in kept] == [400, 600, 700]
    assert store.best() == kept[0]
    assert store.latest() == kept[-1]
    store.save(state(800, 0.0))
    assert [store.load(name)["images"] for name in store.checkpoints()] == [700, 800]
    assert store.best() == store.latest()


def test_without_a_loss_no_checkpoint_is_best(store: RunStore) -> None:
    store.save(state(100))
    store.save(state(200))
    assert store.best() is None


def test_forks_stay(store: RunStore, assert_same: Any) -> None:
    uris = [store.write_fork(state(images)) for images in (200, 100)]
    for images in range(100, 700, 100):
        store.save(state(images))
    assert store.forks() == [100, 200]
    assert uris == [f"{store.uri}/{store.fork(images)}" for images in (200, 100)]
    assert_same(store.load_fork(100), state(100))
    assert [store.load(name)["images"] for name in store.checkpoints()] == [500, 600]


@pytest.mark.parametrize("images", [99, 101, 300])
def test_a_fork_is_of_one_moment(images: int, store: RunStore) -> None:
    store.write_fork(state(100))
    store.write_fork(state(200))
    with pytest.raises(Fault, match=f"no checkpoint after {images}"):
        store.load_fork(images)


@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_half_a_fork_is_none(file: str, store: RunStore) -> None:
    uri = store.write_fork(state(100))
    (Path(uri) / file).unlink()
    assert store.forks() == ([100] if file == "state.pt" else [])
    with pytest.raises(Fault):
        store.load_fork(100)


def test_furthest_of_checkpoints_and_forks(store: RunStore) -> None:
    assert store.furthest(1000) is None
    for images in (100, 300):
        store.save(state(images))
    for images in (200, 400):
        store.write_fork(state(images))

    def furthest(most: int) -> int:
        place = store.furthest(most)
        return 0 if place is None else store.read(place)["images"]

    assert [furthest(most) for most in (99, 100, 250, 300, 399, 400, 1000)] == [
        0,
        100,
        200,
        300,
        300,
        400,
        400,
    ]


def test_a_broken_manifest_spares_the_other_checkpoints(store: RunStore) -> None:
    store.save(state(100, 0.1))
    name = store.latest()
    assert name is not None
    (folder_of(store, name) / "manifest.json").write_bytes(b"{")
    store.save(state(200, 0.2))
    assert store.best() == store.latest() != name
    with pytest.raises(Fault, match="damaged"):
        store.load(name)


def test_heir_gets_sheets_and_averages_until_then(tmp_path: Path) -> None:
    donor, heir = RunStore(str(tmp_path / "donor")), RunStore(str(tmp_path / "heir"))
    for images in (0, 100, 200):
        donor.write_sheet(images, png(picture(images)))
        weights = {"weight": torch.full((2,), float(images))}
        donor.write_average(Snapshot(images=images, std=0.05, state=weights))
    heir.write_sheet(0, png(picture(7)))
    heir.inherit(donor, 100)
    assert [step for step, _ in heir.sheets()] == [0, 100]
    np.testing.assert_array_equal(heir.sheets()[0][1], picture(7))
    profiles = heir.averages()
    assert [profile.images for profile in profiles] == [0, 100]
    assert torch.equal(heir.read_average(profiles[1]).state["weight"], torch.full((2,), 100.0))


def test_without_a_manifest_there_is_no_checkpoint(store: RunStore) -> None:
    """Killed between the payload and the manifest, or between their deletions."""
    store.save(state(100))
    store.save(state(200))
    newest = store.latest()
    assert newest is not None
    (folder_of(store, newest) / "manifest.json").unlink()
    latest = store.latest()
    assert latest is not None
    assert store.load(latest)["images"] == 100
    assert store.checkpoints() == [latest]


@pytest.mark.parametrize("images", [200, 300])
def test_half_written_checkpoints_never_displace_a_whole_one(images: int, store: RunStore) -> None:
    """Two attempts to write the same checkpoint died (a full disk, a kill): their folders count for nothing,
    whichever names they have."""
    store.save(state(100))
    for token in ("ffffffff", "fffffffe"):
        folder_of(store, f"{images:012d}-{token}").mkdir()
        (folder_of(store, f"{images:012d}-{token}") / "state.pt").write_bytes(b"half")
    store.save(state(200))
    latest = store.latest()
    assert latest is not None
    assert store.load(latest)["images"] == 200
    assert [store.load(name)["images"] for name in store.checkpoints()] == [100, 200]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing"])
def test_damaged_payload_is_a_fault(damage: str, store: RunStore) -> None:
    store.save(state(100))
    name = store.latest()
    assert name is not None
    path = folder_of(store, name) / "state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    match damage:
        case "flip":
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[:-7])
        case "empty":
            path.write_bytes(b"")
        case "missing":
            path.unlink()
    with pytest.raises(Fault) as caught:
        store.load(name)
    assert name in caught.value.subject
    assert "damaged" in caught.value.problem
    assert caught.value.remedy


class Intruder:
    """Runs code when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


def test_a_checkpoint_never_runs_code(store: RunStore, tmp_path: Path) -> None:
    """Even one whose checksum is right: whoever can write to the bucket must not own the cluster."""
    store.save({"images": 100, "network": Intruder(tmp_path / "was here")})
    name = store.latest()
    assert name is not None
    with pytest.raises((pickle.UnpicklingError, HastenError)):
        store.load(name)
    assert not (tmp_path / "was here").exists()


def test_result_round_trip(store: RunStore) -> None:
    store.write_result(result())
    assert store.result() == result()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_makes_no_unreadable_result(value: float, store: RunStore) -> None:
    """It is refused, or read back as it is: an unreadable result would block the run for ever."""
    try:
        store.write_result(result(metrics={"eval/loss": value}))
    except (HastenError, ValueError):
        assert store.result() is None
        return
    read = store.result()
    assert read is not None
    np.testing.assert_equal(read.metrics["eval/loss"], value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run": "x"}'])
def test_damaged_result_is_an_error_in_the_users_words(content: bytes, store: RunStore) -> None:
    Path(store.uri).mkdir(parents=True)
    (Path(store.uri) / "result.json").write_bytes(content)
    with pytest.raises(HastenError) as caught:
        store.result()
    assert "result.json" in caught.value.subject


def picture(value: int) -> np.ndarray:
    return np.full((5, 7, 3), value, dtype=np.uint8)


def test_sheets_are_pngs_in_order(store: RunStore) -> None:
    for step in (1000, 0, 320):
        store.write_sheet(step, png(picture(step % 251)))
    sheets = store.sheets()
    assert [step for step, _ in sheets] == [0, 320, 1000]
    for step, pixels in sheets:
        np.testing.assert_array_equal(pixels, picture(step % 251))
    last = store.last_sheet()
    assert last is not None
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(last))), picture(1000 % 251))


def test_sheets_survive_a_kill_in_the_middle_of_one(store: RunStore) -> None:
    store.write_sheet(0, png(picture(1)))
    script = """
import os, signal, sys
from hasten.trainers.store import Folder
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
Folder(sys.argv[1]).write("samples/000000000320.png", b"half")
"""
    killed = subprocess.run([sys.executable, "-c", script, store.uri], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert [step for step, _ in store.sheets()] == [0]
    assert store.last_sheet() == png(picture(1))


def test_submitted_state_is_a_copy(tmp_path: Path, assert_same: Any) -> None:
    """Training goes on while the disk is slow."""
    gate = threading.Event()

    class Slow(RunStore):
        def save(self, state: State) -> str:
            gate.wait(30)
            return super().save(state)

    store = Slow(str(tmp_path))
    writer = StoreWriter(store)
    changing = state(100)
    writer.checkpoint(changing)
    changing["network"]["weight"].zero_()
    changing["optimizer"]["state"][0]["step"].add_(1.0)
    changing["history"].append([64, {}])
    changing["history"][0][1]["train/loss"] = 0.0
    changing["images"] = 200
    gate.set()
    uri = writer.wait()
    writer.close()
    latest = store.latest()
    assert latest is not None
    assert uri == f"{tmp_path}/checkpoints/{latest}"
    assert_same(store.load(latest), state(100))


def test_writer_keeps_order_and_returns_the_newest(store: RunStore, writer: StoreWriter) -> None:
    assert writer.wait() is None
    writer.sheet(100, picture(1))
    writer.checkpoint(state(100))
    writer.fork(state(100))
    writer.sheet(200, picture(2))
    writer.checkpoint(state(200))
    uri = writer.wait()
    assert uri == f"{store.uri}/checkpoints/{store.latest()}"
    assert [store.load(name)["images"] for name in store.checkpoints()] == [100, 200]
    assert store.forks() == [100]
    assert [step for step, _ in store.sheets()] == [100, 200]


def test_forks_can_be_waited_for(tmp_path: Path, assert_same: Any) -> None:
    """They are copies too, and what was not written is told."""
    gate = threading.Event()

    class Slow(RunStore):
        def write_fork(self, state: State) -> str:
            gate.wait(30)
            return super().write_fork(state)

    store = Slow(str(tmp_path))
    writer = StoreWriter(store)
    changing = state(100)
    writer.fork(changing)
    changing["network"]["weight"].zero_()
    assert store.forks() == []
    gate.set()
    writer.wait_for_forks()
    assert_same(store.load_fork(100), state(100))
    (tmp_path / "forks").rename(tmp_path / "elsewhere")
    (tmp_path / "forks").write_bytes(b"in the way")
    writer.fork(state(200))
    with pytest.raises(Fault):
        writer.wait_for_forks()
    writer.close()


@pytest.mark.parametrize("kind", ["sheet", "checkpoint"])
def test_what_could_not_be_written_is_told_at_the_next_occasion(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    writer = StoreWriter(RunStore(str(tmp_path / "file" / "run")))
    if kind == "sheet":
        writer.sheet(0, picture(0))
    else:
        writer.checkpoint(state(100))
    with pytest.raises(Fault):
        writer.checkpoint(state(200))
    with pytest.raises(Fault):
        writer.wait()
    writer.close()
