"""Learning rate as a closed form of (step, total steps): nothing to save, nothing to restore.

``step`` counts finished optimizer steps, so the first update uses ``step=0`` and the last one
``step=total_steps - 1``. No update is wasted on a rate of zero: a straight warm-up starts at
``lr / warmup_steps`` and a decay reaches its end at ``total_steps``, just after the last update.
"""

from __future__ import annotations

import math
from typing import Literal, assert_never

from xtdist.config import ConfigError
from xtdist.optim.config import OptimConfig
from xtdist.optim.schedule_config import (
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    LinearConfig,
    ScheduleConfig,
    WSDConfig,
)


def lr_at(config: OptimConfig, step: int, total_steps: int) -> float:
    """The learning rate of the update that follows ``step`` finished ones.

    Example:
        >>> from xtdist.optim import AdamWConfig, LinearConfig
        >>> config = AdamWConfig(lr=1.0, schedule=LinearConfig(warmup_steps=2))
        >>> [lr_at(config, step, 6) for step in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    return config.lr * ratio_at(config.schedule, step, total_steps)


def ratio_at(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """The schedule's factor on the peak rate; past ``total_steps`` it stays at its end."""
    warmup = schedule.warmup_steps
    if step < warmup:
        up = _rise(schedule.warmup_shape, (step + 1) / warmup)
        return schedule.warmup_start + (1 - schedule.warmup_start) * up
    match schedule:
        case ConstantConfig():
            return 1.0
        case InverseSqrtConfig():
            return max(math.sqrt(max(warmup, 1) / (step + 1)), schedule.min_ratio)
        case CosineConfig():
            left = 1 - _rise("cosine", _progress(step, warmup, total_steps))
        case LinearConfig():
            left = 1 - _progress(step, warmup, total_steps)
        case WSDConfig():
            start = max(warmup, total_steps - wsd_decay_steps(schedule, total_steps))
            left = 1 - _rise(schedule.decay_shape, _progress(step, start, total_steps))
        case _:
            assert_never(schedule)
    return schedule.min_ratio + (1 - schedule.min_ratio) * left


def wsd_decay_steps(schedule: WSDConfig, total_steps: int) -> int:
    """How many of the last steps decay."""
    if schedule.decay_steps is not None:
        return schedule.decay_steps
    return round(schedule.decay_fraction * total_steps)


def check_schedule(schedule: ScheduleConfig, total_steps: int) -> None:
    """Refuse a schedule that does not fit into the run.

    Raises:
        ConfigError: the warm-up (and WSD's decay) need more steps than there are.
    """
    warmup = schedule.warmup_steps
    if warmup > total_steps:
        raise ConfigError(
            f"optim.schedule.warmup_steps: got {warmup}, but the run has {total_steps} steps, "
            f"so the learning rate would never reach its peak; give at most {total_steps}"
        )
    if isinstance(schedule, WSDConfig):
        decay = wsd_decay_steps(schedule, total_steps)
        if warmup + decay > total_steps:
            raise ConfigError(
                f"optim.schedule: {warmup} warm-up and {decay} decay steps are more than the run's "
                f"{total_steps} steps; lower warmup_steps, decay_steps or decay_fraction"
            )


def _rise(shape: Literal["linear", "cosine", "sqrt"], x: float) -> float:
    """From 0 to 1 as ``x`` goes there."""
    if shape == "cosine":
        return 0.5 * (1 - math.cos(math.pi * x))
    return math.sqrt(x) if shape == "sqrt" else x


def _progress(step: int, start: int, end: int) -> float:
    """0 at ``start``, 1 from ``end`` on."""
    if step >= end:
        return 1.0
    return max(0.0, (step - start) / (end - start))
