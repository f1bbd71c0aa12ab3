from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from hasten.platform import checking, schedule_plot
from hasten.sweeps import plan as plans
from hasten.sweeps import study as studies
from hasten.sweeps.reports import schedules
from hasten.trainers import curriculum, diffusion, specs
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.specs import RunSpec

CLTS = {"curriculum": {"kind": "clts", "mu": 0.3, "sigma": 0.2}}


def run(**changes: Any) -> RunSpec:
    return specs.load("digits-demo", {key.replace("__", "."): value for key, value in changes.items()})


def words(svg: Path) -> list[str]:
    """Every text in a picture."""
    texts = ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()) for text in texts]


@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": {"kind": "mdlrc"}, "optimizer__schedule": {"kind": "cosine"}},
        {"momentum": {"kind": "one_cycle"}, "optimizer__warmup": 0.0},
        {
            "momentum": {"kind": "lr_only", "delay": 0.2},
            "optimizer__schedule": {"kind": "inverse_sqrt"},
            "budget__images": 10_000,  # the last batch is short
        },
    ],
)
def test_drawn_rates_are_the_loops_own(changes: dict[str, Any]) -> None:
    """Learning rate and beta1 of every update, bit for bit."""
    from hasten.trainers import loop

    spec = run(**changes)
    total, batch = spec.budget.images, spec.optimizer.batch
    for before in range(0, total, batch):
        warmed = (before + min(batch, total - before)) / total
        assert schedules.rates(spec, before) == loop.rates(spec, before / total, warmed=warmed)


@pytest.mark.parametrize("timesteps", [1000, 130, 10])
@pytest.mark.parametrize(
    "kind", [{"kind": "uniform"}, CLTS["curriculum"], {"kind": "two_phase", "switch": 0.5}]
)
def test_heatmap_is_the_pmf_relative_to_uniform(kind: dict[str, Any], timesteps: int) -> None:
    """Its mean over all timesteps is 1 at every moment, whether or not they divide into bins evenly."""
    spec = run(curriculum=kind, diffusion__timesteps=timesteps)
    cells = schedules.density(spec)
    moments, bins = cells.shape
    edges = np.linspace(0, timesteps, bins + 1).round().astype(int)
    np.testing.assert_allclose(cells @ np.diff(edges) / timesteps, 1.0, rtol=1e-12)
    for row in (0, moments // 2 - 1, moments // 2, moments - 1):
        p = curriculum.pmf(spec.curriculum, (row + 0.5) / moments, diffusion.alphas_bar(spec.diffusion))
        expected = [timesteps * part.mean() for part in np.split(p, edges[1:-1])]
        np.testing.assert_allclose(cells[row], expected, rtol=1e-12)
    if kind["kind"] == "uniform":
        np.testing.assert_allclose(cells, 1.0)
    else:
        assert np.ptp(cells) > 0.1


def test_page_shows_every_schedule_and_needs_no_network(tmp_path: Path) -> None:
    spec = run(**CLTS, momentum={"kind": "mdlrc"}, ema={"kind": "power", "stds": [0.05, 0.1]})
    page = schedule_plot.draw(spec, tmp_path)
    assert page == tmp_path / "schedules-digits-demo.html"
    text = page.read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.https?:", text)
    for title in ("timesteps", "learning rate", "beta1", "learning rate / (1 - beta1)", "loss weight"):
        assert json.dumps(title) in text
    for name in ("averaged weights", "std 0.05", "std 0.1"):
        assert json.dumps(name) in text


def test_pictures(tmp_path: Path) -> None:
    spec = run(momentum={"kind": "linear", "final": 0.5}, ema={"kind": "classic", "decay": 0.999})
    png = schedule_plot.draw(spec, tmp_path / "picture.png")
    with Image.open(io.BytesIO(png.read_bytes())) as picture:
        assert min(picture.size) > 1000
        assert len(set(picture.convert("RGB").resize((200, 200)).getdata())) > 20  # something is drawn
    texts = words(schedule_plot.draw(spec, tmp_path / "picture.svg"))
    assert "digits-demo: schedules over 25,600 images" in texts
    assert "decay 0.999" in texts
    # One run needs no names in its legends.
    assert "digits-demo" not in texts


@pytest.mark.parametrize(("kind", "noted"), [("clusters", True), ("second_moment", True), ("uniform", False)])
def test_adaptive_curriculum_is_marked_as_such(tmp_path: Path, kind: str, noted: bool) -> None:
    texts = words(schedule_plot.draw(run(curriculum={"kind": kind}), tmp_path / "run.svg"))
    assert any("adapts to the losses" in text for text in texts) == noted


def test_twin_is_drawn_at_three_moments_and_a_still_weight_once(tmp_path: Path) -> None:
    moving = {"kind": "twin", "of": CLTS["curriculum"]}
    texts = words(schedule_plot.draw(run(weighting=moving), tmp_path / "run.svg"))
    assert {"at 0%", "at 50%", "at 100%"} <= set(texts)
    texts = words(schedule_plot.draw(run(weighting={"kind": "min_snr"}), tmp_path / "run.svg"))
    assert not any(text.startswith("at ") for text in texts)


def study(tmp_path: Path, arms: dict[str, Any]) -> plans.Plan:
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps({"name": "mine", "base": "digits-demo", "arms": arms}))
    return plans.plan(studies.load(str(file)))


