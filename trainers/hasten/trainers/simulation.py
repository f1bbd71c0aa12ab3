"""A run that computes nothing: it sleeps, and reports a plausible learning curve.

It keeps the contract of a real one (reports, checkpoints, forks, resumption, result, tracker), so that the
platform can be measured and searches can be tried without training. What it reports is made up by
:mod:`hasten.trainers.simulated_curve`.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from hasten.trainers import learning_rate, momentum, resumption, timeline, tracker
from hasten.trainers.checkpoints import RunStore, StoreWriter
from hasten.trainers.errors import Diverged, Exhausted
from hasten.trainers.job import Job
from hasten.trainers.models.architectures import Simulated
from hasten.trainers.pulse import Pulse
from hasten.trainers.records import Point, Report, RunResult
from hasten.trainers.resumption import Place
from hasten.trainers.simulated_curve import Curve, model_of
from hasten.trainers.states import State
from hasten.trainers.timeline import Marks
from hasten.trainers.tracker import Tracker
from hasten.trainers.worker import Worker


def run(
    job: Job, *, worker: Worker, track: Tracker, stop: Callable[[], bool], forks: Collection[int] = ()
) -> Iterator[Report]:
    """Bring a simulated run to its end, or as far as ``job.until``; every rank runs this.

    Args:
        job: the run.
        worker: this process's place in it.
        track: told what happens.
        stop: once it is true on any rank, a checkpoint is written and all end.
        forks: after how many images checkpoints are kept for other runs.

    Raises:
        Fault: the failure that the recipe asks for, or the storage failed.
    """
    started, store = time.monotonic(), RunStore(job.uri)
    found, begin = resumption.find(job, worker), model_of(job.spec).start
    course = restored(*found) if found else Course(begun=(0, begin), loss=begin)
    place, resumed_from = (found[0], course.images) if found else (None, None)
    if place is not None and worker.is_first:
        if place.whose != "own":
            store.inherit(RunStore(place.uri), course.images)
        for point in course.history:
            track.metrics(point.metrics, step=point.step)
    writer = StoreWriter(store)
    try:
        for report in course.evaluations(job.spec.budget.images):
            yield replace(report, again=True)
        yield from _train(job, course, worker=worker, track=track, writer=writer, stop=stop, forks=forks)
        checkpoint = writer.wait()
    finally:
        writer.close()
    if worker.is_first and course.images >= job.spec.budget.images:
        ending = {
            "resumed_from": resumed_from,
            "checkpoint": checkpoint or (place.address if place else None),
            "wall_seconds": time.monotonic() - started,
        }
        store.write_result(result(job, course).model_copy(update=ending))
    worker.agree(None)  # no rank returns before the result is there


@dataclass(slots=True)
class Course:
    """Where a run stands: all that its checkpoint holds.

    ``begun`` is where its own settings took over, as images and the loss without noise there; ``loss`` is
    that loss now. ``rows`` hold the step, seconds and items of each evaluation.
    """

    begun: tuple[int, float]
    loss: float
    images: int = 0
    seconds: float = 0.0
    history: list[Point] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def state(self) -> State:
        """What a checkpoint holds."""
        return {
            "images": self.images,
            "seconds": self.seconds,
            "begun": list(self.begun),
            "loss": self.loss,
            "history": [[point.step, dict(point.metrics)] for point in self.history],
            "rows": [dict(row) for row in self.rows],
        }

    def report(self, metrics: dict[str, float], total: int, *, stopped: bool = False) -> Report:
        """How far the run is."""
        return Report(
            images=self.images,
            total=total,
            seconds=self.seconds,
            metrics=metrics,
            evaluated=False,
            stopped=stopped,
        )

    def evaluations(self, total: int, *, after: int = 0) -> list[Report]:
        """A report of every evaluation but the first ``after``, in order."""
        return [
            Report(
                images=row["step"],
                total=total,
                seconds=row["seconds"],
                metrics={
                    key: value
                    for point in self.history
                    if point.step == row["step"]
                    for key, value in point.metrics.items()
                },
                evaluated=True,
                items=tuple(row["items"]),
            )
            for row in self.rows[after:]
        ]


def restored(place: Place, state: State) -> Course:
    """Where a run goes on. From a recipe's ``start`` on, its own settings decide."""
    since, loss = (state["images"], state["loss"]) if place.whose == "start" else state["begun"]
    return Course(
        begun=(since, loss),
        images=state["images"],
        seconds=state["seconds"],
        loss=state["loss"],
        history=[Point(step=step, metrics=metrics) for step, metrics in state["history"]],
        rows=list(state["rows"]),
    )


