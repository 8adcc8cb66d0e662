"""What samples hold, token by token: every token of the split in memory is its own position."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from split_in_memory import PAD, SplitInMemory

from xtdist.data import TokenDataset, packed
from xtdist.data.packed import Packed
from xtdist.data.packing import plan_documents
from xtdist.data.storage.config import CacheConfig
from xtdist.data.windows import Joined, Masked, Windows, make_windows

LENGTHS = st.lists(st.one_of(st.integers(1, 5), st.integers(1, 90)), min_size=1, max_size=40)
SEQ_LENS = st.integers(1, 33)


def make(mode: str, split: SplitInMemory, seq_len: int) -> Windows:
    if mode == "packed":
        return Packed(split, seq_len, plan=plan_documents(split, seq_len))  # type: ignore[arg-type]
    return (Joined if mode == "joined" else Masked)(split, seq_len)  # type: ignore[arg-type]


def read(windows: Windows, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(indices), windows.seq_len + 1)
    tokens, documents = np.full(shape, 77, np.uint32), np.full(shape, -77, np.int32)
    windows.fill(indices, tokens, documents)
    return tokens, documents


def targets(tokens: np.ndarray, documents: np.ndarray) -> Counter[int]:
    """Tokens that a model learns to give: not padding, and of the document of the one before."""
    return Counter(
        now
        for row, numbers in zip(tokens.tolist(), documents.tolist(), strict=True)
        for now, one, two in zip(row[1:], numbers, numbers[1:], strict=False)
        if one == two and two >= 0
    )


@settings(max_examples=100, deadline=None)
@given(LENGTHS, SEQ_LENS)
def test_joined_windows_make_every_token_but_the_first_a_target(
    lengths: list[int], seq_len: int
) -> None:
    windows = make("joined", SplitInMemory(lengths), seq_len)
    tokens, documents = read(windows, np.arange(windows.count))
    seen = targets(tokens, documents)
    assert seen == Counter(range(1, windows.count * seq_len + 1))
    assert sum(lengths) - 1 - len(seen) < seq_len


@settings(max_examples=150, deadline=None)
@given(LENGTHS, SEQ_LENS, st.randoms(use_true_random=False))
def test_masked_windows_number_their_documents(lengths: list[int], seq_len: int, rng) -> None:
    split = SplitInMemory(lengths)
    windows = make("masked", split, seq_len)
    indices = list(range(windows.count))
    rng.shuffle(indices)
    tokens, documents = read(windows, np.array(indices, np.int64))
    for index, row, numbers in zip(indices, tokens.tolist(), documents.tolist(), strict=True):
        assert row == list(range(index * seq_len, index * seq_len + seq_len + 1))
        assert numbers == [split.owner[t] - split.owner[row[0]] for t in row]
    inner = {
        t for t in range(1, windows.count * seq_len + 1) if split.owner[t] == split.owner[t - 1]
    }
    assert targets(tokens, documents) == Counter(inner)


@settings(max_examples=150, deadline=None)
@given(LENGTHS, SEQ_LENS, st.randoms(use_true_random=False))
def test_packed_rows_make_every_token_but_a_documents_first_a_target(
    lengths: list[int], seq_len: int, rng
) -> None:
    split = SplitInMemory(lengths)
    windows = make("packed", split, seq_len)
    indices = list(range(windows.count))
    rng.shuffle(indices)
    tokens, documents = read(windows, np.array(indices, np.int64))
    for row, numbers in zip(tokens.tolist(), documents.tolist(), strict=True):
        padding = [t == PAD for t in row]
        assert padding == sorted(padding)
        assert [n for n in numbers if n < 0] == [-1 - i for i in range(sum(padding))]
        real = [(t, n) for t, n in zip(row, numbers, strict=True) if t != PAD]
        for (t, n), (t2, n2) in itertools.pairwise(real):
            assert (n2, t2) == (n, t + 1) or n2 == n + 1
            assert n2 > n or split.owner[t] == split.owner[t2]
        assert real[0][1] == 0
    inner = {t for t in range(1, len(split.owner)) if split.owner[t] == split.owner[t - 1]}
    assert targets(tokens, documents) == Counter(inner)
    assert set(tokens.flat) - {PAD} == set(range(len(split.owner)))


@pytest.mark.parametrize("mode", ["joined", "masked", "packed"])
@settings(max_examples=40, deadline=None)
@given(LENGTHS, SEQ_LENS)
def test_a_trace_names_what_the_row_holds(mode: str, lengths: list[int], seq_len: int) -> None:
    split = SplitInMemory(lengths)
    windows = make(mode, split, seq_len)
    tokens, documents = read(windows, np.arange(windows.count))
    for index, (row, numbers) in enumerate(zip(tokens.tolist(), documents.tolist(), strict=True)):
        rebuilt = [PAD] * (seq_len + 1)
        pieces = windows.trace(index)
        for number, piece in enumerate(pieces):
            first = split.starts[piece.document]
            assert 0 <= piece.start < piece.stop <= split.lengths[piece.document]
            for i in range(piece.start, piece.stop):
                column = piece.column + i - piece.start
                assert rebuilt[column] == PAD
                assert mode == "joined" or numbers[column] == number
                rebuilt[column] = first + i
        assert rebuilt == row


@pytest.mark.parametrize("mode", ["joined", "masked", "packed"])
def test_no_rows_and_no_numbers_can_be_asked_for(mode: str) -> None:
    windows = make(mode, SplitInMemory([5, 30, 9]), 8)
    tokens, documents = read(windows, np.empty(0, np.int64))
    assert tokens.shape == documents.shape == (0, 9)
    whole, _ = read(windows, np.arange(windows.count))
    alone = np.empty_like(whole)
    windows.fill(np.arange(windows.count), alone, None)
    np.testing.assert_array_equal(alone, whole)


@pytest.mark.parametrize("index", [-1, 10**6])
def test_a_row_that_is_not_there_is_an_error(index: int) -> None:
    windows = make("packed", SplitInMemory([5, 30, 9]), 8)
    with pytest.raises(IndexError, match=str(index)):
        read(windows, np.array([0, index]))


@pytest.mark.parametrize("mode", ["joined", "masked", "packed"])
def test_what_is_read_soon_covers_the_rows_and_little_else(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "NEAR_TOKENS", 3)
    split = SplitInMemory([40, 3, 9, 9, 1, 17, 30, 2, 8] * 3)
    windows = make(mode, split, 16)
    windows.will_need(2, 5)
    tokens, _ = read(windows, np.arange(2, 5))
    held = {t for t in tokens.flat if t != PAD}
    advised = {t for start, stop in split.needed for t in range(start, stop)}
    assert held <= advised
    assert len(advised - held) <= 3 * len(split.needed)
    windows.will_need(4, 4)


@pytest.mark.parametrize("mode", ["joined", "masked", "packed"])
@pytest.mark.parametrize("seq_len", [1, 7, 64, 1000, 5000])
def test_shards_read_like_the_list_of_their_documents(
    built: Path, tmp_path: Path, mode: str, seq_len: int
) -> None:
    dataset = TokenDataset.open(built)
    documents = [d.tolist() for d in dataset.documents()]
    flat = [t for d in documents for t in d]
    cache = CacheConfig(folder=str(tmp_path))
    windows = make_windows(dataset, seq_len, mode, cache=cache)  # type: ignore[arg-type]
    assert mode == "packed" or windows.count == (len(flat) - 1) // seq_len
    indices = np.random.default_rng(1).permutation(windows.count)[:200]
    dtype = np.dtype(dataset.manifest.dtype)
    tokens = np.empty((len(indices), seq_len + 1), dtype)
    numbers = np.empty(tokens.shape, np.int32)
    windows.fill(indices, tokens, numbers)
    for index, row, number in zip(indices.tolist(), tokens, numbers, strict=True):
        expected = np.full(seq_len + 1, dataset.tokenizer.pad_id)
        for piece in windows.trace(index):
            part = documents[piece.document][piece.start : piece.stop]
            expected[piece.column : piece.column + len(part)] = part
        np.testing.assert_array_equal(row, expected)
        if mode == "joined":
            assert row.tolist() == flat[index * seq_len : index * seq_len + seq_len + 1]
        else:
            assert number.max() == len(windows.trace(index)) - 1
