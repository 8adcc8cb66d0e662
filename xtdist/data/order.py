"""Sample order as a pure function: (seed, step) → windows. No index files, nothing to save.

Sample g of a run is position g mod N of epoch g div N, and each epoch visits its N windows in its
own keyed order: a Feistel network (Luby and Rackoff 1988) with cycle walking. The global batch is
cut by rank, so the order does not depend on the number of workers; any step is reached in O(1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xtdist.config import ConfigError, DataError, derive_seed

ROUNDS = 6


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order in which a run sees ``num_windows`` windows, ``global_batch`` per step.

    Example:
        >>> order = Order(num_windows=10, global_batch=4, seed=0)
        >>> order.sample_ids(2).tolist()
        [8, 9, 10, 11]
        >>> sorted(order.windows(np.arange(10)).tolist()) == list(range(10))
        True
    """

    num_windows: int
    global_batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_windows < 1:
            raise DataError(
                "the dataset is shorter than one sample; take a smaller seq_len or more text"
            )
        if self.global_batch < 1:
            raise ConfigError(f"global_batch: got {self.global_batch}; it must be at least 1")

    def sample_ids(self, step: int) -> NDArray[np.int64]:
        """Numbers of the samples of ``step``, counted over the whole run: they never repeat, so
        noise derived from them differs between epochs."""
        first = step * self.global_batch
        return np.arange(first, first + self.global_batch, dtype=np.int64)

    def windows(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The window that each sample reads; every one comes once per ``num_windows`` samples."""
        epochs, positions = np.divmod(sample_ids, self.num_windows)
        result = np.empty_like(sample_ids)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            keys = round_keys(derive_seed(self.seed, "order", int(epoch)))
            result[here] = permute(positions[here], self.num_windows, keys)
        return result


def rank_slice(global_batch: int, rank: int, world: int) -> slice:
    """Rank's rows of the global batch; sizes differ by at most one."""
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank}: there are {world} ranks, counted from 0")
    return slice(global_batch * rank // world, global_batch * (rank + 1) // world)


def round_keys(seed: int) -> NDArray[np.uint64]:
    """One 64-bit key per Feistel round."""
    counters = np.arange(1, ROUNDS + 1, dtype=np.uint64)
    return _mix(np.uint64(seed) + counters * _GOLDEN)


def permute(index: NDArray[np.int64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The keyed permutation of [0, size) at each of ``index``.

    The network permutes [0, 4^k) ≥ size; a value that falls outside is sent through again until it
    falls inside (fewer than 4 rounds on average), which keeps it a permutation.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    value = _feistel(index.astype(np.uint64), half_bits, keys)
    outside = np.flatnonzero(value >= size)
    while len(outside):
        value[outside] = _feistel(value[outside], half_bits, keys)
        outside = outside[value[outside] >= size]
    return value.astype(np.int64)


def _feistel(
    value: NDArray[np.uint64], half_bits: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    low_mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = value >> half_bits, value & low_mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & low_mask)
    return (left << half_bits) | right


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer (Steele, Lea, Flood 2014): each input bit moves each output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
