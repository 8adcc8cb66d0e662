"""What can be made to go wrong inside a worker process, by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from xtdist.objective import AutoregressiveWrapper, LossOutput, Prepared


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


FAULTS: dict[str | None, Callable[[Path], AbstractContextManager[None]]] = {
    None: nothing,
    "full_disk": full_disk,
    "nan_loss": nan_loss,
    "nan_gradient": nan_gradient,
    "stop_request": stop_request,
}
