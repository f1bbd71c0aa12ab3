"""The report: whole without a network, safe with any text in it, honest when there is no winner."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hasten.sweeps.compare import compare
from hasten.sweeps.records import TrialResult
from hasten.sweeps.reports import charts
from hasten.sweeps.reports.report import write_report
from hasten.sweeps.statistics.comparison import Comparison
from hasten.trainers.records import Point, RunResult

PNG = b"\x89PNG\r\n\x1a\n"
HOSTILE = "</script><script>alert(1)</script>"


def trial(arm: str, seed: int, *, factor: float) -> TrialResult:
    """A noisy curve that falls to ``factor`` times the baseline's, with 21 evaluations."""
    noise = np.random.default_rng(seed).normal(0.0, 0.003, size=21)
    own = np.random.default_rng([seed, len(arm)]).normal(0.0, 0.001, size=21)
    values = factor * (0.1 + 0.9 * np.exp(-np.linspace(0.0, 9.0, 21))) + noise + own
    history = [
        Point(step=4800 * index, metrics={"eval/loss": float(value)}) for index, value in enumerate(values)
    ]
    result = RunResult(
        run=f"{arm}-s{seed}",
        fingerprint=f"{seed:012x}",
        status="finished",
        images=96000,
        seconds=60.0,
        metrics={"eval/loss": float(values[-1])},
        history=history,
        spec={
            "name": "digits",
            "budget": {"images": 96000, "seed": seed},
            "curriculum": {"kind": "uniform"} if arm == "baseline" else {"kind": "clts", "mu": 0.3},
            "eval": {"loss": {"every": 0.05, "images": 360}},
        },
        data_digest="sha256:digest",
        environment={"torch": "2.9"},
    )
    return TrialResult(trial=result.run, arm=arm, seed=seed, result=result)


def study(**factors: float) -> list[TrialResult]:
    return [trial(arm, seed, factor=factor) for arm, factor in factors.items() for seed in range(3)]


def write(results: list[TrialResult], folder: Path, **texts: object) -> tuple[Comparison, str, list[Path]]:
    comparison = compare(results, study=str(texts.pop("study", "paper")))
    arguments = {"title": "paper", "question": "Which?", **texts}
    paths = write_report(comparison, results, folder, **arguments)
    return comparison, paths[0].read_text("utf-8"), paths


