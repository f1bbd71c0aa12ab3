"""One set of small images in every format, and every way in which a source can be wrong; without Ray."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from safetensors.numpy import save_file

from hasten.platform import importing
from hasten.platform.importing import report, sources
from hasten.trainers.datasets import data
from hasten.trainers.datasets.data import Manifest
from hasten.trainers.errors import ConfigError, HastenError

PIXELS, LABELS = (found[:80] for found in data.digits())
LATENTS = np.random.default_rng(0).normal(1.0, 5.0, (50, 4, 8, 8)).astype(np.float16)

Make = Callable[[Path], Path]
Member = tuple[str, bytes]


def png(image: np.ndarray, **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG", **options)
    return sink.getvalue()


FILES = [png(image[0]) for image in PIXELS]


def imagefolder(place: Path) -> Path:
    for number, (content, label) in enumerate(zip(FILES, LABELS, strict=True)):
        write(place / "folder" / str(label) / f"{number}.png", content)
    return place / "folder"


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def parquet(place: Path, name: str = "train-00000-of-00001.parquet") -> Path:
    images = pa.array([{"bytes": content, "path": "x.png"} for content in FILES])
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": [f"digit {number}" for number in range(10)]},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": images, "label": LABELS}).replace_schema_metadata(metadata)
    (place / "hub").mkdir(parents=True, exist_ok=True)
    pq.write_table(table, place / "hub" / name, row_group_size=17)
    return place / "hub"


def tar(path: Path, members: Sequence[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def members(numbers: Sequence[int]) -> list[Member]:
    return [
        (f"{number:04}.{kind}", content)
        for number in numbers
        for kind, content in (("png", FILES[number]), ("cls", str(LABELS[number]).encode()))
    ]


def webdataset(place: Path) -> Path:
    tar(place / "tars" / "0.tar", members(range(0, 80, 2)))
    tar(place / "tars" / "1.tar.gz", members(range(1, 80, 2)))
    return place / "tars"


def npy(place: Path) -> Path:
    np.save(place / "x.npy", PIXELS[:, 0])
    np.save(place / "x_labels.npy", LABELS)
    return place / "x.npy"


def npz(place: Path) -> Path:
    np.savez_compressed(place / "x.npz", images=PIXELS.transpose(0, 2, 3, 1), labels=LABELS[:, None])
    return place / "x.npz"


FORMATS: dict[str, Make] = {
    "imagefolder": imagefolder,
    "parquet": parquet,
    "webdataset": webdataset,
    "arrays": npy,
    "npz": npz,
}


def bring(source: Path | str, store: Path, name: str = "set", **options: Any) -> tuple[Manifest, bool]:
    return importing.import_dataset(str(source), name, str(store), **options)


def refusal(source: Path | str, store: Path, **options: Any) -> ConfigError:
    """The error of an import that must fail and leave nothing."""
    with pytest.raises(ConfigError) as caught:
        bring(source, store, **options)
    assert not list(store.rglob("*")), "half a data set was left"
    return caught.value


def stored(manifest: Manifest, store: Path, name: str = "set") -> tuple[np.ndarray, np.ndarray]:
    dataset = data.read(f"{store}/data/{name}", manifest.digest)
    pixels, labels = dataset.rows(np.arange(manifest.count))
    return pixels, labels


def reported(store: Path, name: str = "set") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store / "data" / name / report.NAME).read_text())
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_data_set(kind: str, tmp_path: Path) -> None:
    manifest, changed = bring(FORMATS[kind](tmp_path), tmp_path / "store")
    assert changed
    assert manifest.digest == data.digest(PIXELS, LABELS)
    assert (manifest.count, manifest.shape, manifest.classes) == (80, (1, 8, 8), 10)
    assert manifest.report == {"images": 80, "refused": 0}
    assert data.verify(f"{tmp_path}/store/data/set") == []
    pixels, labels = stored(manifest, tmp_path / "store")
    expected = {image.tobytes(): label for image, label in zip(PIXELS, LABELS, strict=True)}
    assert {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)} == expected


@pytest.mark.parametrize("kind", FORMATS)
def test_the_format_is_found_or_named(kind: str, tmp_path: Path) -> None:
    source, name = FORMATS[kind](tmp_path), "arrays" if kind == "npz" else kind
    assert sources.open_source(str(source)).format == name
    assert sources.open_source(str(source), format=name).format == name
    other = "parquet" if kind != "parquet" else "webdataset"
    assert "has no files" in refusal(source, tmp_path / "store", format=other).problem


def test_importing_again_writes_nothing(tmp_path: Path) -> None:
    source, store = imagefolder(tmp_path), tmp_path / "store"
    first, _ = bring(source, store)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    again, changed = bring(source, store)
    assert (again, changed) == (first, False)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_a_changed_source_is_a_new_snapshot_of_the_same_name(tmp_path: Path) -> None:
    source, store = imagefolder(tmp_path), tmp_path / "store"
    first, _ = bring(source, store)
    write(source / "3" / "new.png", png(np.full((8, 8), 9, np.uint8)))
    second, changed = bring(source, store)
    assert changed
    assert (second.name, second.count) == (first.name, 81)
    assert second.digest != first.digest
    assert all((store / "data" / "set" / shard.path).exists() for shard in first.shards)


def test_class_names_are_numbered_in_the_order_of_their_letters(tmp_path: Path) -> None:
    for number, name in enumerate(["zebra", "ant", "Ünïcode Ω", "a b%20#?"]):
        write(tmp_path / "folder" / name / "深い" / "x y.PNG", png(np.full((8, 8), number, np.uint8)))
    manifest, _ = bring(tmp_path / "folder", tmp_path / "store")
    assert reported(tmp_path / "store")["class_names"] == ["a b%20#?", "ant", "zebra", "Ünïcode Ω"]
    pixels, labels = stored(manifest, tmp_path / "store")
    assert dict(zip(pixels[:, 0, 0, 0].tolist(), labels.tolist(), strict=True)) == {0: 2, 1: 1, 2: 3, 3: 0}


def test_names_as_labels_of_parquet_and_tars(tmp_path: Path) -> None:
    names = ["cat" if label < 5 else "dog" for label in LABELS]
    (tmp_path / "a").mkdir()
    pq.write_table(
        pa.table({"img": FILES, "label": pa.array(names).dictionary_encode()}), tmp_path / "a/x.parquet"
    )
    pairs = [
        (f"dir.v1/{number}.{kind}", content)
        for number in range(80)
        for kind, content in (
            ("json", json.dumps({"label": names[number], "caption": "…"}).encode()),
            ("png", FILES[number]),
        )
    ]
    tar(tmp_path / "b.tar", pairs)
    first, _ = bring(tmp_path / "a", tmp_path / "store")
    second, _ = bring(tmp_path / "b.tar", tmp_path / "store", "other")
    assert first.digest == second.digest == data.digest(PIXELS, (LABELS >= 5).astype(np.int64))
    assert reported(tmp_path / "store", "other")["class_names"] == ["cat", "dog"]


@pytest.mark.parametrize("kind", FORMATS)
def test_labels_can_be_left_out(kind: str, tmp_path: Path) -> None:
    manifest, _ = bring(FORMATS[kind](tmp_path), tmp_path / "store", labels="none")
    assert manifest.classes == 0
    assert manifest.report["unlabelled"] == 80
    assert manifest.digest == data.digest(PIXELS, np.full(80, -1))


def test_a_parquet_column_can_be_named(tmp_path: Path) -> None:
    table = pa.table({"image": FILES, "coarse": LABELS // 5, "fine": LABELS})
    pq.write_table(table, tmp_path / "x.parquet")
    source = tmp_path / "x.parquet"
    assert bring(source, tmp_path / "1")[0].classes == 0  # nothing says which one would be meant
    assert bring(source, tmp_path / "2", labels="coarse")[0].classes == 2
    assert bring(source, tmp_path / "3", labels="fine")[0].classes == 10
    assert "coarse" in refusal(source, tmp_path / "4", labels="colour").remedy


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for number, content in enumerate(FILES[:5]):
        write(tmp_path / "flat" / f"{number}.png", content)
    manifest, _ = bring(tmp_path / "flat", tmp_path / "store")
    assert (manifest.count, manifest.classes, manifest.report["unlabelled"]) == (5, 0, 5)


def test_what_is_not_part_of_the_source_is_ignored_and_counted(tmp_path: Path) -> None:
    source = imagefolder(tmp_path)
    write(source / "README.md", b"hello")
    write(source / "3" / "Thumbs.db", b"x")
    write(source / ".hidden" / "x.png", FILES[0])
    write(source / "__MACOSX" / "x.png", FILES[0])
    (source / "7" / "round").symlink_to(source)  # a circle
    manifest, _ = bring(source, tmp_path / "store")
    assert manifest.digest == data.digest(PIXELS, LABELS)
    assert manifest.report == {"images": 80, "refused": 0, "ignored_files": 2}


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    source = imagefolder(tmp_path)
    (source / "7").rename(tmp_path / "seven")
    (source / "7").symlink_to(tmp_path / "seven")
    assert bring(source, tmp_path / "store")[0].digest == data.digest(PIXELS, LABELS)


def test_duplicates_are_kept_and_counted(tmp_path: Path) -> None:
    source = imagefolder(tmp_path)
    write(source / "0" / "again.png", FILES[3])  # with another label
    write(source / "3" / "again.png", FILES[3])
    manifest, _ = bring(source, tmp_path / "store")
    assert (manifest.count, manifest.report["duplicates"]) == (82, 2)
    assert data.verify(f"{tmp_path}/store/data/set") == []


def odd_folder(place: Path) -> Path:
    """80 good images, and one of every odd kind."""
    source = imagefolder(place)
    colour = np.random.default_rng(1).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    write(source / "1" / "rgba.png", png(colour))
    write(source / "1" / "rgb.png", png(colour[..., :3]))
    write(source / "1" / "large.png", png(np.arange(512, dtype=np.uint8).reshape(16, 32)))
    write(source / "1" / "deep.png", png(np.full((8, 8), 40_000, np.uint16)))
    write(source / "1" / "small.png", png(np.full((4, 4), 9, np.uint8)))
    write(source / "1" / "cut.png", FILES[0][:60])
    write(source / "1" / "text.png", b"not a picture")
    write(source / "1" / "empty.png", b"")
    return source


def test_odd_images_are_converted_and_bad_ones_refused_with_a_reason(tmp_path: Path) -> None:
    options = {"resolution": 8, "channels": 1, "max_rejected": 0.05}
    manifest, _ = bring(odd_folder(tmp_path), tmp_path / "store", **options)
    assert manifest.report == {
        "images": 85,
        "refused": 3,
        "alpha": 1,
        "bits_16": 1,
        "cropped": 1,
        "downscaled": 1,
        "rgb_to_grey": 2,
        "upscaled": 1,
    }
    found = reported(tmp_path / "store")
    assert found["counts"] == manifest.report
    assert found["digest"] == manifest.digest
    assert [entry["name"] for entry in found["refused"]] == ["1/cut.png", "1/empty.png", "1/text.png"]
    assert all(entry["reason"] for entry in found["refused"])


def test_too_many_refused_images_end_the_import(tmp_path: Path) -> None:
    error = refusal(odd_folder(tmp_path), tmp_path / "store", resolution=8, channels=1)
    assert "3 of 88" in error.problem
    assert "1/cut.png" in error.problem
    assert "--max-rejected" in error.remedy


def test_a_set_of_nothing_but_refused_images_is_none(tmp_path: Path) -> None:
    write(tmp_path / "bad" / "x.png", b"nothing")
    refusal(tmp_path / "bad", tmp_path / "store", resolution=8, channels=1, max_rejected=1.0)
    assert "none can be read" in refusal(tmp_path / "bad", tmp_path / "store").problem


def test_mixed_sizes_and_colours_are_the_users_to_decide(tmp_path: Path) -> None:
    source = imagefolder(tmp_path)
    write(source / "9" / "z.png", png(np.zeros((8, 9), np.uint8)))
    error = refusal(source, tmp_path / "store")
    assert (error.subject, error.remedy) == ("9/z.png", "Give --resolution.")
    write(source / "9" / "z.png", png(np.zeros((8, 8, 3), np.uint8)))
    error = refusal(source, tmp_path / "store")
    assert (error.subject, error.remedy) == ("9/z.png", "Give --channels.")
    manifest, _ = bring(source, tmp_path / "store", channels=3)
    assert (manifest.shape, manifest.report["grey_to_rgb"]) == ((3, 8, 8), 80)


def test_images_that_are_not_square_need_a_resolution(tmp_path: Path) -> None:
    write(tmp_path / "wide" / "x.png", png(np.zeros((8, 16), np.uint8)))
    assert "16 x 8" in refusal(tmp_path / "wide", tmp_path / "store").problem
    for fit in ("crop", "pad", "stretch"):
        manifest, _ = bring(tmp_path / "wide", tmp_path / fit, resolution=4, fit=fit)
        assert manifest.shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        ({"format": "zip"}, "--format"),
        ({"fit": "squash"}, "--fit"),
        ({"resolution": 0}, "--resolution"),
        ({"channels": 2}, "--channels"),
        ({"max_rejected": 1.5}, "--max-rejected"),
        ({"workers": 0}, "--workers"),
        ({"scale": 0.5}, "--scale"),
        ({"labels": "species"}, "--labels"),
        ({"name": "a b"}, "NAME"),
        ({"name": "a/../../b"}, "NAME"),
    ],
)
def test_impossible_options(options: dict[str, Any], subject: str, tmp_path: Path) -> None:
    assert refusal(imagefolder(tmp_path), tmp_path / "store", **options).subject == subject


def test_sources_that_are_none(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert "no such" in refusal(tmp_path / "nowhere", store).problem
    assert "no such" in refusal(tmp_path / "no*.tar", store).problem
    (tmp_path / "empty").mkdir()
    assert "empty" in refusal(tmp_path / "empty", store).problem
    write(tmp_path / "text" / "notes.txt", b"x")
    assert "no images" in refusal(tmp_path / "text", store).problem
    assert "http://" in refusal("http://example.org/x", store).problem
    refusal("", store)


def test_names_that_are_not_utf8_are_said_to_be_so(tmp_path: Path) -> None:
    source = imagefolder(tmp_path)
    with open(os.fsencode(source) + b"/1/\xff\xfe.png", "wb") as file:
        file.write(FILES[0])
    assert "UTF-8" in refusal(source, tmp_path / "store").problem


def test_folders_that_could_mean_two_things(tmp_path: Path) -> None:
    source, store = imagefolder(tmp_path), tmp_path / "store"
    write(source / "x.png", FILES[0])
    assert "beside its folders" in refusal(source, store).problem
    for split in ("train", "test"):
        write(tmp_path / "splits" / split / "0" / "x.png", FILES[0])
    assert "splits" in refusal(tmp_path / "splits", store).problem
    parquet(tmp_path), parquet(tmp_path, "test-00000-of-00001.parquet")
    assert "splits" in refusal(tmp_path / "hub", store).problem
    write(tmp_path / "hub" / "x.tar", b"x")
    assert "several formats" in refusal(tmp_path / "hub", store).problem
    manifest, _ = bring(tmp_path / "hub" / "train-*.parquet", store)
    assert manifest.digest == data.digest(PIXELS, LABELS)


def test_a_hostile_tar_writes_nowhere(tmp_path: Path) -> None:
    """Names with ../, absolute names, links, devices: none of them ever becomes a file of ours."""
    work, path = tmp_path / "work", tmp_path / "work" / "x.tar"
    work.mkdir()
    with tarfile.open(path, "w") as archive:
        for name in ("../../escape.png", "/tmp/hasten-escape.png", "a/../../b.png", "\x1b[31mred[bold].png"):
            info = tarfile.TarInfo(name)
            info.size = len(FILES[0])
            archive.addfile(info, io.BytesIO(FILES[0]))
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../../escape.png")):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, target
            archive.addfile(info)
        info = tarfile.TarInfo("device.png")
        info.type = tarfile.CHRTYPE
        archive.addfile(info)
    write(work / "y.tar", tar(work / "y.tar", [("../\x1b[2Jevil.png", b"no image")]).read_bytes())
    before = set(tmp_path.rglob("*"))
    manifest, _ = bring(work, tmp_path / "store", max_rejected=0.5)
    assert (manifest.count, manifest.report["refused"]) == (4, 1)
    outside = {path for path in set(tmp_path.rglob("*")) - before if tmp_path / "store" not in path.parents}
    assert outside == {tmp_path / "store"}
    assert not Path("/tmp/hasten-escape.png").exists()
    assert "\x1b" not in json.dumps(reported(tmp_path / "store"), ensure_ascii=False)
    names = {path.name for path in (tmp_path / "store").rglob("*") if path.is_file()}
    kept = {"manifest.json", f"{manifest.digest}.json", "report.json", Path(manifest.shards[0].path).name}
    assert names == kept


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_truncated_tar_ends_the_import(suffix: str, tmp_path: Path) -> None:
    """Half a tar would silently be half a data set, wherever it was cut."""
    whole = tar(tmp_path / f"whole{suffix}", members(range(40))).read_bytes()
    cuts = {len(whole) // 2, len(whole) // 2 // 512 * 512, len(whole) // 3 // 1024 * 1024, 700, 1}
    for cut in sorted(cuts):
        write(tmp_path / f"{cut}" / f"x{suffix}", whole[:cut])
        error = refusal(tmp_path / f"{cut}", tmp_path / "store")
        assert "damaged" in error.problem or "none can be read" in error.problem, cut


def test_a_damaged_tar_gz_ends_the_import(tmp_path: Path) -> None:
    plain = tar(tmp_path / "x.tar", members(range(40))).read_bytes()
    packed = bytearray(gzip.compress(plain, mtime=0))
    packed[-6] ^= 1  # its checksum
    write(tmp_path / "bad" / "x.tar.gz", bytes(packed))
    assert "damaged" in refusal(tmp_path / "bad", tmp_path / "store").problem


def test_a_tar_whose_labels_are_away_from_their_images(tmp_path: Path) -> None:
    mixed = sorted(members(range(6)), key=lambda member: member[0].rpartition(".")[2])
    source = tar(tmp_path / "x.tar", mixed)
    assert "away from its image" in refusal(source, tmp_path / "store").problem
    assert bring(source, tmp_path / "store", labels="none")[0].count == 6


def test_odd_members_of_tars(tmp_path: Path) -> None:
    source = tar(
        tmp_path / "x.tar",
        [
            *members(range(10)),
            ("two.png", FILES[10]),
            ("two.jpg", FILES[11]),
            ("nested/a.seg.png", FILES[12]),
            ("nested/a.cls", b" 7\n"),
            ("bad.png", FILES[13]),
            ("bad.json", b"{"),
            ("caption.txt", b"no image"),
            (".hidden.png", FILES[14]),
            ("list.png", FILES[15]),
            ("list.json", b'{"label": [1, 2]}'),
        ],
    )
    manifest, _ = bring(source, tmp_path / "store", max_rejected=0.5)
    assert (manifest.count, manifest.report["refused"]) == (11, 3)
    expected = data.digest(PIXELS[[*range(10), 12]], np.array([*LABELS[:10], 7]))
    assert manifest.digest == expected


def test_damaged_parquet_ends_the_import(tmp_path: Path) -> None:
    source = parquet(tmp_path)
    path = next(source.iterdir())
    whole = path.read_bytes()
    for content in (whole[:-20], whole[:100], b"", b"PAR1" * 20):
        path.write_bytes(content)
        assert "damaged" in refusal(source, tmp_path / "store").problem


def test_odd_rows_of_parquet(tmp_path: Path) -> None:
    images = [{"bytes": content, "path": None} for content in FILES[:6]]
    images += [{"bytes": None, "path": "x.png"}, {"bytes": b"bad", "path": None}, None]
    labels = [0, 1, None, -1, 4, 5, 6, 7, 8]
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "x.parquet")
    manifest, _ = bring(tmp_path / "x.parquet", tmp_path / "store", max_rejected=0.5)
    assert (manifest.count, manifest.report["refused"], manifest.report["unlabelled"]) == (6, 3, 2)
    assert manifest.digest == data.digest(PIXELS[:6], np.array([0, 1, -1, -1, 4, 5]))
    assert {entry["name"] for entry in reported(tmp_path / "store")["refused"]} == {
        f"x.parquet/0:{row}" for row in (6, 7, 8)
    }


def test_labels_must_fit_their_names(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": FILES[:3], "label": [0, 1, 2]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "x.parquet")
    assert "names for 2 classes" in refusal(tmp_path / "x.parquet", tmp_path / "store").problem


def test_absurd_labels_are_refused(tmp_path: Path) -> None:
    """A label of 10**9 would ask for a table of as many embeddings."""
    pq.write_table(pa.table({"image": FILES[:3], "label": [0, 1, 10**9]}), tmp_path / "x.parquet")
    assert "label 1000000000" in refusal(tmp_path / "x.parquet", tmp_path / "store").problem


def test_parquet_without_images(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "x.parquet")
    assert "text, label" in refusal(tmp_path / "x.parquet", tmp_path / "store").problem


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_layouts_of_arrays(layout: str, tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), dtype=np.uint8)
    array = {"NHW": PIXELS[:9, 0], "NHWC": colour.transpose(0, 2, 3, 1), "NCHW": colour}[layout]
    np.save(tmp_path / "x.npy", np.ascontiguousarray(array))
    manifest, _ = bring(tmp_path / "x.npy", tmp_path / "store")
    expected = PIXELS[:9] if layout == "NHW" else colour
    assert manifest.digest == data.digest(expected, np.full(9, -1))


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((4, 3, 3, 3), np.uint8), "channels"),
        (np.zeros((4, 5, 6, 7), np.uint8), "channels"),
        (np.zeros((4, 8), np.uint8), "no array"),
        (np.zeros((4, 8, 8), np.int64), "no array"),
        (np.array([{"a": 1}]), "no array"),
        (np.asfortranarray(np.zeros((4, 8, 8), np.uint8)), "Fortran"),
        (np.zeros((0, 8, 8), np.uint8), "none can be read"),
    ],
)
def test_arrays_that_cannot_be_images(array: np.ndarray, problem: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    assert problem in refusal(tmp_path / "x.npy", tmp_path / "store").problem


@pytest.mark.parametrize("make", [npy, npz])
def test_damaged_arrays_end_the_import(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path)
    whole = path.read_bytes()
    for content in (whole[:-200], whole[: len(whole) // 2], whole[:20], b"", b"\x93NUMPY\x01\x00\xff\xff{"):
        path.write_bytes(content)
        error = refusal(path, tmp_path / "store", resolution=8, channels=1)
        assert "damaged" in error.problem or "no array" in error.problem


def test_labels_of_another_length(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PIXELS[:, 0])
    np.save(tmp_path / "x_labels.npy", LABELS[:-1])
    assert "not 80" in refusal(tmp_path / "x.npy", tmp_path / "store").problem


def latents(kind: str, place: Path) -> Path:
    path = place / f"latents.{kind}"
    match kind:
        case "npy":
            np.save(path, LATENTS)
        case "npz":
            np.savez(path, latents=LATENTS)
        case "safetensors":
            save_file({"latents": LATENTS}, path)
        case _:
            half = pa.list_(pa.list_(pa.list_(pa.float16())))
            pq.write_table(pa.table({"latent": pa.array(LATENTS.tolist(), half)}), path, row_group_size=13)
    return path


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "parquet"])
def test_latents_keep_their_numbers_and_get_their_scale(kind: str, tmp_path: Path) -> None:
    manifest, _ = bring(latents(kind, tmp_path), tmp_path / "store")
    assert (manifest.shape, manifest.dtype, manifest.classes) == ((4, 8, 8), "float16", 0)
    assert manifest.scale == float(f"{1.0 / LATENTS.astype(np.float64).std():.6g}")
    assert manifest.digest == data.digest(LATENTS, np.full(50, -1), scale=manifest.scale)
    values, _ = stored(manifest, tmp_path / "store")
    assert sorted(value.tobytes() for value in values) == sorted(value.tobytes() for value in LATENTS)
    assert float(data.to_model(values, manifest).std()) == pytest.approx(1.0, abs=1e-3)
    assert data.verify(f"{tmp_path}/store/data/set") == []


def test_the_scale_of_latents_can_be_given(tmp_path: Path) -> None:
    source = latents("npy", tmp_path)
    given, _ = bring(source, tmp_path / "store", scale=0.18215)
    assert given.scale == 0.18215
    measured, changed = bring(source, tmp_path / "store")
    assert changed, "another scale is another task"
    assert measured.digest != given.digest
    np.save(source, np.ones_like(LATENTS))
    with pytest.raises(ConfigError, match="cannot be measured"):
        bring(source, tmp_path / "store")


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4"])
def test_other_latents_are_stored_as_float32(dtype: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", LATENTS.astype(dtype))
    manifest, _ = bring(tmp_path / "x.npy", tmp_path / "store")
    assert manifest.dtype == "float32"
    assert manifest.digest == data.digest(LATENTS.astype(np.float32), np.full(50, -1), scale=manifest.scale)
    assert manifest.report.get("float64_to_32", 0) == (50 if dtype == "float64" else 0)


def test_bfloat16_latents(tmp_path: Path) -> None:
    wide = LATENTS.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    header = {"z": {"dtype": "BF16", "shape": list(wide.shape), "data_offsets": [0, 2 * wide.size]}}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + (wide >> 16).astype("<u2").tobytes()
    write(tmp_path / "x.safetensors", content)
    manifest, _ = bring(tmp_path / "x.safetensors", tmp_path / "store")
    expected = wide.view(np.float32)
    assert manifest.digest == data.digest(expected, np.full(50, -1), scale=manifest.scale)


def test_latents_with_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    array = LATENTS.copy()
    array[7, 0, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", array)
    assert "not finite" in refusal(tmp_path / "x.npy", tmp_path / "store").problem
    manifest, _ = bring(tmp_path / "x.npy", tmp_path / "store", max_rejected=0.1)
    assert manifest.count == 49


def test_latents_cannot_be_resized(tmp_path: Path) -> None:
    source = latents("npy", tmp_path)
    assert refusal(source, tmp_path / "store", resolution=8).subject == "--resolution"
    assert refusal(source, tmp_path / "store", channels=3).subject == "--resolution"
    assert "no array" in refusal(source, tmp_path / "store", format="arrays").problem


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"{}", (10).to_bytes(8, "little") + b'{"x": {}} ']
)
def test_damaged_safetensors(content: bytes, tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", content)
    refusal(tmp_path / "x.safetensors", tmp_path / "store")


def test_progress_is_lines_in_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.platform.importing.lines._PATIENCE", 0.0)
    log = io.StringIO()
    bring(parquet(tmp_path), tmp_path / "store", "x", console=Console(file=log))
    lines = log.getvalue().splitlines()
    assert lines[0].startswith("reading x: 17 of 80 images, ")
    assert "reading x: 80 of 80 images" in lines
    assert lines[-1] == "writing x: 1 of 1 shards"


def test_ensure_imports_what_is_built_in_and_nothing_else(tmp_path: Path) -> None:
    for source in ("mixture:ring", "somebodys-set", "/nowhere", "s3://nowhere/x"):
        importing.ensure(source, str(tmp_path))
    assert not list(tmp_path.iterdir())
    importing.ensure("digits", str(tmp_path))
    assert data.read_manifest(f"{tmp_path}/data/digits").count == 1797
    assert importing.import_dataset("digits", "digits", str(tmp_path))[1] is False


def test_a_data_set_of_an_older_version_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "store" / "data" / "set" / data.MANIFEST, b'{"name": "set", "digest": "x"}')
    manifest, changed = bring(npy(tmp_path), tmp_path / "store")
    assert changed
    assert data.read_manifest(f"{tmp_path}/store/data/set") == manifest


def test_every_failure_speaks_to_the_user(tmp_path: Path) -> None:
    """A file that goes away between the listing and the reading."""
    source = imagefolder(tmp_path)
    opened = sources.open_source(str(source))
    (source / "3" / "3.png").unlink()
    with pytest.raises(HastenError, match="not where it was listed"):
        sources.first(opened.parts, 1000)
