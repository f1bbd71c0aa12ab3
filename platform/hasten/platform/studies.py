"""``hasten sweep`` and ``hasten compare``: run a study's plan, minus what is done, and say who won."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hasten.platform import identities, importing, progress, runs, settings
from hasten.platform.connection import connected
from hasten.platform.identities import OpenTrial
from hasten.platform.identity import RunIdentity
from hasten.platform.locks import only_one
from hasten.platform.services import Services, look
from hasten.platform.tracking import Tracking
from hasten.platform.training import repair, tracker_of
from hasten.sweeps import compare as comparisons
from hasten.sweeps import plan as plans
from hasten.sweeps import study as study_files
from hasten.sweeps.plan import Plan, Trial
from hasten.sweeps.records import TrialResult
from hasten.sweeps.reports import report
from hasten.sweeps.statistics.caveats import second_opinion
from hasten.sweeps.statistics.comparison import Comparison
from hasten.trainers import session
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.errors import ConfigError, Fault, Stopped
from hasten.trainers.job import Job
from hasten.trainers.records import RunResult
from hasten.trainers.specs import flatten
from hasten.trainers.tracker import EVAL_FRECHET, EVAL_LOSS, TRAIN_LOSS


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A study's plan bound to its services."""

    plan: Plan
    services: Services
    tracking: Tracking
    jobs: Mapping[str, Job]
    parent: RunIdentity
    _known: dict[str, RunResult] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.plan.study.name

    def results(self) -> dict[str, RunResult]:
        """The results that the store has, by trial; a result never changes, so each is read once."""
        for name in self.jobs.keys() - self._known.keys():
            result = RunStore(self.jobs[name].uri).result()
            if result is not None:
                self._known[name] = result
        return {name: self._known[name] for name in self.jobs if name in self._known}

    def identity(self, trial: Trial, parent_run_id: str) -> RunIdentity:
        return identities.trial(trial, self.jobs[trial.name], study=self.name, parent_run_id=parent_run_id)


def bind(plan: Plan, *, console: Console, ray: bool = True) -> Sweep:
    """Find or start what a study needs, and bind its trials to their data.

    Raises:
        ConfigError: the data does not fit, or a service is wrong.
    """
    services = connected(console, tracking=True, ray=ray)
    for source in {trial.spec.data.source for trial in plan.trials}:
        importing.ensure(source, services.storage_uri)
    jobs = {trial.name: session.job(trial.spec, services.storage_uri) for trial in plan.trials}
    return Sweep(
        plan=plan,
        services=services,
        tracking=tracker_of(services),
        jobs=jobs,
        parent=identities.study(plan),
    )


def sweep(plan: Plan, *, console: Console) -> tuple[dict[str, Any], Comparison | None]:
    """Run what is left of a study; what ``hasten sweep --json`` prints, and the comparison of its arms.

    Raises:
        Stopped: a signal or the time limit ended it; the same command goes on.
        Fault: trials failed; the others are finished.
    """
    with only_one(settings.home() / "locks" / f"study-{plan.study.name}", what=f"study {plan.study.name}"):
        bound = bind(plan, console=console)
        done = bound.results()
        left = [trial for trial in plan.trials if trial.name not in done]
        if not left and bound.tracking.status(bound.parent) == "FINISHED":
            console.print(f"{bound.name}: all {len(plan.trials)} trials are finished; nothing to run")
            return outcome(bound, {}), comparison_of(bound)
        if left:
            require_cluster(bound)
        track = bound.tracking.open(bound.parent)
        share_view(bound, image_step=0)
        console.print(f"{bound.name}: {len(left)} trials to run, {len(done)} finished already")
        console.print(f"watch it at {bound.tracking.link(bound.name)}", soft_wrap=True)
        try:
            try:
                endings = execute(bound, left, track.run_id, console=console)
            except KeyboardInterrupt:  # SIGTERM, or a second Ctrl-C
                endings = {trial.name: "stopped" for trial in left}
            settle(bound, endings, track.run_id)
            share_view(bound, image_step=max(trial.spec.budget.images for trial in plan.trials))
        except BaseException:
            track.close("stopped")
            raise
        # A trial may have written its result just before it was stopped: the store decides.
        done = bound.results()
        stopped = [name for name, state in endings.items() if state == "stopped" and name not in done]
        failed = [name for name, state in endings.items() if state == "failed"]
        compared = comparison_of(bound)
        if compared is not None and not stopped:
            for path in write_report(bound, compared):
                track.artifact(f"report/{path.name}", path.read_bytes())
            track.tags({"hasten.verdict": compared.verdict})
        track.close("stopped" if stopped else "failed" if failed else "finished")
    if stopped:
        problem = f"stopped with {len(stopped)} of {len(plan.trials)} trials left"
        raise Stopped(bound.name, problem, "The same command goes on with them.")
    if failed:
        problem = f"{len(failed)} of {len(plan.trials)} trials failed: {', '.join(failed)}"
        raise Fault(bound.name, problem, "The same command tries them again.")
    return outcome(bound, endings), compared


