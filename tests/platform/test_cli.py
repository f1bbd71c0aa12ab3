"""The command line without any server: bad input speaks to the user, light commands stay light."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def hasten(*arguments: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a home of its own and nothing of the caller's settings."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HASTEN_", "AWS_"))}
    command = [sys.executable, "-m", "hasten.platform", *arguments]
    return subprocess.run(
        command,
        env=environment | {"HASTEN_HOME": str(home), "COLUMNS": "100"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


BAD_INPUT: list[tuple[list[str], str]] = [
    (
        ["check", "digits", "-s", "curriculum={kind: clts, mu: 7, sigma: 0.2}"],
        "curriculum.mu: must be less than",
    ),
    (["check", "digits", "-s", "optimizer.lrr=1"], "optimizer.lrr: unknown key"),
    (["check", "digits", "-s", "optimizer.lr=fast"], "optimizer.lr: must be a valid number"),
    (["check", "digits", "-s", "execution.workers=0"], "execution.workers: must be greater"),
    (
        ["check", "digits", "-s", "optimizer.batch=1000000"],
        "optimizer.batch: 1000000 is more than budget.images",
    ),
    (["check", "digits", "-s", "curriculum.kind"], "an override has the form key=value"),
    (["check", "digits", "-s", "name=../../etc"], "name: must match"),
    (["check", "nothing"], "no such file, recipe or study"),
    (["check", "missing.yaml"], "missing.yaml: cannot be read"),
    (["train", "digits", "-s", "data.resolution=7"], "data.resolution: 7 cannot be halved"),
    (["sweep", "paper", "-s", "seeds=[0, 0]"], "seeds: each may appear once"),
    (["sweep", "paper", "-s", "arms.clts.curriculum.mu=7"], "arms.clts.curriculum.mu: must be less"),
    (["retrain", "nothing"], "no such pipeline"),
    (["retrain", "digits", "-s", "gate.mode=best"], "gate.mode: must be 'min'"),
    (["frobnicate"], "No such command"),
    (["train"], "Missing argument"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=lambda value: " ".join(value)[:50])
def test_bad_input_ends_with_two_and_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = hasten(*arguments, home=tmp_path)
    assert message in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "stack").exists(), "nothing was started for it"


def test_a_file_that_asks_for_objects_is_refused(tmp_path: Path) -> None:
    evil = tmp_path / "evil.yaml"
    evil.write_text("name: !!python/object/apply:os.system ['touch gone']\n")
    done = hasten("check", str(evil), home=tmp_path)
    assert done.returncode == 2
    assert "not valid YAML" in done.stderr
    assert not (tmp_path / "gone").exists()


def test_check_ends_with_one_json_object(tmp_path: Path) -> None:
    done = hasten("check", "paper", "--json", home=tmp_path)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kind"] == "study"
    assert len(found["trials"]) == 18
    assert done.returncode == 0


def test_dry_runs_start_nothing(tmp_path: Path) -> None:
    for command in (["train", "digits", "--dry-run"], ["sweep", "demo", "--dry-run"]):
        assert hasten(*command, home=tmp_path).returncode == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["check", "paper"], ["sweep", "demo", "--dry-run"]])
def test_light_commands_import_no_vendor(arguments: list[str], tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from hasten.platform.cli import main\n"
        f"sys.argv = ['hasten', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'boto3', 'diffusers', 'pyarrow', 'scipy', 'pandas', 'altair'}\n"
        "loaded = sorted(heavy & set(sys.modules))\n"
        "sys.exit(f'imported: {loaded}' if loaded else 0)\n"
    )
    environment = os.environ | {"HASTEN_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_dead_endpoint_is_told_in_seconds(tmp_path: Path) -> None:
    done = hasten(
        "data", "import", "digits",
        home=tmp_path,
        HASTEN_STORAGE_URI="s3://bucket",
        HASTEN_STORAGE_ENDPOINT="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="nobody",
        AWS_SECRET_ACCESS_KEY="nothing",
    )  # fmt: skip
    assert done.returncode == 1
    assert "http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_is_a_store(tmp_path: Path) -> None:
    variables = {"HASTEN_STORAGE_URI": str(tmp_path / "store")}
    done = hasten("data", "import", "digits", "--json", home=tmp_path / "home", **variables)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["status"], found["count"], found["shape"]) == ("imported", 1797, [1, 8, 8])
    again = hasten("data", "import", "digits", "--json", home=tmp_path / "home", **variables)
    assert json.loads(again.stdout.splitlines()[-1])["status"] == "unchanged"
    described = hasten("data", "describe", "digits", "--json", home=tmp_path / "home", **variables)
    assert json.loads(described.stdout.splitlines()[-1])["digest"] == found["digest"]
    unknown = hasten("data", "describe", "cats", home=tmp_path / "home", **variables)
    assert unknown.returncode == 2
    assert "no data set at" in unknown.stderr
