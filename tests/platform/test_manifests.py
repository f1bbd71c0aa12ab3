"""What other schedulers get, looked at by their own tools: published schemas, systemd, Airflow."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.platform.retraining import pipeline as pipelines
from hasten.platform.retraining.pipeline import Pipeline, Schedule
from hasten.platform.scheduling import calendar, manifests
from hasten.platform.scheduling.manifests import Target, systemd

CRONS = (
    "0 3 * * *",
    "*/15 * * * *",
    "30 2 * * 1-5",
    "0 0 1 * *",
    "5 4 1,15 * 1",
    "0 22 * 1-3,dec sun",
    "7 */6 * * *",
)
SCHEMAS = next(
    (
        each / "shared" / "schemas" / "kuberay"
        for each in Path(__file__).resolve().parents
        if (each / "shared").is_dir()
    ),
    Path("nowhere"),
)


def rendered(target: Target, **changes: Any) -> dict[str, str]:
    return manifests.render(
        target, pipeline(**changes), image="registry.example.org/hasten:1", namespace="ml", cluster="train"
    )


def pipeline(**changes: Any) -> Pipeline:
    return pipelines.load("digits", {"name": "Nightly.digits", **changes})


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def reads_back(text: str) -> None:
    """The pipeline that a manifest carries is the one that it was made from."""
    fields = yaml.safe_load(text)
    assert Pipeline.model_validate(fields) == pipeline()


@pytest.mark.parametrize("cron", CRONS)
def test_a_cron_job_is_one_by_kubernetes_schemas(cron: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kubernetes_validate
    (text,) = rendered(Target.KUBERNETES, **{"schedule.cron": cron, "limits.hours": 2.0}).values()
    config_map, job = documents(text)
    for document in (config_map, job):
        kubernetes_validate.validate(document, "1.33", strict=True)
    reads_back_with(config_map["data"]["pipeline.yaml"], cron)
    spec = job["spec"]
    assert spec["schedule"] == cron
    assert spec["timeZone"] == "UTC"
    assert spec["concurrencyPolicy"] == "Forbid"
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][-3:] == ["hasten", "retrain", "pipeline.yaml"]
    assert container["envFrom"] == [{"secretRef": {"name": "hasten"}}]
    assert pod["securityContext"]["runAsNonRoot"]
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] > 7200
    broken = {**job, "spec": {**spec, "concurrencyPolicy": 3}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.33", strict=True)


def reads_back_with(text: str, cron: str) -> None:
    found = Pipeline.model_validate(yaml.safe_load(text))
    assert found == pipeline(**{"schedule.cron": cron, "limits.hours": 2.0})


@pytest.mark.skipif(
    not SCHEMAS.is_dir(), reason="KubeRay's published schemas are not at ../shared/schemas/kuberay"
)
def test_a_ray_cron_job_is_one_by_kuberays_schema() -> None:
    known = yaml.safe_load((SCHEMAS / "ray.io_raycronjobs.yaml").read_text())
    schema = closed(known["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    (text,) = rendered(Target.RAYCRONJOB).values()
    assert "burst" in text
    config_map, job = documents(text)
    reads_back(config_map["data"]["pipeline.yaml"])
    jsonschema.validate(job, schema)
    assert job["spec"]["jobTemplate"]["entrypoint"] == "hasten retrain pipeline.yaml"
    job["spec"]["concurrencyPolicy"] = "Forbid"
    with pytest.raises(jsonschema.ValidationError, match="concurrencyPolicy"):
        jsonschema.validate(job, schema)


def closed(schema: Any) -> Any:
    """As strict as the API server is: a field that the schema does not name is a mistake."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    free = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
    if made.get("type") == "object" and "properties" in made and not free:
        made["additionalProperties"] = False
    if made.pop("x-kubernetes-int-or-string", None):
        made.pop("type", None)
    return made


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze"
)


@needs_systemd
@pytest.mark.parametrize("cron", CRONS)
def test_units_are_verified_by_systemd(cron: str, tmp_path: Path) -> None:
    files = rendered(Target.SYSTEMD, **{"schedule.cron": cron, "schedule.jitter": 60.0, "limits.hours": 2.0})
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    units = [str(tmp_path / name) for name in files if name.endswith((".service", ".timer"))]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    mine = [line for line in done.stderr.splitlines() if "hasten-" in line]
    assert not mine, done.stderr
    assert done.returncode == 0, done.stderr
    timer = files["hasten-Nightly.digits.timer"]
    assert "Persistent=true" in timer
    assert "RandomizedDelaySec=60" in timer
    reads_back_or(files["Nightly.digits.yaml"])
    (tmp_path / "hasten-Nightly.digits.timer").write_text(
        timer.replace("OnCalendar=", "OnCalendar=nonsense ")
    )
    broken = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", units[1]], capture_output=True, text=True
    )
    assert "nonsense" in broken.stderr


