"""Whether a value lies far above those of the steps before."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

# Of a normal distribution, the standard deviation is this times the median distance to the median.
SIGMA_OF_MAD = 1.4826
# A loss that hardly moves has hardly any deviation; less than this share of it is never a spike.
LEAST_SIGMA = 2e-3


class Spikes:
    """Values over a sliding window. Its state is its last ``window`` values, nothing else, so a
    resumed run is as far as one that was never interrupted.

    Spikes are in the window too: a median and a median distance ignore them as long as they are
    fewer than half.

    Example:
        >>> spikes = Spikes(window=8, sigmas=6.0, past=[1.0, 1.1, 0.9, 1.0, 1.1, 0.9, 1.0])
        >>> spikes.add(9.0), spikes.add(1.1), spikes.add(9.0)   # the first fills the window
        (False, False, True)
    """

    def __init__(self, *, window: int, sigmas: float, past: Iterable[float] = ()) -> None:
        self._sigmas = sigmas
        self._values = deque((v for v in past if math.isfinite(v)), maxlen=window)

    def add(self, value: float) -> bool:
        """Whether ``value`` is a spike; never before the window is full. Infinite values (of fp16's
        skipped updates) are passed over."""
        if not math.isfinite(value):
            return False
        spike = len(self._values) == self._values.maxlen and self.score(value) > self._sigmas
        self._values.append(value)
        return spike

    def score(self, value: float) -> float:
        """How many standard deviations ``value`` lies above the window's median."""
        values = np.array(self._values)
        median = float(np.median(values))
        sigma = SIGMA_OF_MAD * float(np.median(np.abs(values - median)))
        return (value - median) / max(sigma, LEAST_SIGMA * abs(median), 1e-12)
