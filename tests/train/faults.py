"""What can be made to go wrong inside a worker process, by name."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from notes import noted, noted_weights, partly_frozen
from tasks import Failing, InThread, Reader, tasks

from xtdist.checkpoint.storage import LocalStorage
from xtdist.data import Loader, StepBatch
from xtdist.objective import AutoregressiveWrapper, LossOutput, Prepared
from xtdist.train.step import Stepper, StepResult


@contextmanager
def nothing(folder: Path) -> Iterator[None]:
    yield


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """The last rank's disk has 1 kB left."""
    usage = shutil.disk_usage(folder)
    free = 1000 if dist.get_rank() == dist.get_world_size() - 1 else usage.free
    with patch("shutil.disk_usage", return_value=usage._replace(free=free)):
        yield


@contextmanager
def nan_loss(folder: Path) -> Iterator[None]:
    """The last rank's loss is nan from its third forward pass on."""
    real, calls = AutoregressiveWrapper.losses, 0

    def losses(self: AutoregressiveWrapper, prepared: Prepared) -> LossOutput:
        nonlocal calls
        calls += 1
        out = real(self, prepared)
        if calls < 3 or dist.get_rank() != dist.get_world_size() - 1:
            return out
        return LossOutput(out.sum * torch.nan, out.weight)

    with patch.object(AutoregressiveWrapper, "losses", losses):
        yield


@contextmanager
def nan_gradient(folder: Path) -> Iterator[None]:
    """The last rank's loss is finite but its gradient is not, from the third forward pass on."""
    real, calls = AutoregressiveWrapper.losses, 0

    def losses(self: AutoregressiveWrapper, prepared: Prepared) -> LossOutput:
        nonlocal calls
        calls += 1
        out = real(self, prepared)
        if calls < 3 or dist.get_rank() != dist.get_world_size() - 1:
            return out
        zero = out.sum - out.sum.detach()
        return LossOutput(out.sum.detach() + zero.clamp_min(0).sqrt(), out.weight)

    with patch.object(AutoregressiveWrapper, "losses", losses):
        yield


@contextmanager
def stop_request(folder: Path) -> Iterator[None]:
    """The user asks to stop; the file is seen by the last rank only, as on another host."""
    if dist.get_rank() == dist.get_world_size() - 1:
        real = Path.exists
        with patch.object(
            Path, "exists", lambda self, **k: self.name == "stop-request" or real(self, **k)
        ):
            yield
    else:
        yield


@contextmanager
def nan_once(folder: Path) -> Iterator[None]:
    """The last rank's loss is nan in its third forward pass, and in its first after that."""
    real, calls = AutoregressiveWrapper.losses, 0

    def losses(self: AutoregressiveWrapper, prepared: Prepared) -> LossOutput:
        nonlocal calls
        calls += 1
        out = real(self, prepared)
        flipped = calls in (1, 4) and dist.get_rank() == dist.get_world_size() - 1
        return LossOutput(out.sum * torch.nan, out.weight) if flipped else out

    with patch.object(AutoregressiveWrapper, "losses", losses):
        yield


def poison(factor: float, *data_steps: int) -> Callable[[Path], AbstractContextManager[None]]:
    """The loss of steps of data (of 8 samples each) is ``factor`` times what it is; what each rank
    is given is noted as in ``noted_batches``."""

    @contextmanager
    def fault(folder: Path) -> Iterator[None]:
        real = AutoregressiveWrapper.losses

        def losses(self: AutoregressiveWrapper, prepared: Prepared) -> LossOutput:
            out = real(self, prepared)
            if self.training and int(prepared.sample_ids[0]) // 8 in data_steps:
                return LossOutput(out.sum * factor, out.weight)
            return out

        with patch.object(AutoregressiveWrapper, "losses", losses), noted_batches(folder):
            yield

    return fault


@contextmanager
def no_memory(folder: Path) -> Iterator[None]:
    """The device is full from the first step on."""
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a lot")
    with patch.object(AutoregressiveWrapper, "losses", side_effect=full):
        yield


@contextmanager
def sigterm(folder: Path) -> Iterator[None]:
    """The last rank is asked to end twice, in its third step."""

    def during(call: int) -> None:
        if call == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with _in_forward(during):
        yield


