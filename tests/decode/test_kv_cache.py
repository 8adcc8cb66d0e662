from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xtdist.decode.kv_cache import KVPool, PageTable
from xtdist.decode.step_cache import Segment, StepCache

KINDS = ((1, 24), (2, 8))
"""A latent and a rotated key: heads and channels of what a layer keeps of each token."""


def test_room_for_writers_of_a_shared_page_counts_their_copies() -> None:
    pool = KVPool(3, 4)
    table = PageTable()
    assert pool.reserve([(table, 2)])
    table.length = 2
    forks = [pool.fork(table) for _ in range(3)]
    assert not pool.reserve([(t, 1) for t in (table, *forks)])
    assert pool.references == [4, 0, 0]
    assert pool.reserve([(t, 1) for t in forks[:2]])
    assert pool.references == [2, 1, 1]
    assert not pool.reserve([(table, 1)])
    pool.release(forks[2])
    assert pool.reserve([(table, 1)])
    for t in (table, *forks[:2]):
        pool.release(t)
    assert sorted(pool.free_pages) == [0, 1, 2]


def test_a_full_last_page_is_shared_without_a_copy() -> None:
    pool = KVPool(3, 4)
    table = PageTable()
    assert pool.reserve([(table, 4)])
    table.length = 4
    fork = pool.fork(table)
    assert pool.reserve([(table, 1), (fork, 1)])
    assert table.pages[0] == fork.pages[0]
    assert table.pages[1] != fork.pages[1]


@pytest.mark.parametrize("page_tokens", [3, 32])
@given(chunks=st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), max_size=5))
def test_every_sequence_reads_all_that_it_ever_wrote(
    page_tokens: int, chunks: list[list[int]]
) -> None:
    """Two sequences grow in chunks; then one forks, and both forks go on with different tokens."""
    generator = torch.Generator().manual_seed(0)
    pool = KVPool(40, page_tokens)
    tables = [PageTable(), PageTable()]
    histories: list[list[tuple[torch.Tensor, ...]]] = [[], []]
    for counts in [*chunks, [2, 1], None, [1, 3, 2]]:
        if counts is None:
            tables.append(pool.fork(tables[0]))
            histories.append(list(histories[0]))
            continue
        total = sum(counts)
        if total == 0:
            continue
        new = [torch.randn(1, h, total, d, generator=generator) for h, d in KINDS]
        live = [(t, h, c) for t, h, c in zip(tables, histories, counts, strict=True) if c]
        assert pool.reserve([(t, c) for t, _, c in live])
        segments, start = [], 0
        for table, _, count in live:
            segments.append(Segment(table, start, start + count))
            start += count
        cache = StepCache(pool.stores[0], segments, torch.device("cpu"))
        layers = [tuple(new), tuple(-t for t in new)]
        reads = [cache.update(i, layer) for i, layer in enumerate(layers)]
        for s, (table, history, count) in enumerate(live):
            rows = slice(segments[s].start, segments[s].stop)
            history.append(tuple(t[:, :, rows] for t in new))
            whole = [torch.cat(parts, dim=2) for parts in zip(*history, strict=True)]
            table.length += count
            for sign, read in zip((1, -1), (reads[0][s], reads[1][s]), strict=True):
                assert read.rows == rows
                assert read.first == 0
                for kept, expected in zip(read.kept, whole, strict=True):
                    assert torch.equal(kept, sign * expected)
