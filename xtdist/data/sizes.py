"""How many samples a step has, and which: a few stages of steps, then steps of the last size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xtdist.config import ConfigError
from xtdist.data.arrays import Ints
from xtdist.data.config import MOST_SAMPLES


@dataclass(frozen=True)
class Sizes:
    """Samples of the steps of data; what is read never depends on how a run came to a step.

    Attributes:
        last: of a step after all stages.
        stages: (until, samples) by ascending ``until``: the steps before ``until``, from the stage
            before on, have that many.

    Raises:
        ConfigError: a step without samples or with more than 64 bits can count, or stages that
            are not in order.

    Example:
        >>> sizes = Sizes(8, ((2, 3),))
        >>> sizes.of(np.arange(4)).tolist(), sizes.starts(np.arange(4)).tolist()
        ([3, 3, 8, 8], [0, 3, 6, 14])
    """

    last: int
    stages: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for size in (self.last, *(samples for _, samples in self.stages)):
            if not 1 <= size <= MOST_SAMPLES:
                raise ConfigError(
                    f"global_batch: got {size}; it must be from 1 to {MOST_SAMPLES} samples"
                )
        before = 0
        for until, _ in self.stages:
            if until <= before:
                raise ConfigError(f"stages: got one until step {until} after one until {before}")
            before = until

    @property
    def largest(self) -> int:
        return max(self.last, *(samples for _, samples in self.stages), 0)

    def of(self, steps: Ints) -> Ints:
        """Samples of each step of data."""
        _, _, sizes = self._table
        return sizes[self._stage(steps)]

    def starts(self, steps: Ints) -> Ints:
        """Samples before each step of data: the number of its first one."""
        firsts, samples, sizes = self._table
        stage = self._stage(steps)
        found: Ints = samples[stage] + (steps - firsts[stage]) * sizes[stage]
        return found

    def before(self, end: int) -> list[tuple[int, int]]:
        """(first step, samples) of the runs of equal steps that begin before step ``end``, the one
        of step 0 in any case."""
        firsts, _, sizes = self._table
        found: list[tuple[int, int]] = []
        for first, size in zip(firsts.tolist(), sizes.tolist(), strict=True):
            if (not found or first < end) and (not found or found[-1][1] != size):
                found.append((first, size))
        return found

    def changes(self) -> Iterator[int]:
        """The steps of data from which on the size may be another."""
        for until, _ in self.stages:
            yield until

    def _stage(self, steps: Ints) -> Ints:
        return np.searchsorted(self._table[0], steps, side="right") - 1

    @cached_property
    def _table(self) -> tuple[Ints, Ints, Ints]:
        """Of each stage: its first step, the samples before it, the samples of a step."""
        firsts = np.array([0, *(until for until, _ in self.stages)], np.int64)
        sizes = np.array([*(samples for _, samples in self.stages), self.last], np.int64)
        samples = np.concatenate([[0], np.cumsum(np.diff(firsts) * sizes[:-1])]).astype(np.int64)
        return firsts, samples, sizes
