"""Going back to a checkpoint within the same processes.

:class:`Rollback` is raised by all ranks at the same step. The loop catches it where nothing of the
run is left and calls :func:`go_back`; then the run is built again, as after a restart.
"""

from __future__ import annotations

import dataclasses
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from xtdist.checkpoint import CheckpointStore
from xtdist.checkpoint.naming import step_of
from xtdist.config import UserError
from xtdist.data import View
from xtdist.train.stability.interventions import Intervention, append


@dataclass(frozen=True, kw_only=True)
class Undo:
    """What to take back.

    Attributes:
        row: the intervention, without what depends on the checkpoint that is found.
        last: the last training step that is taken back.
        back_steps, skip_steps: see ``SpikeRollback``; 0: no step of data is left out.
        data: which step of data a training step read.
    """

    row: Intervention
    last: int
    back_steps: int = 0
    skip_steps: int = 0
    data: View


class Rollback(Exception):
    """The run goes back to a checkpoint. On all ranks, at the same step."""

    def __init__(self, undo: Undo) -> None:
        super().__init__(undo.row.text)
        self.undo = undo


def go_back(folder: Path, undo: Undo, *, checkpoints: str) -> None:
    """Free what the run held, put the checkpoints of what is taken back aside, and write the
    intervention down: in this order, so that a kill in between only repeats it. All ranks call it,
    and none has a save in flight. ``checkpoints``: where those of the run lie.

    Raises:
        UserError: on all ranks; the intervention can't be written, for example.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    answer: list[Any] = [None]
    dist.barrier()
    if dist.get_rank() == 0:
        try:
            _write(folder, undo, checkpoints=checkpoints)
        except UserError as e:
            answer[0] = e
    dist.broadcast_object_list(answer, src=0)
    if answer[0] is not None:
        raise answer[0]


def _write(folder: Path, undo: Undo, *, checkpoints: str) -> None:
    store = CheckpointStore(checkpoints)
    steps = {name: step_of(name) for name in store.names()}
    start = start_of(sorted(steps.values()), undo)
    for name, step in steps.items():
        if step > start:
            store.take_back(name, undo.row.text)
    row = dataclasses.replace(undo.row, from_step=start, skip=skip_of(start, undo))
    append(folder, row)
    left_out = f", leaving out steps {row.skip[0]} to {row.skip[1] - 1} of data" if row.skip else ""
    where = f"the checkpoint at step {start}" if start else "the start"
    print(f"{row.text}: going back to {where}{left_out}", flush=True)


def start_of(steps: list[int], undo: Undo) -> int:
    """The step of the checkpoint to go back to, of those at ``steps``; 0 if there is none."""
    before = [step for step in steps if step <= undo.row.step]
    early = [step for step in before if step <= undo.row.step - undo.back_steps]
    if early:
        return early[-1]
    return before[0] if before else 0


def skip_of(start: int, undo: Undo) -> tuple[int, int] | None:
    """The steps of data to leave out when training goes on from ``start``."""
    if not undo.skip_steps:
        return None
    order = undo.data.order
    first = order.data_step(max(start, undo.row.step - undo.back_steps))
    return first, max(first + undo.skip_steps, order.data_step(undo.last) + 1)
