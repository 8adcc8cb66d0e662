"""What can be made to go wrong inside a worker process, by name."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from notes import noted, partly_frozen

from xtdist.checkpoint.storage import LocalStorage
from xtdist.data import StepBatch
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
    "noted": noted,
    "partly_frozen": partly_frozen,
    "slow_rank": slow_rank,
}
