from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.trainers.datasets import data, shards
from hasten.trainers.datasets.shards import Damaged
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.store import Folder


def pictures(count: int, *, seed: int = 0, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, size=(count, channels, 4, 4), dtype=np.uint8)
    return pixels, generator.integers(-1, 10, size=count)


def write(place: Path, pixels: np.ndarray, labels: np.ndarray, **facts: Any) -> data.Manifest:
    return data.write(Folder(str(place)), name="set", source="a test", pixels=pixels, labels=labels, **facts)


def read(place: Path) -> data.Dataset:
    return data.read(str(place), data.read_manifest(str(place)).digest)


@pytest.fixture(params=["kept in memory", "read by row group"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small data sets and large ones take different ways through the same interface."""
    if request.param != "kept in memory":
        monkeypatch.setattr(data, "_SMALL", 0)
    return str(request.param)


def by_content(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The order in which rows are to lie, the slow way."""
    rows = [
        hashlib.sha256(image.tobytes()).digest() + int(label).to_bytes(8, "big", signed=True)
        for image, label in zip(pixels, labels, strict=True)
    ]
    return np.array(sorted(range(len(rows)), key=rows.__getitem__))


@pytest.mark.parametrize("channels", [1, 3])
def test_written_images_are_read_back_in_the_order_of_their_content(
    channels: int, size: str, tmp_path: Path
) -> None:
    pixels, labels = pictures(7, channels=channels)
    manifest = write(tmp_path, pixels, labels, report={"gray": 3})
    assert (manifest.count, manifest.resolution, manifest.channels) == (7, 4, channels)
    assert (manifest.shape, manifest.dtype, manifest.report) == ((channels, 4, 4), "uint8", {"gray": 3})
    assert manifest.classes == labels.max() + 1
    assert data.read_manifest(str(tmp_path)) == manifest
    found, found_labels = read(tmp_path).rows(np.arange(7))
    order = by_content(pixels, labels)
    np.testing.assert_array_equal(found, pixels[order])
    np.testing.assert_array_equal(found_labels, labels[order])
    assert found.dtype == np.uint8
    assert found_labels.dtype == np.int64


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_latents_keep_every_bit(dtype: str, size: str, tmp_path: Path) -> None:
    latents = np.random.default_rng(0).normal(size=(9, 4, 2, 2)).astype(dtype)
    labels = np.full(9, -1)
    manifest = write(tmp_path, latents, labels, scale=0.18)
    assert (manifest.dtype, manifest.scale, manifest.classes) == (dtype, 0.18, 0)
    stored, _ = read(tmp_path).rows(np.arange(9))
    np.testing.assert_array_equal(stored, latents[by_content(latents, labels)])
    seen = data.to_model(stored, manifest)
    np.testing.assert_array_equal(seen, stored.astype(np.float32) * np.float32(0.18))
    np.testing.assert_allclose(data.to_pixels(seen, manifest), stored, rtol=2e-3)


def test_pixels_become_floats_and_come_back(tmp_path: Path) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    manifest = write(tmp_path, pixels, np.zeros(1, dtype=np.int64))
    seen = data.to_model(pixels, manifest)
    assert (seen.dtype, seen.min(), seen.max()) == (np.float32, -1.0, 1.0)
    np.testing.assert_array_equal(data.to_pixels(seen, manifest), pixels)
    assert data.to_pixels(np.float32([-7.0, 7.0]), manifest).tolist() == [0, 255]


def test_other_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float64"):
        write(tmp_path, np.zeros((2, 1, 2, 2)), np.zeros(2, dtype=np.int64))


def large(count: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, size=(count, 1, 4, 4), dtype=np.uint8), np.arange(count)


def test_many_images_take_several_shards(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_SHARD_BYTES", 2048 * 16)
    pixels, labels = large()
    manifest = write(tmp_path, pixels, labels)
    assert [shard.rows for shard in manifest.shards] == [2048, 2048, 904]
    order, dataset = by_content(pixels, labels), read(tmp_path)
    for indices in (np.arange(5000), np.array([4999, 0, 2047, 2048, 0, 1024]), np.arange(0)):
        found, found_labels = dataset.rows(indices)
        np.testing.assert_array_equal(found, pixels[order[indices]])
        np.testing.assert_array_equal(found_labels, labels[order[indices]])
        np.testing.assert_array_equal(dataset.labels(indices), labels[order[indices]])


def test_shards_of_any_length_are_one_data_set(size: str, tmp_path: Path) -> None:
    """As parallel imports write them: digest, split and rows are those of the same images written at once."""
    pixels, labels = large()
    whole = write(tmp_path / "whole", pixels, labels)
    keys = shards.content_keys(pixels)
    order, folder = shards.row_order(keys, labels), Folder(str(tmp_path / "parts"))
    np.testing.assert_array_equal(order, by_content(pixels, labels))
    parts = [order[:700], order[700:2900], order[2900:2901], order[2901:]]
    written = [
        data.write_shard(folder, number=number, pixels=pixels[part], labels=labels[part], keys=keys[part])
        for number, part in enumerate(parts)
    ]
    manifest = data.finish(folder, name="set", source="a test", shards=written, shape=(1, 4, 4))
    assert manifest.digest == whole.digest == shards.digest_of_keys(keys, labels)
    assert data.verify(str(tmp_path / "parts")) == data.verify(str(tmp_path / "whole")) == []
    one, other = read(tmp_path / "whole"), read(tmp_path / "parts")
    for holdout in (0.01, 0.139, 0.2, 0.58, 0.99):
        assert one.held_out(holdout) == other.held_out(holdout)
    indices = np.random.default_rng(1).permutation(5000)[:100]
    np.testing.assert_array_equal(one.rows(indices)[0], other.rows(indices)[0])
    with pytest.raises(Fault, match="order"):
        data.finish(folder, name="set", source="a test", shards=written[::-1], shape=(1, 4, 4))


def test_an_import_of_nothing_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no images"):
        write(tmp_path, *pictures(0))


def test_a_large_data_set_is_read_by_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The split costs one column of one shard, rows their row groups, labels no pixel."""
    monkeypatch.setattr(data, "_SMALL", 0)
    monkeypatch.setattr(shards, "_SHARD_BYTES", 2048 * 16)
    asked: list[tuple[int, int | None, list[str] | None]] = []
    table = data.Dataset._table

    def counted(self: data.Dataset, number: int, group: int | None, columns: list[str] | None) -> Any:
        asked.append((number, group, columns))
        return table(self, number, group, columns)

    monkeypatch.setattr(data.Dataset, "_table", counted)
    write(tmp_path, *large())
    dataset = read(tmp_path)
    train, _ = dataset.split(0.5)
    assert asked == [(1, None, ["key"])]
    asked.clear()
    dataset.rows(train[:10])
    assert asked == [(1, 0, None)]
    asked.clear()
    dataset.rows(np.array([0, 3000, 4999, 1]))
    assert sorted(asked) == [(0, 0, None), (1, 0, None), (2, 0, None)]
    asked.clear()
    dataset.labels(train)
    assert sorted(asked) == [(1, None, ["label"]), (2, None, ["label"])]


def test_a_small_data_set_is_read_once(tmp_path: Path) -> None:
    """The next trial in the same process finds it in memory."""
    manifest = write(tmp_path, *pictures(9))
    first = data.read(str(tmp_path), manifest.digest).rows(np.arange(9))[0]
    first[:] = 0  # what a caller gets is its own
    shard_of(tmp_path).unlink()
    assert data.read(str(tmp_path), manifest.digest).rows(np.arange(9))[0].any()


def test_digest_ignores_order_and_nothing_else(tmp_path: Path) -> None:
    pixels, labels = pictures(20)
    shuffled = np.random.default_rng(1).permutation(20)
    brighter, relabelled = pixels.copy(), labels.copy()
    brighter[3, 0, 1, 2] ^= 1
    relabelled[3] += 1
    variants = {
        "same": (pixels, labels),
        "shuffled": (pixels[shuffled], labels[shuffled]),
        "brighter": (brighter, labels),
        "relabelled": (pixels, relabelled),
        "fewer": (pixels[1:], labels[1:]),
        "twice": (np.concatenate([pixels, pixels[:1]]), np.concatenate([labels, labels[:1]])),
    }
    digests = {name: write(tmp_path / name, *variant).digest for name, variant in variants.items()}
    assert digests["same"] == digests["shuffled"]
    assert len(set(digests.values())) == 5
    # The usual facts are not in the digest, so that digits keep theirs; others change what is learnt.
    assert write(tmp_path / "again", pixels, labels, classes=int(labels.max()) + 1).digest == digests["same"]
    for facts in ({"classes": 30}, {"scale": 0.5}):
        assert write(tmp_path / "facts", pixels, labels, **facts).digest not in digests.values()


def test_digits_keep_their_digest() -> None:
    """It is in the fingerprint of every run on them."""
    assert data.digest(*data.digits()) == "013d2fe639c3e051dfa35819ae7d8c1753287eeec230a0cd46c95450bc63541d"


def test_order_of_import_changes_neither_split_nor_training_order(tmp_path: Path) -> None:
    """The fingerprint knows the digest alone, so equal digests must mean equal runs."""
    pixels, labels = pictures(50)
    shuffled = np.random.default_rng(1).permutation(50)
    write(tmp_path / "a", pixels, labels)
    write(tmp_path / "b", pixels[shuffled], labels[shuffled])
    first, second = read(tmp_path / "a"), read(tmp_path / "b")
    for mine, theirs in zip(first.split(0.2), second.split(0.2), strict=True):
        for one, other in zip(first.rows(mine), second.rows(theirs), strict=True):
            np.testing.assert_array_equal(one, other)


def test_split_is_a_partition_of_about_the_right_size(imported: Path) -> None:
    dataset = read(imported / "data" / "digits")
    train, held_out = dataset.split(0.2)
    assert sorted([*train, *held_out]) == list(range(1797))
    assert len(held_out) == pytest.approx(0.2 * 1797, abs=4 * np.sqrt(1797 * 0.16))
    # A larger share holds out the same images and more.
    assert set(held_out) < set(dataset.split(0.4)[1])


def members(dataset: data.Dataset, indices: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in dataset.rows(indices)[0]}


def test_held_out_images_stay_held_out_as_the_set_grows(tmp_path: Path) -> None:
    pixels, labels = pictures(400)
    write(tmp_path / "before", pixels[:250], labels[:250])
    write(tmp_path / "after", pixels[::-1], labels[::-1])
    before, after = read(tmp_path / "before"), read(tmp_path / "after")
    old, new = before.split(0.2), after.split(0.2)
    assert members(before, old[0]) <= members(after, new[0])
    assert members(before, old[1]) <= members(after, new[1])
    assert members(after, new[0]).isdisjoint(members(after, new[1]))


@given(
    copies=st.lists(st.integers(0, 9), min_size=5, max_size=60),
    holdout=st.floats(0.05, 0.95),
)
def test_duplicates_lie_on_one_side_whatever_their_labels(copies: list[int], holdout: float) -> None:
    repeated, labels = pictures(10)[0][copies], np.arange(len(copies))
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), repeated, labels)
        dataset = read(Path(place))
        train, held_out = dataset.split(holdout)
        assert len(train) + len(held_out) == len(copies)
        assert members(dataset, train).isdisjoint(members(dataset, held_out))


def test_missing_data_set_is_the_users_to_import(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        data.read_manifest(str(tmp_path / "nothing"))
    assert caught.value.subject == "data.source"
    assert "import" in caught.value.remedy


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
        '"text"',
        '{"name": "set"}',
        '{"version": 2, "name": 3, "extra": 1}',
        '{"version": 1}',
    ],
)
def test_damaged_manifest(content: str, tmp_path: Path) -> None:
    (tmp_path / data.MANIFEST).write_text(content)
    with pytest.raises(ConfigError) as caught:
        data.read_manifest(str(tmp_path))
    assert data.MANIFEST in caught.value.subject


def test_a_manifest_of_before_is_to_be_imported_again(tmp_path: Path) -> None:
    old = {
        "name": "set",
        "digest": "",
        "count": 0,
        "resolution": 8,
        "channels": 1,
        "source": "",
        "shards": [],
    }
    (tmp_path / data.MANIFEST).write_text(json.dumps(old))
    with pytest.raises(ConfigError, match="this version") as caught:
        data.read_manifest(str(tmp_path))
    assert "Import the data set again" in caught.value.remedy


def shard_of(place: Path) -> Path:
    return place / data.read_manifest(str(place)).shards[0].path


def spoil(place: Path, at: float = 0.5) -> None:
    """Flip one bit of the first shard."""
    content = bytearray(shard_of(place).read_bytes())
    content[int(len(content) * at)] ^= 1
    shard_of(place).write_bytes(content)


def test_damaged_shard_is_a_fault(tmp_path: Path) -> None:
    write(tmp_path, *pictures(9))
    spoil(tmp_path)
    with pytest.raises(Damaged, match="damaged") as caught:
        read(tmp_path).rows(np.arange(9))
    assert caught.value.remedy
    assert len(data.verify(str(tmp_path))) == 1


def test_a_flipped_bit_is_found_or_harmless_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pixels, keys, labels or the footer: a reader of row groups sees the right images or a fault."""
    monkeypatch.setattr(data, "_SMALL", 0)
    manifest = write(tmp_path, *pictures(90))
    expected = [part.tobytes() for part in read(tmp_path).rows(np.arange(90))]
    content, found = shard_of(tmp_path).read_bytes(), 0
    for at in np.linspace(0.0, 1.0, 80, endpoint=False):
        spoil(tmp_path, at)
        dataset = data.Dataset(manifest=manifest, folder=Folder(str(tmp_path)))
        try:
            assert [part.tobytes() for part in dataset.rows(np.arange(90))] == expected
        except Damaged:
            found += 1
        shard_of(tmp_path).write_bytes(content)
    assert found > 60


def test_truncated_shard_is_a_fault(size: str, tmp_path: Path) -> None:
    write(tmp_path, *pictures(9))
    shard_of(tmp_path).write_bytes(shard_of(tmp_path).read_bytes()[:-10])
    with pytest.raises(Damaged, match="damaged"):
        read(tmp_path).rows(np.arange(9))


def test_missing_shard_is_a_fault(size: str, tmp_path: Path) -> None:
    write(tmp_path, *pictures(9))
    shard_of(tmp_path).unlink()
    with pytest.raises(Damaged, match="missing"):
        read(tmp_path).rows(np.arange(9))
    assert "missing" in data.verify(str(tmp_path))[0]


def lie(place: Path, **changes: Any) -> None:
    """Rewrite the first shard with other contents, its checksum as it should be."""
    folder, manifest = Folder(str(place)), data.read_manifest(str(place))
    pixels, labels, keys = shards.whole_shard(folder, manifest.shards[0], manifest)
    columns = {"pixels": pixels, "labels": labels, "keys": keys} | changes
    shard = data.write_shard(folder, number=0, **columns)
    fields = manifest.model_dump(mode="json") | {"shards": [shard.model_dump(mode="json")]}
    (place / data.MANIFEST).write_text(json.dumps(fields))


def test_verify_finds_what_checksums_do_not(tmp_path: Path) -> None:
    pixels, labels = pictures(50)
    keys = shards.content_keys(pixels)
    order = shards.row_order(keys, labels)
    pixels, labels, keys = pixels[order], labels[order], keys[order]
    lies: dict[str, dict[str, Any]] = {
        "hash": {"pixels": pixels ^ 1},
        "order": {"pixels": pixels[::-1], "labels": labels[::-1], "keys": keys[::-1]},
        "range": {"labels": labels + 1},
        "digest": {"labels": np.maximum(labels - 1, -1)},
        "rows": {"pixels": pixels[1:], "labels": labels[1:], "keys": keys[1:]},
    }
    for word, changes in lies.items():
        write(tmp_path / word, pixels, labels)
        assert data.verify(str(tmp_path / word)) == []
        lie(tmp_path / word, **changes)
        problems = " ".join(data.verify(str(tmp_path / word)))
        assert {"rows": "add up"}.get(word, word) in problems


def test_a_row_group_whose_pixels_are_not_its_keys_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_SMALL", 0)
    write(tmp_path, *pictures(50))
    dataset = read(tmp_path)
    pixels = dataset.rows(np.arange(50))[0]
    pixels[17, 0, 0, 0] ^= 1
    lie(tmp_path, pixels=pixels)
    changed = data.Dataset(manifest=data.read_manifest(str(tmp_path)), folder=Folder(str(tmp_path)))
    assert (changed.rows(np.arange(17))[0] == pixels[:17]).all()
    with pytest.raises(Damaged, match="key"):
        changed.rows(np.arange(50))


def test_a_run_stays_with_its_snapshot_of_changed_data(tmp_path: Path) -> None:
    pixels, labels = pictures(9)
    planned = write(tmp_path, pixels, labels)
    changed = write(tmp_path, *pictures(12, seed=1))
    assert data.read_manifest(str(tmp_path)) == changed
    kept = data.read(str(tmp_path), planned.digest)
    assert kept.manifest == planned
    assert set(map(bytes, kept.keys())) == set(map(bytes, data.shards.content_keys(pixels)))
    assert (data.shards.content_keys(kept.rows(np.arange(9))[0]) == kept.keys()).all()


def test_a_snapshot_that_is_gone_is_not_taken_for_another(tmp_path: Path) -> None:
    planned = write(tmp_path, *pictures(9)).digest
    write(tmp_path, *pictures(9, seed=1))
    (tmp_path / data.shards.snapshot_name(planned)).unlink()
    with pytest.raises(Fault, match="nothing is kept of its snapshot"):
        data.read(str(tmp_path), planned)


def test_new_snapshot_leaves_the_old_shards_alone(tmp_path: Path) -> None:
    old = write(tmp_path, *pictures(9))
    content = (tmp_path / old.shards[0].path).read_bytes()
    new = write(tmp_path, *pictures(12, seed=1))
    assert (tmp_path / old.shards[0].path).read_bytes() == content
    assert {shard.path for shard in old.shards}.isdisjoint(shard.path for shard in new.shards)


def test_manifest_comes_last(tmp_path: Path) -> None:
    """Killed before the manifest, an import leaves no data set."""
    write(tmp_path, *pictures(9))
    manifest = json.loads((tmp_path / data.MANIFEST).read_text())
    shard_times = [(tmp_path / shard["path"]).stat().st_mtime_ns for shard in manifest["shards"]]
    assert max(shard_times) <= (tmp_path / data.MANIFEST).stat().st_mtime_ns


def test_digits_are_scikit_learns() -> None:
    pixels, labels = data.digits()
    assert pixels.shape == (1797, 1, 8, 8)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("digits", "s3://bucket/data/digits"),
        ("s3://other/prefix", "s3://other/prefix"),
        ("./folder", "./folder"),
        ("../folder", "../folder"),
        ("/folder", "/folder"),
        ("file:///folder", "file:///folder"),
    ],
)
def test_names_lie_in_the_storage_and_addresses_where_they_say(source: str, expected: str) -> None:
    assert data.uri(source, "s3://bucket") == expected
    assert data.uri(source, "s3://bucket/") == expected
