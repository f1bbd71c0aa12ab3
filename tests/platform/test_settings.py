"""Settings: a file overridden by variables, and errors in the user's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.platform import settings
from hasten.trainers.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    return tmp_path


def write(home: Path, text: str) -> None:
    (home / "settings.yaml").write_text(text, encoding="utf-8")


def test_without_a_file_everything_is_local(home: Path) -> None:
    found = settings.load({})
    assert found.storage.embedded
    assert found.tracking.uri is None
    assert found.ray.address is None
    assert found.database == f"sqlite:///{home}/hasten.db"


def test_home_is_in_the_working_folder_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HASTEN_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert settings.home() == tmp_path / ".hasten"
    monkeypatch.setenv("HASTEN_HOME", "")
    assert settings.home() == tmp_path / ".hasten"
    monkeypatch.setenv("HASTEN_HOME", "there")
    assert settings.home() == tmp_path / "there"


def test_variables_win_over_the_file(home: Path) -> None:
    write(home, "storage: {uri: 's3://one/prefix', endpoint: 'http://one:9000', region: eu-west-1}\nray:\n")
    variables = {
        "HASTEN_STORAGE_URI": "s3://two",
        "HASTEN_RAY_ADDRESS": "head:6379",
        "HASTEN_TRACKING_URI": "",
    }
    found = settings.load(variables)
    assert (found.storage.uri, found.storage.endpoint) == ("s3://two", "http://one:9000")
    assert found.storage.region == "eu-west-1"
    assert found.ray.address == "head:6379"
    assert found.tracking.uri is None
    assert not found.storage.embedded


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("/data/runs", "/data/runs"),
        ("file:///data/my%20runs", "/data/my runs"),
        ("runs", "WORKING/runs"),
        ("s3://bucket/prefix/", None),
    ],
)
def test_storage_in_a_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch, uri: str, folder: str | None
) -> None:
    monkeypatch.chdir(home)
    found = settings.load({"HASTEN_STORAGE_URI": uri}).storage
    assert found.folder == (Path(folder.replace("WORKING", str(home))) if folder else None)
    assert not found.embedded
    if folder is None:
        assert found.uri == "s3://bucket/prefix"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///other.db", "sqlite:///HOME/other.db"),
        ("sqlite:////var/other.db", "sqlite:////var/other.db"),
        ("postgresql+psycopg://host/hasten", "postgresql+psycopg://host/hasten"),
    ],
)
def test_database(home: Path, url: str, expected: str) -> None:
    assert settings.load({"HASTEN_DATABASE": url}).database == expected.replace("HOME", str(home))


@pytest.mark.parametrize(
    ("variables", "subject", "words"),
    [
        ({"HASTEN_STORAGE_URL": "s3://x"}, "HASTEN_STORAGE_URL", "unknown variable"),
        ({"HASTEN_STORAGE_URI": "gs://bucket"}, "storage.uri", "s3://bucket/prefix or a folder"),
        ({"HASTEN_STORAGE_URI": "s3://UPPER"}, "storage.uri", "valid bucket name"),
        ({"HASTEN_STORAGE_URI": "file://host/x"}, "storage.uri", "file:///absolute/folder"),
        ({"HASTEN_STORAGE_ENDPOINT": "localhost:9000"}, "storage.endpoint", "http://host:port"),
        ({"HASTEN_STORAGE_ENDPOINT": "http://me:secret@h:1"}, "storage.endpoint", "must not contain"),
        (
            {"HASTEN_STORAGE_URI": "/x", "HASTEN_STORAGE_ENDPOINT": "http://h:1"},
            "storage.endpoint",
            "nothing",
        ),
        ({"HASTEN_TRACKING_URI": "./mlruns"}, "tracking.uri", "URL of an MLflow server"),
        ({"HASTEN_TRACKING_URI": "https://me:pw@host"}, "tracking.uri", "MLFLOW_TRACKING_USERNAME"),
        ({"HASTEN_DATABASE": "mysql://host/x"}, "database", "sqlite:// or postgresql://"),
        ({"HASTEN_DATABASE": "postgresql://me:pw@host/x"}, "database", "PGPASSWORD"),
    ],
)
def test_bad_variables(home: Path, variables: dict[str, str], subject: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.load(variables)
    assert caught.value.subject == subject
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_error_says_where_the_value_came_from_but_no_password(home: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.load({"HASTEN_TRACKING_URI": "https://me:hunter2@host"})
    assert "HASTEN_TRACKING_URI" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "subject", "words"),
    [
        ("storge: {uri: s3://x}", "storge", "unknown key"),
        ("storage: {url: s3://x}", "storage.url", "unknown key"),
        ("ray: {address: [1]}", "ray.address", "string"),
        ("storage: {uri: s3://x\n", "settings.yaml", "not valid YAML"),
        ("- a list", "settings.yaml", "must be a mapping"),
    ],
)
def test_bad_file(home: Path, text: str, subject: str, words: str) -> None:
    write(home, text)
    with pytest.raises(ConfigError) as caught:
        settings.load({})
    assert subject in caught.value.subject
    assert words in str(caught.value)
    assert "settings.yaml" in str(caught.value)


def test_own_marks_are_no_settings(home: Path) -> None:
    variables = {"HASTEN_HOME": "x", "HASTEN_VENV": "y", "HASTEN_STACK": "z", "HASTEN_STACK_PART": "ray"}
    assert settings.load(variables).storage.embedded