class Reader(HTMLParser):
    """What a browser would see: the tags with their attributes, and the text outside scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

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


def test_the_page_and_its_plots(tmp_path: Path) -> None:
    results = study(baseline=1.0, clts=0.8)
    comparison, page, paths = write(
        results,
        tmp_path / "new",
        samples={"clts": PNG + b"two", "baseline": PNG + b"one"},
        links={"MLflow": "http://127.0.0.1:5000/#/experiments/1", "Repeat": "hasten sweep paper"},
        notes=["a note of the caller"],
        expectation="nothing much",
    )
    assert [path.name for path in paths] == ["report.html", "curves.png", "differences.png", "speedups.png"]
    assert all(path.read_bytes().startswith(PNG) for path in paths[1:])
    seen = Reader(page)
    assert comparison.verdict == "clts beats baseline"
    assert comparison.verdict in seen.text
    for words in (
        "Which?",
        "0, 1, 2",
        "loss.every 0.05",
        "curriculum.kind=clts, curriculum.mu=0.3",
        "a note of the caller",
        "nothing much",
        "hasten sweep paper",
        "sha256:digest",
        "reconstruction",
    ):
        assert words in seen.text, words
    captions = [figure["alt"] for figure in seen.all("img") if (figure["alt"] or "").startswith("Samples")]
    assert captions == ["Samples of baseline", "Samples of clts"]


def test_no_winner_is_said_first(tmp_path: Path) -> None:
    _, page, _ = write(study(baseline=1.0, clts=1.001), tmp_path)
    assert re.search(r"<h1>(.*?)</h1>", page).group(1) == "No clear winner"


def test_the_page_asks_for_nothing_from_anywhere(tmp_path: Path) -> None:
    _, page, _ = write(study(baseline=1.0, clts=0.8), tmp_path, samples={"clts": PNG})
    seen = Reader(page)
    assert not seen.all("link")
    assert not any("src" in script for script in seen.all("script"))
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in seen.all("img"))
    policy = next(meta["content"] or "" for meta in seen.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert "ast: true" in page
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style
    assert "url(" not in style.group(1)


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    results = study(baseline=1.0, **{HOSTILE: 0.8, "a.b[0]\"'": 0.9})
    _, page, _ = write(
        results,
        tmp_path,
        study=HOSTILE,
        title=f"<img src=x onerror=alert(1)>{HOSTILE}",
        question=HOSTILE,
        notes=[HOSTILE],
        expectation=HOSTILE,
        samples={HOSTILE: PNG},
        links={HOSTILE: "javascript:alert(1)", "broken": "http://[", "quoted": 'http://x/"onclick="y'},
    )
    seen = Reader(page)
    assert len(seen.all("script")) == 2
    assert "alert(1)" in seen.text
    assert not any("onerror" in attributes or "onclick" in attributes for _, attributes in seen.tags)
    assert all((link["href"] or "").startswith(("http://", "https://")) for link in seen.all("a"))


def test_the_charts_in_the_page_hold_every_arm(tmp_path: Path) -> None:
    comparison, page, _ = write(study(baseline=1.0, **{HOSTILE: 0.8}), tmp_path)
    found = re.search(r"const charts = (.*);\n", page)
    assert found
    views = json.loads(found.group(1))
    assert set(views) == {"chart-curves", "chart-closing", "chart-differences", "chart-speedups"}
    for view in views.values():
        arms = {row["arm"] for rows in view["datasets"].values() for row in rows if "arm" in row}
        assert HOSTILE in arms
    assert set(charts.palette(comparison)) == {"baseline", HOSTILE}


def test_values_that_are_not_finite_are_not_drawn(tmp_path: Path) -> None:
    results = study(baseline=1.0, clts=0.8)
    wild = results[-1].result
    history = [
        point if point.step < 48000 else Point(step=point.step, metrics={"eval/loss": float("nan")})
        for point in wild.history
    ]
    diverged = wild.model_copy(update={"history": history, "metrics": {"eval/loss": float("inf")}})
    results[-1] = TrialResult(trial="clts-s2", arm="clts", seed=2, result=diverged)
    comparison, page, _ = write(results, tmp_path)
    assert comparison.verdict == "no clear winner"
    assert "NaN" not in re.search(r"const charts = (.*);\n", page).group(1)
    assert "clts diverged" in Reader(page).text


@pytest.mark.parametrize("results", [[], study(baseline=1.0), study(clts=0.8)])
def test_whatever_is_missing(results: list[TrialResult], tmp_path: Path) -> None:
    (tmp_path / "speedups.png").write_bytes(b"of an earlier report")
    _, page, paths = write(results, tmp_path)
    assert "No clear winner" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)


def test_more_arms_than_colours_differ_in_dashes() -> None:
    arms = [f"arm{index:02d}" for index in range(14)]
    comparison = compare(study(baseline=1.0, **dict.fromkeys(arms, 0.9)), study="s")
    curves = charts.curves(comparison, width=400)
    assert curves is not None
    bold = charts.vegalite(curves)["layer"][1]["encoding"]
    strokes = dict(zip(bold["color"]["scale"]["domain"], bold["color"]["scale"]["range"], strict=True))
    dashes = dict(
        zip(bold["strokeDash"]["scale"]["domain"], bold["strokeDash"]["scale"]["range"], strict=True)
    )
    assert len({(strokes[arm], tuple(dashes[arm])) for arm in ["baseline", *arms]}) == 15
