from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.trainers import data
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.store import Folder


def pictures(count: int, *, seed: int = 0, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, size=(count, channels, 4, 4), dtype=np.uint8)
    return pixels, generator.integers(-1, 10, size=count)


def write(place: Path, pixels: np.ndarray, labels: np.ndarray) -> data.Manifest:
    return data.write(Folder(str(place)), name="set", source="a test", pixels=pixels, labels=labels)


def read(place: Path) -> data.Dataset:
    return data.read(str(place), data.read_manifest(str(place)).digest)


@pytest.mark.parametrize("channels", [1, 3])
def test_written_images_are_read_back(channels: int, tmp_path: Path) -> None:
    pixels, labels = pictures(7, channels=channels)
    manifest = write(tmp_path, pixels, labels)
    assert (manifest.count, manifest.resolution, manifest.channels) == (7, 4, channels)
    assert data.read_manifest(str(tmp_path)) == manifest
    dataset = read(tmp_path)
    np.testing.assert_array_equal(dataset.pixels, pixels)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.pixels.dtype == np.uint8
    assert dataset.labels.dtype == np.int64


def test_many_images_take_several_shards(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, size=(50_100, 1, 2, 2), dtype=np.uint8)
    labels = np.arange(50_100)
    manifest = write(tmp_path, pixels, labels)
    assert [shard.rows for shard in manifest.shards] == [50_000, 100]
    dataset = read(tmp_path)
    np.testing.assert_array_equal(dataset.pixels, pixels)
    np.testing.assert_array_equal(dataset.labels, labels)


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


def test_order_of_import_changes_neither_split_nor_training_order(tmp_path: Path) -> None:
    """The fingerprint knows the digest alone, so equal digests must mean equal runs."""
    pixels, labels = pictures(50)
    shuffled = np.random.default_rng(1).permutation(50)
    write(tmp_path / "a", pixels, labels)
    write(tmp_path / "b", pixels[shuffled], labels[shuffled])
    first, second = read(tmp_path / "a"), read(tmp_path / "b")
    for mine, theirs in zip(first.split(0.2), second.split(0.2), strict=True):
        np.testing.assert_array_equal(first.pixels[mine], second.pixels[theirs])


def test_split_is_a_partition_of_about_the_right_size(imported: Path) -> None:
    dataset = read(imported / "data" / "digits")
    train, held_out = dataset.split(0.2)
    assert sorted([*train, *held_out]) == list(range(1797))
    assert len(held_out) == pytest.approx(0.2 * 1797, abs=4 * np.sqrt(1797 * 0.16))
    # A larger share holds out the same images and more.
    assert set(held_out) < set(dataset.split(0.4)[1])


def members(dataset: data.Dataset, indices: np.ndarray) -> set[bytes]:
    return {dataset.pixels[index].tobytes() for index in indices}


def test_held_out_images_stay_held_out_as_the_set_grows(tmp_path: Path) -> None:
    pixels, labels = pictures(400)
    write(tmp_path / "before", pixels[:250], labels[:250])
    write(tmp_path / "after", pixels[::-1], labels[::-1])
    before, after = read(tmp_path / "before"), read(tmp_path / "after")
    old, new = before.split(0.2), after.split(0.2)
    assert members(before, old[0]) <= members(after, new[0])
    assert members(before, old[1]) <= members(after, new[1])
    assert members(after, new[0]).isdisjoint(members(after, new[1]))


@given(copies=st.lists(st.integers(0, 9), min_size=5, max_size=60), holdout=st.floats(0.05, 0.95))
def test_duplicates_lie_on_one_side_whatever_their_labels(copies: list[int], holdout: float) -> None:
    pixels, _ = pictures(10)
    repeated, labels = pixels[copies], np.arange(len(copies))
    keys = data._keys(repeated)
    manifest = data.Manifest(
        name="set", digest="", count=len(copies), resolution=4, channels=1, source="", shards=()
    )
    dataset = data.Dataset(manifest=manifest, pixels=repeated, labels=labels, keys=keys)
    train, held_out = dataset.split(holdout)
    assert members(dataset, train).isdisjoint(members(dataset, held_out))


def test_missing_data_set_is_the_users_to_import(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        data.read_manifest(str(tmp_path / "nothing"))
    assert caught.value.subject == "data.source"
    assert "import" in caught.value.remedy


@pytest.mark.parametrize(
    "content", ["{", "[]", "null", '"text"', '{"name": "set"}', '{"name": 3, "extra": 1}']
)
def test_damaged_manifest(content: str, tmp_path: Path) -> None:
    (tmp_path / data.MANIFEST).write_text(content)
    with pytest.raises(ConfigError) as caught:
        data.read_manifest(str(tmp_path))
    assert data.MANIFEST in caught.value.subject


def shard_of(place: Path) -> Path:
    return place / data.read_manifest(str(place)).shards[0].path


def test_damaged_shard_is_a_fault(tmp_path: Path) -> None:
    write(tmp_path, *pictures(9))
    content = bytearray(shard_of(tmp_path).read_bytes())
    content[len(content) // 2] ^= 1
    shard_of(tmp_path).write_bytes(content)
    with pytest.raises(Fault, match="damaged") as caught:
        read(tmp_path)
    assert caught.value.remedy


def test_truncated_shard_is_a_fault(tmp_path: Path) -> None:
    write(tmp_path, *pictures(9))
    shard_of(tmp_path).write_bytes(shard_of(tmp_path).read_bytes()[:-10])
    with pytest.raises(Fault, match="damaged"):
        read(tmp_path)


def test_missing_shard_is_a_fault(tmp_path: Path) -> None:
    write(tmp_path, *pictures(9))
    shard_of(tmp_path).unlink()
    with pytest.raises(Fault, match="missing"):
        read(tmp_path)


def test_a_changed_set_is_not_read_as_the_planned_one(tmp_path: Path) -> None:
    planned = write(tmp_path, *pictures(9)).digest
    write(tmp_path, *pictures(9, seed=1))
    with pytest.raises(Fault, match="changed"):
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
