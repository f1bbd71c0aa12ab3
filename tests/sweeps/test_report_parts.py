"""What stands behind a report's tables and plots: rows, ranks, words, and the limits on all of them."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

sys.path.append(str(Path(__file__).parent))

import example_studies as examples
from example_studies import TOTAL

from hasten.sweeps.compare import compare, compare_studies
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.reports import (
    charts,
    comparing,
    contact,
    exploring,
    parallel,
    points,
    schedules,
    table,
    trials,
)
from hasten.sweeps.reports.document import Column, Document, Row, Section, Table
from hasten.sweeps.reports.learning import Line, learning
from hasten.sweeps.reports.markdown import escape, markdown
from hasten.sweeps.reports.standing import stand
from hasten.sweeps.study import Prices
from hasten.trainers import specs


def line(records: list[TrialRecord], name: str = "clts") -> Line:
    return Line(name=name, colour="#000000", dash=[1, 0], records=records)


# --- Learning curves ---------------------------------------------------------------------------------------


def test_bands_are_students_intervals_over_seeds() -> None:
    records = [examples.record("clts", seed, 0.9) for seed in range(4)]
    figure = learning([line(records)], metric="eval/loss", alpha=0.05)
    assert figure
    rows = {row["images"]: row for row in figure.data["means"]}
    assert len(rows) == 21
    values = [dict(record.curves["eval/loss"])[TOTAL // 2] for record in records]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    half = rows[TOTAL // 2]
    assert (half["value"], half["low"], half["high"]) == pytest.approx((np.mean(values), low, high), rel=1e-5)
    # The mean stands at the mean time of its seeds, in a unit of which there is more than two.
    seconds = np.mean([dict(record.curves["perf/seconds"])[TOTAL // 2] for record in records])
    assert half["time"] == pytest.approx(seconds, rel=1e-4)
    assert list(figure.views) == ["against images", "against time"]
    assert "seconds of training" in str(figure.views["against time"])


def test_a_run_that_ended_early_never_bends_the_mean() -> None:
    records = [examples.record("clts", seed, 0.9) for seed in range(3)]
    short = examples.record("clts", 3, 5.0, until=TOTAL // 2)
    whole = learning([line(records)], metric="eval/loss", alpha=0.05)
    also = learning([line([*records, short])], metric="eval/loss", alpha=0.05)
    assert whole
    assert also
    assert whole.data["means"] == also.data["means"]
    assert len(also.data["seeds"]) > len(whole.data["seeds"])


def test_of_very_many_seeds_only_the_mean_is_drawn() -> None:
    records = [examples.record("clts", seed, 0.9) for seed in range(201)]
    figure = learning([line(records)], metric="eval/loss", alpha=0.05)
    assert figure
    assert figure.data["seeds"] == []
    assert figure.data["means"][-1]["n"] == 201
    assert "201 single seeds are left out" in figure.caption


def test_curves_end_where_trials_were_stopped() -> None:
    study = examples.search_study()
    records = examples.points(study, 40)
    figure = learning([line(records[:1])], records[1:], metric="eval/loss", alpha=0.05)
    assert figure
    ends = {row["trial"]: row for row in figure.data["ends"]}
    stopped = {record.trial: record for record in records[1:] if record.state != "finished"}
    assert ends.keys() == stopped.keys()
    assert all(ends[name]["images"] == record.images for name, record in stopped.items())


def test_one_run_that_diverged_does_not_flatten_the_others() -> None:
    low, high = charts.domain([*np.linspace(0.1, 1.0, 500), 1e9])
    assert low == 0.1
    assert high < 2.0
    assert charts.domain([0.5]) == (0.5, 0.5)
    assert charts.domain([]) == (0.0, 1.0)
    assert charts.domain([1.0, 2.0, 4.0]) == (1.0, 4.0)


@given(st.integers(0, 5000), st.integers(2, 300))
def test_thinning_keeps_the_ends(count: int, most: int) -> None:
    kept = charts.evenly(count, most)
    assert len(kept) == len(set(kept)) == min(count, most)
    assert kept == sorted(kept)
    if kept:
        assert (kept[0], kept[-1]) == (0, count - 1)


# --- Arms --------------------------------------------------------------------------------------------------


def test_a_seed_that_never_reached_the_target_is_an_arrow_at_its_last_image() -> None:
    comparison = compare(examples.arms(baseline=1.0, clts=0.8, slow=1.3), study="s")
    figure = comparing.speed(comparison)
    assert figure
    rows = [row for row in figure.data["costs_images"] if row["arm"] == "slow"]
    assert [(row["value"], row["limit"]) for row in rows] == [(TOTAL, True)] * 3
    assert not any(row["limit"] for row in figure.data["costs_images"] if row["arm"] == "clts")
    # No median where none of three came there; the fast arm has one.
    assert {row["arm"] for row in figure.data["medians_images"]} == {"baseline", "clts"}
    ratios = [row["value"] for row in figure.data["dots_images"] if row["arm"] == "clts"]
    assert all(ratio > 1.0 for ratio in ratios)
    assert math.exp(np.mean(np.log(ratios))) == pytest.approx(
        next(row["value"] for row in figure.data["means_images"] if row["arm"] == "clts")
    )


def test_more_arms_than_colours_differ_in_dashes() -> None:
    arms = {f"arm{index:02d}": 0.9 for index in range(14)}
    comparison = compare(examples.arms(1, baseline=1.0, **arms), study="s")
    colours, dashes = charts.palette(comparison), charts.dashes(comparison)
    assert len({(colours[arm], tuple(dashes[arm])) for arm in ["baseline", *arms]}) == 15


def widest(renderable: Any, *, columns: int = 80) -> int:
    console = Console(width=columns, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return max(len(text.rstrip()) for text in console.export_text().splitlines())


@pytest.mark.parametrize("seeds", [1, 3, 7])
def test_the_terminal_tables_fit_eighty_columns(seeds: int) -> None:
    comparison = compare(examples.arms(seeds), study="paper")
    assert widest(table.render(comparison)) <= 80
    assert widest(table.render_together(compare_studies([comparison, comparison]))) <= 80
    study = examples.search_study(pareto=[{"metric": "cost/params"}])
    assert widest(points.render(stand(study, examples.points(study, 30, seeds=seeds)))) <= 80


# --- A search ----------------------------------------------------------------------------------------------


def test_lines_cross_each_axis_where_its_distribution_has_the_value() -> None:
    space = {
        "kind": {"choice": ["a", "b"]},
        "lr": {"log_uniform": [1e-4, 1e-2]},
        "mu": {"uniform": [0.0, 2.0], "when": {"kind": "b"}},
    }
    study = examples.search_study(space=space)
    records = [
        examples.record("0000", 0, 1.0, settings={"kind": "a", "lr": 1e-3}),
        examples.record("0001", 0, 1.1, settings={"kind": "b", "lr": 1e-2, "mu": 0.5}),
    ]
    figure = parallel.parallel(stand(study, records))
    assert figure
    heights = {(row["point"], row["at"]): row["y"] for row in figure.data["lines"]}
    assert heights["0000", "kind"] == 0.25
    assert heights["0001", "kind"] == 0.75
    assert heights["0000", "lr"] == pytest.approx(0.5)
    assert heights["0001", "lr"] == 1.0
    assert heights["0001", "mu"] == 0.25
    assert heights["0000", "mu"] < 0.0
    # Only the axis on which something is absent says so.
    assert [row["x"] for row in figure.data["ticks"] if row["text"] == "absent"] == [2]
    assert {row["rank"] for row in figure.data["lines"] if row["point"] == "0000"} == {0.0}


def test_the_best_so_far_only_gets_better_and_is_a_point_that_counts() -> None:
    study = examples.search_study(objective={"bounds": [{"metric": "cost/params", "at_most": 1.05e5}]})
    standing = stand(study, examples.points(study, 40))
    figure = exploring.history(standing)
    assert figure
    steps = [row["value"] for row in figure.data["steps"]]
    assert steps == sorted(steps, reverse=True)
    assert standing.best
    assert standing.best.mean
    assert steps[-1] == pytest.approx(standing.best.mean.mean, rel=1e-5)
    states = [row["state"] for row in (*figure.data["dots"], *figure.data["ends"])]
    assert len(states) == 40
    assert set(states) == {"ranked", "infeasible", "stopped", "failed"}


def test_a_best_point_needs_three_seeds_and_a_lead() -> None:
    study = examples.search_study(stopping=None)
    apart = {seeds: stand(study, examples.points(study, 12, seeds=seeds, stop=False)) for seeds in (1, 2, 3)}
    assert [apart[seeds].decided for seeds in (1, 2)] == [False, False]
    clear = [examples.record(f"{n:04d}", seed, 1.0 + n / 10, own=n) for n in range(4) for seed in range(3)]
    found = stand(study, clear)
    assert found.decided
    assert points.headline(found) == "0000 is best"


@pytest.mark.parametrize(("count", "seeds"), [(2, 3), (20, 3), (20, 5)])
def test_points_that_are_alike_have_no_best(count: int, seeds: int) -> None:
    """500 searches; 8 % is three standard errors above the 5 % that two points have."""
    rng, study = np.random.default_rng(0), examples.search_study(stopping=None)
    template = examples.record("0000", 0, 1.0, curves={})
    found = 0
    for _ in range(500):
        values = rng.normal(size=(count, seeds)) + rng.normal(size=seeds)
        records = [
            template.model_copy(
                update={
                    "arm": f"{n:04d}",
                    "trial": f"{n}-{s}",
                    "seed": s,
                    "metrics": {"eval/loss": values[n, s]},
                }
            )
            for n in range(count)
            for s in range(seeds)
        ]
        found += stand(study, records).decided
    assert found <= 0.08 * 500


# --- Trials and costs --------------------------------------------------------------------------------------


def test_every_end_is_told() -> None:
    study = examples.search_study()
    records = examples.points(study, 40)
    told = trials.summary(records, 50)
    assert told.startswith("50 trials: ")
    assert re.search(
        r"\d+ finished, \d+ stopped early \(asha\), 2 failed \(diverged\); 10 have not ended yet", told
    )
    rows = trials.notable(records)
    assert [record.state for record in rows[:2]] == ["failed", "failed"]
    assert {record.trial for record in records if record.state != "finished"} <= {
        record.trial for record in rows
    }
    assert any(record.lost for record in rows)
    assert trials.summary([], 0) == "No trials yet."
    assert trials.summary([], 3) == "3 trials: 3 have not ended yet."


def test_cost_counts_what_was_held_and_what_was_spared() -> None:
    records = [
        examples.record("a", 0, 1.0, occupied=3600.0, cpus=2.0, gpus=1.0),
        examples.record("b", 0, 1.0, occupied=1800.0, forked_from="a-s0", forked_images=24_000),
        examples.record("c", 0, 1.0, until=TOTAL // 4, occupied=1800.0),
    ]
    facts = dict(trials.cost(records, Prices(cpu_hour=0.1, gpu_hour=2.0, currency="EUR")).pairs)
    assert facts["CPU-hours"] == "3"
    assert facts["GPU-hours"] == "1"
    assert facts["money"] == "2.30 EUR"
    assert facts["images"] == f"{2 * TOTAL + TOTAL // 4 - 24_000:,} computed"
    assert facts["shared prefixes"].startswith("24,000 images (11%)")
    assert facts["early stopping"].startswith("72,000 images (25%)")


# --- Pictures and recipes ----------------------------------------------------------------------------------


def test_moments_are_equal_progress_whatever_the_budget() -> None:
    found = contact.contact_sheet(
        {"short": {0: b"a", 500: b"b", 1000: b"c"}, "long": {0: b"d", 2000: b"e"}, "none": {}},
        {"short": 1000, "long": 2000},
    )
    assert found
    assert found.moments == ("0 %", "50 %", "100 %")
    images = {name: [cell.images if cell else None for cell in cells] for name, cells in found.rows}
    assert images == {"short": [0, 500, 1000], "long": [0, None, 2000]}
    assert contact.contact_sheet({"none": {}}, {}) is None


def test_only_schedules_that_differ_are_drawn() -> None:
    runs = {"baseline": specs.load("digits", {}), "mdlrc": specs.load("digits", {"momentum.kind": "mdlrc"})}
    colours = dict.fromkeys(runs, "#000000")
    titles = [
        str(chart["title"]["text"]) for chart in schedules.schedules(runs, colours, differing=True).views[""]
    ]
    assert titles == ["learning rate", "beta1", "learning rate / (1 - beta1)"]
    assert "timesteps, loss weight" in schedules.schedules(runs, colours, differing=True).caption
    alone = {"baseline": runs["baseline"]}
    assert len(schedules.schedules(alone, colours, differing=True).views[""]) == 6


# --- Markdown ----------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=3, max_size=3))
def test_any_text_stays_in_its_cell(texts: list[str]) -> None:
    cells = Table(columns=tuple(Column(title=text) for text in texts), rows=(Row(cells=tuple(texts)),))
    document = Document(
        title="t",
        question="",
        headline="h",
        lead="",
        won=False,
        sections=(Section(title="s", blocks=(cells,)),),
    )
    rows = [row for row in markdown([document]).split("\n") if row.startswith("|")]
    assert len(rows) == 3
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 4 for row in rows)
    for text in texts:
        assert not re.search(r"(?<!\\)[<`]", escape(text))
