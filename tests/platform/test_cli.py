"""The command line without any server: bad input speaks to the user, light commands stay light."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hasten.platform import cli

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


@pytest.fixture
def run(own_home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command in this process, without the second that a new one takes; an error of ours stays one."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> Done:
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", ["hasten", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        written = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Done(arguments, ended.value.code, written.out, written.err)

    yield run
    signal.signal(signal.SIGTERM, handler)


def hasten(*arguments: str, home: Path, **variables: str) -> Done:
    """Run a command as a user does, with a home of its own and nothing of the caller's settings."""
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
    (["check", "digits", "--probe"], "--probe: is for studies"),
    (["clean", "--delete"], "nobody can answer"),
    (["clean", "--trial-best", "-1"], "greater than or equal to 0"),
    (["status", "--watch"], "--watch: needs a study"),
    (["frobnicate"], "No such command"),
    (["train"], "Missing argument"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=lambda value: " ".join(value)[:50])
def test_bad_input_ends_with_two_and_one_message(
    arguments: list[str], message: str, run: Run, own_home: Path
) -> None:
    done = run(*arguments)
    assert message in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not own_home.exists(), "nothing was started for it"


def test_a_process_ends_as_its_command_does(tmp_path: Path) -> None:
    done = hasten("check", "digits", "-s", "optimizer.lrr=1", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error optimizer.lrr: unknown key")
    assert "Traceback" not in done.stderr


def test_a_file_that_asks_for_objects_is_refused(run: Run, tmp_path: Path) -> None:
    evil = tmp_path / "evil.yaml"
    evil.write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/gone']\n")
    done = run("check", str(evil))
    assert done.returncode == 2
    assert "not valid YAML" in done.stderr
    assert not (tmp_path / "gone").exists()


def test_check_ends_with_one_json_object(run: Run) -> None:
    done = run("check", "paper", "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kind"] == "study"
    assert len(found["trials"]) == 18
    assert done.returncode == 0


SEARCH = [
    "search",
    "-s", "search={kind: optuna, trials: 27}",
    "-s", "stopping={kind: asha, grace: 0.1, reduction: 3}",
    "-s", "constraints=['optimizer.lr * optimizer.batch <= 1']",
    "-s", "seeds=[0, 1]",
    "-s", "limits={cpu_hours: 3}",
]  # fmt: skip


def test_check_says_what_a_search_will_do(run: Run) -> None:
    done = run("check", *SEARCH, "--json")
    assert done.returncode == 0, done.stderr
    for words in (
        "logarithmic",
        "only where optimizer.lr * optimizer.batch <= 1",
        "optuna search, 27 points x 2 seed(s): 54 trials, of which 34 are proposed as others end",
        "a point starts when all are over that lie 4 or more before it",
        "stopping: asha by eval/loss after 9,600 (about 18 go on), 28,800 (about 6 go on)",
        "limits: cpu_hours 3",
        "CLTS's time average",
    ):
        assert words in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["total"], len(found["trials"])) == (54, 20)
    assert [(rung["images"], rung["left"]) for rung in found["rungs"]] == [(9600, 18), (28800, 6), (86400, 2)]
    assert found["images"] == 54 * 96_000


def test_check_says_what_is_shared(run: Run) -> None:
    """Two arms that are the same until half of the run."""
    switches = {"baseline": 0.5, "late": 0.75}
    arms = {name: {"curriculum": {"kind": "two_phase", "switch": at}} for name, at in switches.items()}
    command = ["check", "paper", "--json", "-s", f"arms={json.dumps(arms)}"]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["sharing"], found["shared"]) == (3, 3 * 48_000)
    assert "3 trials go on from a checkpoint of another one" in done.stderr
    alone = run(*command, "-s", "execution.share_prefixes=false")
    assert json.loads(alone.stdout.splitlines()[-1])["shared"] == 0


def test_a_population_is_counted_once(run: Run) -> None:
    done = run("check", "search", "-s", "search={kind: pbt, members: 4}", "--json")
    assert done.returncode == 0, done.stderr
    assert "a population of 4, 10 generations: 40 trials" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["images"] == 4 * 96_000


def test_the_status_of_a_study_starts_nothing(run: Run, own_home: Path) -> None:
    done = run("status", "paper")
    assert done.returncode == 1
    assert "hasten up" in done.stderr
    assert not own_home.exists()


def test_dry_runs_start_nothing(run: Run, own_home: Path) -> None:
    for command in (["train", "digits", "--dry-run"], ["sweep", "demo", "--dry-run"]):
        assert run(*command).returncode == 0
    assert not own_home.exists()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["check", "paper"], ["sweep", "demo", "--dry-run"], ["status"]]
)
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


def test_a_folder_is_a_store(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_STORAGE_URI", str(tmp_path / "store"))
    done = run("data", "import", "digits", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["status"], found["count"], found["shape"]) == ("imported", 1797, [1, 8, 8])
    again = run("data", "import", "digits", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["status"] == "unchanged"
    described = run("data", "describe", "digits", "--json")
    assert json.loads(described.stdout.splitlines()[-1])["digest"] == found["digest"]
    unknown = run("data", "describe", "cats")
    assert unknown.returncode == 2
    assert "no data set at" in unknown.stderr
