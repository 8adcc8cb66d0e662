"""The sample order: a permutation per epoch, the same for every number of workers."""

from __future__ import annotations

import hashlib
import json
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain_order import make_order, permuted

from xtdist.config import ConfigError, DataError, derive_seed
from xtdist.data import Order, rank_slice

FIELDS = ("ids", "corpus", "index")
SHUFFLES: list[dict[str, Any]] = [
    {"kind": "uniform"},
    {"kind": "blocks", "block_tokens": 7, "group_blocks": 3},
    {"kind": "none"},
]


def plain(n: int, *, batch: int, seed: int = 0, **settings: Any) -> Order:
    return make_order(None, {"data": n}, batch=batch, seed=seed, **settings)


orders = st.builds(
    lambda n, batch, seed, shuffle, two: (
        make_order(
            {"a": 0.7, "b": 0.3}, {"a": n, "b": 2 * n + 1}, batch=batch, seed=seed, shuffle=shuffle
        )
        if two
        else plain(n, batch=batch, seed=seed, shuffle=shuffle)
    ),
    n=st.integers(1, 400),
    batch=st.integers(1, 50),
    seed=st.integers(0, 2**62),
    shuffle=st.sampled_from(SHUFFLES),
    two=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 300),
    batch=st.integers(1, 50),
    seed=st.integers(0, 2**62),
    shuffle=st.sampled_from(SHUFFLES),
)
def test_every_epoch_visits_every_window_once_across_batch_edges(
    n: int, batch: int, seed: int, shuffle: dict[str, Any]
) -> None:
    order = plain(n, batch=batch, seed=seed, shuffle=shuffle)
    seen = order.samples_between(0, 3 * n // batch + 1).index.reshape(-1)
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


@settings(max_examples=100, deadline=None)
@given(
    order=orders,
    step=st.integers(0, 10**9),
    worlds=st.lists(st.integers(1, 70), min_size=1, max_size=4),
)
def test_ranks_together_read_the_same_global_batch_for_any_world_size(
    order: Order, step: int, worlds: list[int]
) -> None:
    whole = order.samples(step)
    for world in worlds:
        slices = [rank_slice(order.global_batch, rank, world) for rank in range(world)]
        parts = [order.samples(step, rows) for rows in slices]
        for name in FIELDS:
            rows = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(rows, getattr(whole, name))
        sizes = [len(p.ids) for p in parts]
        assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60, deadline=None)
@given(
    order=orders,
    history=st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(1, 12)), min_size=1, max_size=8
    ),
)
def test_no_sample_is_lost_or_repeated_whatever_dies_and_however_many_go_on(
    order: Order, history: list[tuple[int, int, int]]
) -> None:
    """A history of attempts: (workers, steps back to the newest checkpoint, steps done). What each
    step of the last attempt that did it has read is what one worker without a break reads."""
    read: dict[int, np.ndarray] = {}
    step = 0
    for world, lost, done in history:
        step = max(0, step - lost)
        ranks = [rank_slice(order.global_batch, rank, world) for rank in range(world)]
        parts = [order.samples_between(step, step + done, rows) for rows in ranks]
        for i in range(done):
            rows = [np.stack([getattr(p, name)[i] for name in FIELDS]) for p in parts]
            read[step + i] = np.concatenate(rows, axis=1)
        step += done
    assert sorted(read) == list(range(len(read)))
    ids, corpus, index = (np.concatenate([read[s][i] for s in sorted(read)]) for i in range(3))
    assert ids.tolist() == list(range(len(read) * order.global_batch))
    whole = order.samples_between(0, len(read))
    np.testing.assert_array_equal(corpus, whole.corpus.reshape(-1))
    np.testing.assert_array_equal(index, whole.index.reshape(-1))


@settings(max_examples=60, deadline=None)
@given(order=orders, first=st.integers(0, 10**7), steps=st.integers(1, 40))
def test_looking_up_many_steps_gives_what_each_step_gives(
    order: Order, first: int, steps: int
) -> None:
    together = order.samples_between(first, first + steps)
    for i in range(steps):
        alone = order.samples(first + i)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(together, name)[i], getattr(alone, name))


