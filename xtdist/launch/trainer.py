"""From a RunSpec to a finished run: preflight, MLflow run, Ray Train workers, plots."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from xtdist.checkpoint.lease import Lease
from xtdist.config import ResourceError, to_mapping
from xtdist.connect import check_room, connect, disconnect
from xtdist.files import write_atomic
from xtdist.launch.driver import Driver, TrainingFailedError
from xtdist.launch.fit import Worker
from xtdist.launch.planned import planned
from xtdist.launch.preflight import Plan, config_before, preflight, resolve
from xtdist.launch.room import Room
from xtdist.launch.tracking import open_tracking
from xtdist.track import Ledger
from xtdist.track.environment import write_environment
from xtdist.track.mlflow import RunStatus, flatten
from xtdist.train.loop import train_worker
from xtdist.train.run import WorkerJob
from xtdist.train.spec import RunSpec
from xtdist.train.stability.interventions import stopped_early

__all__ = ["Outcome", "TrainingFailedError", "run_training"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``steps``: of the whole run, fewer than asked for if it ended early because
    it got no better. ``reused``: it was already finished, nothing was trained."""

    folder: Path
    step: int
    steps: int
    reused: bool

    @property
    def finished(self) -> bool:
        return self.step >= self.steps


def run_training(
    spec: RunSpec, worker: Worker = train_worker, *, stop: threading.Event | None = None
) -> Outcome:
    """Train ``spec`` to its end, going on from the newest checkpoint if there is one.

    Ctrl-C (or SIGTERM) saves a checkpoint and ends; the same call goes on from there.

    Args:
        worker: what every worker runs; tests of faults wrap it.
        stop: set, it does what Ctrl-C does.

    Raises:
        UserError: something is wrong that the user can fix.
        TrainingFailedError: workers kept failing without a new checkpoint between, or nodes that
            were lost did not come back.
    """
    spec = resolve(spec)
    # How often Ray Train looks at its workers; a run that has ended is noticed this much later.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    started = connect(dashboard=True)
    import ray

    try:
        cluster_gpus = int(ray.cluster_resources().get("GPU", 0))
        plan = preflight(spec, cluster_gpus=cluster_gpus)
        if not plan.done_step:  # one that has begun waits for its nodes
            _check_room(plan)
        print("\n".join(plan.lines()), flush=True)
        if plan.finished:
            more = "" if plan.done_step == spec.loop.steps else "; raise loop.steps to go on"
            print(f"already at step {plan.done_step} of {spec.loop.steps}: nothing to train{more}")
            return Outcome(plan.folder, plan.done_step, spec.loop.steps, reused=True)
        if plan.done_step:
            print(f"going on from the checkpoint at step {plan.done_step}", flush=True)
            for line in _changes(plan):
                print(f"  changed since then: {line}", flush=True)
        with _own_folder(plan) as lease, planned(plan, ray.cluster_resources()):
            return _train(plan, worker, lease, stop or threading.Event())
    finally:
        if started:
            disconnect()


def _check_room(plan: Plan) -> None:
    workers = plan.spec.workers
    key = "workers.count" if workers.min_count is None else "workers.min_count"
    check_room(key, workers.least, cpus=workers.cpus, gpus=plan.gpus_per_worker)
    room = Room(workers, plan.gpus_per_worker, aside=plan.spec.loop.aside)
    if room.aside is not None and (slots := room.slots()).total < workers.least:
        raise ResourceError(
            f"loop.aside: {room.lack(slots)}; take fewer workers or a smaller task, add nodes, or "
            "leave out loop.aside"
        )


def _changes(plan: Plan) -> list[str]:
    """Settings that a resumed run takes over changed, each with its old and new value."""
    before = flatten(config_before(plan.folder))
    if not before:
        return []
    now = flatten(to_mapping(plan.spec))
    keys = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    return [f"{k} {before.get(k, '-')} → {now.get(k, '-')}" for k in keys]


@contextmanager
def _own_folder(plan: Plan) -> Iterator[Lease]:
    """The run's folder, ready, and for this process alone. One whose driver was killed is taken
    over, as soon as it is sure that it is gone.

    Raises:
        ResourceError: it can't be written, or another process trains this run.
    """
    folder = plan.folder
    lease = Lease(plan.spec.checkpoint.lease_place(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lease.acquire()
        write_atomic(folder / "config.yaml", yaml.safe_dump(to_mapping(plan.spec), sort_keys=False))
        write_environment(folder)
    except OSError as e:
        lease.release()
        raise ResourceError(f"output: {folder} can't be written ({e.strerror})") from None
    with ExitStack() as stack:
        stack.callback(lease.release)
        yield lease


def _train(plan: Plan, worker: Worker, lease: Lease, stop: threading.Event) -> Outcome:
    folder, total = plan.folder, plan.spec.loop.steps
    tracking = open_tracking(plan)
    job = WorkerJob(
        spec=plan.spec,
        folder=str(folder),
        mlflow=tracking.run,
        gpu=bool(plan.gpus_per_worker),
        epoch=lease.epoch,
    )
    Ledger(folder).start(plan.done_step)
    driver = Driver(plan, to_mapping(job), worker, lease, stop)
    with tracking.following():
        error = driver.run()
    step = driver.newest
    early = stopped_early(folder, step)
    finished = error is None and (step >= total or early)
    status: RunStatus = "FINISHED" if finished else "KILLED" if error is None else "FAILED"
    tracking.close(status)
    if summary := driver.attempts.summary():
        print(summary, flush=True)
    if error is not None:
        raise error
    return Outcome(folder, step, step if early else total, reused=False)
