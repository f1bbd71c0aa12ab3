"""Imports on the real Ray, from and into the real bucket: the same digest as in one process, whatever the
number of workers.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hasten.platform import cluster, importing
from hasten.platform.services import Services
from hasten.trainers.datasets import data
from hasten.trainers.errors import ConfigError
from hasten.trainers.store import Folder

pytestmark = pytest.mark.stack

PIXELS, LABELS = (found[:30] for found in data.digits())


def png(image: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    return sink.getvalue()


FILES = [png(image[0]) for image in PIXELS]


def tarred(numbers: range) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number in numbers:
            for kind, content in (("png", FILES[number]), ("cls", str(LABELS[number]).encode())):
                info = tarfile.TarInfo(f"{number:04}.{kind}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def saved(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def packed(**arrays: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.savez_compressed(sink, **arrays)
    return sink.getvalue()


def table() -> bytes:
    sink = io.BytesIO()
    images = pa.array([{"bytes": content, "path": None} for content in FILES])
    pq.write_table(pa.table({"image": images, "label": LABELS}), sink, row_group_size=13)
    return sink.getvalue()


def contents(kind: str) -> dict[str, bytes]:
    """The files of a source, by name."""
    match kind:
        case "imagefolder":
            return {f"{LABELS[number]}/é {number}.png": content for number, content in enumerate(FILES)}
        case "parquet":
            return {"train-00000-of-00001.parquet": table()}
        case "webdataset":
            return {"a.tar": tarred(range(17)), "b.tar": tarred(range(17, 30))}
        case "arrays":
            return {"x.npy": saved(PIXELS[:, 0]), "x_labels.npy": saved(LABELS)}
        case _:
            return {"x.npz": packed(images=PIXELS, labels=LABELS)}


@pytest.fixture(scope="module", autouse=True)
def _ray_attached(stack: Services) -> Iterator[None]:
    """One connection for all: Ray starts new workers for each."""
    cluster.attach(stack)
    yield
    cluster.detach()


@pytest.fixture(scope="module")
def bucket(stack: Services) -> Iterator[str]:
    uri = f"{stack.storage_uri}/import-tests"
    yield uri
    Folder(stack.storage_uri).delete_folder("import-tests")


@pytest.mark.parametrize("kind", ["imagefolder", "parquet", "webdataset", "arrays", "npz"])
def test_from_the_bucket_into_the_bucket_on_ray(kind: str, bucket: str) -> None:
    for name, content in contents(kind).items():
        Folder(bucket).write(f"sources/{kind}/{name}", content)
    source = f"{bucket}/sources/{kind}"
    manifest, changed = importing.import_dataset(source, f"{kind}-set", bucket, workers=2)
    assert changed
    assert manifest.digest == data.digest(PIXELS, LABELS)
    assert data.verify(f"{bucket}/data/{kind}-set") == []
    assert Folder(f"{bucket}/data/{kind}-set").read("report.json")
    again, changed = importing.import_dataset(source, f"{kind}-set", bucket)
    assert (again, changed) == (manifest, False)


def test_latents_on_ray(bucket: str, tmp_path: Path) -> None:
    latents = np.random.default_rng(0).normal(0.0, 3.0, (2_000, 4, 16, 16)).astype(np.float16)
    np.save(tmp_path / "latents.npy", latents)
    one, _ = importing.import_dataset(str(tmp_path / "latents.npy"), "latents", str(tmp_path / "store"))
    many, _ = importing.import_dataset(str(tmp_path / "latents.npy"), "latents", bucket, workers=2)
    assert one == many, "manifests, with their shards and their measured scale"


def test_many_shards_and_many_duplicates_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """140,000 images of 300 kinds, in three shards whose bounds cut through duplicates: in one process and on
    Ray they are the same files, byte for byte.
    """
    kinds = np.random.default_rng(0).integers(0, 256, (300, 2, 2), dtype=np.uint8)
    which = np.random.default_rng(1).integers(0, 300, 140_000)
    np.save(tmp_path / "x.npy", kinds[which])
    np.save(tmp_path / "x_labels.npy", which % 10)
    source = str(tmp_path / "x.npy")
    many, _ = importing.import_dataset(source, "set", str(tmp_path / "ray"), workers=2)
    assert [shard.rows for shard in many.shards] == [65_536, 65_536, 8_928]
    assert many.report["duplicates"] == 139_700
    assert many.digest == data.digest(kinds[which][:, None], which % 10)
    assert data.verify(f"{tmp_path}/ray/data/set") == []
    monkeypatch.setattr("hasten.platform.importing.flow._SMALL_IMAGES", 140_000)
    one, _ = importing.import_dataset(source, "set", str(tmp_path / "process"))
    assert one == many


def test_a_damaged_container_ends_the_import_from_inside_a_task(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    for number in range(3):
        (tmp_path / "tars" / f"{number}.tar").write_bytes(
            tarred(range(20))[: 20_000 if number == 2 else None]
        )
    with pytest.raises(ConfigError) as caught:
        importing.import_dataset(str(tmp_path / "tars"), "set", str(tmp_path / "store"), workers=2)
    assert caught.value.subject.endswith("2.tar")
    assert "damaged after" in caught.value.problem
    assert not (tmp_path / "store" / "data").exists()


def test_nobody_but_us_speaks_and_no_secret_travels(bucket: str, tmp_path: Path) -> None:
    """Ray Data's own lines stay away from a user's terminal; parts are pickled without credentials."""
    script = (
        "import os, pickle, sys\n"
        "from hasten.platform import importing\n"
        "from hasten.platform.importing import sources\n"
        "from hasten.trainers.errors import ConfigError\n"
        "source, store = sys.argv[1:]\n"
        "parts = pickle.dumps(sources.open_source(source).parts)\n"
        "words = open(os.environ['AWS_SHARED_CREDENTIALS_FILE']).read().split()\n"
        "secrets = [word for word in words if len(word) > 8 and not word.startswith('aws_')]\n"
        "assert secrets\n"
        "print('SECRET' if any(word.encode() in parts for word in secrets) else 'clean')\n"
        "try:\n"
        "    importing.import_dataset(source, 'set', store, workers=1, max_rejected=0.0, resolution=8,\n"
        "                             channels=1)\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    Folder(bucket).write("sources/one/x.png", FILES[0])
    Folder(bucket).write("sources/one/bad.png", b"bad")
    command = [sys.executable, "-c", script, f"{bucket}/sources/one", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[0] == "clean"
    assert "1 of 2 images were refused: bad.png" in done.stdout
    assert done.stderr == ""
