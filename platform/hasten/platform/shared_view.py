"""The view of a study that every printed link opens: columns, learning curves, parallel coordinates, images.

The server shows neither metrics nor parameters as columns by itself, collapses nested runs and opens its
image grid on a step that may not exist. A view shared through the experiment tag
``mlflow.sharedViewState.KEY`` mends all of it. The format is undocumented: it was read from the pages of
MLflow 3.17, to which ``pyproject.toml`` pins us, and looked at in a browser.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

from hasten.platform.identity import ARM, SEED, STOPPED_BY, quoted
from hasten.platform.scores import mode_of, source_of
from hasten.trainers.tracker import EVAL_LOSS, FIXED_NOISE_GRID, TRAIN_LOSS

KEY: Final = "hasten"
TAG: Final = f"mlflow.sharedViewState.{KEY}"

_TRAINING: Final = "workflowType=machine_learning"  # a fresh browser opens on language-model pages
_CURVES: Final = "curves"
_SAMPLES: Final = "samples"
_SEARCH: Final = "search"
_TAGS: Final = (ARM, SEED, STOPPED_BY)
_RUN_NAME: Final = "attributes.`Run Name`"
_NUM_RUNS: Final = 30


def state(
    *, kind: str, metrics: Sequence[str], params: Sequence[str], axes: Sequence[str], image_step: int
) -> str:
    """The value of ``TAG``: the runs of ``kind``, best first by the first of ``metrics``.

    ``metrics`` and ``params`` become columns in this order; ``axes`` are the parameters of the parallel
    coordinates, which leave out a run that lacks one of them; ``image_step`` is the step at which the image
    grid opens.
    """
    columns = [f"metrics.`{name}`" for name in metrics]
    columns += [f"params.`{name}`" for name in params]
    columns += [f"tags.`{name}`" for name in _TAGS]
    # By itself the table sorts its columns by name and cuts long names short.
    widths = {_RUN_NAME: 190, "runDateAndNestInfo": 150, "duration": 80}
    widths |= {column: max(100, 40 + 6 * len(column.split("`")[1])) for column in columns}
    charts = [_line(EVAL_LOSS), _line(TRAIN_LOSS), _images(FIXED_NOISE_GRID, step=image_step)]
    sections = [
        _section(_CURVES, "Learning curves", columns=2, height=360),
        _section(_SAMPLES, "Samples from the same noise", columns=1, height=560),
    ]
    if axes:
        charts.append(_parallel(metrics[0], axes))
        sections.append(_section(_SEARCH, "What was tried", columns=1, height=400))
    return json.dumps(
        {
            "searchFilter": f"tags.kind = {quoted(kind)}",
            "orderByKey": f"metrics.`{metrics[0]}`",
            "orderByAsc": mode_of(source_of(metrics[0])) != "max",
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "modelVersionFilter": "All Runs",
            "datasetsFilter": [],
            "selectedColumns": columns,
            "columnOrder": list(widths),
            "columnWidths": widths,
            "runsHiddenMode": "SHOW_ALL",  # the default draws the first ten
            "compareRunCharts": charts,
            "compareRunSections": sections,
            "isAccordionReordered": True,
        }
    )


def study_url(base: str, *, experiment_id: str, charts: bool) -> str:
    """The page of an experiment in the training mode of the server, with the shared view."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"{_experiment(base, experiment_id)}/runs?{_TRAINING}&viewStateShareKey={KEY}{mode}"


def run_url(base: str, *, experiment_id: str, run_id: str) -> str:
    return f"{_experiment(base, experiment_id)}/runs/{run_id}?{_TRAINING}"


def compare_url(base: str, *, experiment_ids: Sequence[str], run_ids: Sequence[str]) -> str:
    runs, experiments = (quote(json.dumps(list(ids)), safe="") for ids in (run_ids, experiment_ids))
    return f"{base.rstrip('/')}/#/compare-runs?runs={runs}&experiments={experiments}&{_TRAINING}"


def _experiment(base: str, experiment_id: str) -> str:
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}"


def _section(uuid: str, name: str, *, columns: int, height: int) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": name,
        "display": True,
        "isReordered": True,
        "columns": columns,
        "cardHeight": height,
    }


def _chart(uuid: str, kind: str, section: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "type": kind,
        "metricSectionId": section,
        "runsCountToCompare": _NUM_RUNS,
        "deleted": False,
        "isGenerated": False,
    }


def _line(metric: str) -> dict[str, Any]:
    return _chart(f"line-{metric}", "LINE", _CURVES) | {
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _parallel(metric: str, params: Sequence[str]) -> dict[str, Any]:
    return _chart("parallel", "PARALLEL", _SEARCH) | {
        "selectedMetrics": [metric],
        "selectedParams": list(params),
        "showAllRuns": False,
    }


def _images(key: str, *, step: int) -> dict[str, Any]:
    return _chart("images", "IMAGE", _SAMPLES) | {
        "imageKeys": [key],
        "step": step,
        "showRunParams": False,  # dozens of them would push the images out of sight
    }