@pytest.mark.parametrize("shuffle", SHUFFLES[:2])
def test_a_step_of_a_corpus_too_large_to_list_is_reached_directly(shuffle: dict[str, Any]) -> None:
    """10^12 tokens in windows of 1,024, step 10^9: milliseconds of work and no memory."""
    blocks = {"block_tokens": 4096, "group_blocks": 32} if shuffle["kind"] == "blocks" else {}
    counts = {"a": 10**12 // 1024, "b": 10**11 // 1024}
    weights = {"a": 0.7, "b": 0.3}
    make_order(weights, counts, batch=32, shuffle={**shuffle, **blocks}).samples(0)
    tracemalloc.start()
    start = time.thread_time()
    order = make_order(weights, counts, batch=32, shuffle={**shuffle, **blocks})
    found = order.samples(10**9)
    seconds, memory = time.thread_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert memory < 2**20
    assert seconds < 1.0  # a list of the order would take minutes
    assert found.ids[0] == 32 * 10**9
    assert all(0 <= i < counts["ab"[c]] for c, i in zip(found.corpus, found.index, strict=True))
    # the end of an epoch of one corpus: all windows of some steps are different
    n = 10**13 + 7
    late = plain(n, batch=32, seed=3, shuffle={**shuffle, **blocks})
    windows = late.samples_between(n // 32 - 5, n // 32 - 1).index.reshape(-1)
    assert len(set(windows.tolist())) == 128
    assert 0 <= windows.min() <= windows.max() < n


def test_what_a_checkpoint_keeps_is_small() -> None:
    order = make_order(
        {"web": 0.7, "code": 0.3, "books": 0.0},
        {"web": 10**9, "code": 10**8, "books": 10**6},
        batch=512,
        phases=({"from_step": 10**6, "weights": {"web": 0.5, "code": 0.3, "books": 0.2}},),
        skip=((1000, 1010), (20_000, 20_001)),
        shuffle=SHUFFLES[1],
    )
    assert len(json.dumps(order.past(10**9))) < 512


def test_epochs_seeds_and_corpora_have_different_orders() -> None:
    n = 1000
    runs = [plain(n, batch=n, seed=s).samples_between(0, 2).index for s in (0, 1)]
    runs.append(make_order({"a": 1.0}, {"a": n}, batch=n).samples_between(0, 2).index)
    runs.append(make_order({"b": 1.0}, {"b": n}, batch=n).samples_between(0, 2).index)
    epochs = np.concatenate(runs)
    for i, a in enumerate(epochs):
        for b in epochs[i + 1 :]:
            assert (a == b).mean() < 0.01  # by chance 1 in 1000 agrees


def test_a_corpus_keeps_its_order_when_another_joins() -> None:
    counts = {"a": 100, "b": 50, "c": 30}
    two = make_order({"a": 1, "b": 1}, counts, batch=8).samples_between(0, 100)
    three = make_order({"a": 1, "b": 1, "c": 1}, counts, batch=8).samples_between(0, 100)
    for corpus in (0, 1):
        fewer = three.index[three.corpus == corpus]
        np.testing.assert_array_equal(two.index[two.corpus == corpus][: len(fewer)], fewer)


def order_hash(order: Order) -> str:
    sha = hashlib.sha256()
    for first in (0, 1000, 10**6):
        found = order.samples_between(first, first + 100)
        for name in FIELDS:
            sha.update(getattr(found, name).astype("<i8").tobytes())
    return sha.hexdigest()[:32]


def test_the_order_never_changes_between_versions() -> None:
    """A run resumed by a later version goes on with the same samples."""
    one = plain(1000, batch=8, seed=42)
    assert one.samples(0).index.tolist() == GOLDEN_FIRST
    weights, counts = {"web": 0.65, "code": 0.25, "math": 0.1}, {"web": 977, "code": 310, "math": 5}
    phases = ({"from_step": 500, "weights": {"web": 1, "code": 1, "math": 0}},)
    hashes = {"uniform": order_hash(one)}
    for shuffle in SHUFFLES:
        order = make_order(
            weights, counts, batch=24, seed=42, phases=phases, skip=((7, 9),), shuffle=shuffle
        )
        hashes["mixture, " + shuffle["kind"]] = order_hash(order)
    assert hashes == GOLDEN_HASHES


GOLDEN_FIRST = [768, 832, 73, 771, 837, 697, 9, 883]
GOLDEN_HASHES = {
    "uniform": "0dbca187b3e87409ca7f9aaa61684a3a",
    "mixture, uniform": "0cce4d61a11d47f9989fd87a57568bea",
    "mixture, blocks": "ff482afd4f02de4ce1cb0bca7f914206",
    "mixture, none": "380d8eb62ce0e4166834e4cf60ea0b14",
}


@settings(max_examples=150, deadline=None)
@example(n=2199020585191, seed=2**41, step=0)  # where that last step would be seen
@given(n=st.integers(1, 10**13), seed=st.integers(0, 2**62), step=st.integers(0, 10**12))
def test_the_vectorised_order_is_the_one_of_plain_integers(n: int, seed: int, step: int) -> None:
    found = plain(n, batch=4, seed=seed).samples(step)
    epochs = [divmod(i, n) for i in found.ids.tolist()]
    expected = [permuted(i, n, derive_seed(seed, "order", epoch)) for epoch, i in epochs]
    assert found.index.tolist() == expected


def test_nonsense_is_refused() -> None:
    with pytest.raises(DataError, match="shorter than one sample"):
        plain(0, batch=1)
    with pytest.raises(DataError, match=r"^b: .*shorter than one sample"):
        make_order({"a": 1, "b": 1}, {"a": 1, "b": 0}, batch=1)
    with pytest.raises(ConfigError, match="global_batch"):
        plain(1, batch=0)
    with pytest.raises(ConfigError, match="rank 2"):
        rank_slice(8, 2, 2)
