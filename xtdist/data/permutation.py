"""Keyed permutations of [0, size): any element in O(1), nothing listed.

A Feistel network (Luby and Rackoff 1988) over a rectangle of about √size x √size places, with
additions modulo its sides in place of xor (Black and Rogaway 2002). The rectangle is next to full,
so the few values that fall outside [0, size) are simply sent through again, which keeps it a
permutation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xtdist.data.arrays import Ints

ROUNDS = 6

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Permutations:
    """A table of permutations, one per row, so that elements of many are looked up together.

    Attributes:
        sizes: [p] each permutes [0, size).
        sides: [2, p] of the rectangle; their product is at least the size.
        keys: [6, p] one per round.
    """

    sizes: Words
    sides: Words
    keys: Words

    @classmethod
    def make(cls, sizes: Sequence[int] | Ints, seeds: Sequence[int] | Words) -> Permutations:
        """One permutation for each pair of a size (below 2^62) and a seed."""
        sides = [_sides(int(size)) for size in sizes]
        counters = np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None]
        return cls(
            sizes=np.asarray(sizes, np.uint64),
            sides=np.array(sides, np.uint64).T.copy(),
            keys=mix(np.asarray(seeds, np.uint64) + counters * GOLDEN),
        )

    def apply(self, index: Ints, which: Ints | int = 0) -> Ints:
        """Where ``index`` [n] goes in the permutation ``which`` (one for all, or [n])."""
        return self._walk(index, which, back=False)

    def invert(self, value: Ints, which: Ints | int = 0) -> Ints:
        """The index that goes to ``value``."""
        return self._walk(value, which, back=True)

    def _walk(self, index: Ints, which: Ints | int, *, back: bool) -> Ints:
        sizes, sides, keys = self.sizes[which], self.sides[:, which], self.keys[:, which]
        value = _rounds(index.astype(np.uint64), sides, keys, back=back)
        outside = np.flatnonzero(value >= sizes)
        while len(outside):
            if isinstance(which, np.ndarray):
                here = which[outside]
                sizes, sides, keys = self.sizes[here], self.sides[:, here], self.keys[:, here]
            value[outside] = moved = _rounds(value[outside], sides, keys, back=back)
            outside = outside[moved >= sizes]
        return value.view(np.int64)


def distinct(values: Ints) -> tuple[Ints, Ints | int]:
    """The distinct ``values`` in ascending order, and which of them each is (0 if there is one)."""
    low, high = int(values.min()), int(values.max())
    if low == high:
        return values[:1], 0
    if high - low > 4 * len(values):
        found, which = np.unique(values, return_inverse=True)
        return found, which
    values = values - low
    present = np.zeros(high - low + 1, bool)
    present[values] = True
    return np.flatnonzero(present) + low, (np.cumsum(present) - 1)[values]


def _sides(size: int) -> tuple[int, int]:
    """The nearest to a square that holds ``size`` places."""
    side = math.isqrt(max(size - 1, 0)) + 1
    return side, -(-size // side)


def _rounds(value: Words, sides: Words, keys: Words, *, back: bool) -> Words:
    """Once through the network: ``value`` [n], ``sides`` [2] or [2, n], ``keys`` [6] or [6, n]."""
    halves = list(np.divmod(value, sides[1]))
    for i in range(ROUNDS - 1, -1, -1) if back else range(ROUNDS):
        side, half = sides[i % 2], halves[i % 2]
        noise = _below(halves[1 - i % 2] + keys[i], side)
        half += side - noise if back else noise
        np.minimum(half, half - side, out=half)  # where half < side, the difference wraps round
    halves[0] *= sides[1]
    halves[0] += halves[1]
    return halves[0]


GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ONE, _TWO = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _32 = (np.uint64(bits) for bits in (30, 27, 31, 32))


def _below(x: Words, side: Words) -> Words:
    """``x`` (overwritten) hashed to [0, side), side ≤ 2^32: the upper half of splitmix64 without
    its last step, which would change one bit of it, and a multiplication in place of a division
    (Lemire 2019)."""
    x ^= x >> _30
    x *= _ONE
    x ^= x >> _27
    x *= _TWO
    x >>= _32
    x *= side
    x >>= _32
    return x


def mix(x: Words) -> Words:
    """splitmix64's finalizer (Steele, Lea, Flood 2014): each input bit moves each output bit."""
    x = (x ^ (x >> _30)) * _ONE
    x = (x ^ (x >> _27)) * _TWO
    return x ^ (x >> _31)
