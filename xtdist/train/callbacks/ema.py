"""Averaged weights."""

from __future__ import annotations

import torch

from xtdist.optim import EmaConfig
from xtdist.optim.ema import ema_decay
from xtdist.train.callbacks.base import Callback
from xtdist.train.callbacks.evaluate import validate
from xtdist.train.run import Run
from xtdist.train.state import flats, load_extra
from xtdist.train.state.average import AVERAGE, averaged
from xtdist.train.state.shards import MASTER
from xtdist.train.step import StepResult


class Ema(Callback):
    """An average of the fp32 weights, cut among the ranks as they are; checkpoints hold it. With
    ``optim.ema.evaluate``, the validation loss of the averaged weights is logged too."""

    def __init__(self, config: EmaConfig) -> None:
        self._config = config

    @torch.no_grad()
    def started(self, run: Run) -> None:
        engine, tensors = run.stepper.engine, []
        for flat in flats(engine):
            with flat.swapped():
                tensors.append(flat.tensors()[MASTER].float().clone())
        if run.resumed is not None:
            load_extra(engine, run.resumed, AVERAGE, tensors)  # none there: begins with the weights
        run.extras[AVERAGE] = tensors

    @torch.no_grad()
    def stepped(self, run: Run, result: StepResult) -> None:
        engine, tensors = run.stepper.engine, run.extras[AVERAGE]
        decay = ema_decay(self._config, run.position.step)
        if decay is not None:
            for flat, tensor in zip(flats(engine), tensors, strict=True):
                with flat.swapped():
                    tensor.lerp_(flat.tensors()[MASTER], 1 - decay)
        loop = run.spec.loop
        evaluates = self._config.evaluate and loop.aside is None
        if evaluates and (run.due(loop.valid_every) or run.last):
            with averaged(engine, tensors):
                run.log(validate(run, prefix="ema_"))
