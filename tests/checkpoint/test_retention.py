"""What pruning keeps, against a plain reading of its three rules."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xtdist.checkpoint import Retention
from xtdist.checkpoint.naming import name_of, new_attempt, step_of


@given(
    steps=st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True).map(sorted),
    values=st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=12, max_size=12),
    keep=st.integers(1, 4),
    keep_best=st.integers(0, 4),
    keep_every=st.integers(0, 7),
    lower=st.booleans(),
)
def test_the_newest_the_best_and_every_kth_stay_and_nothing_else(
    steps: list[int],
    values: list[int | None],
    keep: int,
    keep_best: int,
    keep_every: int,
    lower: bool,
) -> None:
    names = [name_of(step, "a0") for step in steps]
    metrics = {n: float(v) for n, v in zip(names, values, strict=False) if v is not None}
    rule = Retention(keep=keep, keep_best=keep_best, keep_every=keep_every, lower_is_better=lower)
    kept = rule.kept(names, metrics)
    for i, name in enumerate(names):
        newer = len(names) - 1 - i
        better = 0
        for j, other in enumerate(names):
            if name in metrics and other in metrics:
                gain = metrics[name] - metrics[other] if lower else metrics[other] - metrics[name]
                better += gain > 0 or (gain == 0 and j > i)
        best = name in metrics and better < keep_best
        kth = keep_every > 0 and step_of(name) % keep_every == 0
        assert (name in kept) == (newer < keep or best or kth), name


def test_names_sort_by_step_then_epoch_then_attempt() -> None:
    names: list[str] = []
    for epoch in (1, 1, 2, 9, 10, 10):
        names.append(name_of(7, new_attempt(epoch, names)))
    names.append(name_of(8, new_attempt(1, names)))
    assert sorted(names) == names
    assert len(set(names)) == len(names)
