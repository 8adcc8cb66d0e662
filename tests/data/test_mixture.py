"""Mixtures: exact shares, evenly spread, phases, and every corpus whole in each of its epochs."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from plain_order import PlainOrder, make_order

from xtdist.config import ConfigError, load
from xtdist.data import DataConfig
from xtdist.data.config import MAX_SLOTS
from xtdist.data.mixture import Cycle, Mixture, Stage, quotas_of

weights = st.lists(
    st.one_of(st.integers(0, 20), st.floats(0.01, 10)), min_size=1, max_size=12
).filter(any)
shuffles = st.sampled_from(
    [
        {"kind": "uniform"},
        {"kind": "blocks", "block_tokens": 5, "group_blocks": 3},
        {"kind": "none"},
    ]
)


@settings(max_examples=150, deadline=None)
@given(quotas=st.lists(st.integers(0, 60), min_size=1, max_size=14).filter(any))
def test_after_any_prefix_every_corpus_is_within_one_sample_of_its_quota(
    quotas: list[int],
) -> None:
    cycle, slots = Cycle(quotas), sum(quotas)
    had = np.cumsum(cycle.corpus[:, None] == np.arange(len(quotas)), axis=0)
    share = np.arange(1, slots + 1)[:, None] * np.array(quotas) / slots
    assert np.abs(had - share).max() < 1
    assert had[-1].tolist() == quotas
    assert cycle.rank.tolist() == [
        cycle.corpus[:i].tolist().count(c) for i, c in enumerate(cycle.corpus.tolist())
    ]


@settings(max_examples=100, deadline=None)
@example(weights=[0.01, 20, 20, 20, 20, 19.999999])
@given(weights=weights)
def test_quotas_are_the_weights_to_within_one_percent_unless_the_cycle_is_the_longest(
    weights: list[float],
) -> None:
    quotas = quotas_of(weights)
    total = sum(Fraction(repr(float(w))) for w in weights)
    for weight, quota in zip(weights, quotas, strict=True):
        share = Fraction(repr(float(weight))) / total
        assert (quota == 0) == (weight == 0)
        off = abs(quota - share * sum(quotas))
        assert off < 1
        assert off <= share * sum(quotas) / 100 or sum(quotas) == MAX_SLOTS
    if sum(quotas) < 4096:
        assert [Fraction(q, sum(quotas)) for q in quotas] == [
            Fraction(repr(float(w))) / total for w in weights
        ]


def test_decimal_weights_make_short_exact_cycles() -> None:
    assert quotas_of([0.7, 0.3]) == [7, 3]
    assert quotas_of([1, 2, 5]) == [1, 2, 5]
    assert quotas_of([0.1, 0.2, 0.0, 0.7]) == [1, 2, 0, 7]
    assert quotas_of([3e-4, 1.0]) == [3, 10_000]
    assert quotas_of([1e300, 3e300]) == [1, 3]


def test_quotas_of_a_long_cycle_go_by_largest_remainder() -> None:
    """Hamilton's method by hand: 4096 slots for 123456, 654321 and 222223 of 1,000,000."""
    assert quotas_of([0.123456, 0.654321, 0.222223]) == [506, 2680, 910]
    exact = [4096 * w / 1_000_000 for w in (123456, 654321, 222223)]  # 505.68, 2680.10, 910.23
    assert [round(x) for x in exact] == [506, 2680, 910]


def test_a_rare_corpus_still_gets_its_share() -> None:
    quotas = quotas_of([5000, 123_456_789, 987_654_321])
    share = 5000 / (5000 + 123_456_789 + 987_654_321)
    assert sum(quotas) <= MAX_SLOTS
    assert quotas[0] / sum(quotas) == pytest.approx(share, rel=0.1)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    data=st.data(),
    batch=st.integers(1, 20),
    seed=st.integers(0, 2**40),
    shuffle=shuffles,
)
def test_the_order_is_the_one_of_a_count_from_the_start(
    counts: list[int], data: st.DataObject, batch: int, seed: int, shuffle: dict[str, Any]
) -> None:
    """Corpora, phases, skipped steps, shuffles: against a loop over all samples with lists."""
    names = [f"c{i}" for i in range(len(counts))]

    def draw_weights() -> dict[str, float]:
        drawn = data.draw(st.lists(st.integers(0, 9), min_size=len(names), max_size=len(names)))
        assume(any(drawn))
        return dict(zip(names, map(float, drawn), strict=True))

    first = draw_weights()
    steps = sorted(data.draw(st.sets(st.integers(1, 30), max_size=3)))
    phases = [{"from_step": s, "weights": draw_weights()} for s in steps]
    used = [first, *(phase["weights"] for phase in phases)]
    assume(all(any(w[n] for w in used) for n in names))
    edges = sorted(data.draw(st.sets(st.integers(0, 40), max_size=6)))
    skip = list(zip(edges[::2], edges[1::2], strict=False))
    order = make_order(
        first,
        dict(zip(names, counts, strict=True)),
        batch=batch,
        seed=seed,
        phases=phases,
        skip=skip,
        shuffle=shuffle,
    )
    expected = PlainOrder(order).steps(35)
    found = order.samples_between(0, 35)
    for i, row in enumerate(expected):
        ids, corpora, windows = zip(*row, strict=True)
        assert found.ids[i].tolist() == list(ids)
        assert [names[c] for c in found.corpus[i]] == list(corpora)
        assert found.index[i].tolist() == list(windows)
    late = order.samples(34)
    assert late.index.tolist() == found.index[34].tolist()


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any),
    starts=st.sets(st.integers(1, 10**6), max_size=3),
    sample=st.integers(0, 2 * 10**6),
)
def test_what_was_given_before_a_sample_is_known_without_counting(
    weights: list[float], starts: set[int], sample: int
) -> None:
    stages = [Stage(0, tuple(weights))]
    stages += [Stage(s, tuple(np.roll(weights, s).tolist())) for s in sorted(starts)]
    mixture = Mixture(tuple(stages))
    before = np.bincount(
        mixture.locate(np.arange(sample))[0] if sample else [], minlength=len(weights)
    )
    np.testing.assert_array_equal(mixture.counts(sample), before)
    (corpus,), (local,) = mixture.locate(np.array([sample]))
    assert local == before[corpus]


