"""Document numbers of whole batches, against loops over single tokens."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xtdist.data.documents import counted, number_parts, pad


@given(st.lists(st.integers(0, 9), max_size=20))
def test_counting_starts_anew_for_each_count(counts: list[int]) -> None:
    expected = [i for count in counts for i in range(count)]
    assert counted(np.array(counts, np.int64)).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_parts_are_numbered_along_each_row(data: st.DataObject) -> None:
    width = data.draw(st.integers(2, 30))
    begins = st.sets(st.integers(1, width - 1), max_size=8).map(lambda s: [0, *sorted(s)])
    rows = data.draw(st.lists(begins, min_size=1, max_size=6))
    out = np.full((len(rows), width), -9, np.int32)
    number_parts(out, np.array([len(r) for r in rows]), np.array([c for r in rows for c in r]))
    for row, columns in zip(out, rows, strict=True):
        assert row.tolist() == [sum(c <= i for c in columns) - 1 for i in range(width)]


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 20), st.data())
def test_each_padding_token_is_a_document_of_its_own(width: int, data: st.DataObject) -> None:
    used = data.draw(st.lists(st.integers(1, width), min_size=1, max_size=6))
    tokens = np.full((len(used), width), 5, np.uint16)
    documents = np.full((len(used), width), 3, np.int32)
    pad(tokens, documents, used=np.array(used), pad_id=8)
    for row, numbers, n in zip(tokens.tolist(), documents.tolist(), used, strict=True):
        assert row == [5] * n + [8] * (width - n)
        assert numbers == [3] * n + [-1 - i for i in range(width - n)]
