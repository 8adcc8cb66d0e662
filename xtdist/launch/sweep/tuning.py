"""The trials of a sweep under Ray Tune: who runs, and who is stopped."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xtdist.config import to_mapping
from xtdist.launch.sweep.draw import Trial, shown, trial_name
from xtdist.launch.sweep.records import Ended, Status, note_end, read_ends
from xtdist.launch.sweep.spec import AshaConfig, SweepSpec

STOP_FILE = "stop-request"
OVER = ("finished", "stopped")
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # its progress; ours is told
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each run has its own records
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}


@dataclass
class Progress:
    """What is written down and told of a sweep while it runs. ``failed``: trials in this call."""

    sweep: SweepSpec
    folder: Path
    trials: Sequence[Trial]
    stop: threading.Event
    say: Callable[[str], None]
    failed: int = 0
    known: dict[int, Ended] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = {n: e for n, e in read_ends(self.folder).items() if self._over(n, e)}

    def _over(self, number: int, end: Ended) -> bool:
        """Whether a trial that ended has nothing left to do; failed ones are tried again."""
        return number < len(self.trials) and end.status in OVER

    def started(self, number: int) -> None:
        if number not in self.known:
            trial = self.trials[number]
            self.say(f"{trial.name} starts: {shown(trial.values)}")

    def measured(self, number: int, step: int, value: float) -> None:
        if number not in self.known:
            self.say(f"{self.trials[number].name} step {step}: {self.sweep.metric} {value:.4f}")

    def ended(self, number: int, status: Status, *, step: int = 0, error: str = "") -> None:
        """Once for each trial."""
        if number in self.known:
            return
        end = Ended(number=number, status=status, error=error)
        self.known[number] = end
        note_end(self.folder, end)
        said = {
            "stopped": f"stopped by its value at step {step}: others are better",
            "failed": error,
        }
        self.say(f"{self.trials[number].name} {said.get(status, f'{status} at step {step}')}")
        self.failed += status == "failed"
        most = self.sweep.max_failed
        if most is not None and self.failed > most and not self.stop.is_set():
            self.say(f"{self.failed} trials failed (max_failed: {most}): the sweep ends here")
            end_all(self.folder, self.stop)


def end_all(folder: Path, stop: threading.Event) -> None:
    """Have every trial save a checkpoint and end, and start no more."""
    stop.set()
    (folder / STOP_FILE).touch()


def tune_trials(progress: Progress, *, address: str, at_once: int) -> None:
    """Run all trials that are not over, ``at_once`` at most at a time, until they are, or until
    ``progress.stop`` is set."""
    os.environ.update(_ENVIRONMENT)
    from ray import tune

    from xtdist.launch.sweep.callbacks import SweepCallback, SweepStopper
    from xtdist.launch.sweep.trainable import SweepTrial

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    scratch = progress.folder / "tune"
    try:
        tune.Tuner(
            # No CPU: that would be missing for a worker. Tune wants some resource to be named.
            tune.with_resources(SweepTrial, tune.PlacementGroupFactory([{"memory": 1.0}])),
            param_space={"trial": tune.grid_search(_configs(progress, address))},
            tune_config=tune.TuneConfig(
                scheduler=_scheduler(progress),
                max_concurrent_trials=at_once,
                reuse_actors=False,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=f"call-{uuid.uuid4().hex[:8]}",
                storage_path=str(scratch),
                verbose=0,
                stop=SweepStopper(progress.stop),
                callbacks=[SweepCallback(progress)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # what matters is in the runs' own folders


def _configs(progress: Progress, address: str) -> list[dict[str, Any]]:
    """What each trial's process gets."""
    sweep, known = progress.sweep, progress.known
    return [
        {
            "number": trial.number,
            "spec": to_mapping(trial.spec),
            "metric": sweep.metric,
            "lower_is_better": sweep.lower_is_better,
            "over": known[trial.number].status if trial.number in known else None,
            "stop_file": str(progress.folder / STOP_FILE),
            "address": address,
        }
        for trial in progress.trials
    ]


def _name(trial: Any) -> str:
    return trial_name(trial.config["trial"]["number"])


def _scheduler(progress: Progress) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    from xtdist.launch.sweep.trainable import STEP, VALUE

    stop = progress.sweep.stop
    if not isinstance(stop, AshaConfig):
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=STEP,
        metric=VALUE,
        mode="min" if progress.sweep.lower_is_better else "max",
        grace_period=stop.grace_steps,
        reduction_factor=stop.reduction_factor,
        max_t=max(trial.spec.loop.steps for trial in progress.trials),
        stop_last_trials=False,
    )
