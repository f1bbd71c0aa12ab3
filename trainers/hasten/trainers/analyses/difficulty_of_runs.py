"""Difficulty by timestep of finished runs, as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Final

import numpy as np

from hasten.trainers.analyses import difficulty, gaussian
from hasten.trainers.analyses.finished import Finished, Plain, Tell

WITHIN: Final = 0.05
"""A range's loss has converged once it stays within this share of its final value."""
_MOMENTS: Final = 5  # of the averages that were kept, beside the last one
_BATCHES: Final = 16


def check(runs: Sequence[Finished]) -> None:
    """Every finished run can be analysed."""


def phases(runs: Sequence[Finished]) -> int:
    """How often :func:`analyse` tells what it does."""
    return sum(1 + len(run.moments_kept(_MOMENTS)) for run in runs)


def analyse(runs: Sequence[Finished], *, count: int, bins: int | None, seed: int, tell: Tell) -> Plain:
    """Which timesteps are hard, by several meanings of hard."""
    described = []
    for run in runs:
        ranges = bins or run.spec.eval.loss.bins
        held_out = run.images(run.spec.eval.loss.images, held_out=True).clean
        tell(f"the linear denoiser of {run.name}")
        known = run.moments()
        linear = gaussian.linear_loss(known, run.process.levels, held_out)
        described.append(
            run.described()
            | {"timesteps": len(run.process.levels), "ranges": ranges}
            | _losses(run, linear)
            | {"gradients": list(_gradients(run, linear, ranges=ranges, count=count, seed=seed, tell=tell))}
        )
    return {
        "analysis": "difficulty",
        "count": count,
        "seed": seed,
        "within": WITHIN,
        "runs": described,
        "directions": [asdict(found) for found in difficulty.directions(_measures(described))],
        "notes": _notes(described),
    }


def _losses(run: Finished, linear: gaussian.Array) -> Plain:
    """The held-out loss by range of timesteps at each evaluation, against the linear denoiser's."""
    rows = run.history()
    if not rows:
        return {"history": [], "linear_loss": [], "images_to_convergence": []}
    ranges = len(rows[0]["loss"])
    best = gaussian.by_bin(linear, ranges)
    table = np.array([[_number(value) for value in row["loss"]] for row in rows], dtype=np.float64)
    steps = [int(row["step"]) for row in rows]
    return {
        "linear_loss": best.tolist(),
        "history": [
            {"step": step, "loss": _plain(losses), "relative": _plain(losses / best)}
            for step, losses in zip(steps, table, strict=True)
        ],
        "images_to_convergence": difficulty.images_to_convergence(steps, table, within=WITHIN),
    }


def _gradients(
    run: Finished, linear: gaussian.Array, *, ranges: int, count: int, seed: int, tell: Tell
) -> Iterator[Plain]:
    """Gradient statistics at the averages that the run kept, and at its end.

    ``relative_norm`` and ``relative_deviation`` are the gradient's norm, and the standard deviation of a
    single image's gradient, over the linear denoiser's loss, all in the units of the network's answer;
    ``relative_variance`` is the deviation's square. No norm where noise hides it.
    """
    levels = run.process.levels
    scale = gaussian.by_bin(linear / levels.epsilon_error**2, ranges)
    clean, labels = run.on_device(run.images(count, held_out=True))
    batch = max(1, len(clean) // _BATCHES)
    for images, network in run.averages(_MOMENTS):
        tell(f"gradients of {run.name} after {images:,} images")
        found = difficulty.gradient_statistics(
            network, run.process, clean, ranges=ranges, batch=batch, seed=seed, labels=labels
        )
        rows = [
            asdict(each)
            | {
                "relative_norm": None
                if each.noise_scale is None
                else math.sqrt(each.squared_norm.mean) / float(unit),
                "relative_deviation": math.sqrt(each.variance.mean) / float(unit),
                "relative_variance": each.variance.mean / float(unit) ** 2,
            }
            for each, unit in zip(found.ranges, scale, strict=True)
        ]
        yield {
            "images": images,
            "mini_batch": batch,
            "ranges": rows,
            "interference": [list(row) for row in found.interference],
        }


def _measures(described: Sequence[Plain]) -> dict[str, list[list[float | None]]]:
    """For each run, each meaning of "hard" in each range of timesteps."""
    last = [run["gradients"][-1]["ranges"] for run in described]
    measures: dict[str, list[list[float | None]]] = {
        "gradient noise scale": [[each["noise_scale"] for each in run] for run in last],
        "gradient variance over linear": [[each["relative_variance"] for each in run] for run in last],
    }
    if all(run["history"] for run in described):
        measures["loss over linear"] = [run["history"][-1]["relative"] for run in described]
        measures["images to convergence"] = [run["images_to_convergence"] for run in described]
    return measures


def _notes(described: Sequence[Plain]) -> list[str]:
    notes = [f'A direction is named from three runs on; "converged" means within {WITHIN:.0%} of the end.']
    if not all(run["history"] for run in described):
        notes.append("A run without losses by timestep in its store has gradients only.")
    if any(None in run["images_to_convergence"] for run in described):
        notes.append("A range that only its last evaluation puts within that has no convergence point.")
    return notes


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _plain(values: gaussian.Array) -> list[float | None]:
    """JSON has no NaN."""
    return [float(value) if math.isfinite(value) else None for value in values]
