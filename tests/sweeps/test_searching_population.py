"""Population based training by a synthetic evaluator: weights are one number that a learning rate moves."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.sweeps import plan as plans
from hasten.sweeps import space as spaces
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.searching.factory import proposals
from hasten.sweeps.searching.population import moved
from hasten.sweeps.searching.proposals import Point
from hasten.sweeps.space import Distribution
from hasten.sweeps.study import StudySpec
from hasten.trainers import config, specs
from hasten.trainers.errors import ConfigError, Fault

BASE = specs.load_raw("digits", {"budget.images": 1000, "optimizer.batch": 64, "eval.loss.every": 0.05})
SPACE: dict[str, Any] = {
    "optimizer.lr": {"log_uniform": [1e-4, 1e-1]},
    "curriculum.kind": {"choice": ["uniform", "clts", "static"]},
    "curriculum.mu": {"uniform": [0.1, 0.9], "when": {"curriculum.kind": ["clts", "static"]}},
    "curriculum.sigma": {"choice": [0.1, 0.2, 0.4], "when": {"curriculum.kind": ["clts", "static"]}},
    "curriculum.weight": {"uniform": [0.1, 0.9], "step": 0.1, "when": {"curriculum.kind": "static"}},
}


def study(**changes: Any) -> StudySpec:
    raw = {
        "name": "s",
        "base": "digits",
        "space": SPACE,
        "search": {"kind": "pbt", "members": 8, "interval": 0.1},
        "objective": {"metric": "eval/loss", "target": None},
    }
    return config.validate(StudySpec, raw | changes)


class World:
    """Runs that lower a loss the faster, the nearer the learning rate is to the best one of the moment."""

    def __init__(self, failing: Callable[[Point], bool] = lambda _: False) -> None:
        self.losses: dict[str, float] = {}
        self._failing = failing

    @staticmethod
    def factor(lr: float, generation: int) -> float:
        best = 3e-2 * 10 ** -(generation / 5)  # it falls: only a schedule follows it
        return 0.5 + 0.5 * min(1.0, abs(math.log(lr / best)))

    def run(self, point: Point) -> Mapping[int, TrialRecord]:
        run = f"digits-{hashlib.sha256(repr(point).encode()).hexdigest()[:12]}"
        loss = self.losses[point.start.run] if point.start else 1.0
        loss *= self.factor(point.settings["optimizer.lr"], point.number // 8)
        self.losses[run] = loss
        failed = self._failing(point)
        assert point.until is not None
        return {
            0: TrialRecord(
                trial=f"{point.name}-s0",
                arm=point.name,
                seed=0,
                settings=point.settings,
                run=run,
                fingerprint=run.rpartition("-")[2],
                state="failed" if failed else "finished",
                failure="diverged" if failed else None,
                images=point.until,
                total=1000,
                curves={} if failed else {"eval/loss": [(point.until, loss)]},
            )
        }


def evolve(spec: StudySpec, world: World) -> tuple[list[Point], list[Mapping[int, TrialRecord]]]:
    source = proposals(spec, BASE)
    points: list[Point] = []
    outcomes: list[Mapping[int, TrialRecord]] = []
    for number in range(source.count):
        points.append(source.point(number, outcomes[: source.needs(number)]))
        outcomes.append(world.run(points[-1]))
    return points, outcomes


def test_generations_wait_for_each_other_and_end_at_whole_batches() -> None:
    source = proposals(study(), BASE)
    assert source.count == 80
    assert [source.needs(number) for number in (0, 7, 8, 15, 16, 79)] == [0, 0, 8, 8, 16, 72]
    points, _ = evolve(study(), World())
    assert [points[number].name for number in (0, 7, 8, 79)] == ["m00-g00", "m07-g00", "m00-g01", "m07-g09"]
    ends = [points[8 * generation].until for generation in range(10)]
    assert ends == [128, 256, 320, 448, 512, 640, 704, 832, 960, 1000]
    for point in points[8:]:
        assert point.start is not None
        assert point.start.images == ends[point.number // 8 - 1]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_worst_take_over_from_the_best_and_change_while_the_others_go_on_as_they_are(mode: str) -> None:
    points, outcomes = evolve(study(objective={"metric": "eval/loss", "mode": mode, "target": None}), World())
    for generation in range(1, 10):
        before = {each[0].arm: each[0] for each in outcomes[8 * generation - 8 : 8 * generation]}
        sign = 1 if mode == "min" else -1
        ranked = sorted(before, key=lambda arm: sign * before[arm].curves["eval/loss"][-1][1])
        for member, point in enumerate(points[8 * generation : 8 * generation + 8]):
            own = f"m{member:02d}-g{generation - 1:02d}"
            assert point.parent is not None
            assert point.start is not None
            assert point.start.run == before[point.parent].run
            if own in ranked[-2:]:
                assert point.parent in ranked[:2]
                assert point.settings != before[point.parent].settings
            else:
                assert point.parent == own
                assert point.settings == before[own].settings
            assert spaces.contains(study().space, point.settings)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_repeatable_and_follows_a_moving_optimum_that_no_constant_can(seed: int) -> None:
    spec = study(search={**study().search.model_dump(), "seed": seed})
    once, outcomes = evolve(spec, World())
    again, _ = evolve(spec, World())
    assert once == again
    constants = [10 ** (-4 + 3 * step / 200) for step in range(201)]
    best = min(math.prod(World.factor(lr, generation) for generation in range(10)) for lr in constants)
    assert min(each[0].curves["eval/loss"][-1][1] for each in outcomes[-8:]) < 0.7 * best


def test_members_that_fail_are_replaced_however_many() -> None:
    spec = study(search={"kind": "pbt", "members": 8, "interval": 0.25, "quantile": 0.25})
    points, outcomes = evolve(spec, World(lambda point: point.number < 8 and point.number % 8 >= 3))
    alive = {"m00-g00", "m01-g00", "m02-g00"}
    assert {point.parent for point in points[8:16]} <= alive
    assert all(each[0].state == "finished" for each in outcomes[8:])
    with pytest.raises(Fault, match="all members failed in generation 0"):
        evolve(spec, World(lambda _: True))


def test_constraints_hold_in_every_generation() -> None:
    text = ["optimizer.lr <= 0.02", "curriculum.mu * optimizer.lr <= 0.005"]
    points, _ = evolve(study(constraints=text), World())
    assert all(point.settings["optimizer.lr"] <= 0.02 for point in points)
    assert all(
        point.settings.get("curriculum.mu", 0.0) * point.settings["optimizer.lr"] <= 0.005 for point in points
    )


def test_the_plan_knows_the_first_generation_and_counts_the_rest() -> None:
    spec = study(base_overrides={"budget.images": 1000, "optimizer.batch": 64})
    plan = plans.plan(spec)
    assert [trial.name for trial in plan.trials[:2]] == ["m00-g00-s0", "m01-g00-s0"]
    assert (len(plan.trials), plan.proposed, plan.total) == (8, 72, 80)
    points, _ = evolve(spec, World())
    trial = plans.make_trial(spec, plan.base, points[20], 0)
    assert trial.spec.start == points[20].start
    assert (trial.until, trial.images) == (320, 320 - 256)
    all_of_them = sum(plans.make_trial(spec, plan.base, point, 0).images for point in points)
    assert all_of_them == 8 * 1000


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"space": {"optimizer.batch": {"choice": [32, 64]}}}, r"^space\.optimizer\.batch: cannot change while"),
    ({"space": {"model.channels": {"choice": [16, 32]}}}, r"^space\.model\.channels: cannot change while"),
    ({"space": {"optimizer.kind": {"choice": ["adamw"]}}}, r"^space\.optimizer\.kind: cannot change while"),
    (
        {"search": {"kind": "pbt", "members": 4, "interval": 0.125}},
        r"^search\.interval: .* 0\.125 .*\n.*0\.05",
    ),
    (
        {"objective": {"metric": "eval/frechet", "target": None}},
        r"^search\.interval: .*eval/frechet is not measured\n.*eval\.samples\.at",
    ),
    ({"pareto": [{"metric": "eval/frechet"}]}, r"^pareto: pbt ranks its members by the objective alone"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_change_in_flight_or_is_not_measured_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        proposals(study(**changes), BASE)


MOVABLE = [
    Distribution(choice=("a", "b", "c")),
    Distribution(uniform=(-1.0, 2.0)),
    Distribution(uniform=(0.0, 1.0), step=0.35),
    Distribution(log_uniform=(1e-4, 1e-1)),
    Distribution(int_uniform=(1, 9)),
    Distribution(int_uniform=(-10, 10), step=5),
    Distribution(log_int_uniform=(1, 100)),
]


@given(distribution=st.sampled_from(MOVABLE), u=st.floats(0.0, 1.0, exclude_max=True), up=st.booleans())
def test_a_moved_setting_stays_in_its_range_and_moves_unless_it_is_at_an_end(
    distribution: Distribution, u: float, up: bool
) -> None:
    value = distribution.at(u)
    after = moved(distribution, value, up=up)
    assert distribution.contains(after)
    if distribution.choice is not None:
        assert after != value
    elif value not in (0.0, *distribution.extremes()):
        grows = up == (value > 0)
        assert after > value if grows else after < value
    if distribution.size is None and abs(after) not in (0.0, *map(abs, distribution.range)):
        assert after / value == pytest.approx(1.2 if up else 0.8)


def test_a_single_choice_stays() -> None:
    assert moved(Distribution(choice=("a",)), "a", up=True) == "a"
