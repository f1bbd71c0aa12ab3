"""How fresh a champion is, found by looking: at its age, and at the data now and in its snapshot."""

from __future__ import annotations

import math
from dataclasses import asdict

from hasten.platform.registry import RUN_URI, Version
from hasten.platform.retraining.freshness import Freshness
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.datasets.data import Dataset
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.job import Job
from hasten.trainers.metrics import drift
from hasten.trainers.specs import RunSpec


def measured(model: str, champion: Version | None, job: Job) -> Freshness:
    """Look at a champion and at the data as they are now.

    Raises:
        Fault: the storage failed.
        ConfigError: the features that the recipe is evaluated by are not there.
    """
    source = sources.opened(job.data_uri, job.data_digest)
    images = source.manifest.count if isinstance(source, Dataset) else None
    if champion is None:
        return Freshness(model=model, images=images)
    found = Freshness(
        model=model,
        champion=champion.number,
        champion_made=champion.made,
        images=images,
    )
    moved = _moved(job, source, champion)
    if moved is None:
        return found
    known = {"new_images": moved.new, "drift": moved.distance, "drift_floor": moved.floor}
    known = {key: value for key, value in known.items() if math.isfinite(value)}
    return Freshness(**{**asdict(found), **known})


def new_since(job: Job, digest: str, uri: str) -> int | None:
    """How many images of a job's data were not in the snapshot of this digest; None where it is gone."""
    source = sources.opened(job.data_uri, job.data_digest)
    before = _snapshot(uri, digest)
    if not isinstance(source, Dataset) or before is None:
        return None
    return drift.unseen(source, before)


def _moved(job: Job, source: sources.Source, champion: Version) -> drift.Drift | None:
    result = RunStore(champion.tags[RUN_URI]).result() if RUN_URI in champion.tags else None
    if result is None or not isinstance(source, Dataset):
        return None
    if result.data_digest == job.data_digest:
        return drift.Drift(images=source.manifest.count, new=0, distance=0.0, floor=math.nan)
    theirs = RunSpec.model_validate(result.spec)
    storage = champion.tags[RUN_URI].rpartition("/runs/")[0]
    places = (job.data_uri, sources.address(theirs, storage))  # data are told by digest: names may change
    before = next((found for place in places if (found := _snapshot(place, result.data_digest))), None)
    if before is None or before.manifest.shape != source.manifest.shape:
        return None
    return drift.drift(source, before, job.spec.eval.samples.features)


def _snapshot(uri: str, digest: str) -> Dataset | None:
    try:
        found = sources.opened(uri, digest)
    except (ConfigError, Fault):
        return None
    return found if isinstance(found, Dataset) else None