def reads_back_or(text: str) -> None:
    assert Pipeline.model_validate(yaml.safe_load(text)).name == "Nightly.digits"


def elapses(events: list[str], start: datetime, count: int) -> list[datetime]:
    """When systemd says that calendar events come, in UTC."""
    found: set[datetime] = set()
    for event in events:
        command = [
            "systemd-analyze",
            "calendar",
            f"--iterations={count}",
            f"--base-time={start:%Y-%m-%d %H:%M:%S} UTC",
        ]
        done = subprocess.run(
            [*command, f"{event} UTC"], capture_output=True, text=True, env={**os.environ, "TZ": "UTC"}
        )
        assert done.returncode == 0, (event, done.stderr)
        stamps = re.findall(
            r"(?:Next elapse|Iteration #\d+|Iter\. #\d+): \w{3} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC",
            done.stdout,
        )
        found |= {datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC) for stamp in stamps}
    return sorted(found)[:count]


field = st.one_of(
    st.just("*"),
    st.integers(1, 20).map(str),
    st.tuples(st.integers(1, 9), st.integers(10, 20)).map(lambda pair: f"{pair[0]}-{pair[1]}"),
)
weekday = st.sampled_from(["*", "0", "7", "1-5", "mon,wed", "6"])
month = st.sampled_from(["*", "1", "2-4", "*/3", "dec"])
step = st.sampled_from(["*", "*/15", "0", "5,35", "59"])


@needs_systemd
@settings(max_examples=60, deadline=None)
@given(step, field, field, month, weekday)
def test_timers_elapse_when_cron_does(minute: str, hour: str, day: str, months: str, days: str) -> None:
    cron = f"{minute} {hour} {day} {months} {days}"
    start = datetime(2026, 1, 31, 12, 0, 30, tzinfo=UTC)
    planned = calendar.planned(Schedule(cron=cron), start)
    expected = [next(planned) for _ in range(5)]
    assert elapses(systemd.on_calendar(cron), start, 5) == expected


def test_a_dag_is_python_and_names_its_file() -> None:
    files = rendered(Target.AIRFLOW, **{"schedule.catchup": "all", "limits.hours": 2.0})
    code = files["hasten_Nightly_digits.py"]
    compile(code, "dag.py", "exec")
    assert '"Nightly.digits.yaml"' in code
    assert "catchup=True" in code
    assert set(files) == {"Nightly.digits.yaml", "hasten_Nightly_digits.py"}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_airflow_imports_the_dag(tmp_path: Path) -> None:
    """By Airflow's own parser, in an environment of its own: its pins and ours do not go together."""
    environment = tmp_path / "airflow"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "apache-airflow-core>=3.1,<4",
    ]
    installed = subprocess.run([*pip, "apache-airflow-providers-standard"], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"Airflow cannot be installed here: {installed.stderr.strip().splitlines()[-1:]}")
    folder = tmp_path / "dags"
    folder.mkdir()
    for name, content in rendered(Target.AIRFLOW, **{"limits.hours": 2.0}).items():
        (folder / name).write_text(content)
    script = (
        "import sys, json\n"
        "from airflow.dag_processing.dagbag import DagBag\n"
        "bag = DagBag(sys.argv[1])\n"
        "dag = bag.dags['hasten-Nightly.digits']\n"
        "(task,) = dag.tasks\n"
        "print(json.dumps({'errors': bag.import_errors, 'runs': dag.max_active_runs,\n"
        "    'catchup': dag.catchup,\n"
        "    'command': task.bash_command, 'timetable': dag.timetable.summary, 'env': task.env}))\n"
    )
    variables = {
        "AIRFLOW_HOME": str(tmp_path / "home"),
        "PATH": os.environ["PATH"],
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    done = subprocess.run(
        [str(python), "-c", script, str(folder)], capture_output=True, text=True, env=variables
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = yaml.safe_load(done.stdout.strip().splitlines()[-1])
    assert found["errors"] == {}
    assert (found["runs"], found["catchup"]) == (1, False)
    assert found["timetable"] == "0 3 * * *"
    assert "hasten retrain" in found["command"]
    assert found["env"]["PIPELINE"] == str(folder / "Nightly.digits.yaml")
