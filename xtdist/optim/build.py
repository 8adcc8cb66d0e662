"""From config and model to a torch optimizer, which DeepSpeed takes as its client optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from xtdist.optim.config import AdamWConfig, MuonConfig
from xtdist.optim.groups import Matrices, param_groups
from xtdist.optim.muon import Muon


def build_optimizer(
    config: AdamWConfig | MuonConfig, model: nn.Module, matrices: Sequence[Matrices] = ()
) -> torch.optim.AdamW:
    """AdamW over :func:`param_groups` in torch's fused kernel (CPU and CUDA have one), or Muon for
    ``matrices`` (``xtdist.model.muon_parameters``) and AdamW for the rest.

    The rate in it is the peak rate; call :func:`set_lr` before each step.

    Raises:
        ConfigError: no parameter is trainable, a group of the config has none, or there is no
            matrix for Muon.
    """
    groups = param_groups(model, config, matrices)
    adamw: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "eps": config.eps,
        "fused": True,
    }
    if isinstance(config, AdamWConfig):
        return torch.optim.AdamW(groups, **adamw)
    return Muon(groups, matrices=matrices, **adamw)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its rate for the next step: ``lr`` times the group's ``lr_scale``.

    Takes anything that has ``param_groups``, so also DeepSpeed's wrappers.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
