"""Where a run comes from: read from a real git repository in every state that one can be in."""

import importlib.metadata
import re
import subprocess
import sys

import pytest

from hasten.platform import provenance
from hasten.platform.provenance import Provenance


def git(folder, *arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "trunk")
    (folder / "mine.yaml").write_text("name: mine\nlr: 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    git(folder, "remote", "add", "origin", "https://me:planted-pass@host/x.git")
    return folder


def test_a_clean_tree_has_a_commit_and_no_patch(repository):
    found = provenance.gathered(repository, ["/venv/bin/hasten", "train", "mine.yaml"])
    assert found.command == "hasten train mine.yaml"
    assert found.commit == git(repository, "rev-parse", "HEAD")
    assert (found.branch, found.changes, found.patch) == ("trunk", "none", "")
    assert found.files() == {}
    assert "planted-pass" not in found.repository
    assert found.repository.endswith("@host/x.git")
    assert "git apply git_diff.patch" not in found.steps()


def test_the_patch_brings_back_a_changed_tree(repository, tmp_path):
    (repository / "mine.yaml").write_text("name: mine\nlr: 2\ntoken: planted-secret\n")
    (repository / "new.py").write_text("x = 1\n")
    below = repository / "deep"
    below.mkdir()
    found = provenance.gathered(below, ["hasten"])
    assert found.changes == "1 changed, 1 untracked"
    assert "planted-secret" not in found.patch
    assert "untracked, not in here: new.py" in found.patch
    assert "git apply git_diff.patch" in found.steps()
    other = tmp_path / "other"
    subprocess.run(["git", "clone", "-q", repository, other], check=True)
    (tmp_path / "git_diff.patch").write_bytes(found.files()["git_diff.patch"])
    git(other, "apply", str(tmp_path / "git_diff.patch"))
    assert (other / "mine.yaml").read_text() == "name: mine\nlr: 2\ntoken: [redacted]\n"


def test_a_large_patch_is_cut_and_says_so(repository):
    (repository / "mine.yaml").write_text("".join(f"line {number}\n" for number in range(200_000)))
    patch = provenance.gathered(repository, ["hasten"]).patch
    assert provenance.LARGEST_PATCH - 100 < len(patch) < provenance.LARGEST_PATCH + 100
    assert patch.splitlines()[-1] == "# cut off after 1,000,000 bytes"


def test_a_repository_without_a_commit_and_a_detached_head_are_no_failure(repository, tmp_path):
    git(repository, "checkout", "-q", "--detach")
    assert provenance.gathered(repository, ["hasten"]).branch == ""
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    found = provenance.gathered(empty, ["hasten"])
    assert (found.commit, found.patch) == ("", "")
    assert provenance.COMMIT not in found.tags()


def test_without_git_a_run_has_its_command_and_its_version(repository, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    found = provenance.gathered(repository, ["hasten", "sweep", "demo"])
    assert found.tags() == {
        "hasten.command": "hasten sweep demo",
        "hasten.version": importlib.metadata.version("hasten"),
    }


def test_it_travels_as_plain_json(repository):
    (repository / "mine.yaml").write_text("other\n")
    found = provenance.gathered(repository, ["hasten"])
    assert Provenance.from_document(found.document()) == found


def test_programs_that_a_repository_names_are_not_run(repository, tmp_path):
    trace = tmp_path / "ran"
    git(repository, "config", "diff.external", f"touch {trace}; true")
    git(repository, "config", "core.fsmonitor", f"touch {trace}; true")
    (repository / "mine.yaml").write_text("other\n")
    assert "+other" in provenance.gathered(repository, ["hasten"]).patch
    assert not trace.exists()


def test_packages_are_those_that_are_installed_here():
    lines = provenance.packages().splitlines()
    assert lines[0].startswith(f"# Python {sys.version_info.major}.{sys.version_info.minor}")
    assert f"torch=={importlib.metadata.version('torch')}" in lines
    assert all(re.match(r"(# )?[A-Za-z0-9_.-]+( @ |==)\S+|# Python ", line) for line in lines)
    assert any("hasten" in line for line in lines)
