"""What Ray Tune tells a sweep, and what it asks."""

from __future__ import annotations

import threading
from typing import Any

from ray import tune

from xtdist.launch.sweep.records import Status
from xtdist.launch.sweep.trainable import ERROR, STATUS, STEP, VALUE
from xtdist.launch.sweep.tuning import Progress


class SweepStopper(tune.Stopper):
    """Every trial ends once ``stop`` is set."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.stop.is_set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its objects; ours are made anew


class SweepCallback(tune.Callback):
    """Notes what happens to trials in ``progress``."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.progress.started(number_of(trial))

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if not result[STATUS]:
            self.progress.measured(number_of(trial), result[STEP], result[VALUE])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        last, number = trial.last_result, number_of(trial)
        steps = self.progress.trials[number].spec.loop.steps
        own: Status = last[STATUS] or ("finished" if last[STEP] >= steps else "stopped")
        self.progress.ended(number, own, step=last[STEP], error=last[ERROR])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.progress.ended(number_of(trial), "failed", error="its driver died")

    def __getstate__(self) -> dict[str, Any]:
        return {}


def number_of(trial: Any) -> int:
    """Ours, of a trial of Tune."""
    return int(trial.config["trial"]["number"])
