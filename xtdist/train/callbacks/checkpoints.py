"""Saving the run, beside its steps."""

from __future__ import annotations

import contextlib
import math
import time
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from xtdist.checkpoint import Missed, Ranks, Saved, Saver
from xtdist.checkpoint.lease import check_epoch
from xtdist.checkpoint.meta import environment, fingerprint
from xtdist.config import CheckpointError, to_mapping
from xtdist.train import state
from xtdist.train.callbacks.base import Callback
from xtdist.train.run import Run
from xtdist.train.step import StepResult

CLOSE_S = 60.0
LONGEST_WAIT_S = 30.0  # before the last save is tried again
MOST_STEPS = 64  # between two tries while training goes on


class Checkpoints(Callback):
    """When ``checkpoint`` says so, after the last step, and when the run is asked to stop.

    One save is in flight at a time: one that is due meanwhile begins at the first step at which
    all ranks are free. One that is missed is tried again 1, 2, 4 … steps later.
    """

    phase = "checkpoint"

    def __init__(self, run: Run) -> None:
        self._spec, self._device = run.spec.checkpoint, run.stepper.device
        self._saver = Saver(
            run.store,
            attempt=run.attempt,
            ranks=Ranks(rank=dist.get_rank(), world=dist.get_world_size(), exchange=_Exchange()),
            check=partial(check_epoch, self._spec.lease_place(run.folder), run.epoch),
            retention=self._spec.retention,
        )
        self._host = state.HostCopies()
        self._flying = self._wanted = False
        self._misses = self._all_misses = 0
        self._again_at = 0
        self._began = time.monotonic()

    def started(self, run: Run) -> None:
        if run.position.step == 0 and not run.store.storage.per_host:
            averaged = run.spec.optim.ema is not None
            state.check_disk(run.stepper.engine, run.store.root, averaged=averaged)

    def stepped(self, run: Run, result: StepResult) -> None:
        began = time.perf_counter()
        free, late = self._look()
        if free and self._flying:
            self._end(run)
        ends = run.last or run.ended or result.stop
        self._wanted |= run.saves(result) or late
        if self._wanted and free and (ends or run.position.step >= self._again_at):
            self._submit(run)
            run.log({"perf/checkpoint_s": time.perf_counter() - began})

    def finished(self, run: Run) -> None:
        """Wait until the state at the end is committed, trying again if need be."""
        while self._flying or self._wanted:
            if self._flying:
                self._saver.wait()
                self._end(run)
            if self._wanted:
                if self._misses:
                    time.sleep(min(2.0 ** (self._misses - 1), LONGEST_WAIT_S))
                self._submit(run)

    def close(self) -> None:
        """Let a save in flight come to its end."""
        self._saver.wait(CLOSE_S)

    def _look(self) -> tuple[bool, bool]:
        """Whether all ranks are free to save, and whether rank 0's clock says it is time."""
        minutes = self._spec.every_minutes
        if not self._flying and minutes is None:
            return True, False
        late = minutes is not None and time.monotonic() - self._began >= 60 * minutes
        flags = [float(self._saver.busy), float(late and dist.get_rank() == 0)]
        found = torch.tensor(flags, device=self._device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        busy, due = found.tolist()
        return not busy, bool(due)

    def _submit(self, run: Run) -> None:
        files = state.snapshot(run, self._host)
        meta = described(run)
        self._saver.submit(run.position.step, files, meta if dist.get_rank() == 0 else {})
        self._flying, self._wanted, self._began = True, False, time.monotonic()

    def _end(self, run: Run) -> None:
        """What became of the save in flight: rank 0's word counts on all ranks.

        Raises:
            CheckpointError: too many were missed in a row, or another process has the run.
        """
        answer: list[Any] = self._saver.poll()[-1:]
        dist.broadcast_object_list(answer, src=0)
        self._flying = False
        ended: Saved | Missed = answer[0]
        if isinstance(ended, Saved):
            run.committed, self._misses = ended.name, 0
            if run.spec.loop.aside is not None:
                run.store.held |= {ended.name}  # before the next save ends and prunes
            return
        self._misses, self._all_misses = self._misses + 1, self._all_misses + 1
        run.log({"checkpoint/misses": float(self._all_misses)})
        if ended.fatal:
            raise CheckpointError(ended.reason)
        if self._misses >= self._spec.max_misses:
            raise CheckpointError(
                f"{run.store.url}: {self._misses} checkpoints in a row could not be saved "
                f"(checkpoint.max_misses), the last one because: {ended.reason}. The newest one is "
                f"of step {run.committed_step}; the same command goes on from there"
            )
        self._again_at = run.position.step + min(2 ** (self._misses - 1), MOST_STEPS)
        self._wanted = True
        if dist.get_rank() == 0:
            print(
                f"checkpoint of step {ended.step} NOT saved ({self._misses} in a row): "
                f"{ended.reason}; training goes on and saves again soon",
                flush=True,
            )


def described(run: Run) -> dict[str, Any]:
    """What the manifest says of a run's checkpoint beside its files."""
    step, value = run.latest.get(run.spec.checkpoint.metric, (-1, math.nan))
    rated = step == run.position.step and math.isfinite(value)
    module = run.stepper.engine.module
    shapes = {n: tuple(getattr(p, "ds_shape", p.shape)) for n, p in module.named_parameters()}
    return {
        **state.describe(run),
        "config": to_mapping(run.spec),
        "dataset_id": {n: d.dataset_id for n, d in run.data.datasets.items()},
        "tokenizer_sha256": run.data.tokenizer.sha256,
        "model_fingerprint": fingerprint(shapes),
        "epoch": run.epoch,
        "metric": value if rated else None,
        "environment": environment(world=dist.get_world_size(), device=_device_name(run)),
    }


def _device_name(run: Run) -> str:
    device = run.stepper.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


class _Exchange:
    """Between the savers of all ranks, over a connection of their own to the process group's
    store."""

    def __init__(self) -> None:
        default: Any = dist.distributed_c10d._get_default_store()
        self._store = dist.PrefixStore("xtdist-checkpoints", default.clone())

    def put(self, key: str, value: str) -> None:
        self._store.set(key, value)

    def get(self, key: str) -> str | None:
        if not self._store.check([key]):
            return None
        value: bytes = self._store.get(key)
        with contextlib.suppress(RuntimeError):
            if not key.endswith("/end"):
                self._store.delete_key(key)
        return value.decode()