@contextmanager
def sigstop(folder: Path) -> Iterator[None]:
    """The last rank's process stops in its fourth step."""
    with _in_forward(lambda call: os.kill(os.getpid(), signal.SIGSTOP) if call == 4 else None):
        yield


@contextmanager
def _in_forward(during: Callable[[int], None]) -> Iterator[None]:
    real, calls = AutoregressiveWrapper.losses, 0

    def losses(self: AutoregressiveWrapper, prepared: Prepared) -> LossOutput:
        nonlocal calls
        calls += 1
        if dist.get_rank() == dist.get_world_size() - 1:
            during(calls)
        return real(self, prepared)

    with patch.object(AutoregressiveWrapper, "losses", losses):
        yield


@contextmanager
def slow_data(folder: Path) -> Iterator[None]:
    """The last rank never gets its fourth batch."""
    real = Loader.__iter__

    def batches(self: Loader) -> Iterator[StepBatch]:
        for i, batch in enumerate(real(self)):
            if i == 3 and dist.get_rank() == dist.get_world_size() - 1:
                time.sleep(600)
            yield batch

    with patch.object(Loader, "__iter__", batches):
        yield


@contextmanager
def noted_batches(folder: Path) -> Iterator[None]:
    """No fault: what each rank is given is noted in ``batches-<rank>.jsonl``."""
    real, path = Stepper.step, folder / f"batches-{dist.get_rank()}.jsonl"

    def step(self: Stepper, batch: StepBatch, *, stop_wanted: bool) -> StepResult:
        documents = batch.documents
        noted = {
            "step": batch.step,
            "sample_ids": batch.sample_ids.tolist(),
            "tokens": batch.tokens.tolist(),
            "documents": None if documents is None else documents.tolist(),
        }
        with path.open("a") as f:
            f.write(json.dumps(noted) + "\n")
        return real(self, batch, stop_wanted=stop_wanted)

    with patch.object(Stepper, "step", step):
        yield


@contextmanager
def slow_rank(folder: Path) -> Iterator[None]:
    """The last rank sleeps 0.2 s in every forward pass."""
    real = AutoregressiveWrapper.losses

    def losses(self: AutoregressiveWrapper, prepared: Prepared) -> LossOutput:
        if dist.get_rank() == dist.get_world_size() - 1:
            time.sleep(0.2)
        return real(self, prepared)

    with patch.object(AutoregressiveWrapper, "losses", losses):
        yield


def unwritable(times: int) -> Callable[[Path], AbstractContextManager[None]]:
    """The last rank's disk is full the first ``times`` times that a file is to last."""

    @contextmanager
    def fault(folder: Path) -> Iterator[None]:
        real, left = LocalStorage.put, times

        def put(self: LocalStorage, name: str, path: Path, file: str) -> None:
            nonlocal left
            if left and dist.get_rank() == dist.get_world_size() - 1:
                left -= 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(self, name, path, file)

        with patch.object(LocalStorage, "put", put):
            yield

    return fault


@contextmanager
def slow_save(folder: Path) -> Iterator[None]:
    """Rank 0 needs half a second for each file."""
    real = LocalStorage.put

    def put(self: LocalStorage, name: str, path: Path, file: str) -> None:
        time.sleep(0.5 if dist.get_rank() == 0 else 0.0)
        real(self, name, path, file)

    with patch.object(LocalStorage, "put", put):
        yield


FAULTS: dict[str | None, Callable[[Path], AbstractContextManager[None]]] = {
    None: nothing,
    "full_at_first": unwritable(2),
    "full_for_ever": unwritable(1000),
    "slow_save": slow_save,
    "full_disk": full_disk,
    "nan_loss": nan_loss,
    "nan_gradient": nan_gradient,
    "stop_request": stop_request,
    "noted_batches": noted_batches,
    "slow_rank": slow_rank,
    "nan_once": nan_once,
    "nan_data": poison(math.nan, 2),
    "poisoned": poison(20.0, 11, 12),
    "poisoned_again": poison(20.0, 11, 12, 14),
    "no_memory": no_memory,
    "sigterm": sigterm,
    "sigstop": sigstop,
    "slow_data": slow_data,
    "noted": noted,
    "noted_weights": noted_weights,
    "partly_frozen": partly_frozen,
    "task_in_thread": tasks(InThread),
    "task_that_reads_long": tasks(Reader),
    "task_that_fails": tasks(Failing, waiting=True),
}