def _train(
    job: Job,
    course: Course,
    *,
    worker: Worker,
    track: Tracker,
    writer: StoreWriter,
    stop: Callable[[], bool],
    forks: Collection[int],
) -> Iterator[Report]:
    """Sleep and report until the budget, or ``until``, is reached."""
    spec, model, total = job.spec, model_of(job.spec), job.spec.budget.images
    curve, pulse, saved, resumed = Curve(job), Pulse(worker, stop), course.images, course.images > 0

    if not course.rows:
        yield from evaluate(course, curve, timeline.AT_START, worker=worker, track=track, writer=writer)
    if course.images in forks and worker.is_first:  # wanted only after the run had come here
        writer.fork(course.state())
    for before, after in itertools.pairwise([course.images, *positions(job, course.images, forks)]):
        if pulse.stopping():
            break
        fail_on_demand(model, before / total, after / total, resumed=resumed)
        gauges = advance(course, curve, after, worker)
        track.metrics(gauges, step=after)
        marks = timeline.evaluations(spec.eval, before, after, total)
        told = evaluate(course, curve, marks, worker=worker, track=track, writer=writer)

        # Keep what was done, before anybody hears of it.
        due = timeline.crossed(saved, after, every=spec.execution.checkpoint_every, total=total) is not None
        if due:
            saved = after
        if worker.is_first and due:
            writer.checkpoint(course.state())
        if worker.is_first and after in forks:
            writer.fork(course.state())
            writer.wait_for_forks()
        yield from told or [course.report(gauges, total)]

    if course.images < total:
        if worker.is_first:
            writer.checkpoint(course.state())
        yield course.report({}, total, stopped=True)


def advance(course: Course, curve: Curve, images: int, worker: Worker) -> dict[str, float]:
    """Sleep until there are so many images; what there is to say about the training."""
    spec, before, started = curve.spec, course.images, time.monotonic()
    time.sleep(model_of(spec).seconds * (images - before) / spec.budget.images)
    seconds = max(worker.mean(time.monotonic() - started), 1e-9)
    course.images, course.seconds = images, course.seconds + seconds
    course.loss = curve.loss(images, course.begun)
    progress = images / spec.budget.images
    beta1, factor = momentum.at(spec.momentum, progress)
    factor *= learning_rate.factor(spec.optimizer.schedule, progress)
    gauges = {
        tracker.TRAIN_LOSS: curve.train_loss(images, course.loss),
        tracker.TRAIN_LR: spec.optimizer.lr * factor,
        tracker.TRAIN_BETA1: beta1,
        tracker.IMAGES_PER_SECOND: (images - before) / seconds,
        tracker.SECONDS: course.seconds,
    }
    course.history.append(Point(step=images, metrics=gauges))
    return gauges


def evaluate(
    course: Course, curve: Curve, marks: Marks, *, worker: Worker, track: Tracker, writer: StoreWriter
) -> list[Report]:
    """Measure what is due and tell of it; the reports of evaluations among it."""
    known = len(course.rows)
    metrics: list[tuple[int, dict[str, float]]] = []
    if marks.loss is not None:
        items = curve.items(course.images, course.loss)
        course.rows.append({"step": marks.loss, "seconds": course.seconds, "items": items.tolist()})
        metrics.append((marks.loss, {tracker.EVAL_LOSS: float(items.mean())}))
    if marks.samples is not None:
        quality = curve.frechet(course.images, course.loss)
        metrics.append((marks.samples, {tracker.EVAL_FRECHET: quality}))
    for step, values in metrics:
        course.history.append(Point(step=step, metrics=values))
        track.metrics(values, step=step)
    if model_of(curve.spec).images and marks.sheet is not None:
        picture = curve.sheet(course.images)
        track.image(tracker.FIXED_NOISE_GRID, picture, step=marks.sheet)
        if worker.is_first:
            writer.sheet(marks.sheet, picture)
    return course.evaluations(curve.spec.budget.images, after=known)


def positions(job: Job, images: int, forks: Collection[int]) -> list[int]:
    """After how many more images than ``images`` something is said or kept: at ends of batches."""
    spec, total = job.spec, job.spec.budget.images
    every = (1.0 / model_of(spec).reports, spec.eval.loss.every, spec.execution.checkpoint_every)
    marks = {round(number * share * total) for share in every for number in range(1, int(1.0 / share) + 1)}
    marks |= {round(at * total) for at in spec.eval.samples.at} | {total, *forks}
    end = total if job.until is None else job.until
    first, batch = spec.start.images if spec.start else 0, spec.optimizer.batch
    ends = {min(first + -(-(mark - first) // batch) * batch, end) for mark in marks}
    return sorted(each for each in ends if each > images)


def fail_on_demand(model: Simulated, before: float, after: float, *, resumed: bool) -> None:
    """The recipe's own fault, between two moments of progress.

    Raises:
        Diverged, Exhausted, RuntimeError: where that is asked for; a crash or a hang does not return.
    """
    failure = model.fails
    if failure is None or not before <= failure.at < after or (failure.once and resumed):
        return
    match failure.how:
        case "nan":
            raise Diverged(tracker.TRAIN_LOSS, "is not a finite number", "This run was asked to diverge.")
        case "memory":
            raise Exhausted("execution.micro_batch", "not even one image at a time fits into memory")
        case "error":
            raise RuntimeError("this run was asked to fail")
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:
                time.sleep(3600.0)


def result(job: Job, course: Course) -> RunResult:
    """What a finished run measured."""
    metrics = {key: value for point in course.history for key, value in point.metrics.items()}
    return RunResult(
        run=job.run,
        fingerprint=job.fingerprint,
        status="finished",
        images=course.images,
        seconds=course.seconds,
        metrics=metrics,
        history=sorted(course.history, key=lambda point: point.step),
        by_timestep=course.rows,
        evaluation={"simulated": True},
        spec=job.spec.model_dump(mode="json"),
        data_digest=job.data_digest,
    )
