"""The training loop of one worker. Read ``train_worker`` first: it is the whole run.

Ray Train starts one such process per worker and has set up the process group. All ranks take the
same branch everywhere: what one of them learns alone (a signal, a full disk) is all-reduced first.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from xtdist.checkpoint import CheckpointStore, PendingCommit
from xtdist.config import CheckpointError, UserError, configclass, derive_seed, from_mapping
from xtdist.data import Loader, View, open_view
from xtdist.files import write_atomic
from xtdist.model.wrapper import build_model
from xtdist.objective import build_objective
from xtdist.optim import build_optimizer, lr_at, set_lr
from xtdist.track import MlflowRun, Tracker
from xtdist.train import state
from xtdist.train.deepspeed import (
    device_of,
    engine_config,
    prepare_process,
    resolve_precision,
)
from xtdist.train.samples import draw_samples
from xtdist.train.spec import RunSpec
from xtdist.train.step import Stepper, StepResult, TrainModule
from xtdist.train.validation import Sum, metrics_of, text_bytes_of, validation_batches

STOP_FILE, ERROR_FILE = "stop-request", "error.json"


@configclass
class WorkerJob:
    """What the driver sends to every worker: the resolved spec and where things are (absolute)."""

    spec: RunSpec
    folder: str
    mlflow: MlflowRun | None
    gpu: bool = False


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
    with ExitStack() as stack:
        run = stack.enter_context(start(job))
        for batch in stack.enter_context(run.loader()):
            set_lr(run.stepper.engine.optimizer, run.lr)
            result = run.stepper.step(batch, stop_wanted=run.stop_file.exists())
            run.position.step = batch.step + 1
            run.position.tokens += run.spec.batch.tokens_per_step
            run.report(result, wait_s=batch.wait_s)
            last = run.position.step == run.spec.loop.steps
            if run.due(run.spec.loop.valid_every) or last:
                run.validate()
            if run.due(run.spec.loop.checkpoint_every) or last or result.stop:
                run.save()
            if result.stop:
                break
        run.finish()


@dataclass
class Run:
    """One rank's live state."""

    spec: RunSpec
    folder: Path
    data: View
    valid: View
    stepper: Stepper
    store: CheckpointStore
    record: state.Record
    position: state.Position
    attempt: str
    tracker: Tracker | None
    pending: PendingCommit | None = None
    clock: float = field(default_factory=time.perf_counter)

    @property
    def stop_file(self) -> Path:
        """The driver creates it when the user presses Ctrl-C: save, then end."""
        return self.folder / STOP_FILE

    @property
    def lr(self) -> float:
        return lr_at(self.spec.optim, self.position.step, self.spec.loop.steps)

    def due(self, every: int) -> bool:
        return every > 0 and self.position.step % every == 0

    def loader(self) -> Loader:
        # The noise of masked prediction is drawn on the CPU, from the tokens there.
        causal = self.spec.model.causal
        return Loader(
            self.data,
            steps=range(self.position.step, self.spec.loop.steps),
            rank=dist.get_rank(),
            world=dist.get_world_size(),
            device=self.stepper.device if causal else torch.device("cpu"),
        )

    def emit(self, metrics: dict[str, float]) -> None:
        """One record in metrics.jsonl and in MLflow (rank 0 only)."""
        if self.tracker is not None:
            self.tracker.log(self.position.step, metrics)

    def report(self, result: StepResult, *, wait_s: float) -> None:
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        self.emit(
            {
                "train/loss": result.loss,
                "train/lr": self.stepper.engine.optimizer.param_groups[0]["lr"],
                "train/grad_norm": result.grad_norm,
                "train/tokens": float(self.position.tokens),
                "perf/tokens_per_s": self.spec.batch.tokens_per_step / seconds,
                "perf/step_s": seconds,
                "perf/data_wait_s": wait_s,
                "perf/data_wait_share": wait_s / seconds,
                **{f"train/{name}": value for name, value in result.metrics.items()},
            }
        )

    def validate(self) -> None:
        found = {}
        for name, data in self.valid.datasets.items():
            batches = validation_batches(self.valid, name, self.spec)
            nats, weight = self.stepper.validate(batches)
            found[name] = Sum(nats, weight, text_bytes_of(data, weight))
        self.emit(metrics_of(found))
        self.clock = time.perf_counter()

    def save(self) -> None:
        self.settle()
        engine = self.stepper.engine
        self.pending = state.save(
            engine, self.store, self.position, attempt=self.attempt, record=self.record
        )
        if self.spec.loop.sample_prompts:
            draw_samples(engine, self.spec, self.data.tokenizer, self.folder, self.position.step)
        self.clock = time.perf_counter()

    def settle(self) -> None:
        """Wait for the save in flight, on all ranks; then drop checkpoints beyond ``keep``."""
        if self.pending is None:
            return
        error = self.pending.wait()
        self.pending = None
        errors: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, error)
        if any(errors):
            raise CheckpointError(f"checkpoint not saved: {next(e for e in errors if e)}")
        if dist.get_rank() == 0:
            self.store.prune(self.spec.loop.keep)

    def finish(self) -> None:
        self.settle()
        if self.tracker is not None:
            self.tracker.flush()

    def close(self) -> None:
        """Also after an error: let a save in flight come to its end (without the other ranks, which
        may be gone) and the last metrics out."""
        if self.pending is not None:
            self.pending.wait(timeout_s=60)
        if self.tracker is not None:
            self.tracker.close()


@contextmanager
def start(job: WorkerJob) -> Iterator[Run]:
    """Build everything of one rank, resume if there is something to resume, clean up after."""
    import deepspeed

    spec, folder = job.spec, Path(job.folder)
    precision = resolve_precision(spec.engine.precision, gpu=job.gpu)
    device = device_of(gpu=job.gpu, precision=precision)
    data, valid = open_data(spec, "train"), open_data(spec, "valid")
    generator = torch.Generator().manual_seed(derive_seed(spec.seed, "init"))
    net = build_model(spec.model, generator=generator)
    objective = build_objective(
        spec.objective,
        net,
        mask_id=data.tokenizer.mask_id,
        pad_id=data.tokenizer.pad_id,
        generator=generator,
    )
    module = TrainModule(objective)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=build_optimizer(spec.optim, module),
        config=engine_config(spec, precision=precision, gpu=job.gpu),
    )
    record = state.Record(
        spec=spec,
        data=data,
        precision=precision,
        mlflow_run_id=job.mlflow.run_id if job.mlflow else None,
    )
    store = CheckpointStore(folder / "checkpoints")
    name = state.find_commit(store, record.identity)
    position = state.restore(engine, store.root / name) if name else state.Position()
    run = Run(
        spec=spec,
        folder=folder,
        data=data,
        valid=valid,
        stepper=Stepper(engine=engine, objective=objective, spec=spec, device=device),
        store=store,
        record=record,
        position=position,
        attempt=_attempt_id(),
        tracker=Tracker(folder, job.mlflow) if dist.get_rank() == 0 else None,
    )
    try:
        yield run
    finally:
        run.close()


def open_data(spec: RunSpec, split: str) -> View:
    """One split of what the run reads."""
    return open_view(
        spec.data,
        split,
        seq_len=spec.data.seq_len,
        seed=spec.seed,
        global_batch=spec.global_batch,
    )


def _attempt_id() -> str:
    """The same fresh id on all ranks: it fences a cut-off worker of an earlier attempt."""
    answer = [uuid.uuid4().hex[:8]]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]
