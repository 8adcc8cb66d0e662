"""Steps of different sizes: the same samples in the same order, cut elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import random_documents, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_order import PlainOrder, make_order

from xtdist.config import ConfigError
from xtdist.data import DataConfig, Loader, Order, open_view, rank_slice
from xtdist.data.sizes import Sizes

stages = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), max_size=4).map(
    lambda parts: tuple(
        zip(np.cumsum([n for n, _ in parts]).tolist(), (s for _, s in parts), strict=True)
    )
)
ranges = st.sets(st.integers(0, 60), max_size=6).map(
    lambda edges: tuple(zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False))
)


def order_of(warmup: Any, skip: Any = (), **settings: Any) -> Order:
    """Two corpora with a phase, so that all that counts samples is in it."""
    return make_order(
        {"a": 0.7, "b": 0.3},
        {"a": 11, "b": 8},
        batch=5,
        warmup=warmup,
        skip=skip,
        phases=({"from_step": 7, "weights": {"a": 1, "b": 1}},),
        **settings,
    )


@settings(max_examples=60, deadline=None)
@given(warmup=stages, skip=ranges, kind=st.sampled_from(["uniform", "blocks", "none"]))
def test_the_order_with_a_warm_up_is_the_one_of_a_count_from_the_start(
    warmup: Any, skip: Any, kind: str
) -> None:
    order = order_of(warmup, skip, shuffle={"kind": kind})
    for step, row in enumerate(PlainOrder(order).steps(50)):
        ids, corpora, windows = zip(*row, strict=True)
        found = order.samples(step)
        assert order.size(step) == len(ids)
        assert found.ids.tolist() == list(ids)
        assert [order.names[c] for c in found.corpus] == list(corpora)
        assert found.index.tolist() == list(windows)


@settings(max_examples=60, deadline=None)
@given(warmup=stages, skip=ranges, first=st.integers(0, 40), count=st.integers(0, 40))
def test_steps_are_parted_where_their_size_changes_and_only_there(
    warmup: Any, skip: Any, first: int, count: int
) -> None:
    order, steps = order_of(warmup, skip), range(first, first + count)
    parts = list(order.even(steps))
    assert [s for part in parts for s in part] == list(steps)
    for part in parts:
        assert {order.size(s) for s in part} == {order.size(part.start)}
        found = order.samples_between(part.start, part.stop)
        assert found.ids.tolist() == [order.samples(s).ids.tolist() for s in part]


def test_steps_of_different_sizes_have_no_common_table() -> None:
    with pytest.raises(ValueError, match="different numbers of samples"):
        order_of(((3, 2),)).samples_between(0, 4)


@settings(max_examples=100, deadline=None)
@given(old=stages, new=stages, step=st.integers(0, 30))
def test_pasts_are_the_same_just_where_the_sizes_so_far_are(old: Any, new: Any, step: int) -> None:
    a, b = order_of(old), order_of(new)
    same = [a.size(s) for s in range(max(step, 1))] == [b.size(s) for s in range(max(step, 1))]
    assert (a.past(step) == b.past(step)) == same


@pytest.mark.parametrize("size", range(1, 40))
def test_ranks_share_whole_units(size: int) -> None:
    for unit in (1, 2, 3, 7):
        units = [list(range(i, min(i + unit, size))) for i in range(0, size, unit)]
        for world in (1, 2, 3, 5):
            slices = [rank_slice(size, rank, world, unit=unit) for rank in range(world)]
            rows = [list(range(size))[s] for s in slices]
            assert [i for mine in rows for i in mine] == list(range(size))
            counts = [sum(1 for u in units if u[0] in mine) for mine in rows]
            assert all(set(u) <= set(mine) for mine in rows for u in units if u[0] in mine)
            assert max(counts) - min(counts) <= 1


def test_the_loader_gives_each_rank_its_rows_of_every_step(tmp_path: Path) -> None:
    (document,) = random_documents([1000])
    write_dataset(tmp_path / "d", train=[document], shard_tokens=10_000)
    config = DataConfig(path=str(tmp_path / "d"), skip=((2, 3), (6, 8)))
    view = open_view(config, seq_len=4, seed=1, global_batch=7, warmup=((4, 2), (9, 5)))
    for world, unit in ((1, 1), (2, 1), (3, 2)):
        ranks = []
        for rank in range(world):
            with Loader(view, steps=range(1, 20), rank=rank, world=world, unit=unit) as loader:
                ranks.append(list(loader))
        for i, step in enumerate(range(1, 20)):
            want, parts = view.order.samples(step), [batches[i] for batches in ranks]
            assert np.concatenate([p.sample_ids for p in parts]).tolist() == want.ids.tolist()
            assert np.concatenate([p.windows for p in parts]).tolist() == want.index.tolist()
            assert {(p.step, p.data_step, p.step_rows) for p in parts} == {
                (step, view.order.data_step(step), len(want.ids))
            }
            for rank, part in enumerate(parts):
                assert part.tokens.tolist() == [
                    document[4 * w : 4 * w + 5].tolist() for w in part.windows.tolist()
                ]
                traced = view.trace(step, rank, world, unit=unit).rows
                assert [row.sample_id for row in traced] == part.sample_ids.tolist()


@pytest.mark.parametrize("stages", [((2, 3), (2, 4)), ((0, 3),), ((2, 0),)])
def test_stages_that_say_nothing_are_refused(stages: Any) -> None:
    with pytest.raises(ConfigError):
        Sizes(4, stages)
