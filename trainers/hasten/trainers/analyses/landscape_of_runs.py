"""The loss landscape of finished runs, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Final

from hasten.trainers.analyses import landscape
from hasten.trainers.analyses.finished import Finished, Plain, Tell
from hasten.trainers.checkpoints import RunStore

NOTES: Final = (
    "The bound is of full batches and a preconditioner that stands still: mini-batch training settles below.",
    "Sharpness is that of the training objective at the moment of the checkpoint, on a fixed sample of "
    "images, noise and timesteps; lines show the held-out loss at uniform timesteps.",
)


def check(runs: Sequence[Finished]) -> None:
    """Every finished run can be analysed."""


def phases(runs: Sequence[Finished]) -> int:
    """How often :func:`analyse` tells what it does, at most."""
    own = sum(len(RunStore(run.uri).checkpoints()) + 2 for run in runs)
    return own + len(runs) * (len(runs) - 1) // 2


def analyse(runs: Sequence[Finished], *, count: int, points: int, seed: int, tell: Tell) -> Plain:
    """The loss along lines between weights, and its sharpest curvature against the optimizer's bound."""
    lines: list[Plain] = []
    sharpness, notes = [], []
    for run in runs:
        for checkpoint in RunStore(run.uri).checkpoints():
            tell(f"the sharpest direction of {run.name}, {int(checkpoint.partition('-')[0]):,} images")
            sharpness.append(_sharpness(run, checkpoint, count=count, seed=seed))
        lines += _own_lines(run, count=count, points=points, seed=seed, tell=tell)
    for first, second in combinations(runs, 2):
        if (first.spec.model, first.spec.diffusion, first.shape, first.result.data_digest) != (
            second.spec.model, second.spec.diffusion, second.shape, second.result.data_digest
        ):  # fmt: skip
            notes.append(f"No line from {first.name} to {second.name}: their networks, tasks or data differ.")
            continue
        tell(f"the line from {first.name} to {second.name}")
        ends = first.network.state_dict(), second.network.state_dict()
        line = landscape.interpolate(first.network, *ends, first.held_out_task(count, seed), points=points)
        lines.append(
            {
                "kind": "between",
                "first": first.name,
                "second": second.name,
                "weights": "averaged",
                **asdict(line),
            }
        )
    return {
        "analysis": "landscape",
        "runs": [run.described() for run in runs],
        "count": count,
        "points": points,
        "seed": seed,
        "tolerance": landscape.TOLERANCE,
        "lines": lines,
        "sharpness": sharpness,
        "notes": [*notes, *NOTES],
    }


def _sharpness(run: Finished, checkpoint: str, *, count: int, seed: int) -> Plain:
    state = RunStore(run.uri).load(checkpoint)
    network = run.with_weights(state["network"])
    task = run.training_task(state, count, seed)
    metric = landscape.metric(state["optimizer"], run.spec.optimizer.convention)
    raw = landscape.largest_eigenvalue(network, task, seed=seed)
    own = raw
    if metric.diagonal is not None:
        own = landscape.largest_eigenvalue(network, task, diagonal=metric.diagonal, seed=seed)
    return {
        "run": run.name,
        "images": state["images"],
        "lr": metric.lr,
        "beta": metric.beta,
        "bound": metric.bound,
        "hessian": asdict(raw),
        "preconditioned": asdict(own),
        "share_of_bound": own.value / metric.bound,
    }


def _own_lines(run: Finished, *, count: int, points: int, seed: int, tell: Tell) -> Iterator[Plain]:
    """From one kept moment of a run to its end: the checkpoints' last weights, the averages kept."""
    store = RunStore(run.uri)
    names, task = store.checkpoints(), run.held_out_task(count, seed)
    ends = []
    if len(names) > 1:
        earlier = store.load(names[0])
        ends.append(("last", earlier["images"], earlier["network"], run.state["network"]))
    moments = list(run.averages(1))
    if len(moments) > 1:
        images, network = moments[0]
        ends.append(("averaged", images, network.state_dict(), run.network.state_dict()))
    for weights, images, first, last in ends:
        tell(f"the line of {run.name} from {images:,} images to its end")
        line = landscape.interpolate(run.network, first, last, task, points=points)
        yield {
            "kind": "within",
            "first": f"{run.name}, {images:,} images",
            "second": f"{run.name}, {run.result.images:,} images",
            "weights": weights,
            **asdict(line),
        }
