"""Rows of whole documents: the samples of a packing plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtdist.data.arrays import Ints
from xtdist.data.dataset import TokenDataset
from xtdist.data.documents import Piece, counted, number_parts, pad
from xtdist.data.packing import Plan

NEAR_TOKENS = 2**16


@dataclass(frozen=True)
class Packed:
    """Row i holds the pieces that the plan gave it, then padding: every token of the split but each
    document's first is a target exactly once."""

    dataset: TokenDataset
    seq_len: int
    plan: Plan

    @property
    def count(self) -> int:
        return self.plan.num_rows

    def fill(
        self, indices: Ints, tokens: NDArray[Any], documents: NDArray[np.int32] | None
    ) -> None:
        if len(indices) == 0:
            return
        if not (indices.min() >= 0 and indices.max() < self.count):
            raise IndexError(f"rows {indices.min()} to {indices.max()} of {self.count}")
        first = self.plan.rows[indices]
        counts = self.plan.rows[indices + 1] - first
        pieces = np.repeat(first, counts) + counted(counts)
        lengths = self.plan.lengths[pieces].astype(np.int64)
        ends = np.cumsum(lengths)
        last = np.cumsum(counts)
        used = np.diff(ends[last - 1], prepend=0)
        columns = ends - lengths - np.repeat(ends[last - 1] - used, counts)
        places = np.repeat(np.arange(len(indices)) * (self.seq_len + 1), counts) + columns
        self.dataset.gather_parts(
            self.plan.starts[pieces], lengths, tokens.reshape(-1), places=places
        )
        if documents is not None:
            number_parts(documents, counts, columns)
        pad(tokens, documents, used=used, pad_id=self.dataset.tokenizer.pad_id)

    def will_need(self, first: int, stop: int) -> None:
        """Have the pieces of rows [first, stop) read soon; what lies close together, as one."""
        pieces = slice(*self.plan.rows[[first, stop]].tolist())
        order = np.argsort(self.plan.starts[pieces])
        starts = self.plan.starts[pieces][order]
        stops = np.maximum.accumulate(starts + self.plan.lengths[pieces][order])
        if len(starts) == 0:
            return
        gaps = np.flatnonzero(starts[1:] > stops[:-1] + NEAR_TOKENS)
        for start, stop_ in zip(
            starts[np.concatenate([[0], gaps + 1])].tolist(),
            stops[np.concatenate([gaps, [-1]])].tolist(),
            strict=True,
        ):
            self.dataset.will_need(start, stop_)

    def trace(self, index: int) -> list[Piece]:
        """Which tokens of which documents the row holds, from left to right."""
        part = slice(*self.plan.rows[index : index + 2].tolist())
        starts, lengths = self.plan.starts[part], self.plan.lengths[part].astype(np.int64)
        numbers = self.dataset.document_at(starts)
        begins, _ = self.dataset.document_bounds(numbers)
        columns = np.cumsum(lengths) - lengths
        return [
            Piece(document=n, start=s, stop=e, column=c)
            for n, s, e, c in zip(
                numbers.tolist(),
                (starts - begins).tolist(),
                (starts - begins + lengths).tolist(),
                columns.tolist(),
                strict=True,
            )
        ]
