"""When checkpoints are saved, and which are kept."""

from __future__ import annotations

from xtdist.config import PositiveInt, configclass


@configclass
class CheckpointSpec:
    """``every``: steps between two. ``keep``: the newest ones kept."""

    every: PositiveInt = 500
    keep: PositiveInt = 3
