"""What goes wrong on a cluster, for real: signals, killed processes, vanishing CPUs, memory, divergence."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from hasten.platform import importing
from hasten.platform.services import Services
from hasten.platform.stack import processes
from hasten.trainers import session, specs
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.records import RunResult
from hasten.trainers.specs import RunSpec
from hasten.trainers.tracker import NullTracker
from hasten.trainers.worker import Worker

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

IMAGES = 25_600
REGULAR = IMAGES // 4  # between regular checkpoints
TINY = {
    "budget.images": IMAGES,
    "eval.loss.images": 64,
    "eval.samples": {"at": [1.0], "images": 64, "steps": 4},
    "eval.grid": {"every": 0.5, "images": 4, "steps": 4},
    "execution.workers": 2,
}
ACTOR = re.compile(r"^ray::(\w+)")
RAYS_OWN = ("_StatsActor", "DashboardAgent", "RuntimeEnvAgent", "IDLE", "_AutoscalingCoordinatorActor")
SMALL = TINY | {"model.channels": 8}
HASTEN = ["-m", "hasten.platform", "train", "digits-demo"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def options(changes: dict[str, Any]) -> list[str]:
    return [part for key, value in changes.items() for part in ("-s", f"{key}={value}")]


def plain(result: RunResult | None) -> list[tuple[int, dict[str, float]]]:
    """A run's history without what depends on the clock."""
    assert result is not None
    return [
        (point.step, {key: value for key, value in point.metrics.items() if not key.startswith("perf/")})
        for point in result.history
    ]


def train_processes() -> list[psutil.Process]:
    """The processes of this stack in which somebody's actors live; Ray's own are left out."""
    members = processes.members(Path(os.environ["HASTEN_HOME"]))
    return [
        one for one in members if (found := ACTOR.search(processes.title(one))) and found[1] not in RAYS_OWN
    ]


