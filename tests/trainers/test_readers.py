from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hasten.trainers import randomness
from hasten.trainers.datasets import data, order, readers, shards
from hasten.trainers.datasets.data import Dataset
from hasten.trainers.datasets.readers import Generated, Reader, Resident, Streaming
from hasten.trainers.datasets.shards import Damaged
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.specs import Data
from hasten.trainers.store import Folder
from hasten.trainers.worker import Worker

COUNT = 20_000
HOLDOUT = 0.1


class Store(Folder):
    """A data set's folder that is down when told so, and counts whom it refused."""

    __slots__ = ("down", "refused")

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        object.__setattr__(self, "refused", 0)
        object.__setattr__(self, "down", threading.Event())

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        self._answer()
        with super().open(name) as file:
            yield file

    def read(self, name: str) -> bytes | None:
        self._answer()
        return super().read(name)

    def _answer(self) -> None:
        if self.down.is_set():
            object.__setattr__(self, "refused", self.refused + 1)
            raise Fault(self.uri, "the store is down")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 20,000 tiny colour images in four shards of whole row groups."""
    place, generator = tmp_path_factory.mktemp("set"), np.random.default_rng(0)
    pixels = generator.integers(0, 256, size=(COUNT, 3, 4, 4), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_SHARD_BYTES", 5120 * 48)
        labels = generator.integers(0, 10, size=COUNT)
        data.write(Folder(str(place)), name="set", source="", pixels=pixels, labels=labels)
    return place


@pytest.fixture
def store(place: Path) -> Store:
    return Store(str(place))


@pytest.fixture
def dataset(place: Path, store: Store) -> Dataset:
    return Dataset(manifest=data.read_manifest(str(place)), folder=store)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in set(threading.enumerate()) - before if "hasten-reader" in thread.name]
    assert not left


def spec(**changes: Any) -> Data:
    return Data(source="set", resolution=4, holdout=HOLDOUT, **changes)


Open = Callable[..., Reader]


@pytest.fixture
def opened(dataset: Dataset) -> Iterator[Open]:
    """Open readers of the data set; they are closed in the end."""
    readers_: list[Reader] = []

    def build(
        kind: str = "streaming", *, rank: int = 0, ranks: int = 1, patience: float = 20.0, **changes: Any
    ) -> Reader:
        worker, data_spec = Worker(rank=rank, world_size=ranks), spec(**changes)
        reader: Reader
        if kind == "resident":
            reader = Resident(dataset, spec=data_spec, seed=5, device=worker.device)
        else:
            reader = Streaming(dataset, spec=data_spec, seed=5, worker=worker, patience=patience)
        readers_.append(reader)
        return reader

    yield build
    for reader in readers_:
        reader.close()


def batches(start: int, stop: int, batch: int, rank: int = 0, ranks: int = 1) -> Iterator[np.ndarray]:
    """A rank's images of each global batch."""
    for before in range(start, stop, batch):
        yield before + np.arange(min(batch, stop - before))[rank::ranks]


