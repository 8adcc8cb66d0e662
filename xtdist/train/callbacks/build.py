"""The callbacks of a run, in the order in which they are called."""

from __future__ import annotations

import torch.distributed as dist

from xtdist.train.callbacks.aside import Aside
from xtdist.train.callbacks.base import Callback
from xtdist.train.callbacks.checkpoints import Checkpoints
from xtdist.train.callbacks.early_stop import EarlyStop
from xtdist.train.callbacks.ema import Ema
from xtdist.train.callbacks.evaluate import Evaluate
from xtdist.train.callbacks.in_force import InForce
from xtdist.train.callbacks.log import Log
from xtdist.train.callbacks.profile import Profile
from xtdist.train.callbacks.samples import Samples
from xtdist.train.callbacks.stability import SpikeWatch, Stability
from xtdist.train.run import Run
from xtdist.train.spec.stability import SpikeRollback


def build_callbacks(run: Run) -> list[Callback]:
    """What happens beside the steps of ``run``."""
    loop, spike = run.spec.loop, run.spec.stability.spike
    callbacks: list[Callback] = [InForce(), Log(), Stability()]
    if isinstance(spike, SpikeRollback):
        callbacks.append(SpikeWatch(spike))
    if loop.aside is None:
        callbacks.append(Evaluate())
    if run.spec.optim.ema is not None:
        callbacks.append(Ema(run.spec.optim.ema))
    if loop.early_stop is not None:
        callbacks.append(EarlyStop(loop.early_stop))
    callbacks.append(Checkpoints(run))
    if loop.profile is not None:
        callbacks.append(Profile(loop.profile, rank=dist.get_rank()))
    if loop.aside is not None:
        callbacks.append(Aside(loop.aside))
    elif loop.sample_prompts:
        callbacks.append(Samples())
    return callbacks
