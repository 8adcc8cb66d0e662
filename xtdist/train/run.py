"""The live state of a run on one rank, and how it is built."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from xtdist.checkpoint import CheckpointStore, Commit
from xtdist.checkpoint.naming import step_of
from xtdist.checkpoint.start import start_from
from xtdist.config import NonNegativeInt, configclass, derive_seed
from xtdist.data import Loader, View, open_view
from xtdist.model.wrapper import build_model
from xtdist.objective import build_objective
from xtdist.optim import lr_at
from xtdist.track import MlflowRun, Tracker
from xtdist.track.system import system_metrics
from xtdist.train import state
from xtdist.train.deepspeed import build_engine, device_of
from xtdist.train.hardware import resolve_engine
from xtdist.train.meters import Phases
from xtdist.train.meters.collectives import timed_collectives
from xtdist.train.micro_batch import fit_micro_batch
from xtdist.train.sequence import sequence_group
from xtdist.train.spec import RunSpec
from xtdist.train.stability.interventions import Interventions, read_together
from xtdist.train.step import Stepper, StepResult, TrainModule

if TYPE_CHECKING:
    from xtdist.train.callbacks.base import Callback

STOP_FILE = "stop-request"


@configclass
class WorkerJob:
    """What the driver sends to every worker: the resolved spec and where things are (absolute).
    ``epoch``: of the driver's lease; 0 without one."""

    spec: RunSpec
    folder: str
    mlflow: MlflowRun | None
    gpu: bool = False
    epoch: NonNegativeInt = 0


@dataclass
class Run:
    """One rank's live state. ``resumed``: the checkpoint that it goes on from. ``extras``: tensors
    to save beside the optimizer's, by key, one per flat (see ``state.extras``). ``ended``: a
    callback ends the run after this step, on all ranks. ``committed``: the name of the
    newest checkpoint; None: there is none yet. ``latest``: the step and value of every metric that
    was logged."""

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
    interventions: Interventions
    resumed: Commit | None = None
    callbacks: list[Callback] = field(default_factory=list)
    extras: dict[str, list[Tensor]] = field(default_factory=dict)
    ended: bool = False
    epoch: int = 0
    committed: str | None = None
    latest: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def stop_file(self) -> Path:
        """The driver creates it when the user presses Ctrl-C: save, then end."""
        return self.folder / STOP_FILE

    @property
    def committed_step(self) -> int:
        """Of the newest checkpoint; 0 without one."""
        return step_of(self.committed) if self.committed else 0

    def lr(self, step: int) -> float:
        """The rate of the update that ends step ``step`` + 1; groups have their factors of it."""
        factor = self.interventions.lr_factor(step)
        return factor * lr_at(self.spec.optim, step, self.spec.loop.steps)

    @property
    def phases(self) -> Phases:
        return self.stepper.phases

    @property
    def last(self) -> bool:
        return self.position.step == self.spec.loop.steps

    def due(self, every: int) -> bool:
        return every > 0 and self.position.step % every == 0

    def saves(self, result: StepResult) -> bool:
        """Whether a checkpoint is saved after this step."""
        ends = self.last or self.ended or result.stop
        return ends or self.due(self.spec.checkpoint.every)

    def loader(self) -> Loader:
        # The noise of masked prediction is drawn on the CPU, from the tokens there.
        causal, workers = self.spec.model.causal, dist.get_world_size()
        rank, world = self.spec.data_place(dist.get_rank(), workers)
        return Loader(
            self.data,
            steps=range(self.position.step, self.spec.loop.steps),
            rank=rank,
            world=world,
            device=self.stepper.device if causal else torch.device("cpu"),
            unit=self.spec.split(workers).unit,
        )

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        """One record in metrics.jsonl and in MLflow (rank 0 only); ``step``: of an earlier one."""
        step = self.position.step if step is None else step
        self.latest |= {name: (step, value) for name, value in metrics.items()}
        if self.tracker is not None:
            self.tracker.log(step, metrics)

    def note(self, text: str) -> None:
        """A line for people: in notes.jsonl and on the console (rank 0 only)."""
        if self.tracker is not None:
            self.tracker.note(self.position.step, text)


@contextmanager
def start(job: WorkerJob, callbacks: Callable[[Run], list[Callback]]) -> Iterator[Run]:
    """Build everything of one rank, resume if there is something to resume, clean up after."""
    with ExitStack() as stack:
        run = _build(job)
        if job.mlflow is not None and os.environ.get("LOCAL_RANK", "0") == "0":
            every_s = job.spec.track.system_every_s
            stack.enter_context(system_metrics(job.folder, every_s=every_s))
        if run.stepper.device.type == "cpu":
            stack.enter_context(timed_collectives(run.phases))
        stack.callback(run.stepper.engine.destroy)
        if run.tracker is not None:
            stack.callback(run.tracker.close)
        run.callbacks = callbacks(run)
        for callback in run.callbacks:
            stack.callback(callback.close)
        for callback in run.callbacks:
            callback.started(run)
        yield run


def _build(job: WorkerJob) -> Run:
    spec, folder = job.spec, Path(job.folder)
    spec = replace(spec, engine=resolve_engine(spec.engine, gpu=job.gpu))
    device = device_of(gpu=job.gpu, precision=spec.engine.precision)
    phases = Phases(device)
    interventions = read_together(folder)
    data = open_data(interventions.applied_to(spec), "train")
    valid = open_data(spec, "valid")
    spec = fit_micro_batch(spec, data.tokenizer, device)
    generator = torch.Generator().manual_seed(derive_seed(spec.seed, "init"))
    net = build_model(spec.model, generator=generator)
    objective = build_objective(
        spec.objective,
        net,
        mask_id=data.tokenizer.mask_id,
        pad_id=data.tokenizer.pad_id,
        generator=generator,
    )
    record = state.Record(
        spec=spec,
        data=data,
        precision=spec.engine.precision,
        mlflow_run_id=job.mlflow.run_id if job.mlflow else None,
    )
    state.keep_chat_template(spec.checkpoint.chat_template, folder)
    store = CheckpointStore(spec.checkpoint.place(folder))
    commit = state.find_commit(store, record.identity)
    if commit is None and spec.checkpoint.start_from is not None:
        start_from(net, spec.checkpoint.start_from)
    split = spec.split(dist.get_world_size())
    engine = build_engine(spec, TrainModule(objective), split=split, device=device)
    with phases("restore"):
        position = state.restore(engine, commit) if commit else state.Position()
    return Run(
        spec=spec,
        folder=folder,
        data=data,
        valid=valid,
        stepper=Stepper(
            engine=engine,
            objective=objective,
            spec=spec,
            device=device,
            phases=phases,
            sequence=sequence_group(spec.engine.sequence_parallel),
        ),
        store=store,
        record=record,
        position=position,
        resumed=commit,
        attempt=_attempt_id(store, job.epoch),
        epoch=job.epoch,
        committed=commit.name if commit else None,
        tracker=Tracker(folder, job.mlflow) if dist.get_rank() == 0 else None,
        interventions=interventions,
    )


def open_data(spec: RunSpec, split: str) -> View:
    """One split of what the run reads."""
    return open_view(
        spec.data,
        split,
        seq_len=spec.data.seq_len,
        seed=spec.seed,
        global_batch=spec.global_batch,
        warmup=spec.batch_warmup if split == "train" else (),
    )


def _attempt_id(store: CheckpointStore, epoch: int) -> str:
    """The same fresh id on all ranks: it fences a cut-off worker of an earlier attempt."""
    answer = [store.attempt(epoch) if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]