def share_view(bound: Sweep, *, image_step: int) -> None:
    """Set what MLflow shows of the study: scores and swept settings, the image grid at ``image_step``.

    While trials run, only the images of the start are sure to be there.
    """
    swept = sorted({key for trial in bound.plan.trials for key in flatten(trial.changes)})
    settings_of = [flatten(trial.spec.model_dump(mode="json")) for trial in bound.plan.trials]
    bound.tracking.set_shared_view(
        bound.name,
        [f"final/{EVAL_LOSS}", f"best/{EVAL_LOSS}", f"final/{EVAL_FRECHET}", EVAL_LOSS, TRAIN_LOSS],
        swept,
        axes=[key for key in swept if all(key in each for each in settings_of)],
        image_step=image_step,
    )


def require_cluster(bound: Sweep) -> None:
    """Attach to Ray, and refuse a study that it can never hold before anything is written down.

    Raises:
        ConfigError: with the numbers.
        Fault: Ray does not answer.
    """
    # Importing Ray takes seconds: not for a study that is finished.
    from hasten.platform import cluster
    from hasten.sweeps import ray_tune

    cluster.attach(bound.services)
    ray_tune.concurrency(bound.plan.study.execution)


def execute(bound: Sweep, left: Sequence[Trial], parent_run_id: str, *, console: Console) -> dict[str, Any]:
    """Run the trials that are left; how each ended, by name."""
    if not left:
        return {}
    from hasten.platform import cluster
    from hasten.sweeps import ray_tune

    totals = {trial.name: trial.spec.budget.images for trial in left}
    trackers = OpenTrial(bound.tracking, {trial.name: bound.identity(trial, parent_run_id) for trial in left})
    try:
        with progress.board(console, bound.name, totals) as board:
            endings = ray_tune.execute(
                {trial.name: bound.jobs[trial.name] for trial in left},
                name=bound.name,
                execution=bound.plan.study.execution,
                open_tracker=trackers,
                scratch=cluster.scratch(bound.services),
                observe=board.observe,
                hours=bound.plan.study.limits.hours,
            )
            return dict(endings)
    finally:
        cluster.detach()


def settle(bound: Sweep, endings: Mapping[str, Any], parent_run_id: str) -> None:
    """Make the tracking server agree with the store: every finished trial is there, FINISHED, whole."""
    done = bound.results()
    bound.tracking.replay()
    states = {name: endings.get(name, "stopped") for name in bound.jobs} | dict.fromkeys(done, "finished")
    for trial in bound.plan.trials:
        if trial.name in done:
            repair(bound.jobs[trial.name], bound.tracking, bound.identity(trial, parent_run_id))
    bound.tracking.reconcile(bound.name, states)


def comparison_of(bound: Sweep) -> Comparison | None:
    """The comparison of a study's arms; None for a search."""
    study = bound.plan.study
    if not study.arms:
        return None
    done = bound.results()
    results = [
        TrialResult(trial=trial.name, arm=trial.arm, seed=trial.seed, result=done[trial.name])
        for trial in bound.plan.trials
        if trial.name in done
    ]
    shared: dict[str, Any] = {
        "study": study.name,
        "baseline": study.baseline,
        "arms": bound.plan.arms,
        "seeds": study.seeds,
    }
    # Another measure of quality may disagree with the objective, and people should know.
    opinion = comparisons.compare(results, **shared, metric=EVAL_FRECHET, target=None)
    compared = comparisons.compare(
        results,
        **shared,
        metric=study.objective.metric,
        mode=study.objective.mode,
        target=study.objective.target,
        notes=plans.missing_controls(bound.plan),
    )
    disagreement = second_opinion(compared, opinion)
    return replace(compared, notes=(*compared.notes, disagreement)) if disagreement else compared


