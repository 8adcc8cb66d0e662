"""Parameter groups, the optimizer and its learning-rate schedule."""

from xtdist.optim.build import build_optimizer, set_lr
from xtdist.optim.config import (
    AdamWConfig,
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    LinearConfig,
    OptimConfig,
    ScheduleConfig,
    WSDConfig,
)
from xtdist.optim.groups import param_groups
from xtdist.optim.schedules import check_schedule, lr_at

__all__ = [
    "AdamWConfig",
    "ConstantConfig",
    "CosineConfig",
    "InverseSqrtConfig",
    "LinearConfig",
    "OptimConfig",
    "ScheduleConfig",
    "WSDConfig",
    "build_optimizer",
    "check_schedule",
    "lr_at",
    "param_groups",
    "set_lr",
]
