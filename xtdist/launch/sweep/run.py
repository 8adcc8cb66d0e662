"""A sweep from its config to its table."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from xtdist.checkpoint.lease import Lease
from xtdist.config import ConfigError, to_mapping
from xtdist.connect import check_room, connect, disconnect
from xtdist.launch.datasets import local_path
from xtdist.launch.preflight import resolve
from xtdist.launch.room import Room
from xtdist.launch.signals import stop_on_signal
from xtdist.launch.sweep.draw import Trial, shown, trials_of
from xtdist.launch.sweep.records import Result, results_of, settle
from xtdist.launch.sweep.spec import AshaConfig, SweepSpec
from xtdist.launch.sweep.table import write_results
from xtdist.launch.sweep.tuning import STOP_FILE, Progress, end_all, tune_trials
from xtdist.track import MlflowRun, open_run
from xtdist.train.spec import RunSpec
from xtdist.train.spec.metrics import measured_metrics


@dataclass(frozen=True, kw_only=True)
class SweepOutcome:
    """``results``: the best first. ``interrupted``: the same call goes on."""

    folder: Path
    results: Sequence[Result]
    interrupted: bool

    @property
    def best(self) -> Result | None:
        first = self.results[0] if self.results else None
        good = first is not None and first.best is not None and first.status != "failed"
        return first if good else None


def plan_sweep(sweep: SweepSpec) -> tuple[Path, tuple[Trial, ...]]:
    """The sweep's folder and its trials. Needs no cluster: what is wrong with the base, the space
    or the data shows at once.

    Raises:
        UserError: naming the place, or the point of the space, where a run can't be.
    """
    folder = local_path("output", sweep.output) / sweep.name
    trials = trials_of(sweep, str(folder))
    found = []
    for trial in trials:
        _check(sweep, trial)
        with _at(trial):  # with absolute paths: a trial's process is in another folder
            found.append(replace(trial, spec=resolve(trial.spec)))
    return folder, tuple(found)


def run_sweep(sweep: SweepSpec) -> SweepOutcome:
    """Run what is left of ``sweep``, and write its table, plot and best config.

    Ctrl-C (or SIGTERM) has the trials save checkpoints and ends; the same call goes on from there.

    Raises:
        UserError: something is wrong that the user can fix.
    """
    folder, trials = plan_sweep(sweep)
    settle(sweep, folder)
    started = connect(dashboard=True)
    import ray

    try:
        at_once = concurrency(sweep, trials)
        with Lease(folder):
            stop = threading.Event()
            (folder / STOP_FILE).unlink(missing_ok=True)
            parent = _open_parent(sweep, folder, trials[0].spec)
            ready = [_child(trial, parent) for trial in trials]
            progress = Progress(sweep, folder, ready, stop, _say)
            _say(_summary(sweep, progress, at_once))
            if len(progress.known) < len(trials):
                with stop_on_signal(lambda: _save_and_end(folder, stop)):
                    address = ray.get_runtime_context().gcs_address
                    tune_trials(progress, address=address, at_once=at_once)
            results = results_of(sweep, [t.values for t in trials], folder)
            outcome = SweepOutcome(folder=folder, results=results, interrupted=stop.is_set())
            files = write_results(sweep, outcome.results, outcome.best, folder)
            _close_parent(parent, files, outcome)
            return outcome
    finally:
        if started:
            disconnect()


def concurrency(sweep: SweepSpec, trials: Sequence[Trial]) -> int:
    """So many trials have room for all their workers at once on the connected cluster.

    Raises:
        ResourceError: not even one has.
    """
    import ray

    have_gpus = ray.cluster_resources().get("GPU", 0) > 0
    fits = []
    for spec in {str(to_mapping(t.spec.workers)): t.spec for t in trials}.values():
        workers = spec.workers
        gpus = int(workers.device == "gpu" or (workers.device == "auto" and have_gpus))
        check_room("workers.count", workers.count, cpus=workers.cpus, gpus=gpus)
        total = Room(workers, gpus, aside=spec.loop.aside).slots().total
        fits.append(total // workers.count)
    return max(1, min([*fits, sweep.max_concurrent or len(trials), len(trials)]))


def _check(sweep: SweepSpec, trial: Trial) -> None:
    spec, stop = trial.spec, sweep.stop
    known = measured_metrics(spec)
    if sweep.metric not in known:
        raise ConfigError(
            f"metric: got {sweep.metric!r}, which runs never measure; give one of "
            f"{', '.join(known)}"
        )
    if not spec.loop.valid_every or spec.loop.valid_every > spec.loop.steps:
        raise ConfigError(
            f"metric: {sweep.metric} is one of validations, and the run has none "
            f"(loop.valid_every={spec.loop.valid_every}, loop.steps={spec.loop.steps}); set "
            "loop.valid_every to less"
        )
    if isinstance(stop, AshaConfig) and stop.grace_steps >= spec.loop.steps:
        raise ConfigError(
            f"stop.grace_steps: got {stop.grace_steps}, and a run has {spec.loop.steps} steps "
            "(loop.steps), so nothing would ever be stopped; give less, or stop={kind: none}"
        )


@contextmanager
def _at(trial: Trial) -> Iterator[None]:
    try:
        yield
    except ConfigError as e:
        raise ConfigError(f"space, at {shown(trial.values)}: {e}") from None


def _open_parent(sweep: SweepSpec, folder: Path, spec: RunSpec) -> MlflowRun | None:
    """The MLflow run of the sweep, whose children the trials are; in a store that they share."""
    kept = {k: v for k, v in to_mapping(sweep).items() if k != "overrides"}
    params = {**kept, "overrides": " ".join(sweep.overrides)}
    tags = {"xtdist.kind": "sweep"}
    return open_run(spec.track, run_folder=folder, name=sweep.name, params=params, tags=tags)


def _child(trial: Trial, parent: MlflowRun | None) -> Trial:
    if parent is None:
        return trial
    track = replace(trial.spec.track, uri=parent.uri, parent_run=parent.run_id)
    return replace(trial, spec=replace(trial.spec, track=track))


def _close_parent(parent: MlflowRun | None, files: Sequence[Path], outcome: SweepOutcome) -> None:
    if parent is None:
        return
    for path in files:
        parent.log_artifact(path)
    if outcome.best is not None:
        parent.set_tags({"best_trial": outcome.best.name})
        if outcome.best.best is not None:
            parent.log_metric("best_value", outcome.best.best)
    parent.set_ended("KILLED" if outcome.interrupted else "FINISHED")


def _summary(sweep: SweepSpec, progress: Progress, at_once: int) -> str:
    total, done = len(progress.trials), len(progress.known)
    over = f", {done} of them over" if done else ""
    return f"sweep    {sweep.name} in {progress.folder}: {total} trials{over}, {at_once} at a time"


def _save_and_end(folder: Path, stop: threading.Event) -> None:
    _say("\nstopping: the trials save checkpoints first (once more: at once)")
    end_all(folder, stop)


def _say(line: str) -> None:
    print(line, flush=True)
