"""The callbacks of a run, in the order in which they are called."""

from __future__ import annotations

from xtdist.train.callbacks.base import Callback
from xtdist.train.callbacks.checkpoints import Checkpoints
from xtdist.train.callbacks.ema import Ema
from xtdist.train.callbacks.evaluate import Evaluate
from xtdist.train.callbacks.in_force import InForce
from xtdist.train.callbacks.log import Log
from xtdist.train.callbacks.samples import Samples
from xtdist.train.run import Run


def build_callbacks(run: Run) -> list[Callback]:
    """What happens beside the steps of ``run``."""
    callbacks: list[Callback] = [InForce(), Log(), Evaluate()]
    if run.spec.optim.ema is not None:
        callbacks.append(Ema(run.spec.optim.ema))
    callbacks.append(Checkpoints(run))
    if run.spec.loop.sample_prompts:
        callbacks.append(Samples())
    return callbacks
