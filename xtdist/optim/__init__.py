"""Parameter groups, the optimizer and its learning-rate schedule."""

from xtdist.optim.build import build_optimizer, set_lr
from xtdist.optim.config import AdamWConfig, EmaConfig, GroupConfig, MuonConfig, OptimConfig
from xtdist.optim.groups import param_groups, shown_name
from xtdist.optim.muon import Muon
from xtdist.optim.schedule_config import (
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    LinearConfig,
    ScheduleConfig,
    WSDConfig,
)
from xtdist.optim.schedules import check_schedule, lr_at

__all__ = [
    "AdamWConfig",
    "ConstantConfig",
    "CosineConfig",
    "EmaConfig",
    "GroupConfig",
    "InverseSqrtConfig",
    "LinearConfig",
    "Muon",
    "MuonConfig",
    "OptimConfig",
    "ScheduleConfig",
    "WSDConfig",
    "build_optimizer",
    "check_schedule",
    "lr_at",
    "param_groups",
    "set_lr",
    "shown_name",
]
