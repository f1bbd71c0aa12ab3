"""How good a network is, measured in the same way for every arm.

Fixed held-out images, fixed noise, timesteps uniform over the whole chain, averaged weights. Nothing here
knows the curriculum, the run's seed or the batch size; the error is that of the noise which the network's
answer implies, whatever it predicts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.trainers import diffusion, randomness
from hasten.trainers.errors import ConfigError
from hasten.trainers.generation import pictures, sampling, scatter
from hasten.trainers.metrics import features, frechet, losses, quality
from hasten.trainers.metrics.features import Comparable
from hasten.trainers.metrics.losses import CHUNK, Losses
from hasten.trainers.metrics.subject import SEED, Subject
from hasten.trainers.models.networks import Network
from hasten.trainers.process import Process
from hasten.trainers.specs import Eval, Pixels
from hasten.trainers.worker import Worker

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Moments = tuple[Array, Array]


class Evaluator:
    """Scores networks on one subject.

    Args:
        spec: what to measure.
        process: the forward process.
        subject: what to measure against.
        worker: this process; all workers call every method.

    Raises:
        ConfigError: the data do not have what the metrics need.
    """

    def __init__(self, spec: Eval, *, process: Process, subject: Subject, worker: Worker) -> None:
        _check(spec, subject)
        self._spec = spec
        self._process = process
        self._subject = subject
        self._worker = worker
        self._clean = subject.clean[: spec.loss.images]

    @torch.no_grad()
    def losses(self, network: Network) -> Losses:
        """The held-out loss, overall and by timestep."""
        count = len(self._clean)
        mine = np.arange(count)[self._worker.share(count)]
        found = torch.zeros((2, count), dtype=torch.float64, device=self._worker.device)
        steps, eps, noisy = self._trials
        targets = [eps] if self._best is None else [eps, self._best]
        for start in range(0, len(mine), CHUNK):
            part = slice(start, start + CHUNK)
            with _judged(network):
                answer = self._implied_noise(
                    network, noisy[part], steps[mine[part]], self._labels(mine[part])
                )
            for row, target in enumerate(targets):
                wanted = torch.from_numpy(target[part]).to(answer.device)
                found[row, torch.from_numpy(mine[part])] = _squared_error(answer, wanted)
        errors = self._worker.sum(found)
        bins = steps * self._spec.loss.bins // len(self._process.levels)
        excess = None if self._best is None else errors[1]
        return losses.summary(errors[0], excess, bins=bins, count=self._spec.loss.bins)

    def quality(self, network: Network) -> dict[str, float]:
        """The recipe's metrics of samples, by the names that they are tracked under."""
        spec, mixture = self._spec.samples, self._subject.mixture
        samples = self._samples(network, spec.images, spec.steps, self._wanted(spec.images))
        found = self._measure(self._features(samples), set(spec.metrics))
        if "memorization" in spec.metrics:
            found |= self._memorization(samples)
        if mixture is not None:
            real = self._subject.training()[0]
            flat = (values.reshape(len(values), -1) for values in (samples, real))
            found["eval/energy_distance"] = quality.energy_distance(*flat, device=self._worker.device)
        return found

    def sheet(self, network: Network) -> NDArray[np.uint8]:
        """Samples from the fixed noise as one RGB picture, every class in a column of its own."""
        spec, classes, mixture = self._spec.grid, self._subject.classes, self._subject.mixture
        labels = None if classes is None else np.arange(spec.images) % classes
        samples = self._samples(network, spec.images, spec.steps, labels)
        if mixture is None:
            return pictures.contact_sheet(_visible(samples), labels=labels)
        _, vectors = np.linalg.eigh(mixture.moments()[1])
        return scatter.picture(samples, self._subject.training()[0], axes=vectors[:, -2:][:, ::-1])

    def spec_record(self) -> dict[str, Any]:
        """Everything that a score depends on beside the network: to be kept with it.

        ``features`` names the extractor once it was used: until then no weights were looked for.
        """
        spec = self._spec.samples
        used = self.__dict__.get("_extractor")
        return {
            "eval": self._spec.model_dump(mode="json"),
            "data": self._subject.digest,
            "held_out": len(self._clean),
            "samples": spec.images,
            "reference": "exact moments" if self._exact is not None else spec.reference,
            "features": None if used is None else used.record(),
            "versions": {name: metadata.version(name) for name in ("hasten", "torch", "numpy", "diffusers")},
        }

    @functools.cached_property
    def _trials(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """The timestep of every held-out image, and this worker's noise and x_t."""
        count = len(self._clean)
        everywhere = np.arange(count)
        jitter = randomness.uniform(SEED, "eval/timestep", everywhere)
        steps = ((everywhere + jitter) / count * len(self._process.levels)).astype(np.int64)
        mine = everywhere[self._worker.share(count)]
        eps = randomness.noise(SEED, "eval/noise", mine, self._subject.shape)
        signal, noise = self._coefficients(steps[mine])
        return steps, eps, signal * self._clean[mine] + noise * eps

    def _coefficients(self, t: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Signal and noise at levels ``t``, shaped to multiply images."""
        if diffusion.prediction(self._process.spec) == "epsilon":
            # Rounded before the root, as ever: stored losses of epsilon networks stay comparable to the bit.
            abar = diffusion.alphas_bar(self._process.spec)[t].astype(np.float32)
            signal, noise = np.sqrt(abar), np.sqrt(1.0 - abar)
        else:
            levels = self._process.levels
            signal, noise = levels.signal[t].astype(np.float32), levels.noise[t].astype(np.float32)
        return signal[:, None, None, None], noise[:, None, None, None]

    @functools.cached_property
    def _best(self) -> NDArray[np.float32] | None:
        """The best possible answers to this worker's trials, where they are known."""
        if self._subject.mixture is None:
            return None
        steps, _, noisy = self._trials
        mine = np.arange(len(self._clean))[self._worker.share(len(self._clean))]
        signal, noise = (getattr(self._process.levels, name)[steps[mine]] for name in ("signal", "noise"))
        known = None if self._subject.classes is None else self._subject.labels[mine]
        best: NDArray[np.float32] = self._subject.mixture.posterior(noisy, signal, noise, known).eps.astype(
            np.float32
        )
        return best

    def _implied_noise(
        self, network: Network, noisy: NDArray[np.float32], t: Labels, labels: torch.Tensor | None
    ) -> torch.Tensor:
        device, levels = self._worker.device, self._process.levels
        scale = levels.scale[t].astype(np.float32)[:, None, None, None]
        network_input = torch.from_numpy(noisy * scale).to(device)
        condition = torch.from_numpy(levels.condition[t].astype(np.float32)).to(device)
        answer: torch.Tensor = network(network_input, condition, labels).float()
        if diffusion.prediction(self._process.spec) == "epsilon":
            return answer
        return self._process.epsilon(answer, network_input, torch.from_numpy(t).to(device))

    def _labels(self, places: Labels) -> torch.Tensor | None:
        if self._subject.classes is None:
            return None
        return torch.from_numpy(self._subject.labels[places]).to(self._worker.device)

    def _wanted(self, count: int) -> Labels | None:
        """Labels for samples, as frequent as in training."""
        if self._subject.classes is None:
            return None
        labels = self._subject.training()[1]
        return labels[np.arange(count) % len(labels)]

    def _samples(self, network: Network, count: int, steps: int, labels: Labels | None) -> Comparable:
        """``count`` samples in order of their noise, each made by one worker and known to all."""
        mine, spec, images = self._worker.share(count), self._spec.samples, self._subject.images
        noise = randomness.noise(SEED, "eval/samples", np.arange(count)[mine], self._subject.shape)
        with _judged(network):
            made = sampling.sample(
                network,
                self._process,
                noise,
                steps=steps,
                sampler=spec.sampler,
                labels=None if labels is None else labels[mine],
                guidance=spec.guidance,
                clip=images,
            )
        samples = torch.zeros(
            (count, *self._subject.shape),
            dtype=torch.uint8 if images else torch.float32,
            device=self._worker.device,
        )
        samples[mine] = ((made + 1.0) * 127.5).round().to(torch.uint8) if images else made
        found: Comparable = self._worker.sum(samples).cpu().numpy()
        return found

    @functools.cached_property
    def _extractor(self) -> features.Extractor:
        return features.extractor(
            self._spec.samples.features, dataset=self._subject.dataset, worker=self._worker
        )

    def _features(self, images: Comparable) -> NDArray[np.floating]:
        """Features of all images (N, D), each computed by one worker and known to all."""
        if self._worker.world_size == 1:
            return self._extractor(images)
        mine = self._worker.share(len(images))
        part = torch.from_numpy(self._extractor(images[mine]))
        everyone = torch.zeros((len(images), part.shape[1]), dtype=part.dtype, device=self._worker.device)
        everyone[mine] = part.to(everyone.device)
        found: NDArray[np.floating] = self._worker.sum(everyone).cpu().numpy()
        return found

    @functools.cached_property
    def _exact(self) -> Moments | None:
        """The data's own mean and covariance, where they are known."""
        mixture = self._subject.mixture
        return mixture.moments() if mixture and isinstance(self._spec.samples.features, Pixels) else None

    @functools.cached_property
    def _reference(self) -> tuple[Moments | None, NDArray[np.floating] | None]:
        """Moments and features of the training images, no more of either than the metrics need."""
        metrics = set(self._spec.samples.metrics)
        pointwise = bool(metrics & {"kid", "precision", "recall"})
        if not pointwise and (self._exact is not None or "frechet" not in metrics):
            return self._exact, None
        real = self._features(self._subject.training()[0])
        moments = self._exact or (frechet.moments(real) if "frechet" in metrics else None)
        return moments, real if pointwise else None

    def _measure(self, made: NDArray[np.floating], metrics: set[str]) -> dict[str, float]:
        moments, real = self._reference
        found: dict[str, float] = {}
        if "frechet" in metrics and moments is not None:
            found["eval/frechet"] = frechet.distance(frechet.moments(made), moments)
        if real is None:
            return found
        device = self._worker.device
        if "kid" in metrics:
            found["eval/kid"] = quality.kid(made, real, device=device)
        if metrics & {"precision", "recall"}:
            precision, recall = quality.precision_recall(made, real, device=device)
            both = {"eval/precision": precision, "eval/recall": recall}
            found |= {key: value for key, value in both.items() if key.removeprefix("eval/") in metrics}
        return found

    def _memorization(self, samples: Comparable) -> dict[str, float]:
        """On the images themselves: a copy is a copy in pixels, whatever the features overlook."""
        training = features.flat(self._subject.training()[0])
        held_out = features.flat(features.to_bytes(self._subject.clean, images=self._subject.images))
        made, device = features.flat(samples), self._worker.device
        return {
            "eval/memorization": quality.copies(made, training, device=device),
            "eval/nearest_unseen": quality.unseen(made, training, held_out, device=device),
        }


def _check(spec: Eval, subject: Subject) -> None:
    channels = subject.shape[0]
    known = subject.dataset.manifest.classes if subject.dataset is not None else 0
    features.check(spec.samples.features, images=subject.images, channels=channels, classes=known)
    if subject.mixture is not None and "memorization" in spec.samples.metrics:
        problem = "memorization has no meaning for a mixture, whose points never come twice"
        raise ConfigError("eval.samples.metrics", problem, "Leave it out.")
    if subject.classes is None and spec.samples.guidance != 1.0:
        problem = f"{spec.samples.guidance:g}, but the network knows no classes"
        raise ConfigError("eval.samples.guidance", problem, "Set conditioning.kind: classes.")


@contextmanager
def _judged(network: torch.nn.Module) -> Iterator[None]:
    """The network in evaluation mode: one that is still being trained may drop features at random."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _squared_error(answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Of each image, shape (B,), in float64."""
    return (answer - target).double().square().mean(dim=(1, 2, 3))


def _visible(samples: Comparable) -> NDArray[np.uint8]:
    """Images as they are; of anything else its first channels, as a picture's grey or colours."""
    if samples.dtype == np.uint8:
        return samples.astype(np.uint8, copy=False)
    shown = samples[:, : 3 if samples.shape[1] >= 3 else 1]
    # Latents have a standard deviation of about 1: two of them to either side.
    return np.asarray((np.clip(shown / 2.0, -1.0, 1.0) + 1.0) * 127.5).round().astype(np.uint8)
