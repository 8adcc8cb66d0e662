"""Packing plans: nothing dropped, nothing twice, next to no padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from split_in_memory import SplitInMemory

from xtdist.data import packing
from xtdist.data.packing import Plan, plan_documents, plan_rows


def plan_of(lengths: list[int] | np.ndarray, seq_len: int) -> Plan:
    sizes = np.asarray(lengths, np.int64)
    return plan_rows(np.cumsum(sizes) - sizes, sizes, seq_len=seq_len)


def rows_of(plan: Plan) -> list[list[tuple[int, int]]]:
    pieces = list(zip(plan.starts.tolist(), plan.lengths.tolist(), strict=True))
    return [pieces[a:b] for a, b in zip(plan.rows[:-1], plan.rows[1:], strict=True)]


def check(plan: Plan, lengths: list[int], seq_len: int) -> None:
    """The promise, counted token by token."""
    owner = [n for n, length in enumerate(lengths) for _ in range(length)]
    held, targets = Counter[int](), Counter[int]()
    for row in rows_of(plan):
        assert row
        assert sum(size for _, size in row) <= seq_len + 1
        for start, size in row:
            assert size >= 1
            assert owner[start] == owner[start + size - 1]
            held.update(range(start, start + size))
            targets.update(range(start + 1, start + size))
    first = {i for i in range(len(owner)) if i == 0 or owner[i] != owner[i - 1]}
    assert set(held) == set(range(len(owner)))
    assert targets == Counter(set(range(len(owner))) - first)


LENGTHS = st.lists(
    st.one_of(st.integers(1, 4), st.integers(1, 40), st.integers(9, 13), st.integers(1, 300)),
    min_size=1,
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(LENGTHS, st.integers(1, 40))
@example([1], 1)
@example([2] * 30, 1)
@example([10] * 50, 16)
@example([16] * 50, 16)
@example([17] * 50, 16)
@example([18] * 50, 16)
@example([1] * 80, 16)
@example([5000, 1, 9, 9, 9], 16)
def test_every_token_but_a_documents_first_is_a_target_once(
    lengths: list[int], seq_len: int
) -> None:
    check(plan_of(lengths, seq_len), lengths, seq_len)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 20))
def test_groups_planned_apart_cover_the_split_as_well(lengths: list[int], seq_len: int) -> None:
    split = SplitInMemory(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "GROUP_TOKENS", 50)
        patch.setattr(packing, "GROUP_ROWS", 2)
        plan = plan_documents(split, seq_len)
    check(plan, lengths, seq_len)
    group = max(50, 2 * (seq_len + 1))
    for row in rows_of(plan):
        ends = {split.starts[n] + lengths[n] - 1 for n in (split.owner[start] for start, _ in row)}
        assert min(ends) // group == max(ends) // group


def naive_rooms(sizes: list[int], width: int) -> list[int]:
    """What best-fit decreasing leaves free, one piece at a time."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        at = bisect_left(rooms, size)
        room = rooms.pop(at) if at < len(rooms) else width
        insort(rooms, room - size)
    return rooms


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=150), st.integers(30, 64))
def test_pieces_go_where_they_leave_least_room(sizes: list[int], width: int) -> None:
    ordered = np.array(sorted(sizes, reverse=True), np.int64)
    bins = packing._best_fit(ordered, width)
    taken = np.bincount(bins, weights=ordered).astype(int) if sizes else np.empty(0, int)
    assert sorted((width - taken).tolist()) == naive_rooms(sizes, width)


def lengths_like(kind: str, seq_len: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return {
        "web": lambda: np.maximum(1, rng.lognormal(6.2, 1.0, count)),
        "books": lambda: rng.lognormal(np.log(0.73 * seq_len), 0.6, count) + 1,
        "just above half": lambda: rng.integers(seq_len // 2 + 1, int(seq_len * 0.6), count),
        "just above a third": lambda: rng.integers(seq_len // 3 + 1, int(seq_len * 0.36), count),
        "a little short of full": lambda: np.full(count, seq_len - 20),
        "one too long": lambda: np.full(count, seq_len + 2),
        "two kinds": lambda: np.where(np.arange(count) % 2, seq_len // 2 + 1, seq_len - 5),
        "one huge": lambda: np.array([count * seq_len, 1, 1, 5]),
    }[kind]().astype(np.int64)


@pytest.mark.parametrize("seq_len", [1024, 8192])
@pytest.mark.parametrize(
    "kind",
    [
        "web",
        "books",
        "just above half",
        "just above a third",
        "a little short of full",
        "one too long",
        "two kinds",
        "one huge",
    ],
)
def test_less_than_a_thousandth_of_the_places_is_padding(kind: str, seq_len: int) -> None:
    lengths = lengths_like(kind, seq_len, 20_000)
    plan = plan_of(lengths, seq_len)
    tokens = int(plan.lengths.sum(dtype=np.int64))
    assert tokens - len(plan.lengths) == int((lengths - 1).sum())  # as many targets as there are
    assert np.add.reduceat(plan.lengths, plan.rows[:-1]).max() <= seq_len + 1
    assert tokens >= 0.999 * plan.num_rows * (seq_len + 1)


def test_documents_stay_whole_where_they_fit() -> None:
    plan = plan_of([600, 425] * 500 + [1025] * 100 + [205] * 500, 1024)
    assert len(plan.lengths) == 1600
    assert plan.lengths.sum() == plan.num_rows * 1025


def test_a_plan_depends_on_lengths_alone() -> None:
    lengths = lengths_like("web", 512, 5000)
    one, two = plan_of(lengths, 512), plan_of(lengths.copy(), 512)
    for a, b in zip(
        (one.starts, one.lengths, one.rows), (two.starts, two.lengths, two.rows), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_plan_stays_what_it_was() -> None:
    """A change of the algorithm changes every run's data: raise ALGORITHM with it."""
    plan = plan_of([9, 3, 20, 6, 6, 1, 7], 7)
    assert packing.ALGORITHM == 1
    assert rows_of(plan) == [
        [(0, 8)],
        [(7, 2), (26, 6)],
        [(9, 2), (32, 6)],
        [(10, 2), (38, 6)],
        [(12, 8)],
        [(19, 8)],
        [(44, 1), (45, 7)],
    ]


def test_neighbouring_rows_read_neighbouring_documents() -> None:
    plan = plan_of(lengths_like("web", 512, 5000), 512)
    first = plan.starts[plan.rows[:-1]]
    assert (np.diff(first) >= 0).all()
    for row in rows_of(plan):
        assert row == sorted(row)
