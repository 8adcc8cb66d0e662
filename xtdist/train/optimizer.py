"""The optimizer within DeepSpeed's engine: what has to be said before and after it is built."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class GroupInForce:
    """What the optimizer does with a group of parameters, whole tensors counted."""

    name: str
    algorithm: str
    lr_scale: float
    weight_decay: float
    tensors: int
    elements: int

    def line(self) -> str:
        """In words."""
        return (
            f"{self.name}: {self.algorithm}, {self.tensors} tensors of {self.elements} numbers, "
            f"lr x {self.lr_scale:g}, weight decay {self.weight_decay:g}"
        )


def optimizer_in_force(engine: Any) -> list[GroupInForce]:
    """The groups of the optimizer that ``engine`` really steps."""
    return [
        GroupInForce(
            name=group["name"],
            algorithm=group["algorithm"] if isinstance(base_of(engine), Muon) else "adamw",
            lr_scale=group["lr_scale"],
            weight_decay=group["weight_decay"],
            tensors=group["tensors"],
            elements=group["elements"],
        )
        for group in base_of(engine).param_groups
    ]


def check_muon(engine: Any, *, steps: int) -> None:
    """Whether every hidden matrix was made orthogonal in each of the ``steps`` updates since the
    engine was built. All ranks call it together.

    Raises:
        RuntimeError: on all ranks, if not.
    """
    optimizer = base_of(engine)
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


def base_of(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer within DeepSpeed's wrapper."""
    found: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return found
