"""The sample order: a permutation per epoch, the same for every number of workers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtdist.config import ConfigError, DataError, derive_seed
from xtdist.data import Order, rank_slice


def run(order: Order, steps: range) -> np.ndarray:
    return np.concatenate([order.windows(order.sample_ids(s)) for s in steps])


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 300), batch=st.integers(1, 50), seed=st.integers(0, 2**62))
def test_every_epoch_visits_every_window_once_across_batch_edges(
    n: int, batch: int, seed: int
) -> None:
    order = Order(num_windows=n, global_batch=batch, seed=seed)
    seen = run(order, range(3 * n // batch + 1))
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 10**12),
    batch=st.integers(1, 64),
    seed=st.integers(0, 2**62),
    step=st.integers(0, 10**9),
    worlds=st.lists(st.integers(1, 70), min_size=1, max_size=4),
)
def test_ranks_together_read_the_same_global_batch_for_any_world_size(
    n: int, batch: int, seed: int, step: int, worlds: list[int]
) -> None:
    order = Order(num_windows=n, global_batch=batch, seed=seed)
    ids = order.sample_ids(step)
    whole = order.windows(ids)
    for world in worlds:
        slices = [rank_slice(batch, rank, world) for rank in range(world)]
        parts = [order.windows(ids[part]) for part in slices]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        sizes = [len(p) for p in parts]
        assert max(sizes) - min(sizes) <= 1


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 2000), seed=st.integers(0, 2**62), start=st.integers(0, 100))
def test_starting_at_a_step_gives_what_going_there_gives(n: int, seed: int, start: int) -> None:
    order = Order(num_windows=n, global_batch=8, seed=seed)
    again = Order(num_windows=n, global_batch=8, seed=seed)
    np.testing.assert_array_equal(
        run(order, range(start + 3))[start * 8 :], run(again, range(start, start + 3))
    )


def test_a_step_of_a_corpus_too_large_to_list_is_reached_directly() -> None:
    order = Order(num_windows=10**13 + 7, global_batch=32, seed=3)
    first = 10**13 // 32 - 1  # near the end of epoch 0, no memory for 10^13 anything
    windows = run(order, range(first, first + 4))
    assert windows.min() >= 0
    assert windows.max() < order.num_windows
    assert len(set(windows.tolist())) == len(windows)


def test_sample_ids_count_on_over_epochs() -> None:
    order = Order(num_windows=5, global_batch=3, seed=0)
    ids = np.concatenate([order.sample_ids(s) for s in range(10)])
    assert ids.tolist() == list(range(30))


def test_epochs_and_seeds_have_different_orders() -> None:
    n = 1000
    orders = [run(Order(num_windows=n, global_batch=n, seed=s), range(2)) for s in (0, 1)]
    epochs = [o[i * n : (i + 1) * n] for o in orders for i in range(2)]
    for i, a in enumerate(epochs):
        for b in epochs[i + 1 :]:
            assert (a == b).mean() < 0.01  # by chance 1 in 1000 agrees


def test_the_order_looks_random() -> None:
    n = 200_000
    seen = run(Order(num_windows=n, global_batch=n, seed=7), range(1)).astype(float)
    assert abs(np.corrcoef(seen[:-1], seen[1:])[0, 1]) < 0.01  # sd 0.002
    cells = np.histogram2d(np.arange(n), seen, bins=32)[0]
    expected = n / 32**2
    chi2_per_cell = ((cells - expected) ** 2 / expected).mean()
    assert 0.85 < chi2_per_cell < 1.15  # sd 0.044


def test_the_order_never_changes_between_versions() -> None:
    order = Order(num_windows=1000, global_batch=8, seed=42)
    assert order.windows(order.sample_ids(0)).tolist() == GOLDEN_FIRST
    assert order.windows(order.sample_ids(125_000)).tolist() == GOLDEN_LATER


GOLDEN_FIRST = [195, 557, 513, 990, 222, 49, 762, 183]
GOLDEN_LATER = [94, 2, 17, 181, 498, 907, 518, 785]


def window_in_plain_integers(sample: int, n: int, seed: int) -> int:
    """The definition, one sample at a time, in integers that can't overflow."""
    ones = 2**64 - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & ones
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & ones
        return x ^ (x >> 31)

    epoch, value = divmod(sample, n)
    key = derive_seed(seed, "order", epoch)
    half = 1
    while 4**half < n:
        half += 1
    while True:
        left, right = value >> half, value % 2**half
        for i in range(1, 7):
            noise = mix((right + mix((key + i * 0x9E3779B97F4A7C15) & ones)) & ones)
            left, right = right, left ^ (noise % 2**half)
        value = (left << half) | right
        if value < n:
            return value


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 10**13), seed=st.integers(0, 2**62), step=st.integers(0, 10**12))
def test_the_vectorised_order_is_the_one_of_plain_integers(n: int, seed: int, step: int) -> None:
    order = Order(num_windows=n, global_batch=4, seed=seed)
    ids = order.sample_ids(step)
    expected = [window_in_plain_integers(int(i), n, seed) for i in ids]
    assert order.windows(ids).tolist() == expected


def test_nonsense_is_refused() -> None:
    with pytest.raises(DataError, match="shorter than one sample"):
        Order(num_windows=0, global_batch=1, seed=0)
    with pytest.raises(ConfigError, match="global_batch"):
        Order(num_windows=1, global_batch=0, seed=0)
    with pytest.raises(ConfigError, match="rank 2"):
        rank_slice(8, 2, 2)
