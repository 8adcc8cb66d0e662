"""The processes of a run."""

from __future__ import annotations

from typing import Literal

from xtdist.config import (
    ConfigError,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    configclass,
)


@configclass
class WorkersSpec:
    """How many training processes, what each gets, and what happens when some are lost.

    count: wanted. min_count: a run goes on with as few when nodes are gone, and grows again when
        they are back (None: only with all of them). A step is the same batch with any number.
    cpus: of each. placement: on as few nodes as possible, or on as many.
    max_failures: restarts in a row without a new checkpoint before the run is given up; nodes that
        are taken away with a notice (preemption) don't count.
    wait_minutes: how long a run waits for nodes that it needs and that are not there.
    start_timeout_s: for the workers of an attempt to start.
    grow_after_s: there must have been room for more workers for so long before they are started.
    """

    count: PositiveInt = 1
    min_count: PositiveInt | None = None
    device: Literal["auto", "cpu", "gpu"] = "auto"
    cpus: PositiveInt = 1
    placement: Literal["pack", "spread"] = "pack"
    max_failures: NonNegativeInt = 3
    wait_minutes: NonNegativeFloat = 60
    start_timeout_s: PositiveFloat = 60
    grow_after_s: PositiveFloat = 60

    def __post_init__(self) -> None:
        if self.min_count is not None and self.min_count > self.count:
            raise ConfigError(
                f"min_count: got {self.min_count}, more than count ({self.count}); it is the least "
                "number of workers to go on with"
            )

    @property
    def least(self) -> int:
        """So many workers a run must have."""
        return self.count if self.min_count is None else self.min_count
