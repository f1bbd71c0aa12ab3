"""A finished run as the analyses need it: its network, its task, its data and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.trainers import diffusion, randomness, samplers
from hasten.trainers.analyses import gaussian, probe
from hasten.trainers.checkpoints import RunStore, State
from hasten.trainers.datasets import data, sources
from hasten.trainers.errors import ConfigError
from hasten.trainers.loss import LossWeights
from hasten.trainers.metrics.subject import SEED
from hasten.trainers.models import networks
from hasten.trainers.models.networks import Network
from hasten.trainers.posthoc import Profile
from hasten.trainers.process import Process
from hasten.trainers.records import RunResult
from hasten.trainers.specs import RunSpec
from hasten.trainers.worker import Worker

MOST_IMAGES: Final = 8192
"""How many training images stand for all of them where moments are taken."""

Plain = dict[str, Any]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Clean images (N, C, H, W) as a model sees them, float32, and their labels (N,), -1 for none."""

    clean: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """``name`` is what to call it beside others; ``network`` is the newest checkpoint's averaged one.

    The network is in evaluation mode, on ``device``.
    """

    name: str
    uri: str
    spec: RunSpec
    result: RunResult
    state: State
    network: Network
    process: Process
    data_uri: str
    device: torch.device

    def described(self) -> Plain:
        """What to know of it beside an analysis, as plain data."""
        return {
            "name": self.name,
            "run": self.uri.rpartition("/")[2],
            "uri": self.uri,
            "fingerprint": self.result.fingerprint,
            "network": self.spec.model.kind,
            "process": self.spec.diffusion.kind,
            "prediction": self.prediction,
            "data": self.spec.data.source,
            "seed": self.spec.budget.seed,
            "images": self.result.images,
        }

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.network.shape

    @property
    def prediction(self) -> str:
        return diffusion.prediction(self.spec.diffusion)

    @property
    def is_mixture(self) -> bool:
        return sources.is_mixture(self.spec.data.source)

    @property
    def has_pixels(self) -> bool:
        """Whether its data are images in [-1, 1]: not latents, nor points of a mixture."""
        return not self.is_mixture and data.read_manifest(self.data_uri).dtype == "uint8"

    def images(self, count: int, *, held_out: bool) -> Images:
        """Up to ``count`` training or held-out images, the same first ones that evaluation takes.

        Raises:
            Fault: the data changed or are damaged.
        """
        if self.is_mixture:
            known, places = sources.mixture(self.spec.data.source), np.arange(count)
            stream = "eval/clean" if held_out else "eval/reference"
            return Images(
                clean=known.generate(SEED, stream, places), labels=known.labels(SEED, stream, places)
            )
        dataset = data.read(self.data_uri, self.result.data_digest)
        train, rest = dataset.split(self.spec.data.holdout)
        stored, labels = dataset.rows((rest if held_out else train)[:count])
        return Images(clean=data.to_model(stored, dataset.manifest), labels=labels)

    def on_device(self, images: Images) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images and, where the network wants them, labels; without one, the label that says so."""
        clean = torch.from_numpy(images.clean).to(self.device)
        if self.network.classes is None:
            return clean, None
        labels = np.where(images.labels < 0, self.network.classes, images.labels)
        return clean, torch.from_numpy(labels).to(self.device)

    def moments(self) -> gaussian.Moments:
        """First and second moments of the training images, of the first ones where there are many."""
        return gaussian.moments(self.images(MOST_IMAGES, held_out=False).clean)

    def moments_kept(self, most: int) -> list[int]:
        """After how many images averages of the first width were kept, ``most`` at most, and the end."""
        return [*(profile.images for profile in self._kept(most)), self.result.images]

    def averages(self, most: int) -> Iterator[tuple[int, Network]]:
        """``(images, network)`` at each of :meth:`moments_kept`; the last one is the run's own network."""
        for profile in self._kept(most):
            yield profile.images, self.with_weights(RunStore(self.uri).read_average(profile).state)
        yield self.result.images, self.network

    def _kept(self, most: int) -> list[Profile]:
        """Evenly chosen among those that are there."""
        widths = getattr(self.spec.ema, "stds", ())
        kept = [
            each
            for each in RunStore(self.uri).averages()
            if widths and math.isclose(each.std, widths[0], rel_tol=1e-6)
            if 0 < each.images < self.result.images
        ]
        places = np.linspace(0, len(kept) - 1, min(len(kept), most)).round().astype(int)
        return [kept[place] for place in dict.fromkeys(places.tolist())]

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> Network:
        """The run's network with other weights."""
        return networks.load(self.spec.model, weights).to(self.device)

    def history(self) -> list[dict[str, Any]]:
        """The held-out loss at each evaluation: rows of ``step`` and ``loss``, least noise first."""
        return sorted(self.result.by_timestep, key=lambda row: int(row["step"]))

    def held_out_task(self, count: int, seed: int) -> probe.Task:
        """Held-out images at uniform timesteps: a loss that no curriculum or weighting enters."""
        clean, labels = self.on_device(self.images(count, held_out=True))
        t = probe.spread(0, len(self.process.levels), len(clean), seed=seed, stream="analyses/uniform")
        return probe.task(self.process, clean, t, seed=seed, stream="analyses/landscape", labels=labels)

    def training_task(self, state: State, count: int, seed: int) -> probe.Task:
        """Training images under the objective of the moment at which ``state`` was saved.

        Its distribution over timesteps, importance corrections and loss weights included.
        """
        clean, labels = self.on_device(self.images(count, held_out=False))
        alphas_bar = diffusion.alphas_bar(self.spec.diffusion)
        sampler = samplers.build(self.spec.curriculum, alphas_bar, device=self.device, worker=Worker())
        sampler.load_state_dict(state["sampler"])
        progress = state["images"] / self.spec.budget.images
        places = np.arange(len(clean))
        order = randomness.permutation(seed, "analyses/stratum", 0, len(clean))
        u = randomness.stratified(seed, "analyses/training", places, order, len(clean))
        t, correction = sampler.draw(progress, torch.from_numpy(u).to(self.device))
        weight = LossWeights(self.spec.weighting, self.process, self.device).at(progress)[t]
        return probe.task(
            self.process,
            clean,
            t.cpu().numpy(),
            seed=seed,
            stream="analyses/landscape",
            labels=labels,
            weight=weight if correction is None else weight * correction,
        )


def load(name: str, uri: str, *, storage_uri: str, device: torch.device) -> Finished:
    """The finished run whose folder is at ``uri``.

    Raises:
        ConfigError: it is not there, not finished, or its data are gone.
        Fault: its checkpoint is damaged, or the storage failed.
    """
    store = RunStore(uri)
    result, latest = store.result(), store.latest()
    if result is None or latest is None:
        started = "is not finished" if latest else "no finished run of that name"
        remedy = "A run's name is printed by `hasten train` and shown in MLflow: RECIPE-FINGERPRINT."
        raise ConfigError(name, started, remedy)
    spec = RunSpec.model_validate(result.spec)
    state = store.load(latest)
    return Finished(
        name=name,
        uri=uri,
        spec=spec,
        result=result,
        state=state,
        network=networks.load(spec.model, state["ema"][0]).to(device),
        process=Process(spec.diffusion, device),
        data_uri=sources.find(spec, storage_uri).uri,
        device=device,
    )
