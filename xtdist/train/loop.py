"""The training loop of one worker. Read ``train_worker`` first: it is the whole run.

Ray Train starts one such process per worker and has set up the process group. All ranks take the
same branch everywhere: what one of them learns alone (a signal, a full disk) is all-reduced first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from xtdist.config import UnreachableError, UserError, from_mapping
from xtdist.files import write_atomic
from xtdist.optim import set_lr
from xtdist.train.callbacks.build import build_callbacks
from xtdist.train.deepspeed import prepare_process
from xtdist.train.memory import explained
from xtdist.train.preemption import Notices, listening
from xtdist.train.run import STOP_FILE, Run, WorkerJob, start
from xtdist.train.stability.nonfinite import after_non_finite
from xtdist.train.stability.rollback import Rollback, go_back
from xtdist.train.step import NonFiniteLossError
from xtdist.train.watchdog import Watchdog, watching

ERROR_FILE = "error.json"


def train_worker(payload: dict[str, Any]) -> None:
    """Train until ``loop.steps``, a stop request, or an error. Runs on every worker.

    A user's mistake is left in ``error.json`` for the driver; its epoch tells it from one that the
    workers of another driver of the same run left. A store that is away is no mistake: the driver
    starts the workers again.
    """
    job = from_mapping(WorkerJob, payload)
    prepare_process(gpu=job.gpu)
    try:
        train(job)
    except UnreachableError:
        raise
    except UserError as e:
        told = {"kind": type(e).__name__, "message": str(e), "epoch": job.epoch}
        write_atomic(Path(job.folder) / ERROR_FILE, json.dumps(told))
        raise
    dist.barrier()
    dist.destroy_process_group()


def train(job: WorkerJob) -> None:
    """One run of a prepared process; all ranks call it together. It goes back to a checkpoint, and
    is built again from there, as often as the run's stability asks for.

    Raises:
        UserError: on all ranks, unless the cause is one rank's own (a damaged shard).
    """
    folder, stability = Path(job.folder), job.spec.stability
    poll_s = stability.preemption_poll_s
    with (
        watching(folder, stability.watchdog) as watchdog,
        listening(folder / STOP_FILE, poll_s=poll_s) as notices,
    ):
        while True:
            try:
                return _train_once(job, watchdog, notices)
            except Rollback as e:
                undo = e.undo
            if watchdog is not None:
                watchdog.follow(None)
            place = job.spec.checkpoint.place(folder)
            go_back(folder, undo, checkpoints=place)  # here nothing holds the engine any more


def _train_once(job: WorkerJob, watchdog: Watchdog | None, notices: Notices) -> None:
    with explained(), start(job, build_callbacks) as run:
        if watchdog is not None:
            watchdog.follow(run.phases)
        first = run.position.step
        with explained(worth_a_restart=lambda: run.position.step > first):
            _steps(run, notices)


def _steps(run: Run, notices: Notices) -> None:
    """From where the run is to its end, or to where it is asked to stop."""
    with run.loader() as batches:
        for batch in run.phases.over("data", () if run.ended else batches):
            set_lr(run.stepper.engine.optimizer, run.lr(run.position.step))
            try:
                with run.phases("rest"):
                    result = run.stepper.step(batch, stop_wanted=notices.stop_wanted)
            except NonFiniteLossError as e:
                after_non_finite(run, e)
            run.position.step = batch.step + 1
            run.position.tokens += result.tokens
            for callback in run.callbacks:
                with run.phases(callback.phase):
                    callback.stepped(run, result)
            if result.stop or run.ended:
                break
        for callback in run.callbacks:
            with run.phases(callback.phase):
                callback.finished(run)