def test_every_corpus_wraps_at_its_own_epoch_with_exact_coverage() -> None:
    counts = {"big": 97, "small": 5}
    found = make_order({"big": 0.9, "small": 0.1}, counts, batch=16, seed=1).samples_between(0, 70)
    for number, n in enumerate(counts.values()):
        seen = found.index[found.corpus == number]
        assert len(seen) >= 3 * n
        for epoch in range(len(seen) // n):
            assert sorted(seen[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def config_of(*overrides: str, tmp_path: Any) -> DataConfig:
    path = tmp_path / "data.yaml"
    path.write_text(
        "corpora:\n"
        "  web: {path: a, weight: 0.7}\n"
        "  Co-de: {path: s3://bucket/code, weight: 0.3}\n"
        "phases:\n"
        "  - {from_step: 10, weights: {web: 0, Co-de: 2}}\n"
        "skip: [[3, 5], [7, 8]]\n"
        "shuffle: {kind: blocks}\n"
    )
    return load(DataConfig, path, overrides).config


def test_a_mixture_is_read_from_a_file_and_overrides_reach_into_it(tmp_path: Any) -> None:
    config = config_of("corpora.web.weight=2", "corpora.Co-de.path=/data/code", tmp_path=tmp_path)
    assert config.corpora["web"].weight == 2.0
    assert config.sources == {"web": "a", "Co-de": "/data/code"}
    assert config.skip == ((3, 5), (7, 8))
    assert DataConfig(path="data/demo").sources == {"data": "data/demo"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("path=x", ["path:", "both", "corpora={name:"]),
        ("corpora.web.weight=-1", ["corpora.web.weight: got -1"]),
        ("corpora.web.wieght=1", ["unknown key 'wieght'", "'weight'"]),
        ("corpora.web=x", ["corpora.web: got"]),
        ("corpora.Co-de.weight=.nan", ["corpora.Co-de.weight"]),
        ("corpora={a b: {path: x, weight: 1}}", ["corpora:", "'a b'", "letters"]),
        ("corpora={c: {path: x, weight: 1}}", ["phases.0.weights: no 'c'", "0 for a corpus"]),
        ("corpora.web.weight=1e-9", ["phases:"]),
        ("phases=[{from_step: 0, weights: {web: 1, Co-de: 1}}]", ["phases.0.from_step: got 0"]),
        ("phases=[{from_step: 5, weights: {web: 1, code: 1}}]", ["phases.0.weights: got 'code'"]),
        ("phases=[{from_step: 5, weights: {web: 0, Co-de: 0}}]", ["phases.0.weights", "add up"]),
        (
            "phases=[{from_step: 5, weights: {web: 1, Co-de: 1}},"
            " {from_step: 5, weights: {web: 1, Co-de: 1}}]",
            ["phases.1.from_step: got 5 after 5", "ascending"],
        ),
        ("skip=[[3, 3]]", ["skip: got [3, 3]", "empty"]),
        ("skip=[[3, 6], [5, 9]]", ["skip: got [5, 9]", "ends at 6", "overlap"]),
        ("skip=[[-1, 6]]", ["skip.0.0: got -1"]),
        ("shuffle.kind=block", ["shuffle.kind", "'blocks'"]),
        ("shuffle.block_tokens=0", ["shuffle.block_tokens: got 0"]),
        ("documents=pack", ["documents: got", "packed"]),
    ],
)
def test_a_mistake_in_a_mixture_says_what_where_and_what_is_allowed(
    override: str, words: list[str], tmp_path: Any
) -> None:
    if words == ["phases:"]:
        with pytest.raises(ConfigError) as raised:
            config_of(override, "corpora.Co-de.weight=1", "phases=[]", tmp_path=tmp_path)
        assert "less than one sample in 1048576" in str(raised.value)
        return
    with pytest.raises(ConfigError) as raised:
        config_of(override, tmp_path=tmp_path)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "got neither of path and corpora"),
        ({"corpora": {"a": {"path": "x", "weight": 0}}}, "corpora: the weights add up to 0"),
        ({"path": "x", "phases": [{"from_step": 1, "weights": {"data": 1}}]}, "give corpora"),
        (
            {"corpora": {"a": {"path": "x", "weight": 1}, "b": {"path": "y", "weight": 0}}},
            "'b' has weight 0 and no phase reads it",
        ),
    ],
)
def test_a_config_that_reads_nothing_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**given)
