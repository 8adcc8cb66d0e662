"""The training loop of one worker. Read ``train_worker`` first: it is the whole run.

Ray Train starts one such process per worker and has set up the process group. All ranks take the
same branch everywhere: what one of them learns alone (a signal, a full disk) is all-reduced first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from xtdist.config import UserError, from_mapping
from xtdist.files import write_atomic
from xtdist.optim import set_lr
from xtdist.train.callbacks.build import build_callbacks
from xtdist.train.deepspeed import prepare_process
from xtdist.train.run import WorkerJob, start

ERROR_FILE = "error.json"


def train_worker(payload: dict[str, Any]) -> None:
    """Train until ``loop.steps``, a stop request, or an error. Runs on every worker.

    A user's mistake is left in ``error.json`` for the driver; Ray then restarts the workers as
    after any failure, and they end at once instead of failing again.
    """
    job = from_mapping(WorkerJob, payload)
    errors = Path(job.folder) / ERROR_FILE
    if errors.exists():
        return
    prepare_process(gpu=job.gpu)
    try:
        train(job)
    except UserError as e:
        write_atomic(errors, json.dumps({"kind": type(e).__name__, "message": str(e)}))
        raise
    dist.barrier()
    dist.destroy_process_group()


def train(job: WorkerJob) -> None:
    """One run of a prepared process; all ranks call it together.

    Raises:
        UserError: on all ranks, unless the cause is one rank's own (a damaged shard).
    """
    with start(job, build_callbacks) as run, run.loader() as batches:
        for batch in run.phases.over("data", batches):
            set_lr(run.stepper.engine.optimizer, run.lr)
            with run.phases("rest"):
                result = run.stepper.step(batch, stop_wanted=run.stop_file.exists())
            run.position.step = batch.step + 1
            run.position.tokens += result.tokens
            for callback in run.callbacks:
                with run.phases(callback.phase):
                    callback.stepped(run, result)
            if result.stop:
                break
        for callback in run.callbacks:
            with run.phases(callback.phase):
                callback.finished(run)
