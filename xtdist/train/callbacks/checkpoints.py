"""Saving the run."""

from __future__ import annotations

import torch.distributed as dist

from xtdist.checkpoint import CheckpointStore, PendingCommit, Retention
from xtdist.config import CheckpointError
from xtdist.train import state
from xtdist.train.callbacks.base import Callback
from xtdist.train.run import Run
from xtdist.train.step import StepResult


class Checkpoints(Callback):
    """Every ``checkpoint.every`` steps, after the last one, and when the run is asked to stop."""

    phase = "checkpoint"

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._pending: PendingCommit | None = None

    def stepped(self, run: Run, result: StepResult) -> None:
        if not run.saves(result):
            return
        self._settle(run)
        self._pending = state.save(run)

    def finished(self, run: Run) -> None:
        self._settle(run)

    def close(self) -> None:
        """Let a save in flight come to its end."""
        if self._pending is not None:
            self._pending.wait(timeout_s=60)

    def _settle(self, run: Run) -> None:
        """Wait for the save in flight, on all ranks; then drop checkpoints beyond ``keep``."""
        if self._pending is None:
            return
        error = self._pending.wait()
        self._pending = None
        errors: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, error)
        if any(errors):
            raise CheckpointError(f"checkpoint not saved: {next(e for e in errors if e)}")
        if dist.get_rank() == 0:
            self._store.prune(Retention(keep=run.spec.checkpoint.keep))
