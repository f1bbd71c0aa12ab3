"""The executor on a real Ray: processes that are reused, stops to the point, losses, and tidiness."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.state import list_actors, list_placement_groups

from hasten.platform import cluster, importing
from hasten.platform.services import Services
from hasten.platform.stack import processes
from hasten.sweeps import floor, ray_tune
from hasten.sweeps.attempt import Task
from hasten.sweeps.conducting.terms import Assignment, Ending
from hasten.sweeps.floor import Event
from hasten.sweeps.plan import Trial
from hasten.sweeps.study import StudyExecution
from hasten.trainers import session, specs
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.job import Job
from hasten.trainers.records import Report, RunResult
from hasten.trainers.tracker import EndStatus, NullTracker
from hasten.trainers.worker import Worker

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

IMAGES = 64_000
STEP = IMAGES // 20  # between evaluations
TINY = {
    "budget.images": 6400,
    "model.channels": 8,
    "eval.loss": {"every": 0.05, "images": 64},
    "eval.samples": {"at": [1.0], "images": 64, "steps": 4},
    "eval.grid": {"every": 1.0, "images": 4, "steps": 4},
}
CONDUCTS = ("TrialActor", "ResourceTrainable")  # what Ray calls a trial's process, idle and at work
RAYS_OWN = ("_StatsActor", "_AutoscalingCoordinatorActor")


@dataclass
class FakeConductor:
    """Hands out trials in order, stops those in ``stops`` at their evaluation, tries lost ones once more."""

    left: list[Assignment]
    stops: dict[str, int] = field(default_factory=dict)
    reports: dict[str, list[Report]] = field(default_factory=dict)
    endings: dict[str, list[Ending]] = field(default_factory=dict)

    def next(self) -> Assignment | None:
        return self.left.pop(0) if self.left else None

    @property
    def over(self) -> bool:
        return not self.left

    def report(self, trial: str, report: Report) -> bool:
        self.reports.setdefault(trial, []).append(report)
        return report.evaluated and report.images >= self.stops.get(trial, IMAGES + 1)

    def ended(self, trial: str, ending: Ending) -> None:
        self.endings.setdefault(trial, []).append(ending)

    def evaluations(self, trial: str) -> list[int]:
        return [report.images for report in self.reports[trial] if report.evaluated]

    def hows(self) -> dict[str, list[str]]:
        return {trial: [ending.how for ending in endings] for trial, endings in self.endings.items()}


class Retrying(FakeConductor):
    """Tries a trial again after its process was lost, a given number of times; it is not over before that."""

    def __init__(self, assignments: list[Assignment], *, times: int) -> None:
        super().__init__(assignments)
        self._known = {each.trial.name: each for each in assignments}
        self._running: set[str] = set()
        self._times = times

    def next(self) -> Assignment | None:
        assignment = super().next()
        if assignment is not None:
            self._running.add(assignment.trial.name)
        return assignment

    @property
    def over(self) -> bool:
        return not self.left and not self._running

    def ended(self, trial: str, ending: Ending) -> None:
        super().ended(trial, ending)
        self._running.discard(trial)
        if ending.failure == "lost" and len(self.endings[trial]) <= self._times:
            before = self._known[trial]
            self.left.append(dataclasses.replace(before, attempt=len(self.endings[trial]) + 1))


class Diary:
    """A tracker that writes down who told it what, in a file that the test reads."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._write("opened")

    def _write(self, what: str) -> None:
        with Path(self._path).open("a") as file:
            file.write(json.dumps([os.getpid(), what]) + "\n")

    def metrics(self, values: Any, *, step: int) -> None:
        pass

    def image(self, key: str, image: Any, *, step: int) -> None:
        pass

    def artifact(self, path: str, content: bytes) -> None:
        pass

    def tags(self, values: Any) -> None:
        pass

    def close(self, status: EndStatus) -> None:
        self._write(status)


def read(folder: Path, trial: str) -> list[tuple[int, str]]:
    """What a trial's diary says: process and word."""
    return [tuple(json.loads(line)) for line in (folder / f"{trial}.diary").read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def attached(stack: Services) -> Iterator[None]:
    importing.ensure("digits", stack.storage_uri)
    cluster.attach(stack)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cluster.detach()


@pytest.fixture
def assign(stack: Services, tmp_path: Path) -> Callable[..., Assignment]:
    """An assignment of a simulated run, or of another recipe, that leaves its things in the test's folder."""

    def build(name: str, recipe: str = "simulated", **changes: Any) -> Assignment:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        spec = specs.load(recipe, {"execution.launcher": "ray", "name": name, **dotted})
        job = dataclasses.replace(sources.bind(spec, stack.storage_uri), storage_uri=str(tmp_path / "runs"))
        trial = Trial(name=name, arm=name, seed=spec.budget.seed, spec=spec, changes={})
        return Assignment(trial=trial, job=job, attempt=1)

    return build


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[Event]]:
    """Run what a conductor hands out; the events."""

    def execute(conductor: FakeConductor, **arguments: Any) -> list[Event]:
        events: list[Event] = []

        def task(assignment: Assignment) -> Task:
            trial = assignment.trial.name
            open_tracker = functools.partial(Diary, str(tmp_path / f"{trial}.diary"))
            return Task(trial=trial, job=assignment.job, open_tracker=open_tracker)

        execution = StudyExecution(**arguments.pop("execution", {}))
        ray_tune.execute(
            conductor,
            name=tmp_path.name,
            execution=execution,
            task=task,
            scratch=str(tmp_path / "scratch"),
            **{"observe": events.append, **arguments},
        )
        return events

    return execute