def test_arms_share_a_page_and_equal_ones_a_curve(tmp_path: Path) -> None:
    plan = study(
        tmp_path,
        {
            "baseline": {},
            "clts": CLTS,
            "mdlrc": {"momentum": {"kind": "mdlrc"}},
            "lr-only": {"momentum": {"kind": "lr_only"}},
        },
    )
    texts = words(schedule_plot.draw_plan(plan, tmp_path / "study.svg"))
    assert "mine: schedules over 25,600 images" in texts
    # Two densities, two rates, two momenta, three quotients, one average.
    assert {"timesteps: baseline, mdlrc, lr-only", "timesteps: clts"} <= set(texts)
    legends = [text for text in texts if "timesteps" not in text]
    assert legends.count("baseline, clts") == 2
    assert legends.count("mdlrc, lr-only") == 1
    assert legends.count("baseline, clts, lr-only") == 1
    assert legends.count("mdlrc") == 2
    assert legends.count("lr-only") == 1
    assert legends.count("std 0.05") == 1


def test_more_arms_than_can_be_told_apart(tmp_path: Path) -> None:
    arms = {"baseline": {}} | {f"lr{index}": {"optimizer.lr": 1.1e-3 * index} for index in range(1, 10)}
    texts = words(schedule_plot.draw_plan(study(tmp_path, arms), tmp_path / "study.svg"))
    assert "mine: schedules over 25,600 images (the first 8 of 10 arms)" in texts
    assert "lr7" in texts
    assert "lr8" not in texts


def test_unknown_kind_of_picture_is_bad_input(tmp_path: Path) -> None:
    for name in ("plot.pdf", "plot"):
        with pytest.raises(ConfigError, match=r"\.html, \.png, \.svg") as error:
            schedule_plot.draw(run(), tmp_path / name)
        assert error.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="cannot be written"):
        schedule_plot.draw(run(), tmp_path / "nowhere" / "plot.svg")


def test_drawing_needs_no_torch() -> None:
    """`hasten check` answers in a blink."""
    code = "import sys; from hasten.platform import checking, schedule_plot; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def printed(spec: RunSpec) -> str:
    console = Console(file=io.StringIO(), width=160)
    checking.check_run(spec, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_check_prints_the_rate_with_schedule_and_momentum_together() -> None:
    """At half time a cosine has halved the rate and MDLRC left 0.55 of it, at beta1 9/11."""
    spec = run(momentum={"kind": "mdlrc"}, optimizer__schedule={"kind": "cosine"}, optimizer__lr=4e-3)
    half = next(line.split() for line in printed(spec).splitlines() if line.startswith("     50%"))
    assert half[1:4] == ["0.818", "1.10e-03", "6.05e-03"]


def test_check_says_that_a_curriculum_adapts() -> None:
    text = printed(run(curriculum={"kind": "clusters", "clusters": 4}))
    assert "clusters adapts to the losses" in text
    assert "inf" in text  # most timesteps are never drawn at first
    assert "adapts" not in printed(run())


def test_check_draws_runs_and_studies(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    one = checking.plot(run(), tmp_path / "run.svg", console)
    several = checking.plot(study(tmp_path, {"baseline": {}, "clts": CLTS}), tmp_path, console)
    assert [Path(one).name, Path(several).name] == ["run.svg", "schedules-mine.html"]
    assert isinstance(console.file, io.StringIO)
    assert several in console.file.getvalue()
