"""Skipped steps: the order with them cut out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_order import make_order

from xtdist.data.skip import Skip

ranges = st.sets(st.integers(0, 200), max_size=10).map(
    lambda edges: tuple(zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False))
)


@settings(max_examples=100, deadline=None)
@given(skip=ranges)
def test_training_steps_read_the_steps_of_data_that_are_left(skip: Any) -> None:
    left = [s for s in range(400) if not any(a <= s < b for a, b in skip)]
    found = Skip(skip).data_steps(np.arange(len(left)))
    assert found.tolist() == left
    assert [Skip(skip).data_step(i) for i in range(0, len(left), 37)] == left[::37]


@pytest.mark.parametrize("kind", ["uniform", "blocks", "none"])
def test_skipping_is_the_unskipped_order_with_the_range_cut_out(kind: str) -> None:
    """Also with a mixture and a phase that begins within a skipped range."""
    args: dict[str, Any] = {
        "weights": {"a": 0.7, "b": 0.3},
        "counts": {"a": 50, "b": 31},
        "batch": 12,
        "phases": ({"from_step": 9, "weights": {"a": 1, "b": 1}},),
        "shuffle": {"kind": kind},
    }
    whole = make_order(**args).samples_between(0, 40)
    cut = make_order(**args, skip=((0, 1), (4, 7), (8, 12), (12, 13))).samples_between(0, 31)
    left = [1, 2, 3, 7, *range(13, 40)]
    for name in ("ids", "corpus", "index"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[left])


@settings(max_examples=150, deadline=None)
@given(old=ranges, new=ranges, step=st.integers(0, 150))
def test_runs_have_the_same_past_just_where_they_have_read_the_same_data(
    old: Any, new: Any, step: int
) -> None:
    a, b = Skip(merged(old)), Skip(merged(new))
    same = a.data_steps(np.arange(step)).tolist() == b.data_steps(np.arange(step)).tolist()
    assert (a.past(step) == b.past(step)) == same


def merged(skip: Any) -> Any:
    """Adjacent ranges as one."""
    out: list[tuple[int, int]] = []
    for first, stop in skip:
        if out and out[-1][1] == first:
            out[-1] = (out[-1][0], stop)
        else:
            out.append((first, stop))
    return tuple(out)


def test_a_range_in_the_future_may_be_added_and_one_in_the_past_may_not() -> None:
    """A checkpoint of step 100 has read the steps of data 0 to 99."""
    at = {"none": (), "next": ((100, 110),), "last": ((99, 100),)}
    past = {name: Skip(skip).past(100) for name, skip in at.items()}
    assert past == {"none": [], "next": [], "last": [[99, 100]]}
    # one step later, the range has been jumped over, and may not grow any more
    assert Skip(((100, 110),)).past(101) == [[100, 110]]
    assert Skip(((100, 120),)).past(101) == [[100, 120]]
