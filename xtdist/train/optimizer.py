"""The optimizer within DeepSpeed's engine: what has to be said before and after it is built."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from xtdist.model import muon_parameters
from xtdist.optim import AdamWConfig, Muon, MuonConfig, build_optimizer, set_lr
from xtdist.train.state.flats import flats


def make_optimizer(config: AdamWConfig | MuonConfig, module: nn.Module) -> torch.optim.Optimizer:
    """What DeepSpeed takes as its client optimizer. Its rate is 0 until the first ``set_lr``: at
    stage 0 in bf16 or fp16 DeepSpeed takes a step to see what state there is.

    Raises:
        ConfigError: see :func:`xtdist.optim.build_optimizer`.
    """
    optimizer = build_optimizer(config, module, muon_parameters(module))
    set_lr(optimizer, 0.0)
    return optimizer


def settle_optimizer(engine: Any, optimizer: torch.optim.Optimizer) -> None:
    """After the engine was built around ``optimizer``: forget the trial step, and tell Muon where
    its matrices are. All ranks call it together."""
    if engine.zero_optimization_stage() == 0:
        optimizer.state.clear()
    if isinstance(optimizer, Muon):
        parameters = {name: p for p, name in engine.param_names.items()}
        optimizer.attach(flats(engine), parameters, device=engine.device)


def check_muon(engine: Any, *, steps: int) -> None:
    """Whether every hidden matrix was made orthogonal in each of the ``steps`` updates since the
    engine was built. All ranks call it together.

    Raises:
        RuntimeError: on all ranks, if not.
    """
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    if not isinstance(optimizer, Muon):
        return
    count = torch.tensor([optimizer.updated], device=engine.device)
    dist.all_reduce(count)
    copies = dist.get_world_size() if engine.zero_optimization_stage() == 0 else 1
    wanted = optimizer.matrices * copies * steps
    if int(count) != wanted:
        raise RuntimeError(
            f"Muon should have updated {wanted} matrices in {steps} steps, and did {int(count)}"
        )
