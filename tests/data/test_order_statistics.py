"""The permutation of an epoch is as random as one drawn by lot, as far as statistics can tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from plain_order import make_order


@pytest.mark.parametrize("n", [195_312, 10_000_000])
def test_the_order_looks_random(n: int) -> None:
    """Serial correlation and 64 x 64 chi-square, of all positions or a stretch of every 50th."""
    order = make_order(None, {"data": n}, batch=1, seed=7)
    stretches = range(0, n, 10_000 if n < 10**6 else 500_000)
    at = np.concatenate([np.arange(s, min(s + 10_000, n)) for s in stretches])
    seen = np.concatenate(
        [order.samples_between(s, min(s + 10_000, n)).index[:, 0] for s in stretches]
    )
    assert abs(np.corrcoef(seen[:-1], seen[1:])[0, 1]) < 5 / math.sqrt(len(seen))
    assert abs(np.corrcoef(at, seen)[0, 1]) < 5 / math.sqrt(len(seen))
    cells = np.histogram2d(at, seen, bins=64, range=[[0, n], [0, n]])[0]
    expected = cells.sum(axis=1, keepdims=True) / 64
    used = expected[:, 0] > 0
    per_cell = (((cells - expected) ** 2)[used] / expected[used]).sum() / (used.sum() * 63)
    assert abs(per_cell - 1) < 5 * math.sqrt(2 / (used.sum() * 63))
    lowest_bits = np.bincount(seen % 7, minlength=7) / len(seen)
    assert abs(lowest_bits - 1 / 7).max() < 5 * math.sqrt(1 / 7 / len(seen))


def test_small_permutations_are_all_about_equally_likely() -> None:
    """All 24 orders of 4 windows, over 6,000 epochs."""
    order = make_order(None, {"data": 4}, batch=4, seed=1)
    rows = order.samples_between(0, 6000).index
    _, counts = np.unique(rows @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24
    chi2 = float((((counts - 250) ** 2) / 250).sum())
    assert chi2 < 23 + 5 * math.sqrt(2 * 23)
