"""The shared view: what the server's pages read from the experiment's tag, and the links to it."""

import json
from urllib.parse import parse_qs, urlsplit

from hasten.platform import shared_view

MAX_TAG = 20_000  # characters, the server's limit

PARAMS = ["curriculum.kind", "curriculum.mu"]


def view(**changes):
    plain = {
        "kind": "trial",
        "metrics": ["final/eval/loss", "final/eval/frechet"],
        "params": PARAMS,
        "axes": PARAMS[:1],
        "image_step": 96_000,
    }
    return json.loads(shared_view.state(**(plain | changes)))


def test_columns_are_as_given_and_wide_enough():
    state = view()
    assert state["selectedColumns"][:4] == [
        "metrics.`final/eval/loss`",
        "metrics.`final/eval/frechet`",
        "params.`curriculum.kind`",
        "params.`curriculum.mu`",
    ]
    shown = [column for column in state["columnOrder"] if column in state["selectedColumns"]]
    assert shown == state["selectedColumns"]
    assert set(state["columnOrder"]) == set(state["columnWidths"])


def test_the_best_run_comes_first():
    assert view()["orderByKey"] == "metrics.`final/eval/loss`"
    assert view()["orderByAsc"] is True
    assert view(metrics=["best/eval/recall"])["orderByAsc"] is False


def test_charts_lie_in_sections_that_exist():
    state = view()
    charts = {chart["type"]: chart for chart in state["compareRunCharts"]}
    assert charts["IMAGE"]["step"] == 96_000
    assert charts["PARALLEL"]["selectedParams"] == ["curriculum.kind"]
    assert charts["PARALLEL"]["selectedMetrics"] == ["final/eval/loss"]
    sections = [section["uuid"] for section in state["compareRunSections"]]
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == set(sections)
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == len(state["compareRunCharts"])
    assert "PARALLEL" not in {chart["type"] for chart in view(axes=[])["compareRunCharts"]}


def test_a_large_space_fits_into_a_tag():
    many = [f"some.dotted.parameter.name{number}" for number in range(40)]
    assert len(json.dumps(view(params=many, axes=many))) < MAX_TAG


def test_links_survive_a_base_path_and_a_trailing_slash():
    address = shared_view.compare_url("http://host/mlflow/", experiment_ids=["7"], run_ids=["a", "b"])
    path, _, query = urlsplit(address).fragment.partition("?")
    assert address.startswith("http://host/mlflow/#/")
    assert path == "/compare-runs"
    assert json.loads(parse_qs(query)["runs"][0]) == ["a", "b"]
    assert json.loads(parse_qs(query)["experiments"][0]) == ["7"]
    assert shared_view.run_url("http://host", experiment_id="1", run_id="a").startswith(
        "http://host/#/experiments/1/runs/a?"
    )
