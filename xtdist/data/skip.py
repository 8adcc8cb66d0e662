"""Steps of data that a run leaves out, and where its own steps then are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xtdist.data.arrays import Ints


@dataclass(frozen=True)
class Skip:
    """``ranges``: half-open ranges of steps of data, ascending and disjoint, that are not read.

    Example:
        >>> Skip(((2, 4),)).data_steps(np.arange(4)).tolist()
        [0, 1, 4, 5]
    """

    ranges: tuple[tuple[int, int], ...] = ()

    def data_steps(self, steps: Ints) -> Ints:
        """The step of data that each training step reads."""
        starts, skipped = self._table
        return steps + skipped[np.searchsorted(starts, steps, side="right")]

    def data_step(self, step: int) -> int:
        return int(self.data_steps(np.array([step]))[0])

    def training_step(self, data_step: int) -> int:
        """The first training step that reads ``data_step`` or a later step of data."""
        left_out = (min(stop, data_step) - first for first, stop in self.ranges)
        return data_step - sum(max(0, count) for count in left_out)

    def past(self, step: int) -> list[list[int]]:
        """The ranges that shaped the data of the training steps before ``step``."""
        end = self.end(step)
        return [[first, stop] for first, stop in self.ranges if first < end]

    def end(self, step: int) -> int:
        """One after the last step of data that was read before training step ``step``."""
        return self.data_step(step - 1) + 1 if step else 0

    @cached_property
    def _table(self) -> tuple[Ints, Ints]:
        """The training step at which each range is jumped over, and how much was by then."""
        first, stop = np.array(self.ranges, np.int64).reshape(-1, 2).T
        skipped = np.concatenate([[0], np.cumsum(stop - first)])
        return first - skipped[:-1], skipped
