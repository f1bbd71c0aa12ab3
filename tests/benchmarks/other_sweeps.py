"""Trials that sleep and report, run by others: plain Ray Tune, and Optuna with processes.

    python other_sweeps.py tune --trials 40 --seconds 1 --reuse

prints when each trial was over, as JSON, by the machine's monotonic clock. Nothing is kept beyond what these
tools keep by themselves: no checkpoints, no results in a store, no tracking.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

WORKERS: Final = 2  # trials at a time
REPORTS: Final = 20


def by_tune(trials: int, seconds: float, *, reuse: bool, folder: str) -> list[float]:
    """As Tune's documentation has it: a class that sleeps, a random search, one CPU a trial."""
    import ray
    from ray import tune

    class Sleeper(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            del config
            self._reports = 0

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            time.sleep(seconds / REPORTS)
            self._reports += 1
            return {"loss": 1.0 / self._reports, "done": self._reports == REPORTS}

    class Ends(tune.Callback):  # type: ignore[misc]
        moments: Final[list[float]] = []

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            del iteration, trials, trial, info
            self.moments.append(time.monotonic())

    ray.init(address="local", num_cpus=WORKERS, log_to_driver=False, logging_level="ERROR")
    try:
        tune.Tuner(
            tune.with_resources(Sleeper, {"CPU": 1}),
            param_space={"lr": tune.loguniform(3e-4, 1e-2)},
            tune_config=tune.TuneConfig(
                num_samples=trials,
                max_concurrent_trials=WORKERS,
                reuse_actors=reuse,
                metric="loss",
                mode="min",
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                callbacks=[Ends()],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    finally:
        ray.shutdown()
    return Ends.moments


def by_optuna(trials: int, seconds: float, *, folder: str) -> list[float]:
    """As Optuna's documentation has it: processes that optimize one study in one SQLite file."""
    import optuna

    url = f"sqlite:///{folder}/optuna.db"
    optuna.create_study(study_name="sleep", storage=url)
    context = multiprocessing.get_context("spawn")
    ends: multiprocessing.Queue[list[float]] = context.Queue()
    shares = [trials // WORKERS + (number < trials % WORKERS) for number in range(WORKERS)]
    workers = [context.Process(target=_optimize, args=(url, share, seconds, ends)) for share in shares]
    for worker in workers:
        worker.start()
    found = [moment for _ in workers for moment in ends.get()]
    for worker in workers:
        worker.join()
    return sorted(found)


def _optimize(url: str, trials: int, seconds: float, ends: multiprocessing.Queue[list[float]]) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    moments: list[float] = []

    def sleep(trial: optuna.Trial) -> float:
        trial.suggest_float("lr", 3e-4, 1e-2, log=True)
        for step in range(1, REPORTS + 1):
            time.sleep(seconds / REPORTS)
            trial.report(1.0 / step, step)
        return 1.0 / REPORTS

    study = optuna.load_study(study_name="sleep", storage=url, sampler=optuna.samplers.RandomSampler())
    study.optimize(sleep, n_trials=trials, callbacks=[lambda *_: moments.append(time.monotonic())])
    ends.put(moments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=["tune", "optuna"])
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--reuse", action="store_true", help="Tune's reuse_actors")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.tool == "tune":
            ends = by_tune(given.trials, given.seconds, reuse=given.reuse, folder=folder)
        else:
            ends = by_optuna(given.trials, given.seconds, folder=str(Path(folder)))
    print(json.dumps(ends))


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main()
