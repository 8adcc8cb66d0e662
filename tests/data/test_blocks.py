"""Block shuffle: exact, unbiased, and never more than two groups of blocks at hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_order import epoch_of_blocks, make_order

from xtdist.config import derive_seed
from xtdist.data import Order


def blocks_order(n: int, *, block: int, group: int, batch: int, seed: int = 0) -> Order:
    shuffle = {"kind": "blocks", "block_tokens": block, "group_blocks": group}
    return make_order(None, {"data": n}, batch=batch, seed=seed, shuffle=shuffle)


sizes = {"n": st.integers(1, 300), "block": st.integers(1, 40), "group": st.integers(1, 9)}


@settings(max_examples=120, deadline=None)
@given(**sizes, seed=st.integers(0, 2**62))
def test_an_epoch_is_the_one_made_with_lists(n: int, block: int, group: int, seed: int) -> None:
    found = blocks_order(n, block=block, group=group, batch=n, seed=seed).samples_between(0, 3)
    for epoch in range(3):
        key = derive_seed(seed, "order", epoch)
        expected = epoch_of_blocks(n, key, block=block, group=group)
        assert found.index[epoch].tolist() == expected
        assert sorted(expected) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(**sizes, seed=st.integers(0, 2**62))
def test_windows_of_a_group_come_from_at_most_that_many_blocks(
    n: int, block: int, group: int, seed: int
) -> None:
    windows = blocks_order(n, block=block, group=group, batch=n, seed=seed).samples(0).index
    blocks = (windows // block).tolist()
    total = math.ceil(n / block)
    seen: set[int] = set()
    at = 0
    for first in range(0, total, group):
        here: set[int] = set()
        count = min(group, total - first)
        while at < n and (len(here) < count or blocks[at] in here):
            here.add(blocks[at])
            at += 1
        assert len(here) == count
        assert not here & seen
        seen |= here
    assert at == n


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 300),
    block=st.integers(1, 20),
    group=st.integers(1, 5),
    batch=st.integers(1, 8),
    steps=st.lists(st.integers(0, 400), min_size=1, max_size=6),
)
def test_what_is_said_to_come_is_what_comes(
    n: int, block: int, group: int, batch: int, steps: list[int]
) -> None:
    """From any step on, samples are of the group named first until all of it that was left has been
    read, then of the second, all of it. For two corpora of which the second has an odd size."""
    shuffle = {"kind": "blocks", "block_tokens": block, "group_blocks": group}
    order = make_order(
        {"a": 2, "b": 1}, {"a": n, "b": n // 2 + 1}, batch=batch, seed=3, shuffle=shuffle
    )
    for step in steps:
        ahead = order.ahead(step)
        assert [a.corpus for a in ahead] == [0, 0, 1, 1]
        found = order.samples_between(step, step + math.ceil(6 * 2 * block * group / batch) + 2)
        for corpus in (0, 1):
            now, after = (a for a in ahead if a.corpus == corpus)
            first, second = (
                {w for low, high in a.spans.tolist() for w in range(low, high)}
                for a in (now, after)
            )
            assert len(now.spans) <= group
            assert (after.epoch, after.group) in ((now.epoch, now.group + 1), (now.epoch + 1, 0))
            coming = found.index[found.corpus == corpus].tolist()
            left = next((i for i, w in enumerate(coming) if w not in first), None)
            if (after.epoch, first) == (now.epoch + 1, second):
                continue  # the whole corpus is one group: no edge to see
            if now.epoch == after.epoch:
                assert left is not None
                assert 1 <= left <= len(first)
                assert set(coming[left : left + len(second)]) == second
            elif left is not None:
                assert set(coming[: left + 1]) <= first | second


@pytest.mark.parametrize("kind", ["uniform", "none"])
def test_other_shuffles_say_nothing_of_what_comes(kind: str) -> None:
    assert make_order(None, {"data": 9}, batch=2, shuffle={"kind": kind}).ahead(3) == []


def test_a_corpus_that_is_not_read_now_is_not_fetched() -> None:
    order = make_order(
        {"a": 1, "b": 0},
        {"a": 50, "b": 50},
        batch=4,
        phases=({"from_step": 10, "weights": {"a": 0, "b": 1}},),
        shuffle={"kind": "blocks", "block_tokens": 5, "group_blocks": 2},
    )
    assert {a.corpus for a in order.ahead(9)} == {0}
    assert {a.corpus for a in order.ahead(10)} == {1}


def test_no_window_has_a_favourite_place() -> None:
    """Over many epochs, each window's place is about uniform: also for those of the short block,
    and of the first and last one."""
    n, epochs = 47, 4000  # blocks of 7, the last one of 5; groups of 3, the last one of 1
    order = blocks_order(n, block=7, group=3, batch=n, seed=5)
    windows = order.samples_between(0, epochs).index
    places = np.argsort(windows, axis=1)
    fifths = np.stack([np.bincount(places[:, w] * 5 // n, minlength=5) for w in range(n)])
    expected = np.bincount(np.arange(n) * 5 // n) / n * epochs
    deviation = np.abs(fifths - expected) / np.sqrt(epochs * 0.16)
    # the short block is shorter than others: its group has a little less, 2 of 47 at most
    assert deviation.max() < 5 + 0.02 * math.sqrt(epochs)
    short = np.bincount(places[:, n - 1], minlength=n) / epochs
    assert short.max() < 2.5 / n


def test_neighbours_within_a_group_are_unrelated() -> None:
    n = 200_000
    seen = blocks_order(n, block=1000, group=20, batch=n, seed=7).samples(0).index
    group = seen[: 20 * 1000].astype(float)
    assert abs(np.corrcoef(group[:-1], group[1:])[0, 1]) < 5 / math.sqrt(len(group))
    assert abs(np.corrcoef(np.arange(len(group)), group)[0, 1]) < 5 / math.sqrt(len(group))
    firsts = seen.reshape(10, -1).mean(axis=1)  # every group is a sample of the whole corpus
    assert abs(firsts - n / 2).max() < 5 * n / math.sqrt(12 * 20)


@pytest.mark.parametrize("block", [1, 2**20])
def test_blocks_of_one_window_or_of_everything_are_a_plain_shuffle(block: int) -> None:
    order = blocks_order(1000, block=block, group=2**20, batch=1000)
    for epoch in range(2):
        seen = order.samples(epoch).index
        assert sorted(seen.tolist()) == list(range(1000))
        assert abs(np.corrcoef(np.arange(1000), seen)[0, 1]) < 0.16


def test_blocks_are_counted_in_tokens() -> None:
    shuffle: Any = {"kind": "blocks", "block_tokens": 4096, "group_blocks": 2}
    config = make_order(None, {"data": 64}, batch=8, shuffle=shuffle).config
    order = Order(config=config, counts={"data": 64}, seq_len=1024, global_batch=8, seed=0)
    spans = order.ahead(0)[0].spans
    assert spans.shape == (2, 2)
    assert (spans[:, 1] - spans[:, 0]).tolist() == [4, 4]
    assert set((order.samples(0).index // 4).tolist()) == set((spans[:, 0] // 4).tolist())
