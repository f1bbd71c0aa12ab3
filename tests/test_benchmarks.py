"""The benchmarks' harness, and every command once with next to no work: that it works, not how fast."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import harness  # noqa: E402
import ratios  # noqa: E402
from harness import Block, Work  # noqa: E402
from machine import Clocks, machine_seconds  # noqa: E402
from ratios import Aim  # noqa: E402
from slow_network import SlowNetwork  # noqa: E402

# A process that works for as long as it takes to use half a second of a core, however busy the machine is.
SPIN = "import time\nwhile time.process_time() < 0.5: pass"


def test_turns_go_back_as_they_came() -> None:
    assert ratios.turns(["a", "b", "c"], 3) == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


def test_a_steady_drift_favours_no_arm() -> None:
    """A machine that gets slower by 1 % a block: over whole pairs of rounds equal arms come out equal."""
    speed, speeds = 1.0, dict[str, list[float]](a=[], b=[])
    for turn in ratios.turns(["a", "b"], 8):
        for arm in turn:
            speeds[arm].append(speed)
            speed *= 0.99
    assert ratios.ratio(speeds["a"], speeds["b"]).mean == pytest.approx(1.0)
    assert ratios.ratio(speeds["a"][::2], speeds["b"][::2]).mean > 1.009


@pytest.mark.parametrize("bursts", [0.0, 0.1])
def test_the_interval_holds_the_truth_as_often_as_it_says(bursts: float) -> None:
    """Eight pairs with noise of 3 %, and with other load that slows one block in ten by up to half."""
    chance, truth, held, draws = random.Random(0), 1.02, 0, 1500
    for _ in range(draws):
        first, second = [], []
        for _ in range(8):
            machine = chance.gauss(0.0, 0.3)  # common to the round, so it must not matter
            for series, speed in ((first, truth), (second, 1.0)):
                slow = chance.uniform(0.5, 1.0) if chance.random() < bursts else 1.0
                series.append(speed * slow * math.exp(machine + chance.gauss(0.0, 0.03)))
        found = ratios.ratio(first, second)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 0.935 <= held / draws <= (0.965 if bursts == 0.0 else 1.0)


@pytest.mark.parametrize(
    ("low", "high", "aim", "said"),
    [
        (0.985, 1.01, Aim(bound=0.98), "pass"),
        (0.90, 0.97, Aim(bound=0.98), "fail"),
        (0.95, 1.01, Aim(bound=0.98), "unclear"),
        (None, None, Aim(bound=0.98), "unclear"),
        (0.001, 0.004, Aim(bound=0.005, kind="at most"), "pass"),
        (0.006, 0.009, Aim(bound=0.005, kind="at most"), "fail"),
        (0.9, 1.1, None, "no aim"),
    ],
)
def test_verdicts(low: float | None, high: float | None, aim: Aim | None, said: str) -> None:
    assert ratios.verdict(low, high, aim) == said
    assert ratios.verdict(low, high, aim, control_holds=False) == "void"


def blocks_of(speeds: dict[str, list[float]]) -> list[Block]:
    return [
        Block(
            round=number,
            arm=arm,
            images=1000,
            seconds=1000 / speed,
            cpu_seconds=1000 / speed,
            foreign=0.5,
            stolen=0.0,
            load_average=1.0,
        )
        for arm, series in speeds.items()
        for number, speed in enumerate(series)
    ]


def test_a_result_is_void_where_an_arm_differs_from_itself() -> None:
    speeds = {"ours": [100.0, 101.0, 102.0, 100.0], "theirs": [50.0, 50.5, 51.0, 50.0]}
    for again, said in ((1.001, "pass"), (1.05, "void"), (0.95, "void")):
        series = {**speeds, harness.AGAIN: [again * speed for speed in speeds["ours"]]}
        found = harness.compare(
            blocks_of(series), ours="ours", aims={"theirs": Aim(bound=1.5)}, tolerance=0.01
        )
        assert found["wall"]["arms"]["theirs"]["verdict"] == said
        assert found["wall"]["arms"]["theirs"]["median"] == pytest.approx(2.0)


def test_pairs_are_of_one_round_whatever_the_order_of_turns() -> None:
    """Rounds of very different speed: only within a round is the ratio 2."""
    speeds = {"ours": [100.0, 10.0, 1.0], "theirs": [50.0, 5.0, 0.5], harness.AGAIN: [100.0, 10.0, 1.0]}
    blocks = blocks_of(speeds)
    random.Random(1).shuffle(blocks)
    found = harness.compare(blocks, ours="ours", aims={"theirs": None}, tolerance=0.01)
    ratio = found["wall"]["arms"]["theirs"]
    assert ratio["low"] == pytest.approx(ratio["high"]) == pytest.approx(2.0)


def test_warm_up_is_dropped_and_a_document_says_everything(tmp_path: Path) -> None:
    asked: list[str] = []

    def arm(name: str) -> harness.Arm:
        def block() -> Work:
            asked.append(name)
            return Work(images=10, details={"turn": len(asked)})

        return block

    blocks = harness.take_turns({"a": arm("a"), "b": arm("b")}, 2, warm_up=1)
    assert asked == ["a", "b", "a", "b", "b", "a"]
    assert [(block.round, block.arm) for block in blocks] == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]
    harness.conclude(
        harness.document("nothing", blocks=blocks, results={"x": 1}), tmp_path / "new" / "o.json"
    )
    written = json.loads((tmp_path / "new" / "o.json").read_text())
    check(written, "nothing")
    assert [block["details"]["turn"] for block in written["blocks"]] == [3, 4, 5, 6]


def check(document: dict[str, Any], name: str) -> None:
    """The fields that every benchmark's document has."""
    assert document["benchmark"] == name
    environment = document["environment"]
    assert environment["cores"] >= 1
    assert {"torch", "numpy"} <= environment["versions"].keys()
    assert len(environment["commit"]) in (0, 40)
    assert environment["threads"] == harness.THREADS
    assert document["surroundings"].keys() == {
        "mean_foreign_cores",
        "most_foreign_cores",
        "most_stolen_cores",
    }
    for block in document["blocks"]:
        assert block["images"] > 0
        assert block["seconds"] > 0.0
        assert block.keys() >= {"arm", "round", "cpu_seconds", "foreign", "load_average"}


