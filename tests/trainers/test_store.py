from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.store import Folder


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small file system of one's own, for what a folder's permissions cannot show to root."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"mount{len(mounted)}"
        place.mkdir()
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("mounting a tiny file system needs root on Linux")
        command = ["mount", "-t", "tmpfs", "-o", options, "hasten-test", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a tiny file system here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_write_read_names_delete(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "new" / "place"))
    assert folder.read("a") is None
    assert folder.names() == []
    folder.write("b", b"2")
    folder.write("a", b"1")
    folder.write("deep/er/c", b"3")
    assert folder.read("a") == b"1"
    assert folder.read("deep/er/c") == b"3"
    assert folder.names() == ["a", "b", "deep"]
    assert folder.names("deep") == ["er"]
    assert folder.names("nowhere") == []
    folder.delete_folder("deep")
    folder.delete_folder("deep")
    assert folder.names() == ["a", "b"]
    assert folder.read("deep/er/c") is None


def test_a_file_is_read_at_any_place(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("below/a", bytes(range(100)))
    with folder.open("below/a") as file, folder.open("below/a") as other:
        assert (file.size(), file.read_at(3, 50), other.read(2)) == (100, b"234", b"\x00\x01")
    assert file.closed
    with pytest.raises(Fault, match="missing") as caught, folder.open("b"):
        pass
    assert caught.value.subject == f"{tmp_path}/b"


def test_a_failure_while_an_open_file_is_read_is_a_fault(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a", b"1")
    with pytest.raises(Fault, match="unplugged"), folder.open("a"):
        raise OSError("unplugged")


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a", b"a long content")
    folder.write("a", b"short")
    assert folder.read("a") == b"short"
    folder.write("a", b"")
    assert folder.read("a") == b""


def test_folder_below(tmp_path: Path) -> None:
    Folder(f"{tmp_path}/").folder("below").write("a", b"1")
    assert Folder(str(tmp_path)).folder("below") == Folder(f"{tmp_path}/below")
    assert Folder(str(tmp_path)).read("below/a") == b"1"


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    """While a file is replaced again and again, readers find an old or a new one, and no scaffolding."""
    folder, size, failures = Folder(str(tmp_path)), 3_000_000, []
    contents = [bytes([number]) * size for number in range(8)]
    folder.write("state", contents[0])
    done = threading.Event()

    def write() -> None:
        try:
            for content in contents[1:]:
                folder.write("state", content)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        content = folder.read("state")
        if content not in contents:
            failures.append("a part of the content")
        if folder.names() != ["state"]:
            failures.append("a name that is not a file's")
    writer.join()
    assert set(failures) == set()
    assert folder.read("state") == contents[-1]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    Folder(str(tmp_path)).write("state", b"old")
    script = """
import os, signal, sys
from hasten.trainers.store import Folder
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
Folder(sys.argv[1]).write("state", b"new" * 1000)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    folder = Folder(str(tmp_path))
    assert folder.read("state") == b"old"
    assert folder.names() == ["state"]
    folder.write("state", b"newer")
    assert folder.read("state") == b"newer"


def test_full_disk_is_a_fault_with_a_remedy(tmpfs: Callable[[str], Path]) -> None:
    place = tmpfs("size=64k")
    folder = Folder(str(place))
    folder.write("state", b"old")
    with pytest.raises(Fault) as caught:
        folder.write("state", bytes(1_000_000))
    assert caught.value.subject == str(place)
    assert "full" in caught.value.problem
    assert caught.value.remedy
    # The old content is whole, and what was written of the new one is gone.
    assert folder.read("state") == b"old"
    assert [path.name for path in place.iterdir()] == ["state"]


def test_read_only_folder_is_a_fault_with_a_remedy(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if os.geteuid() == 0:  # root writes where permissions forbid it
        place = request.getfixturevalue("tmpfs")("ro,size=64k")
    else:
        place = tmp_path / "closed"
        place.mkdir(mode=0o500)
    for name in ("state", "below/state"):
        with pytest.raises(Fault) as caught:
            Folder(str(place)).write(name, b"1")
        assert caught.value.subject == str(place)
        assert "cannot be written" in caught.value.problem
        assert caught.value.remedy


def test_a_file_in_the_way_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    folder = Folder(str(tmp_path / "file"))
    with pytest.raises(Fault):
        folder.write("state", b"1")
    with pytest.raises(Fault):
        Folder(str(tmp_path)).write("file/state", b"1")


@pytest.mark.parametrize("uri", ["gs://bucket/prefix", "http://host/path", "S4://bucket"])
def test_unsupported_schemes(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Folder(uri)
    assert caught.value.subject == uri
    assert "s3://" in caught.value.remedy


@pytest.mark.parametrize("uri", ["s3://", "s3:///prefix"])
def test_s3_needs_a_bucket(uri: str) -> None:
    with pytest.raises(ConfigError, match="no bucket"):
        Folder(uri)


@pytest.mark.parametrize(
    "form",
    [
        "{path}",
        "{path}/",
        "file://{path}",
        "file://{path}/",
        "{path}/../place",
        "relative/place",
        "./relative/place",
    ],
)
def test_uri_forms(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / ("relative/place" if "relative" in form else "place")
    place.mkdir(parents=True)
    Folder(form.format(path=place)).write("below/a", b"1")
    assert (place / "below" / "a").read_bytes() == b"1"
    assert Folder(form.format(path=place)).names("below") == ["a"]


@pytest.mark.parametrize("name", ["with space", "100%", "%41", "run#2", "what?", "a;b", "später", "a:b"])
def test_any_folder_name_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    Folder(str(tmp_path / name)).write("a", b"1")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert Folder(str(tmp_path / name)).read("a") == b"1"


@pytest.mark.parametrize("name", ["with space", "100%", "run#2", "what?", "später"])
def test_file_uris_are_decoded(name: str, tmp_path: Path) -> None:
    Folder((tmp_path / name).as_uri()).write("a", b"1")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_relative_folder_is_bound_where_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = Folder("place")
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder.write("a", b"1")
    assert (tmp_path / "place" / "a").exists()


def test_pickles_without_state(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a", b"1")
    content = pickle.dumps(folder)
    assert len(content) < 200 + len(folder.uri)
    copy = pickle.loads(content)
    assert copy == folder
    assert copy.read("a") == b"1"


def test_no_secret_travels_with_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "known-to-all")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "known-to-few")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    folder = Folder("s3://bucket/prefix")
    for text in (pickle.dumps(folder), repr(folder).encode()):
        assert b"known" not in text
        assert b"127.0.0.1" not in text
        assert b"s3://bucket/prefix" in text
