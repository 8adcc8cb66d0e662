"""Ending a run whose metric gets no better."""

from __future__ import annotations

import math
from typing import Any

import torch.distributed as dist

from xtdist.train.callbacks.base import Callback
from xtdist.train.history import history_together
from xtdist.train.run import Run
from xtdist.train.spec.loop import EarlyStopSpec
from xtdist.train.stability.interventions import Intervention, append, stopped_early
from xtdist.train.step import StepResult


class EarlyStop(Callback):
    """After every validation, from the metrics that the run has written, so a run that is started
    again comes to the same decision at the same step."""

    def __init__(self, spec: EarlyStopSpec) -> None:
        self._spec = spec

    def started(self, run: Run) -> None:
        if run.position.step:
            self._decide(run)

    def stepped(self, run: Run, result: StepResult) -> None:
        self._decide(run)

    def _decide(self, run: Run) -> None:
        if not run.due(run.spec.loop.valid_every) or run.last:
            return
        name, step = self._spec.metric, run.position.step
        values = history_together(run.folder, [name], last=step, until=step)[name]
        if waited(values, min_delta=self._spec.min_delta) < self._spec.patience:
            return
        run.ended = True
        text = f"{name} got no better in {self._spec.patience} validations: the run ends here"
        if dist.get_rank() == 0 and not stopped_early(run.folder, step):
            print(text, flush=True)
            row: dict[str, Any] = {"step": step, "data_step": run.data.order.data_step(step)}
            append(run.folder, Intervention(what="stop", why="early_stop", text=text, **row))


def waited(values: list[float], *, min_delta: float) -> int:
    """How many values came after the best one; one is better if it is lower by more than
    ``min_delta``.

    Example:
        >>> waited([3.0, 2.0, 1.95, 2.1], min_delta=0.1)
        2
    """
    best, since = math.inf, 0
    for value in values:
        better = value < best - min_delta
        best, since = (value, 0) if better else (best, since + 1)
    return since
