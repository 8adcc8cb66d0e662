"""The processes of a run."""

from __future__ import annotations

from typing import Literal

from xtdist.config import NonNegativeInt, PositiveInt, configclass


@configclass
class WorkersSpec:
    """How many training processes, and what each gets. ``max_failures``: restarts from the newest
    checkpoint before the run is given up."""

    count: PositiveInt = 1
    device: Literal["auto", "cpu", "gpu"] = "auto"
    cpus: PositiveInt = 1
    max_failures: NonNegativeInt = 3