def result_of(job: Job) -> RunResult:
    result = RunStore(job.uri).result()
    assert result is not None
    return result


def plain(result: RunResult) -> list[tuple[int, dict[str, float]]]:
    """A history without what depends on the clock."""
    return [
        (point.step, {key: value for key, value in point.metrics.items() if not key.startswith("perf/")})
        for point in result.history
    ]


def undisturbed(job: Job, folder: Path) -> RunResult:
    """The same run by this process, alone."""
    execution = job.spec.execution.model_copy(update={"workers": 1})
    calm = dataclasses.replace(
        job, storage_uri=str(folder), spec=job.spec.model_copy(update={"execution": execution})
    )
    list(session.run(calm, worker=Worker(), track=NullTracker()))
    return result_of(calm)


def busy() -> list[str]:
    """Actors that are alive and placement groups that are held, Ray's own left out."""
    address = ray.get_runtime_context().gcs_address  # there may be other clusters on this machine
    actors = [
        f"{actor.class_name} {actor.pid}"
        for actor in list_actors(address, filters=[("state", "!=", "DEAD")])
        if actor.class_name not in RAYS_OWN
    ]
    groups = [
        f"placement group {group.placement_group_id}"
        for group in list_placement_groups(address)
        if group.state != "REMOVED"
    ]
    return actors + groups


def processes_of(*titles: str) -> Sequence[psutil.Process]:
    """The processes of this stack with one of these words in their title."""
    members = processes.members(Path(os.environ["HASTEN_HOME"]))
    return [each for each in members if any(title in processes.title(each) for title in titles)]


