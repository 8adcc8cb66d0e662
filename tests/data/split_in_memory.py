"""A split without files: token i is the number i, so each says where it comes from."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

PAD = 2**32 - 1


class SplitInMemory:
    """Reads like a ``TokenDataset``, written the plain way."""

    dataset_id, split = "0" * 64, "train"
    tokenizer = SimpleNamespace(pad_id=PAD)

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.needed: list[tuple[int, int]] = []
        self.total_tokens, self.num_documents = sum(lengths), len(lengths)
        self.owner = [number for number, length in enumerate(lengths) for _ in range(length)]
        self.starts = [sum(lengths[:i]) for i in range(len(lengths))]

    def gather(self, starts: np.ndarray, out: np.ndarray) -> None:
        for row, start in zip(out, starts, strict=True):
            assert start >= 0
            assert start + len(row) <= self.total_tokens
            row[:] = range(start, start + len(row))

    def gather_parts(
        self, starts: np.ndarray, lengths: np.ndarray, out: np.ndarray, *, places: np.ndarray
    ) -> None:
        for start, length, place in zip(starts, lengths, places, strict=True):
            assert min(start, place) >= 0
            assert start + length <= self.total_tokens
            assert place + length <= len(out)
            out[place : place + length] = range(start, start + length)

    def will_need(self, start: int, stop: int) -> None:
        self.needed.append((start, stop))

    def document_at(self, positions: np.ndarray) -> np.ndarray:
        return np.array([self.owner[p] for p in positions], np.int64)

    def document_bounds(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = np.array([self.starts[n] for n in numbers], np.int64)
        return starts, starts + np.array([self.lengths[n] for n in numbers], np.int64)
