"""The loss on the validation split."""

from __future__ import annotations

import time

import torch.distributed as dist

from xtdist.train.callbacks.base import Callback
from xtdist.train.run import Run
from xtdist.train.step import StepResult
from xtdist.train.validation import Sum, metrics_of, text_bytes_of, validation_batches


class Evaluate(Callback):
    """Every ``loop.valid_every`` steps and after the last one, by all ranks."""

    phase = "evaluate"

    def stepped(self, run: Run, result: StepResult) -> None:
        if not (run.due(run.spec.loop.valid_every) or run.last):
            return
        began = time.perf_counter()
        metrics = validate(run)
        run.log({**metrics, "perf/evaluate_s": time.perf_counter() - began})


def validate(run: Run, *, prefix: str = "") -> dict[str, float]:
    """The losses of the weights as they are now; ``prefix``: of the names of the metrics."""
    found = {}
    rank, world = dist.get_rank(), dist.get_world_size()
    for name, data in run.valid.datasets.items():
        batches = validation_batches(run.valid, name, run.spec, rank=rank, world=world)
        nats, weight = run.stepper.validate(batches)
        found[name] = Sum(nats, weight, text_bytes_of(data, weight))
    return metrics_of(found, prefix=prefix)