def wait_until(condition: Callable[[], Any], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def assert_tidy() -> None:
    """All that was taken is given back, within seconds."""
    deadline = time.monotonic() + 15
    while left := busy():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    cpus = ray.cluster_resources()["CPU"]
    wait_until(lambda: ray.available_resources().get("CPU") == cpus, seconds=15)


def test_processes_are_reused(assign: Any, run: Any, tmp_path: Path) -> None:
    conductor = FakeConductor([assign(f"t{index}", budget__seed=index) for index in range(8)])
    trials = [each.trial.name for each in conductor.left]
    jobs = {each.trial.name: each.job for each in conductor.left}
    events = run(conductor)
    assert conductor.hows() == {trial: ["finished"] for trial in trials}
    diaries = {trial: read(tmp_path, trial) for trial in trials}
    assert all([word for _, word in diary] == ["opened", "finished"] for diary in diaries.values())
    pids = {pid for diary in diaries.values() for pid, _ in diary}
    assert len(pids) <= 2
    assert os.getpid() not in pids
    for trial in trials:
        [ending] = conductor.endings[trial]
        assert ending.result == result_of(jobs[trial])
        assert ending.seconds > 0
        assert conductor.evaluations(trial) == list(range(0, IMAGES + 1, STEP))
    assert {event.trial for event in events if event.state == "finished"} == set(trials)
    assert_tidy()


def test_a_trial_is_stopped_at_an_evaluation(assign: Any, run: Any, tmp_path: Path) -> None:
    """It does not train past it, keeps a checkpoint, and its process serves the next."""
    assignments = [assign(name, budget__seed=seed) for seed, name in enumerate("abcd")]
    conductor = FakeConductor(list(assignments), stops={"a": 3 * STEP, "c": 3 * STEP})
    run(conductor, execution={"concurrent": 1})
    assert conductor.hows() == {"a": ["stopped"], "b": ["finished"], "c": ["stopped"], "d": ["finished"]}
    for each in assignments:
        store, name = RunStore(each.job.uri), each.trial.name
        last = 3 * STEP if name in conductor.stops else IMAGES
        assert conductor.evaluations(name) == list(range(0, last + 1, STEP))
        assert store.load(store.latest() or "")["images"] == last
        assert (store.result() is None) == (name in conductor.stops)
        assert read(tmp_path, name)[-1][1] == "finished", "a rule's decision is no failure"
    assert len({pid for name in "abcd" for pid, _ in read(tmp_path, name)}) == 1
    assert_tidy()


@pytest.mark.slow
def test_a_trial_of_several_workers_is_stopped_in_mid_run(assign: Any, run: Any, tmp_path: Path) -> None:
    """Real training by two workers: it ends long before its end, its resources come back, the process that
    conducted it conducts the next one, and nothing is left behind."""
    workers = {"execution__workers": 2}
    changes = {key.replace(".", "__"): value for key, value in TINY.items()}
    assignments = [
        assign("stopped", "digits-demo", **workers, **changes, budget__seed=0),
        assign("whole", "simulated", **workers),
    ]
    conductor = FakeConductor(list(assignments), stops={"stopped": 640})
    watched: list[list[str]] = []

    def observe(event: Event) -> None:
        if event.trial == "stopped" and event.state == "stopped":
            watched.append(busy())

    run(conductor, execution={"workers": 2}, observe=observe)
    assert conductor.hows() == {"stopped": ["stopped"], "whole": ["finished"]}
    store = RunStore(assignments[0].job.uri)
    assert store.result() is None
    images = store.load(store.latest() or "")["images"]
    assert 640 <= images < 6400, "it went on for a few evaluations at most"
    assert read(tmp_path, "stopped")[-1][1] == "finished"
    [left] = watched
    groups = [each for each in left if each.startswith("placement group")]
    assert len(groups) <= 1, "the workers' own is gone when the trial has ended; Tune's is for the driver"
    assert not any("RayTrainWorker" in each for each in left)
    assert result_of(assignments[1].job).images == IMAGES
    assert_tidy()


def test_a_killed_trial_goes_on_to_the_same_result(assign: Any, run: Any, tmp_path: Path) -> None:
    """The process of a trial dies: the conductor hears so, and gives the trial again. All its evaluations are
    told once more, and no number tells that anything happened."""
    victim = assign("victim", model__seconds=4.0, execution__checkpoint_every=0.1)
    other = assign("other", budget__seed=1)
    conductor = Retrying([victim, other], times=1)
    killed: list[int] = []

    def observe(event: Event) -> None:
        if event.trial == "victim" and event.report and event.report.images >= IMAGES // 2 and not killed:
            killed.append(read(tmp_path, "victim")[-1][0])
            os.kill(killed[0], signal.SIGKILL)

    run(conductor, observe=observe)
    assert conductor.hows() == {"victim": ["failed", "finished"], "other": ["finished"]}
    lost, _ = conductor.endings["victim"]
    assert (lost.failure, lost.blameless) == ("lost", False)
    assert "its process died" in lost.error
    evaluations = conductor.evaluations("victim")
    assert evaluations[evaluations.index(0, 1) :] == list(range(0, IMAGES + 1, STEP))
    result = result_of(victim.job)
    assert result.resumed_from
    assert plain(result) == plain(undisturbed(victim.job, tmp_path / "calm"))
    assert_tidy()


@pytest.mark.slow
def test_a_killed_trial_of_several_workers_goes_on(assign: Any, run: Any, tmp_path: Path) -> None:
    """First the process that conducts the workers dies, then one of the workers: each time all of them end,
    and the next attempt goes on from the checkpoint."""
    victim = assign(
        "victim",
        model__seconds=30.0,
        model__reports=300,
        execution__workers=2,
        execution__checkpoint_every=0.1,
    )
    conductor = Retrying([victim], times=2)
    killed: list[str] = []

    def observe(event: Event) -> None:
        if event.report is None:
            return
        for titles, images in ((CONDUCTS, IMAGES // 4), (("RayTrainWorker",), IMAGES // 2)):
            if event.report.images >= images and titles[0] not in killed:
                killed.append(titles[0])
                processes_of(*titles)[0].kill()
                return

    run(conductor, execution={"workers": 2}, observe=observe)
    assert killed == ["TrialActor", "RayTrainWorker"]
    assert conductor.hows() == {"victim": ["failed", "failed", "finished"]}
    assert [ending.failure for ending in conductor.endings["victim"]] == ["lost", "lost", None]
    assert plain(result_of(victim.job)) == plain(undisturbed(victim.job, tmp_path / "calm"))
    assert_tidy()


def test_failures_are_told_apart_and_hold_nobody_up(
    assign: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial hangs for ever; beside it others fail in every way and others finish. Then all is stopped."""
    monkeypatch.setattr(floor, "_SECONDS_TO_STOP", 1.0)
    hows = ["nan", "memory", "error", "crash"]
    missing = assign("data", "digits-demo")
    missing = dataclasses.replace(
        missing, job=dataclasses.replace(missing.job, data_uri=str(tmp_path / "nowhere"))
    )
    conductor = Retrying(
        [
            assign("hang", model__fails={"at": 0.1, "how": "hang"}),
            *(assign(how, model__fails={"at": 0.5, "how": how}) for how in hows),
            missing,
            assign("fine"),
        ],
        times=0,
    )
    run(conductor, stop=lambda: "fine" in conductor.endings)
    ended = {trial: endings[-1] for trial, endings in conductor.endings.items()}
    assert {trial: ending.failure for trial, ending in ended.items()} == {
        "hang": None,
        "nan": "diverged",
        "memory": "memory",
        "error": "program",
        "crash": "lost",
        "data": "data",
        "fine": None,
    }
    assert (ended["hang"].how, ended["fine"].how) == ("stopped", "finished")
    assert ended["nan"].error == "train/loss: is not a finite number"
    assert ended["error"].error == "RuntimeError: this run was asked to fail"
    assert "\n" not in "".join(ending.error for ending in ended.values())
    assert_tidy()


def test_all_trials_stop_at_a_checkpoint_when_asked(assign: Any, run: Any, tmp_path: Path) -> None:
    assignments = [assign(f"t{index}", model__seconds=60.0, model__reports=600) for index in range(3)]
    conductor = FakeConductor(list(assignments))

    def stop() -> bool:
        return len(conductor.reports) == 2 and all(len(told) >= 2 for told in conductor.reports.values())

    run(conductor, stop=stop)
    assert conductor.hows() == {"t0": ["stopped"], "t1": ["stopped"]}
    assert len(conductor.left) == 1, "nothing is handed out any more"
    for each in assignments[:2]:
        store = RunStore(each.job.uri)
        assert 0 < store.load(store.latest() or "")["images"] < IMAGES
        assert read(tmp_path, each.trial.name)[-1][1] == "stopped"
    assert_tidy()


def test_a_conductor_that_fails_ends_the_command_in_its_own_words(assign: Any, run: Any) -> None:
    class Failing(FakeConductor):
        def ended(self, trial: str, ending: Ending) -> None:
            raise Fault("ledger", f"the disk is full: {trial} {ending.how}")

    with pytest.raises(Fault, match="ledger: the disk is full: b finished"):
        run(Failing([assign("a", model__seconds=60.0, model__reports=600), assign("b"), assign("c")]))
    assert_tidy()


@pytest.mark.parametrize(
    ("execution", "words"),
    [
        ({"cpus": 1000}, r"1 of 1000 CPUs each need 1000; the cluster has \d+"),
        ({"workers": 1000}, r"1000 of 1 CPUs each need 1000; the cluster has \d+"),
        ({"gpus": 1}, r"1 of 1 GPUs each need 1; the cluster has 0"),
        ({"concurrent": 1000}, r"1000 trials of 1 CPUs and 0 GPUs do not fit"),
    ],
)
def test_what_can_never_run_is_refused_with_the_numbers(
    assign: Any, run: Any, execution: dict[str, Any], words: str
) -> None:
    conductor = FakeConductor([assign("a")])
    with pytest.raises(ConfigError, match=words):
        run(conductor, execution=execution)
    assert conductor.left, "it was not even asked for a trial"


INTERRUPTED = """
import os, signal, sys, tempfile
from hasten.platform import cluster, services, settings
from hasten.sweeps import ray_tune
from hasten.sweeps.attempt import Task
from hasten.sweeps.conducting.terms import Assignment
from hasten.sweeps.plan import Trial
from hasten.sweeps.study import StudyExecution
from hasten.trainers import specs
from hasten.trainers.datasets import sources
from hasten.trainers.tracker import NullTracker

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
connected = services.connect(settings.load(), ray=True)
cluster.attach(connected)
spec = specs.load("simulated", {"model.seconds": 600.0, "model.reports": 6000})
job = sources.bind(spec, sys.argv[1])
trial = Trial(name="t", arm="t", seed=0, spec=spec, changes={})


class Conductor:
    over = False

    def next(self):
        return Assignment(trial=trial, job=job, attempt=1)

    def report(self, trial, report):
        os.kill(os.getpid(), signal.SIGINT)
        return False

    def ended(self, trial, ending):
        print(trial, ending.how)


try:
    ray_tune.execute(
        Conductor(),
        name="interrupted",
        execution=StudyExecution(concurrent=1),
        task=lambda assignment: Task(trial="t", job=job, open_tracker=NullTracker),
        scratch=tempfile.mkdtemp(),
        observe=lambda event: None,
    )
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupted_command_leaves_nothing(stack: Services, tmp_path: Path) -> None:
    """SIGINT without ``stop``, or the second one: at once, but the conductor hears how trials ended."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split("\n")[:2] == ["t stopped", "interrupted"], done.stderr
    assert_tidy()
    wait_until(lambda: not processes_of(*CONDUCTS))
