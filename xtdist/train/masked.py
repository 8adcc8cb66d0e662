"""How many tokens a run of masked prediction masks at once, at most."""

from __future__ import annotations

import numpy as np

from xtdist.objective.masking import schedule_of
from xtdist.train.spec import RunSpec

CELLS = 64
"""Into which the fractions of a sequence are sorted; a micro-batch has finer ones."""


def most_masked(spec: RunSpec, *, rows: int, world: int) -> float:
    """The share of tokens that is masked in the fullest of all micro-batches of ``rows`` sequences:
    what one of them is expected to reach. 1 where nothing is drawn."""
    if spec.objective.kind != "nonautoregressive":
        return 1.0
    schedule = schedule_of(spec.objective.schedule, weighted=False)
    below = np.array([schedule.below(i / CELLS) for i in range(CELLS + 1)])
    length = CELLS * rows + 1
    sums = np.zeros(length)
    sums[1 : CELLS + 1] = np.diff(below)  # of a sequence, each counted as the most of its cell
    summed = np.fft.irfft(np.fft.rfft(sums, 2 * length) ** rows, 2 * length)[:length]
    beyond = np.cumsum(summed[::-1])[::-1]  # beyond[i]: as likely are at least i of the cells
    draws = spec.loop.steps * spec.split(world).accumulation * world
    reached = np.flatnonzero(beyond >= 1 / (draws + 1))
    return float(reached[-1]) / (CELLS * rows)