def wait_until(condition: Callable[[], Any], *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


class Command:
    """A command that is running, and what it has said so far."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.said = ""

    def until(self, pattern: str) -> str:
        """Read on to a line with this pattern; what its group says."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if found := re.search(pattern, line):
                return found[found.re.groups]
        raise AssertionError(f"it never said {pattern}:\n{self.said}")

    def until_it_trains(self) -> int:
        """To the first report after the start; how many images are done."""
        return int(self.until(r": ([1-9][\d,]*) of [\d,]+ images").replace(",", ""))

    def end(self) -> int:
        output, _ = self.process.communicate(timeout=120)
        self.said += output
        return self.process.returncode


@pytest.fixture(scope="module", autouse=True)
def digits(stack: Services) -> None:
    importing.ensure("digits", stack.storage_uri)


def test_a_run_by_ray_survives_a_lost_worker_and_a_stop(stack: Services) -> None:
    """One of two workers is killed: the run goes on by itself. SIGTERM of the command: a
    checkpoint of that very moment, exit code 3, nothing left behind. The same command ends it, and no bit
    tells it from an undisturbed run, which two processes of torchrun compute."""
    command = [*HASTEN, *options(SMALL | {"name": "disturbed", "execution.launcher": "ray"})]
    client = MlflowClient(stack.tracking_uri)
    running = Command(*command)
    running.until_it_trains()
    victims = [process for process in train_processes() if "RayTrainWorker" in processes.title(process)]
    assert len(victims) == 2
    victims[1].kill()
    running.until("its workers start again")
    running.until_it_trains()
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 3, running.said
    assert "The same command goes on" in running.said
    assert "Traceback" not in running.said
    [run] = client.search_runs([client.get_experiment_by_name("disturbed").experiment_id])
    assert run.info.status == "KILLED"
    wait_until(lambda: not train_processes(), seconds=30)
    store = RunStore(f"{stack.storage_uri}/runs/{run.info.run_name}")
    images = store.load(store.latest() or "")["images"]
    assert images > 0
    assert images % REGULAR, "a checkpoint of the moment, not a regular one"
    assert store.result() is None
    stopped_at = images

    last = Command(*command, "--json")
    assert last.end() == 0, last.said
    answer = json.loads(last.said.splitlines()[-1])
    assert (answer["status"], answer["resumed_from"]) == ("finished", stopped_at)
    [run] = client.search_runs([client.get_experiment_by_name("disturbed").experiment_id])
    assert run.info.status == "FINISHED"

    calm = Command(*TORCHRUN, *HASTEN, *options(SMALL | {"name": "undisturbed"}))
    assert calm.end() == 0, calm.said
    undisturbed = RunStore(store.uri.replace("/disturbed-", "/undisturbed-")).result()
    assert plain(store.result()) == plain(undisturbed)


# A network that runs out of memory when it has to remember more than `limit` images.
GREEDY = """
import torch


class Greedy(torch.nn.Module):
    def __init__(self, shape, classes, limit=None):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(shape[0] + 1, 8, 3, padding=1),
            torch.nn.SiLU(),
            torch.nn.Conv2d(8, shape[0], 3, padding=1),
        )
        self.limit = limit

    def forward(self, x, condition):
        if torch.is_grad_enabled() and self.limit is not None and len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        level = (condition / 1000.0).float().reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.layers(torch.cat([x, level], dim=1))
"""

# Runs by Ray, one after the other in one process: what each said, and how it ended.
SCRIPT = """
import json, logging, sys
from pathlib import Path

import ray

from hasten.platform import cluster, services, settings
from hasten.platform.stack import processes
from hasten.trainers import config, ray_train, session
from hasten.trainers.datasets import sources
from hasten.trainers.errors import HastenError
from hasten.trainers.specs import RunSpec
from hasten.trainers.tracker import NullTracker

connected = services.connect(settings.load(), ray=True)
cluster.attach(connected)
said = []


class Listening(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())


logging.getLogger("hasten").setLevel(logging.INFO)
logging.getLogger("hasten").addHandler(Listening())


@ray.remote(num_cpus=1)
class Occupant:
    def here(self):
        return True


class Crowd:
    '''Somebody else, who has one of the two CPUs, leaves, and comes back over a worker's body.'''

    def __init__(self):
        self.occupant = Occupant.remote()
        ray.get(self.occupant.here.remote())
        self.heard = {1: 0, 2: 0, 3: 0}

    def __call__(self, report):
        group = sum("trains with" in line for line in said)
        self.heard[group] += 1
        if group == 1 and self.heard[1] == 2:
            ray.kill(self.occupant)
        if group == 2 and self.heard[2] == 2:
            self.occupant = Occupant.remote()
            members = processes.members(settings.home())
            [worker for worker in members if "RayTrainWorker" in processes.title(worker)][0].kill()


def case(name, recipe):
    job = sources.bind(config.validate(RunSpec, recipe), connected.storage_uri)
    said.clear()
    crowd = Crowd() if name == "elastic" else None
    error = None
    try:
        scratch = cluster.scratch(connected)
        ray_train.fit(job, open_tracker=NullTracker, scratch=scratch, observe=crowd, resize_seconds=2.0)
    except HastenError as failure:
        error = str(failure)
    if crowd:
        ray.kill(crowd.occupant)
    return {"uri": job.uri, "said": list(said), "error": error}


print(json.dumps({name: case(name, recipe) for name, recipe in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def cases(
    stack: Services, digits: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, dict[str, Any]]]:
    """What happened to each of these runs: where it is, what was logged, the error in the user's words."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "greedy_network.py").write_text(GREEDY)
    asked = {name: recipe(name).model_dump(mode="json") for name in ("elastic", "greedy", "diverging")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(asked)],
        cwd=folder,  # Ray's workers import from where the command was given
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield json.loads(done.stdout.splitlines()[-1])


RUNS: dict[str, dict[str, Any]] = {
    "elastic": {"execution.launcher": "ray", "execution.workers": [1, 2]},
    "greedy": {
        "budget.images": 1280,
        "execution.launcher": "ray",
        "model": {"kind": "import", "path": "greedy_network:Greedy", "arguments": {"limit": 20}},
    },
    "diverging": {
        "budget.images": 1280,
        "execution.launcher": "ray",
        "optimizer.lr": 1e9,
        "eval.loss": {"every": 0.5, "images": 64},
    },
    "uploading": {"budget.images": 2560, "execution.workers": 1},
}


def recipe(name: str, **execution: Any) -> RunSpec:
    known = SMALL if "model" not in RUNS[name] else TINY
    return specs.load("digits-demo", {**known, **RUNS[name], **execution, "name": name})


def alone(name: str, services: Services, folder: Path, micro_batch: int | None = None) -> RunResult:
    """The same run by one local worker that nothing happens to."""
    local = {
        "execution.launcher": "local",
        "execution.workers": 1,
        "execution.micro_batch": micro_batch,
    }
    spec = recipe(name, **local)
    job = dataclasses.replace(sources.bind(spec, services.storage_uri), storage_uri=str(folder))
    list(session.run(job, worker=Worker(), track=NullTracker()))
    result = RunStore(job.uri).result()
    assert result is not None
    return result


def assert_close(first: RunResult, second: RunResult, *, rel: float) -> None:
    for (step, expected), (other, found) in zip(plain(first), plain(second), strict=True):
        assert other == step
        assert found == pytest.approx(expected, rel=rel), step


def test_workers_come_and_go(cases: dict[str, dict[str, Any]], stack: Services, tmp_path: Path) -> None:
    """A run that takes one or two workers starts with one, since somebody else has the second CPU; it grows
    when that is free, from a checkpoint of the moment; and it goes on with one when a worker is lost and its
    CPU taken. Each global batch is the same for any number of workers: what comes out is what one worker
    computes, to rounding."""
    case = cases["elastic"]
    assert case["error"] is None
    sizes = [line.rpartition("with ")[2] for line in case["said"] if "trains with" in line]
    assert sizes == ["1 workers", "2 workers", "1 workers"], case["said"]
    result = RunStore(case["uri"]).result()
    assert result is not None
    assert result.resumed_from
    assert_close(alone("elastic", stack, tmp_path), result, rel=1e-2)


def test_workers_out_of_memory_start_again_with_less(
    cases: dict[str, dict[str, Any]], stack: Services, tmp_path: Path
) -> None:
    case = cases["greedy"]
    assert case["error"] is None
    store = RunStore(case["uri"])
    assert store.micro_batch() == 16
    assert sum("trains with" in line for line in case["said"]) == 2
    assert any("32 images at a time do not fit" in line for line in case["said"])
    result = store.result()
    assert result is not None
    assert_close(alone("greedy", stack, tmp_path, micro_batch=16), result, rel=1e-4)


def test_divergence_ends_a_run_by_ray_at_once(cases: dict[str, dict[str, Any]]) -> None:
    """In the user's words, and without another attempt that would end the same way."""
    case = cases["diverging"]
    assert re.search(
        r"train/loss: is not a finite number from image \d+ on, first at timesteps", case["error"]
    )
    assert sum("trains with" in line for line in case["said"]) == 1
    assert RunStore(case["uri"]).result() is None


# A run whose second checkpoint is large, and whose process dies while that is on its way to the server.
UPLOAD = """
import os, signal, sys, threading
import torch
from hasten.platform import services, settings
from hasten.trainers import checkpoints, config, session
from hasten.trainers.datasets import sources
from hasten.trainers.specs import RunSpec
from hasten.trainers.store import Folder
from hasten.trainers.tracker import NullTracker
from hasten.trainers.worker import Worker

connected = services.connect(settings.load())
save, write = checkpoints.RunStore.save, Folder.write


def save_more(self, state):
    return save(self, state | ({"ballast": torch.rand(25_000_000)} if self.checkpoints() else {}))


def write_and_die(self, name, content):
    if len(content) > 50_000_000:
        threading.Timer(float(sys.argv[2]), os.kill, (os.getpid(), signal.SIGKILL)).start()
    write(self, name, content)


checkpoints.RunStore.save, Folder.write = save_more, write_and_die
job = sources.bind(config.validate(RunSpec, config.parse_yaml(sys.argv[1], "recipe")), connected.storage_uri)
list(session.run(job, worker=Worker(), track=NullTracker()))
"""


def test_killed_while_a_checkpoint_is_on_its_way(stack: Services, tmp_path: Path) -> None:
    """100 MB to a real server take longer than the process lives: the checkpoint before it counts."""
    job = sources.bind(recipe("uploading"), stack.storage_uri)
    done = subprocess.run(
        [sys.executable, "-c", UPLOAD, job.resolved(), "0.1"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = RunStore(job.uri)
    assert [store.load(name)["images"] for name in store.checkpoints()] == [640]
    list(session.run(job, worker=Worker(), track=NullTracker()))
    result = store.result()
    assert result is not None
    assert result.resumed_from == 640
    assert plain(result) == plain(alone("uploading", stack, tmp_path))