def test_processor_time_is_that_of_children_and_of_named_others() -> None:
    """A child's time is ours, also after its end; a stranger's is foreign, until it is named."""
    clocks = Clocks()
    subprocess.run([sys.executable, "-c", SPIN], check=True)
    assert clocks.span().cpu_seconds >= 0.45

    # The shell ends at once: its child is then nobody's whom we started.
    for named in (False, True):
        shell = f"{sys.executable} -c '{SPIN}\ntime.sleep(60)' >/dev/null 2>&1 & echo $!"
        pid = int(subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout)
        stranger = psutil.Process(pid)
        clocks = Clocks(lambda stranger=stranger: [stranger]) if named else Clocks()
        before = sum(stranger.cpu_times()[:2])
        try:
            while sum(stranger.cpu_times()[:2]) < 0.45:
                time.sleep(0.05)
            span = clocks.span()
        finally:
            stranger.kill()
        used = 0.45 - before - 0.05  # the clocks tick in hundredths
        own = span.cpu_seconds
        assert (own >= used) is named
        if not named and machine_seconds() != (0.0, 0.0):
            assert span.foreign * span.wall_seconds >= used


@contextmanager
def echo() -> Iterator[int]:
    """A server that answers every message with itself; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(connection: socket.socket) -> None:
            with connection:
                while received := connection.recv(65536):
                    connection.sendall(received)

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=[connection], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]


def ask(port: int, message: bytes, timeout: float = 60.0) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(message)
        answer = b""
        while len(answer) < len(message):
            received = connection.recv(65536)
            if not received:
                raise ConnectionResetError
            answer += received
        return answer


def test_a_slow_network_is_slow_and_can_fail() -> None:
    """Bytes pass unchanged, no sooner than latency and rate allow; an outage ends or holds connections."""
    large = np.random.default_rng(0).bytes(500_000)
    with echo() as port, SlowNetwork("127.0.0.1", port, latency=0.2, rate=1e6) as network:
        began = time.monotonic()
        assert ask(network.port, b"x") == b"x"
        assert time.monotonic() - began >= 0.2
        began = time.monotonic()
        assert ask(network.port, large) == large
        assert time.monotonic() - began >= 0.2 + 0.5

        network.turn("refuse")
        with pytest.raises(ConnectionError):
            ask(network.port, b"x")
        network.turn("hang")
        with pytest.raises(TimeoutError):
            ask(network.port, b"x", timeout=1.0)
        network.turn("up")
        assert ask(network.port, b"x") == b"x"


def run(command: str, *arguments: str, out: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{command}.py"), *arguments, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(out.read_text())
    check(document, command)
    results: dict[str, Any] = document["results"]
    return results


@pytest.mark.slow
def test_other_loops(tmp_path: Path) -> None:
    results = run(
        "other_loops", "--only-bare", "--networks", "digits", "--steps=3", "--pairs=2", out=tmp_path / "o"
    )
    assert results["digits"]["parameters"] == 159_697
    assert results["digits"]["ours over theirs"]["cpu"]["arms"].keys() == {"bare"}


@pytest.mark.slow
def test_other_peoples_loops(tmp_path: Path) -> None:
    if importlib.util.find_spec("accelerate") and importlib.util.find_spec("denoising_diffusion_pytorch"):
        results = run("other_loops", "--networks", "digits", "--steps=3", "--pairs=2", out=tmp_path / "o")
        assert len(results["digits"]["ours over theirs"]["wall"]["arms"]) == 4
        return
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "other_loops.py")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_schedules_compile_nothing_again(tmp_path: Path) -> None:
    """Curriculum, momentum and learning rate move over the whole run, and the compiled network stays."""
    results = run(
        "compile", "--variants", "compile", "--network=tiny", "--steps=2", "--pairs=4", out=tmp_path / "o"
    )
    assert results["compile"]["graphs"] >= 1
    assert results["plain"]["graphs"] == 0
    assert results["recompilations"] == 0


@pytest.mark.slow
def test_evaluation_overlap(tmp_path: Path) -> None:
    results = run("evaluation_overlap", "--steps=5", "--pairs=2", out=tmp_path / "o")
    assert results["extra_seconds_an_evaluation"].keys() == {"background", "inline"}


@pytest.mark.slow
@pytest.mark.stack
def test_checkpoint_stall(tmp_path: Path) -> None:
    results = run("checkpoint_stall", "--network=digits", "--steps=2", "--pairs=2", out=tmp_path / "o")
    assert results["held_seconds"]["mean"] > 0.0
    assert results["steps"].keys() == {"checkpoints", "none", harness.AGAIN}


@pytest.mark.slow
@pytest.mark.stack
def test_logging_blocks_no_more_where_the_server_is_away(tmp_path: Path) -> None:
    """A call to a server that refuses or hangs takes as long as one to a server that answers, or so."""
    results = run("logging_cost", "--reports=2", "--pairs=2", "--calls=2000", out=tmp_path / "o")
    calls = results["microseconds_a_call"]
    for away in ("server: refuse", "server: hang"):
        assert calls[away]["median"] < 20 * calls["server: up"]["median"]
        assert calls[away]["p99"] < 50 * calls["server: up"]["p99"]


@pytest.mark.slow
@pytest.mark.stack
def test_input_stall(tmp_path: Path) -> None:
    results = run(
        "input_stall",
        *("--model=fast", "--images=4096", "--window=1024", "--steps=10", "--pairs=2", "--outage=2"),
        out=tmp_path / "o",
    )
    assert results["outage"]["images_meanwhile"] > 0
    assert results["stalled_share"]["n"] == 2


@pytest.mark.slow
@pytest.mark.stack
def test_ray_against_torchrun(tmp_path: Path) -> None:
    results = run("ray_against_torchrun", "--steps=40", "--pairs=1", out=tmp_path / "o")
    assert results["ray over torchrun"]["wall"]["arms"]["torchrun"]["mean"] > 0.0
    assert results["around"]["start_seconds"]["ray"] > 0.0


@pytest.mark.slow
def test_a_machine_without_a_gpu_is_told_so() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu_ladder.py")],
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "GPU" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_packing(tmp_path: Path) -> None:
    results = run("packing", "--network=tiny", "--trials=2", "--steps=1", "--pairs=2", out=tmp_path / "o")
    assert results["threads over processes"]["wall"]["arms"].keys() == {"processes"}
