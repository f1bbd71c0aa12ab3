"""Trained networks on one subject, for whoever must choose between them: the same images, noise and machine.

What is compared here was trained at other times, on other snapshots and perhaps with another recipe. Only the
data, the noise and the sampler of the examination are the same for all; what a network predicts and how, its
own recipe says.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from hasten.trainers import randomness, session
from hasten.trainers.datasets import sources
from hasten.trainers.datasets.mixtures import Mixture
from hasten.trainers.errors import ConfigError
from hasten.trainers.generation import export, sampling
from hasten.trainers.generation.export import Trained
from hasten.trainers.job import Job
from hasten.trainers.metrics.evaluation import Evaluator
from hasten.trainers.metrics.subject import SEED, Subject, subject_of
from hasten.trainers.process import Process
from hasten.trainers.specs import Metric, SampleEval
from hasten.trainers.worker import Worker

_TIMED: Final = 16  # samples made at once when speed is measured
_ROUNDS: Final = 5


class Examination:
    """A job's data, noise and ``eval`` spec, on which networks are measured in this process, on the CPU.

    Every method raises ``ConfigError`` where the data do not have what a metric needs or a network takes
    other data, and ``Fault`` where the data are damaged or the storage failed.
    """

    def __init__(self, job: Job) -> None:
        session.make_deterministic(job.spec.execution.threads)
        self._job, self._worker = job, Worker()
        self._source = sources.opened(job.data_uri, job.data_digest)
        self._subjects: dict[bool, Subject] = {}

    def loss(self, trained: Trained) -> float:
        """The held-out loss: the mean squared error of the noise that the network implies."""
        return self._evaluator(trained, self._job.spec.eval.samples).losses(trained.network).loss

    def quality(self, trained: Trained, metrics: tuple[Metric, ...]) -> dict[str, float]:
        """Metrics of samples, made as the job's ``eval.samples`` says, by their names in the tracker."""
        samples = self._job.spec.eval.samples.model_copy(update={"metrics": metrics})
        return self._evaluator(trained, samples).quality(trained.network)

    def seconds_per_sample(self, several: Sequence[Trained]) -> list[float]:
        """How long each network takes for a sample on this machine: the median of rounds taken in turns."""
        for trained in several:
            self._sample(trained)  # the first time pays for what later ones find ready
        rounds = [[self._sample(trained) for trained in several] for _ in range(_ROUNDS)]
        return [statistics.median(column) for column in zip(*rounds, strict=True)]

    def _sample(self, trained: Trained) -> float:
        spec, network = self._job.spec.eval.samples, trained.network
        noise = randomness.noise(SEED, "eval/latency", np.arange(_TIMED), network.shape)
        labels = None if network.classes is None else np.arange(_TIMED) % network.classes
        process = Process(trained.spec.diffusion, self._worker.device)
        began = time.perf_counter()
        sampling.sample(network, process, noise, steps=spec.steps, sampler=spec.sampler, labels=labels)
        return (time.perf_counter() - began) / _TIMED

    def _evaluator(self, trained: Trained, samples: SampleEval) -> Evaluator:
        if trained.network.shape != sources.shape(self._source):
            problem = f"was trained on data of shape {trained.network.shape}"
            raise ConfigError(trained.run_uri, f"{problem}, not {sources.shape(self._source)}")
        conditional = trained.network.classes is not None
        guidance = samples.guidance if conditional else 1.0
        spec = self._job.spec.eval.model_copy(
            update={"samples": samples.model_copy(update={"guidance": guidance})}
        )
        process = Process(trained.spec.diffusion, self._worker.device)
        return Evaluator(spec, process=process, subject=self._subject(conditional), worker=self._worker)

    def _subject(self, conditional: bool) -> Subject:
        if conditional not in self._subjects:
            wanted = self._job.spec.eval.samples
            if not isinstance(self._source, Mixture):  # memorization needs more of the held-out images
                wanted = wanted.model_copy(update={"metrics": ("memorization",)})
            spec = self._job.spec.eval.model_copy(update={"samples": wanted})
            holdout = self._job.spec.data.holdout
            self._subjects[conditional] = subject_of(
                self._source, spec, holdout=holdout, conditional=conditional
            )
        return self._subjects[conditional]


def trained(run_uri: str) -> Trained:
    """The averaged network of a finished run.

    Raises:
        ConfigError: there is no finished run at this URI.
        Fault: its checkpoint is damaged.
    """
    found = export.load(run_uri)
    if found.result is None:
        raise ConfigError(run_uri, "has no finished run with a checkpoint")
    return found