def assert_same(first: Any, second: Any) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_resident_is_what_the_loop_always_did(dataset: Dataset, opened: Open) -> None:
    train, _ = dataset.split(HOLDOUT)
    pixels, labels = dataset.rows(train)
    reader, images = opened("resident", shuffle=32_768), np.arange(17_990, 18_100)
    size = len(train)
    chosen = torch.tensor(
        [randomness.permutation(5, "order", int(image) // size, size)[int(image) % size] for image in images]
    )
    clean, found = reader.batch(images)
    assert torch.equal(clean, torch.from_numpy(pixels)[chosen].float() / 127.5 - 1.0)
    assert torch.equal(found, torch.from_numpy(labels)[chosen])
    assert (clean.dtype, found.dtype, reader.size) == (torch.float32, torch.int64, size)


@pytest.mark.parametrize(
    ("ranks", "batch", "shuffle", "flip"),
    [
        (1, 512, 16_384, False),
        (1, 300, 2048, True),
        (2, 300, 4096, False),
        (3, 500, 16_384, True),
        (16, 256, 16_384, False),
        (5, 7000, 1024, False),
        (2, 512, 32_768, True),  # all in one window
    ],
)
def test_streaming_gives_the_bits_of_resident(
    ranks: int, batch: int, shuffle: int, flip: bool, opened: Open
) -> None:
    """Over ends of windows and of the epoch, for every rank of any world, also where ranks divide nothing."""
    resident = opened("resident", shuffle=shuffle, flip=flip)
    for rank in sorted({0, ranks // 2, ranks - 1}):
        streaming = opened("streaming", rank=rank, ranks=ranks, shuffle=shuffle, flip=flip)
        for images in batches(0, 2 * resident.size + 500, batch, rank, ranks):
            assert_same(streaming.batch(images), resident.batch(images))
        streaming.close()


def test_ranks_together_see_each_image_once_an_epoch(dataset: Dataset, opened: Open) -> None:
    """World size never changes the order: ranks interleaved are the single rank's batches."""
    whole = opened("resident")
    ranks = [opened("streaming", rank=rank, ranks=4) for rank in range(4)]
    for images in batches(0, 3072, 1024):
        clean, labels = whole.batch(images)
        for rank, reader in enumerate(ranks):
            assert_same(reader.batch(images[rank::4]), (clean[rank::4], labels[rank::4]))


def test_images_may_be_asked_in_any_order(opened: Open) -> None:
    images = np.array([40_000, 3, 17_999, 18_000, 3, 90_000])
    assert_same(opened(shuffle=2048).batch(images), opened("resident", shuffle=2048).batch(images))


def test_a_worker_without_images_of_its_own_may_ask_for_anothers(opened: Open) -> None:
    """The last batch of a run may have fewer images than there are workers."""
    reader, resident = opened(rank=3, ranks=4), opened("resident")
    for images in (np.array([3, 7]), np.array([8])):
        assert_same(reader.batch(images), resident.batch(images))


def test_mirrors_every_other_image_at_random(opened: Open) -> None:
    plain, flipped = opened("resident"), opened("resident", flip=True)
    images = np.arange(4000)
    clean, mirrored = plain.batch(images)[0], flipped.batch(images)[0]
    turned = randomness.uniform(5, "flip", images) < 0.5
    assert 0.4 < turned.mean() < 0.6
    assert torch.equal(mirrored[turned], clean[turned].flip(3))
    assert torch.equal(mirrored[~turned], clean[~turned])


def test_latents_are_scaled(tmp_path: Path) -> None:
    latents = np.random.default_rng(0).normal(size=(50, 2, 4, 4)).astype(np.float16)
    manifest = data.write(
        Folder(str(tmp_path)), name="", source="", pixels=latents, labels=np.full(50, -1), scale=0.25
    )
    dataset, images = data.read(str(tmp_path), manifest.digest), np.arange(100)
    resident = Resident(dataset, spec=spec(), seed=5, device=torch.device("cpu"))
    streaming = Streaming(dataset, spec=spec(), seed=5, worker=Worker())
    assert_same(resident.batch(images), streaming.batch(images))
    clean, labels = resident.batch(np.arange(resident.size))
    stored = dataset.rows(dataset.split(HOLDOUT)[0])[0].astype(np.float32)
    assert clean.numpy().std() == pytest.approx(0.25 * stored.std(), rel=1e-6)
    assert (labels == -1).all()
    streaming.close()


def test_a_large_data_set_becomes_resident_piece_by_piece(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = opened("resident")
    monkeypatch.setattr(data, "_SMALL", 0)
    monkeypatch.setattr(readers, "_PIECE", 5000 * 48)
    pieces = opened("resident")
    assert_same(pieces.batch(np.arange(whole.size)), whole.batch(np.arange(whole.size)))


def groups_read(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are read from now on."""
    found: list[int] = []
    group = Dataset.group

    def counted(self: Dataset, number: int, indices: np.ndarray) -> Any:
        found.append(number)
        return group(self, number, indices)

    monkeypatch.setattr(Dataset, "group", counted)
    return found


def test_each_rank_reads_its_share_of_a_window(
    dataset: Dataset, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen ranks read one row group each of a window of sixteen blocks, four ranks four, none twice."""
    found, start = groups_read(dataset, monkeypatch), dataset.held_out(HOLDOUT)
    size, lead = COUNT - start, order.lead_of(start)
    windows = (order.window_at(5, epoch * size, size, 16_384, lead) for epoch in range(1000))
    window = next(at for at in windows if len(at.rows) == 16_384)  # the short blocks are in the other one
    expected = np.unique(dataset.group_of(start + window.rows)).tolist()
    assert len(expected) == 16
    for ranks in (1, 4, 16):
        together = []
        for rank in range(ranks):
            found.clear()
            reader = opened(rank=rank, ranks=ranks)
            before = window.first + -window.first % ranks
            for images in batches(before, before + 4096, 512, rank, ranks):
                reader.batch(images)
            reader.close()
            mine = [group for group in found if group in expected]
            assert len(mine) == 16 // ranks
            together += mine
        assert sorted(together) == expected
    # Three ranks do not divide sixteen lanes: each needs all of them, and knows so from the start.
    found.clear()
    opened(rank=1, ranks=3).batch(window.first + np.arange(1, 2))
    assert sorted(group for group in found if group in expected) == expected


def test_resuming_reads_only_the_window_at_hand(
    dataset: Dataset, store: Store, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on in the middle of its third epoch reads that window and the next, nothing before."""
    found = groups_read(dataset, monkeypatch)
    reader, size = opened(shuffle=4096), COUNT - dataset.held_out(HOLDOUT)
    image, start = 2 * size + 9000, COUNT - size
    assert_same(
        reader.batch(np.arange(image, image + 64)),
        opened("resident", shuffle=4096).batch(np.arange(image, image + 64)),
    )
    reader.close()
    lead = order.lead_of(start)
    window = order.window_at(5, image, size, 4096, lead)
    following = order.window_at(5, window.first + len(window.rows), size, 4096, lead)
    expected = [np.unique(dataset.group_of(start + at.rows)) for at in (window, following)]
    assert sorted(found) == sorted(np.concatenate(expected).tolist())
    assert len(found) <= 10


def test_a_jump_back_and_forth(opened: Open) -> None:
    reader, resident = opened(shuffle=2048), opened("resident", shuffle=2048)
    for image in (0, 70_000, 64, 69_936, 128):
        images = np.arange(image, image + 64)
        assert_same(reader.batch(images), resident.batch(images))


def test_memory_is_bounded_by_two_windows(tmp_path: Path) -> None:
    """However long it runs, a reader holds two windows of its lanes and the row groups being decoded."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, size=(24 * 1024, 3, 16, 16), dtype=np.uint8)
    manifest = data.write(
        Folder(str(tmp_path)), name="", source="", pixels=pixels, labels=np.zeros(len(pixels), np.int64)
    )
    del pixels
    dataset = Dataset(manifest=manifest, folder=Folder(str(tmp_path)))
    window, image = 2048, 768
    reader = Streaming(dataset, spec=spec(shuffle=window), seed=0, worker=Worker())
    gc.collect()
    tracemalloc.start()
    for images in batches(0, 2 * reader.size, 512):
        reader.batch(images)
        held = [part.pixels.nbytes for part in reader._parts]
        assert len(held) <= 2
        assert sum(held) <= 2 * window * image
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    reader.close()
    # Four threads decode a row group each, in a few copies: 12 MB more at worst; all images are 19 MB.
    assert peak < 2 * window * image + 4 * 3 * 1024 * image
    assert peak < 0.75 * manifest.count * image


def test_an_outage_shorter_than_what_is_at_hand_goes_unnoticed(store: Store, opened: Open) -> None:
    """Training goes on through two windows while the store is down, and after it is back."""
    reader, resident = opened(shuffle=2048), opened("resident", shuffle=2048)
    reader.batch(np.arange(64))
    for part in reader._parts:
        reader._wait(part)
    end = int(reader._parts[-1].images[-1]) + 1
    store.down.set()
    for images in batches(64, end, 64):
        assert_same(reader.batch(images), resident.batch(images))
    assert store.refused > 0
    store.down.clear()
    for images in batches(end, end + 4096, 64):
        assert_same(reader.batch(images), resident.batch(images))


def test_an_outage_is_waited_for(store: Store, opened: Open) -> None:
    """The store is down when images are needed, and comes back: nothing happened but a wait."""
    reader, resident = opened(), opened("resident")
    store.down.set()
    threading.Timer(0.4, store.down.clear).start()
    assert_same(reader.batch(np.arange(64)), resident.batch(np.arange(64)))
    assert reader.stalled > 0.2


def test_an_outage_without_end_is_a_fault(store: Store, opened: Open) -> None:
    reader = opened(patience=0.2)
    store.down.set()
    with pytest.raises(Fault, match="down"):
        reader.batch(np.arange(64))
    with pytest.raises(Fault, match="down"):
        reader.batch(np.arange(64))


def test_closing_does_not_wait_for_a_store_that_is_away(store: Store, opened: Open) -> None:
    """Threads that are pausing between attempts end at once, however patient they are."""
    reader = opened(patience=1e6, shuffle=1024)
    reader.batch(np.arange(64))
    store.down.set()
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            reader.batch(np.arange(90_000, 90_064))
        except BaseException as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    threading.Event().wait(0.2)
    reader.close()
    asking.join()
    assert len(failed) == 1


def test_damage_is_a_fault_at_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting does not mend a file."""
    manifest = data.read_manifest(str(place))
    for path in [data.MANIFEST, *(shard.path for shard in manifest.shards)]:
        content = bytearray((place / path).read_bytes())
        if path == manifest.shards[2].path:
            content[len(content) // 2] ^= 1
        Folder(str(tmp_path)).write(path, bytes(content))
    dataset = Dataset(manifest=manifest, folder=Folder(str(tmp_path)))
    attempts, group = [], Dataset.group

    def counted(self: Dataset, number: int, indices: np.ndarray) -> Any:
        attempts.append((number, indices.tobytes()))
        return group(self, number, indices)

    monkeypatch.setattr(Dataset, "group", counted)
    reader = Streaming(dataset, spec=spec(), seed=0, worker=Worker(), patience=1.0)
    with pytest.raises(Damaged, match="damaged"):
        reader.batch(np.arange(reader.size))
    reader.close()
    assert len(attempts) == len(set(attempts))
    with pytest.raises(Damaged):
        Resident(dataset, spec=spec(), seed=0, device=torch.device("cpu"))


def test_auto_keeps_in_memory_what_fits(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = (COUNT - dataset.held_out(HOLDOUT)) * 48
    for free, expected in ((4 * needed, Resident), (4 * needed - 1, Streaming)):
        monkeypatch.setattr(readers, "free_memory", lambda _, free=free: free)
        reader = readers.open_reader(dataset, spec=spec(), seed=5, kind="auto", worker=Worker())
        assert type(reader) is expected
        reader.close()
    for kind, expected in (("resident", Resident), ("streaming", Streaming)):
        reader = readers.open_reader(dataset, spec=spec(), seed=5, kind=kind, worker=Worker())
        assert type(reader) is expected
        reader.close()


def test_free_memory_is_shared_among_workers() -> None:
    alone, shared = (readers.free_memory(Worker(world_size=ranks)) for ranks in (1, 1000))
    assert 2**20 < alone < 2**50
    assert shared == pytest.approx(alone / 1000, rel=0.5)


def test_nothing_to_train_on(dataset: Dataset) -> None:
    nothing = spec().model_copy(update={"holdout": 1.0})
    with pytest.raises(ConfigError) as caught:
        Resident(dataset, spec=nothing, seed=0, device=torch.device("cpu"))
    assert caught.value.subject == "data.holdout"


class Counting:
    """Image i is all i, and the seed."""

    def generate(self, seed: int, stream: str, images: np.ndarray) -> np.ndarray:
        assert stream == "data"
        return np.tile((images + seed).astype(np.float32)[:, None, None, None], (1, 2, 1, 1))


def test_generated_images_are_their_addresses() -> None:
    reader: Reader = Generated(Counting(), seed=3, device=torch.device("cpu"))
    clean, labels = reader.batch(np.array([5, 9]))
    assert clean[:, :, 0, 0].tolist() == [[8.0, 8.0], [12.0, 12.0]]
    assert labels.tolist() == [-1, -1]
    assert reader.size > 10**18
    reader.close()
