from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from xtdist.decode.kv_cache import KVPool, PageTable, Segment, StepCache, causal_attention


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
def test_attention_over_pages_equals_attention_over_whole_sequences(
    page_tokens: int, chunks: list[list[int]]
) -> None:
    """Two sequences grow in chunks; then one forks, and both forks go on with different tokens."""
    generator = torch.Generator().manual_seed(0)
    pool = KVPool(40, page_tokens)
    tables = [PageTable(), PageTable()]
    histories: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[], []]
    steps = [*chunks, [2, 1]]
    for counts in [*steps, None, [1, 3, 2]]:
        if counts is None:
            tables.append(pool.fork(tables[0]))
            histories.append(list(histories[0]))
            continue
        total = sum(counts)
        if total == 0:
            continue
        q = torch.randn(1, 4, total, 8, generator=generator)
        k, v = torch.randn(2, 1, 2, total, 8, generator=generator)
        live = [(t, h, c) for t, h, c in zip(tables, histories, counts, strict=True) if c]
        assert pool.reserve([(t, c) for t, _, c in live])
        segments, start = [], 0
        for table, _, count in live:
            segments.append(Segment(table, start, start + count))
            start += count
        out = StepCache(pool.stores[0], segments, q.device).attend(0, q, k, v, scale=0.3)
        for (table, history, count), segment in zip(live, segments, strict=True):
            rows = slice(segment.start, segment.stop)
            history.append((k[:, :, rows], v[:, :, rows]))
            keys, values = (torch.cat(parts, dim=2) for parts in zip(*history, strict=True))
            table.length += count
            n, j = count, table.length
            scores = q[:, :, rows] @ keys.repeat_interleave(2, dim=1).mT * 0.3
            future = torch.arange(j) > torch.arange(j - n, j)[:, None]
            weights = scores.masked_fill(future, -torch.inf).softmax(-1)
            expected = weights @ values.repeat_interleave(2, dim=1)
            assert torch.allclose(out[:, :, rows], expected, atol=1e-5)


def test_grouped_heads_follow_the_convention_of_scaled_dot_product_attention() -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(1, 6, 1, 8, generator=generator)
    k, v = torch.randn(2, 1, 2, 9, 8, generator=generator)
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, scale=0.2)
    assert torch.allclose(causal_attention(q, k, v, scale=0.2), expected, atol=1e-6)
