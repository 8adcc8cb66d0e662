"""Noting inside a worker process what a test compares; by name in faults.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from xtdist.checkpoint import Commit
from xtdist.data import StepBatch
from xtdist.train import run, state
from xtdist.train.step import Stepper, StepResult


@contextmanager
def noted_state(folder: Path) -> Iterator[None]:
    """No fault: what a resumed run begins with is noted as whole tensors in
    ``restored-<step>.safetensors``: ``<parameter>|<key>``, and the module's own state."""
    real = state.restore

    def restore(engine: Any, commit: Commit) -> state.Position:
        position = real(engine, commit)
        found = state.objective_state(engine) or {}
        flats = state.flats(engine)
        for key in sorted({key for flat in flats for key in flat.tensors()}):
            tensors = [f.tensors().get(key, torch.full((f.numel,), torch.nan)) for f in flats]
            whole = state.gather(engine, tensors) or {}
            found |= {f"{n}|{key}": t for n, t in whole.items() if not t.isnan().all()}
        if dist.get_rank() == 0:
            copies = {name: t.detach().clone() for name, t in found.items()}
            save_file(copies, folder / f"restored-{position.step}.safetensors")
        return position

    with patch.object(state, "restore", restore):
        yield


@contextmanager
def noted(folder: Path) -> Iterator[None]:
    """No fault: the batches of each rank, and the restored state."""
    from faults import noted_batches

    with noted_batches(folder), noted_state(folder):
        yield


@contextmanager
def noted_weights(folder: Path) -> Iterator[None]:
    """No fault: the network's weights after each step, in ``weights-<step>.safetensors``; for
    stages at which every rank holds them whole."""
    real = Stepper.step

    def step(self: Stepper, batch: StepBatch, *, stop_wanted: bool) -> StepResult:
        result = real(self, batch, stop_wanted=stop_wanted)
        if dist.get_rank() == 0:
            weights = {n: p.detach().clone() for n, p in self.objective.net.named_parameters()}
            save_file(weights, folder / f"weights-{batch.step + 1}.safetensors")
        return result

    with patch.object(Stepper, "step", step):
        yield


@contextmanager
def partly_frozen(folder: Path) -> Iterator[None]:
    """No fault: a frozen parameter and a persistent buffer, which count the steps in this process
    and begin anew with it unless they are restored."""
    import deepspeed

    real, step = run.build_objective, Stepper.step

    def build_objective(*args: Any, **keywords: Any) -> Any:
        objective = real(*args, **keywords)
        objective.register_parameter(
            "frozen", torch.nn.Parameter(torch.zeros(3, 5), requires_grad=False)
        )
        objective.net.register_buffer("counted", torch.zeros(2))
        return objective

    def counted(self: Stepper, batch: StepBatch, *, stop_wanted: bool) -> StepResult:
        frozen = self.objective.frozen
        with gathered([frozen], modifier_rank=0), torch.no_grad():
            if frozen.numel():
                frozen += 1
        self.objective.net.counted += 1
        return step(self, batch, stop_wanted=stop_wanted)

    def gathered(params: list[Any], **keywords: Any) -> AbstractContextManager[Any]:
        if not hasattr(params[0], "ds_id"):
            return nullcontext()
        return deepspeed.zero.GatheredParameters(params, **keywords)

    with (
        noted_state(folder),
        patch.object(run, "build_objective", build_objective),
        patch.object(Stepper, "step", counted),
    ):
        yield
