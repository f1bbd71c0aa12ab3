"""The report: whole without a network, safe with any text in it, honest when there is no winner."""

from __future__ import annotations

import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert
from PIL import Image

sys.path.append(str(Path(__file__).parent))

import example_studies as examples
from example_studies import HOSTILE, TOTAL

from hasten.sweeps.compare import compare, compare_studies
from hasten.sweeps.records import TrialRecord, TrialResult
from hasten.sweeps.reports import build
from hasten.sweeps.reports.build import StudyReport, provenance_of, records_of
from hasten.sweeps.reports.sections import document
from hasten.sweeps.searching import importance
from hasten.sweeps.statistics import rungs
from hasten.trainers import specs


def sheet(*, size: int = 16) -> bytes:
    """A picture that does not compress."""
    pixels = np.random.default_rng(0).integers(0, 255, size=(size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def of_arms(results: list[TrialResult], **changes: Any) -> StudyReport:
    fields: dict[str, Any] = {
        "title": "paper",
        "question": "Which?",
        "comparison": compare(results, study="paper"),
        "records": records_of(results),
        "provenance": provenance_of(results),
    }
    return StudyReport(**{**fields, **changes})


def of_search(records: list[TrialRecord] | None = None, **changes: Any) -> StudyReport:
    """A search with everything that can be said of one."""
    study = examples.search_study(pareto=[{"metric": "cost/params"}])
    records = examples.points(study, 40) if records is None else records
    curves = {0: [record.curves["eval/loss"] for record in records]}
    fields: dict[str, Any] = {
        "title": "search",
        "study": study,
        "records": records,
        "planned": 64,
        "importances": importance.Importances(
            shares={"optimizer.lr": 0.7, "curriculum.mu": None}, points=40, images=None, explained=0.8
        ),
        "interactions": [
            importance.Interaction(
                first="optimizer.lr",
                second="optimizer.batch",
                first_values=(1e-3, 3e-3),
                second_values=(32, 64),
                predicted=((0.1, 0.2), (0.2, 0.1)),
                share=0.1,
            )
        ],
        "rungs": rungs.judge(curves, [9_600, 28_800], total=TOTAL),
    }
    return StudyReport(**{**fields, **changes})


def page(report: StudyReport, folder: Path) -> str:
    return build.write(report, folder)[0].read_text("utf-8")


def figures(text: str) -> dict[str, Any]:
    found = re.search(r"const figures = (.*);\n", text)
    assert found
    views: dict[str, Any] = json.loads(found.group(1))
    return views


class Reader(HTMLParser):
    """What a browser would see: the tags with their attributes, and the text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_report_of_arms(tmp_path: Path) -> None:
    results = examples.arms()
    report = of_arms(
        results,
        study=examples.arms_study(),
        planned=20,
        specs={
            "baseline": specs.load("digits", {}),
            "mdlrc": specs.load("digits", {"momentum.kind": "mdlrc"}),
        },
        sheets={"clts": {0: sheet(), TOTAL: sheet()}, "baseline": {TOTAL: sheet()}},
        links={"MLflow": "http://127.0.0.1:5000/#/experiments/1", "Repeat": "hasten sweep paper"},
        notes=["a note of the caller"],
        expectation="nothing much",
    )
    paths = build.write(report, tmp_path / "new", pictures=("learning", "differences"))
    assert [path.name for path in paths] == ["report.html", "report.md", "learning.png", "differences.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[2:])
    text = paths[0].read_text("utf-8")
    seen, markdown = Reader(text), paths[1].read_text("utf-8")
    for words in (
        "Which?",
        "both beats baseline",
        "0, 1, 2",
        "loss.every 0.05",
        "curriculum.kind=clts, curriculum.mu=0.3",
        "a note of the caller",
        "nothing much",
        "hasten sweep paper",
        "sha256:4f2a9c",
        "20 trials: 18 finished; 2 have not ended yet.",
        "EUR",
        "speed-up in seconds",
    ):
        assert words in seen.text, words
        plain = re.sub(r"\\(.)", r"\1", markdown)
        assert words in plain, words
    assert "reconstruction" in seen.text
    # The question and the answer come first.
    assert (
        seen.text.index("Which?") < seen.text.index("both beats baseline", 40) < seen.text.index("The arms")
    )
    names = {place.split("-")[1] for place in figures(text)}
    assert names == {"learning", "differences", "speed", "schedules"}
    shown = [image["alt"] for image in seen.all("img")]
    assert "Samples of clts after 0 images" in shown


def test_the_report_of_a_search(tmp_path: Path) -> None:
    text = page(of_search(), tmp_path)
    seen = Reader(text)
    for words in (
        "No clear best point",
        "too few to tell a gain from luck",
        "further goals",
        "64 trials:",
        "is not in the best third",
        "diverged: the loss is NaN",
        "shared prefixes",
        "early stopping",
        "rank correlation",
    ):
        assert words in seen.text, words
    names = {place.split("-")[1] for place in figures(text)}
    assert names == {"history", "parallel", "learning", "front", "importance", "rungs"}


@pytest.mark.parametrize("report", [of_arms(examples.arms()), of_search()], ids=["arms", "search"])
def test_every_plot_can_be_drawn(report: StudyReport) -> None:
    """Vega-Lite compiles each view, and its marks find their fields in the data."""
    for figure in document(report).figures:
        for charts in figure.views.values():
            for chart in charts:
                whole = {**chart, "width": 400, "datasets": dict(figure.data)}
                picture = vl_convert.vegalite_to_svg(whole)
                assert picture.count("<path") > 3, figure.name
                assert "NaN" not in re.sub(r"aria-label=\"[^\"]*\"", "", picture), figure.name


def test_no_winner_is_said_first(tmp_path: Path) -> None:
    text = page(of_arms(examples.arms(baseline=1.0, clts=1.001)), tmp_path)
    heading = re.search(r"<h1>(.*?)</h1>", text)
    assert heading
    assert heading.group(1) == "No clear winner"


def test_the_page_asks_for_nothing_from_anywhere(tmp_path: Path) -> None:
    report = of_arms(examples.arms(baseline=1.0, clts=0.8), sheets={"clts": {TOTAL: sheet(size=300)}})
    text = build.write(report, tmp_path, pictures=("learning",))[0].read_text("utf-8")
    seen = Reader(text)
    assert not seen.all("link")
    assert not any("src" in script for script in seen.all("script"))
    assert all(re.match("data:image/(png|webp);base64,", image["src"] or "") for image in seen.all("img"))
    policy = next(meta["content"] or "" for meta in seen.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert "ast: true" in text
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style
    assert "url(" not in style.group(1)


def hostile_arms() -> StudyReport:
    results = examples.arms(baseline=1.0, **{HOSTILE: 0.8, "a.b[0]\"'": 0.9, "名前": 0.95})
    return of_arms(
        results,
        title=f"<img src=x onerror=alert(1)>{HOSTILE}",
        comparison=compare(results, study=HOSTILE, notes=[HOSTILE]),
        question=HOSTILE,
        expectation=HOSTILE,
        specs={HOSTILE: specs.load("digits", {})},
        sheets={HOSTILE: {TOTAL: sheet()}},
        links={HOSTILE: "javascript:alert(1)", "broken": "http://[", "quoted": 'http://x/"onclick="y'},
        provenance={HOSTILE: HOSTILE},
    )


def hostile_search() -> StudyReport:
    study = examples.search_study(
        question=HOSTILE, space={HOSTILE: {"choice": [HOSTILE, "b"]}, "lr": {"uniform": [0, 1]}}
    )
    records = [
        examples.record(
            f"{number:04d}",
            0,
            1.0 + number / 10,
            settings={HOSTILE: HOSTILE, "lr": number / 8},
            **({"state": "failed", "failure": "program", "error": HOSTILE} if number == 7 else {}),
        )
        for number in range(8)
    ]
    return of_search(records, study=study, title=HOSTILE)


@pytest.mark.parametrize("make", [hostile_arms, hostile_search])
def test_hostile_texts_stay_texts(make: Any, tmp_path: Path) -> None:
    paths = build.write(make(), tmp_path)
    seen = Reader(paths[0].read_text("utf-8"))
    assert len(seen.all("script")) == 3
    assert "alert(1)" in seen.text
    assert not any("onerror" in attributes or "onclick" in attributes for _, attributes in seen.tags)
    assert all((link["href"] or "").startswith(("http://", "https://")) for link in seen.all("a"))
    # Outside of fenced blocks nothing of it is a tag in Markdown.
    markdown = re.sub(r"^(`{3,})\n.*?^\1$", "", paths[1].read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"(?<!\\)<(/?\w+)", markdown)) <= {
        "sub",
        "/sub",
        "details",
        "/details",
        "summary",
        "/summary",
    }


def test_the_plots_hold_every_arm(tmp_path: Path) -> None:
    views = figures(page(of_arms(examples.arms(baseline=1.0, **{HOSTILE: 0.8})), tmp_path))
    for view in views.values():
        assert HOSTILE in {row["arm"] for rows in view["data"].values() for row in rows if "arm" in row}


def test_values_that_are_not_finite_are_not_drawn(tmp_path: Path) -> None:
    results = examples.arms(baseline=1.0, clts=0.8)
    losses = [
        (images, value if images < TOTAL / 2 else float("nan")) for images, value in examples.curve(0.8, 2, 1)
    ]
    wild = examples.record("clts", 2, 0.8, metrics={"eval/loss": float("inf")}, curves={"eval/loss": losses})
    results[-1] = examples.result(wild)
    text = page(of_arms(results), tmp_path)
    assert "No clear winner" in text
    assert not re.search(r"NaN|Infinity", re.search(r"const figures = (.*);\n", text).group(1))  # type: ignore[union-attr]
    assert "clts diverged" in Reader(text).text


def failed(record: TrialRecord) -> TrialRecord:
    update = {"state": "failed", "failure": "memory", "error": "", "metrics": {}, "curves": {}, "images": 0}
    return record.model_copy(update=update)


@pytest.mark.parametrize(
    "results",
    [
        [],
        examples.arms(1, baseline=1.0),
        examples.arms(1, clts=0.8),
        examples.arms(3, baseline=1.0),
        [examples.result(failed(one.record)) for one in examples.arms() if one.record],
    ],
    ids=["nothing", "one trial", "no baseline", "one arm", "all failed"],
)
def test_arms_with_whatever_is_missing(results: list[TrialResult], tmp_path: Path) -> None:
    (tmp_path / "speed.png").write_bytes(b"of an earlier report")
    paths = build.write(of_arms(results), tmp_path)
    assert "No clear winner" in paths[0].read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]


@pytest.mark.parametrize("kept", [slice(0, 0), slice(0, 1), slice(0, 2), slice(11, 12)])
def test_a_search_with_whatever_is_missing(kept: slice, tmp_path: Path) -> None:
    study = examples.search_study()
    report = StudyReport(title="search", study=study, records=examples.points(study, 12)[kept])
    text = Reader(page(report, tmp_path)).text
    assert re.search("No point counts yet|Nothing was tried yet|No clear best point", text)


def test_a_study_that_was_never_run_has_a_report(tmp_path: Path) -> None:
    assert "No comparison" in page(StudyReport(title="empty"), tmp_path)


def test_a_report_without_records_of_their_own_draws_the_runs(tmp_path: Path) -> None:
    results = [
        TrialResult(trial=one.trial, arm=one.arm, seed=one.seed, result=one.result)
        for one in examples.arms(baseline=1.0, clts=0.8)
    ]
    views = figures(page(of_arms(results), tmp_path))
    learning = next(view for name, view in views.items() if "learning" in name)
    assert len({row["trial"] for row in learning["data"]["seeds"]}) == 6
    assert len(learning["views"]) == 2  # against images and against time


def test_a_large_search_stays_small_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    study = examples.search_study()
    records = examples.points(study, 600)
    report = StudyReport(title="search", study=study, records=records, planned=600)
    paths = build.write(report, tmp_path)
    text = paths[0].read_text("utf-8")
    assert paths[0].stat().st_size < 2_500_000
    views = {name.split("-")[1]: view for name, view in figures(text).items()}
    assert len({row["trial"] for row in views["learning"]["data"]["others"]}) == 200
    assert len({row["point"] for row in views["parallel"]["data"]["lines"]}) == 300
    seen = Reader(text).text
    assert "395 more are left out of the drawing" in seen
    assert "Drawn: 300 of 600 points" in seen
    assert len(paths[1].read_text("utf-8")) < 100_000


def test_heavy_samples_are_made_smaller(tmp_path: Path) -> None:
    heavy = sheet(size=900)
    arms = {f"arm{index}": 1.0 for index in range(12)}
    results = examples.arms(1, baseline=1.0, **arms)
    sheets = {arm: {TOTAL * step // 10: heavy for step in range(11)} for arm in arms}
    text = page(of_arms(results, sheets=sheets), tmp_path)
    seen = Reader(text)
    assert len(seen.all("img")) == 8 * 6
    assert "Left out: 4 more trials and 5 moments between." in seen.text
    assert len(text) < 48 * len(heavy) / 4


def test_several_studies_share_a_page(tmp_path: Path) -> None:
    first, second = (
        of_arms(examples.arms(baseline=1.0, clts=0.8)),
        of_arms(examples.arms(baseline=1.0, both=0.9)),
    )
    assert first.comparison
    assert second.comparison
    together = compare_studies([first.comparison, second.comparison])
    paths = build.write_together(together, [first, second], tmp_path)
    seen = Reader(paths[0].read_text("utf-8"))
    places = [tag["id"] for _, tag in seen.tags if "id" in tag]
    assert len(places) == len(set(places)) == 6
    assert len(seen.all("h1")) == 3
    assert "The studies" in seen.text
    assert paths[1].read_text("utf-8").count("\n# ") == 2


def test_samples_are_asked_for_where_there_is_room() -> None:
    assert build.pictured(of_arms(examples.arms())) == [f"{arm}-s0" for arm in examples.ARMS]
    report = of_search()
    assert report.standing
    assert build.pictured(report) == [f"{place.point}-s0" for place in report.standing.ranked[:5]]