def write_report(bound: Sweep, compared: Comparison) -> list[Path]:
    """The report and its plots, in ``$HASTEN_HOME/reports/STUDY``."""
    done = bound.results()
    planned = [trial for trial in bound.plan.trials if trial.name in done]
    first_seeds = {trial.arm: trial for trial in reversed(planned)}
    sheets = {arm: RunStore(bound.jobs[trial.name].uri).last_sheet() for arm, trial in first_seeds.items()}
    return report.write_report(
        compared,
        [
            TrialResult(trial=trial.name, arm=trial.arm, seed=trial.seed, result=done[trial.name])
            for trial in planned
        ],
        report_folder(bound.name),
        title=bound.name,
        question=bound.plan.study.question,
        links={"MLflow": bound.tracking.link(bound.name), "Repeat": f"hasten sweep {bound.name}"},
        samples={arm: sheet for arm, sheet in sheets.items() if sheet is not None},
    )


def report_folder(study: str) -> Path:
    return settings.home() / "reports" / study


def outcome(bound: Sweep, endings: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a study as the stable JSON of the command line."""
    done = bound.results()
    return {
        "study": bound.name,
        "mlflow_run_id": bound.tracking.run_id(bound.parent),
        "status": "finished" if len(done) == len(bound.jobs) else "stopped",
        "trials": [
            {
                "trial": trial.name,
                "arm": trial.arm,
                "seed": trial.seed,
                "status": "finished" if trial.name in done else endings.get(trial.name, "stopped"),
                **_measured(done.get(trial.name)),
            }
            for trial in bound.plan.trials
        ],
    }


def _measured(result: RunResult | None) -> dict[str, Any]:
    """The part of a trial's row that its result fills; a trial without one has null and nothing."""
    if result is None:
        return {"images": 0, "seconds": None, "wall_seconds": None, "metrics": {}}
    return {
        "images": result.images,
        "seconds": result.seconds,
        "wall_seconds": result.wall_seconds,
        "metrics": result.metrics,
    }


def compare(
    what: Sequence[str], overrides: dict[str, Any], *, console: Console
) -> tuple[Comparison, list[Path]]:
    """Compare a study's arms, or runs by name, as far as they are finished; runs nothing.

    Raises:
        ConfigError: a name means neither, a study has no arms, or nothing is finished.
    """
    shipped = study_files.STUDIES / f"{what[0]}.yaml"
    if len(what) == 1 and (shipped.is_file() or what[0].endswith((".yaml", ".yml"))):
        return compare_study(plans.plan(study_files.load(what[0], overrides)), console=console)
    return runs.compare(what, console=console)


def compare_study(plan: Plan, *, console: Console) -> tuple[Comparison, list[Path]]:
    """The comparison of a study's arms, and the files of its report."""
    if not plan.study.arms:
        raise ConfigError(plan.study.name, "searches a space: there are no arms to compare")
    bound = bind(plan, console=console, ray=False)
    if not bound.results():
        raise ConfigError(
            plan.study.name, "has no finished trial", f"Run it first: hasten sweep {plan.study.name}"
        )
    compared = comparison_of(bound)
    assert compared is not None, "a study with arms has a comparison"
    return compared, write_report(bound, compared)


def ranking(plan: Plan, found: Mapping[str, Any], *, most: int = 10) -> Table:
    """The best points of a search, by the mean of its objective over seeds."""
    objective = plan.study.objective
    table = Table(
        title=f"{plan.study.name}: best points by {objective.metric}", box=None, padding=(0, 2, 0, 0)
    )
    for heading in ("point", objective.metric, "seeds", "settings"):
        table.add_column(heading, overflow="fold")
    values: dict[str, list[float]] = {}
    for trial in found["trials"]:
        if objective.metric in trial["metrics"]:
            values.setdefault(trial["arm"], []).append(trial["metrics"][objective.metric])
    means = {arm: sum(each) / len(each) for arm, each in values.items()}
    changes = {trial.arm: trial.changes for trial in plan.trials}
    for arm in sorted(means, key=lambda arm: means[arm], reverse=objective.mode == "max")[:most]:
        settings_text = ", ".join(
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in flatten(changes[arm]).items()
        )
        table.add_row(arm, f"{means[arm]:.4f}", str(len(values[arm])), settings_text)
    return table


def save_sheet(run: str, path: Path) -> Path:
    """Copy the last sheet of samples of a finished run to a file of this machine."""
    sheet = runs.store(run, look(settings.load())).last_sheet()
    assert sheet is not None, "a finished run has a sheet of samples"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sheet)
    return path


def link(study: str) -> str:
    """The address that opens MLflow on a study."""
    return Tracking(look(settings.load()).tracking_uri, settings.home() / "spool").link(study)
