"""From config and model to a torch optimizer, which DeepSpeed takes as its client optimizer."""

from __future__ import annotations

import torch
from torch import nn

from xtdist.optim.config import OptimConfig
from xtdist.optim.groups import param_groups


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.AdamW:
    """AdamW over :func:`param_groups` in torch's fused kernel (CPU and CUDA have one).

    The rate in it is the peak rate; call :func:`set_lr` before each step.

    Raises:
        ConfigError: no parameter is trainable.
    """
    return torch.optim.AdamW(
        param_groups(model, config),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its rate for the next step: ``lr`` times the group's ``lr_scale``.

    Takes anything that has ``param_groups``, so also DeepSpeed's wrappers.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
