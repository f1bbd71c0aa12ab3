"""A DAG for Airflow 3."""

from __future__ import annotations

import json

from hasten.platform.retraining.pipeline import Pipeline, Schedule

_DAG = '''\
"""Ticks of hasten's pipeline {name}: one idempotent command. hasten's tests import it with Airflow.

The pipeline's file lies beside this one. Where catchup is on, Airflow begins every interval that it missed,
one after another; a tick that finds nothing new says "unchanged". Secrets: from the worker's environment.
"""

from datetime import datetime, timedelta
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from airflow.timetables.trigger import CronTriggerTimetable

PIPELINE = Path(__file__).with_name({file})

with DAG(
    dag_id={dag},
    schedule=CronTriggerTimetable({cron}, timezone={timezone}),
    start_date=datetime(2026, 1, 1),
    catchup={catchup},
    max_active_runs=1,
    tags=["hasten", "retraining"],
    doc_md=__doc__,
):
    BashOperator(
        task_id="tick",
        bash_command="exec hasten retrain \\"$PIPELINE\\" --json",
        env={{"PIPELINE": str(PIPELINE)}},
        append_env=True,
        retries=2,
        retry_delay=timedelta(minutes=5),{timeout}
    )
'''


def dag(pipeline: Pipeline, schedule: Schedule, text: str) -> dict[str, str]:
    """The pipeline's file and the DAG beside it.

    Airflow has no ``latest``: without its catch-up a DAG begins the latest missed run when it is switched on.
    """
    hours = pipeline.limits.hours
    timeout = "" if hours is None else f"\n        execution_timeout=timedelta(hours={hours + 0.5:g}),"
    file = f"{pipeline.name}.yaml"
    code = _DAG.format(
        name=pipeline.name,
        file=json.dumps(file),
        dag=json.dumps(f"hasten-{pipeline.name}"),
        cron=json.dumps(schedule.cron),
        timezone=json.dumps(schedule.timezone),
        catchup=schedule.catchup == "all",
        timeout=timeout,
    )
    return {file: text, f"hasten_{pipeline.name.replace('-', '_').replace('.', '_')}.py": code}
