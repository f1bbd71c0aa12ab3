from __future__ import annotations

import importlib
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.metrics.background import BackgroundEvaluator, score

# What the other process is given is imported there by name, and a test module has none.
MODULE = """
import os, signal
import torch
from hasten.trainers.datasets import mixtures
from hasten.trainers.models import networks
from hasten.trainers.models.architectures import Mlp
from hasten.trainers.diffusion import Ddpm
from hasten.trainers.errors import ConfigError
from hasten.trainers.metrics.evaluation import Evaluator
from hasten.trainers.process import Process
from hasten.trainers.specs import Eval, GridEval, LossEval, SampleEval
from hasten.trainers.metrics.subject import subject_of
from hasten.trainers.worker import Worker

SPEC = Eval(
    loss=LossEval(images=300),
    samples=SampleEval(images=40, steps=3, metrics=("frechet", "kid", "precision"), reference=200),
    grid=GridEval(images=7, steps=2),
)
failures = [ConfigError("eval.samples", "is refused", "Try another."), ZeroDivisionError("a defect")]


def make():
    mixture = mixtures.get("16d")
    network = networks.build(Mlp(kind="mlp", width=32, layers=2), shape=mixture.shape, classes=None, seed=0)
    process = Process(Ddpm(kind="ddpm", predict="v"), torch.device("cpu"))
    subject = subject_of(mixture, SPEC)
    return Evaluator(SPEC, process=process, subject=subject, worker=Worker()), network.eval()


def make_at_the_third_try():
    if failures:
        raise failures.pop(0)
    return make()


def make_deadly():
    evaluator, network = make()
    network.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    return evaluator, network
"""

EVERYTHING = ("losses", "quality", "sheet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("made")
    (folder / "made_for_background.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("made_for_background")


@pytest.mark.slow
def test_background_scores_are_the_inline_ones_to_the_bit(made: Any) -> None:
    """And: what fails there is heard here, in its own words, and does not end the process."""
    evaluator, network = made.make()
    background = BackgroundEvaluator(made.make_at_the_third_try)
    try:
        state = network.state_dict()
        with pytest.raises(ConfigError, match="is refused") as refused:
            background.submit(0, state, EVERYTHING).result(300)
        assert refused.value.remedy == "Try another."
        with pytest.raises(RuntimeError, match="in make_at_the_third_try") as broken:
            background.submit(0, state, EVERYTHING).result(300)
        assert "ZeroDivisionError: a defect" in str(broken.value)

        first = background.submit(1, network.state_dict(), EVERYTHING)
        inline = [score(evaluator, network, EVERYTHING)]
        with torch.no_grad():  # training goes on while the weights are on their way
            for parameter in network.parameters():
                parameter.add_(0.01)
        second = background.submit(2, network.state_dict(), ("losses", "sheet"))
        inline.append(score(evaluator, network, ("losses", "sheet")))
        found = [first.result(300), second.result(300)]
    finally:
        background.close()
    assert background._process.returncode == 0
    for mine, theirs in zip(inline, found, strict=True):
        assert theirs.metrics() == mine.metrics()
        assert theirs.losses is not None
        assert mine.losses is not None
        np.testing.assert_array_equal(theirs.losses.by_timestep, mine.losses.by_timestep)
        assert theirs.losses.items == mine.losses.items
        np.testing.assert_array_equal(theirs.sheet, mine.sheet)
    assert found[0].metrics() != found[1].metrics()
    assert "eval/kid" in found[0].metrics()
    assert found[1].metrics().keys() == {"eval/loss", "eval/excess_loss"}


@pytest.mark.slow
def test_a_dead_process_is_a_fault_and_nothing_waits_for_it(made: Any) -> None:
    _, network = made.make()
    background = BackgroundEvaluator(made.make_deadly, pending=1)
    first = background.submit(640, network.state_dict(), ("losses",))
    second = background.submit(1280, network.state_dict(), ("losses",))  # waits for room, not for ever
    for future, image in ((first, "640"), (second, "1,280")):
        with pytest.raises(Fault, match="SIGKILL") as caught:
            future.result(60)
        assert image in caught.value.problem
        assert "inline" in caught.value.remedy
    background.close()


@pytest.mark.slow
def test_the_process_ends_with_its_trainer(made: Any) -> None:
    """A trainer that is killed closes its ends of the pipes, and says nothing else."""
    orphan, killed = BackgroundEvaluator(made.make), BackgroundEvaluator(made.make)
    orphan._executor.shutdown()
    orphan._sending.close()
    killed.close(wait=False)
    assert killed._process.returncode == -signal.SIGKILL
    assert orphan._process.wait(300) == 0
    orphan.close()


def test_what_cannot_be_pickled_is_said_before_a_process_starts() -> None:
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        BackgroundEvaluator(lambda: None)  # type: ignore[arg-type, return-value]
