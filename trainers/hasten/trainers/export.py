"""A trained network as other people's tools load it."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMPipeline

from hasten.trainers import data, diffusion, networks, sampling, session
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.errors import ConfigError
from hasten.trainers.evaluation import Evaluator
from hasten.trainers.session import Job
from hasten.trainers.specs import RunSpec
from hasten.trainers.worker import Worker


def averaged_network(run_uri: str) -> tuple[RunSpec, torch.nn.Module]:
    """The recipe of a finished run, and its averaged network on the CPU.

    Raises:
        ConfigError: there is no finished run at this URI.
        Fault: its checkpoint is damaged.
    """
    store = RunStore(run_uri)
    result, latest = store.result(), store.latest()
    if result is None or latest is None:
        raise ConfigError(run_uri, "has no finished run with a checkpoint")
    spec = RunSpec.model_validate(result.spec)
    state = store.load(latest)
    weights = state["ema"][0]
    channels = weights["conv_in.weight"].shape[1]
    network = networks.build(spec.model, resolution=spec.data.resolution, channels=channels, seed=0)
    network.load_state_dict(weights)
    return spec, network.eval()


def pipeline(run_uri: str, folder: Path) -> None:
    """Write a folder that ``diffusers.DiffusionPipeline.from_pretrained`` loads: safetensors and JSON only.

    Raises:
        ConfigError: there is no finished run at this URI.
    """
    spec, network = averaged_network(run_uri)
    DDIMPipeline(unet=network, scheduler=sampling.scheduler(spec.diffusion)).save_pretrained(
        str(folder), safe_serialization=True
    )


def held_out_loss(run_uri: str, job: Job) -> float:
    """The held-out loss of a finished run's averaged network on *another* job's data and evaluation.

    Raises:
        ConfigError: there is no finished run at this URI.
        Fault: the data changed or is damaged.
    """
    spec, network = averaged_network(run_uri)
    session.make_deterministic(job.spec.execution.threads)
    dataset = data.read(job.data_uri, job.data_digest)
    train, held_out = dataset.split(job.spec.data.holdout)
    evaluator = Evaluator(
        job.spec.eval,
        diffusion=spec.diffusion,
        alphas_bar=diffusion.alphas_bar(spec.diffusion),
        train=dataset.pixels[train],
        held_out=dataset.pixels[held_out],
        worker=Worker(),
    )
    return evaluator.loss(network)
