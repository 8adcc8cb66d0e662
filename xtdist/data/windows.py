"""What a sample is: ``seq_len + 1`` tokens of a split, and which documents they come from.

``joined``: window i is tokens [iL, iL + L] of the split, documents run into each other. ``masked``:
the same tokens with document numbers, so that none reads another's. ``packed``: see ``packed.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xtdist.data.arrays import Ints
from xtdist.data.config import Documents
from xtdist.data.dataset import TokenDataset
from xtdist.data.documents import Piece, number_parts
from xtdist.data.packed import Packed
from xtdist.data.plan_store import load_plan
from xtdist.data.storage.config import CacheConfig


class Windows(Protocol):
    """The samples of one split. Safe to read from several threads."""

    @property
    def seq_len(self) -> int: ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def fill(
        self, indices: Ints, tokens: NDArray[Any], documents: NDArray[np.int32] | None
    ) -> None:
        """Write the rows of ``indices``.

        Args:
            indices: (r,), each in [0, count).
            tokens: (r, seq_len + 1) of the dataset's dtype, contiguous.
            documents: (r, seq_len + 1), contiguous: 0, 1, 2 … for the documents (or pieces of one)
                in a row; every padding token has a negative number of its own. None: not wanted.

        Raises:
            IndexError: there is no such window.
            DataError: a shard that is missing or damaged.
        """
        ...

    def will_need(self, first: int, stop: int) -> None:
        """Have windows [first, stop) read soon: see ``TokenDataset.will_need``."""
        ...

    def trace(self, index: int) -> list[Piece]:
        """Which tokens of which documents a row holds, from left to right."""
        ...


def make_windows(
    dataset: TokenDataset,
    seq_len: int,
    documents: Documents = "joined",
    *,
    cache: CacheConfig | None = None,
) -> Windows:
    """The samples of ``seq_len`` targets that ``dataset`` has.

    Args:
        cache: in whose folder the plan of ``packed`` is kept.

    Raises:
        ResourceError: the plan can't be written.
        DataError: a shard that the plan needs is missing or damaged.
    """
    if documents == "joined":
        return Joined(dataset, seq_len)
    if documents == "masked":
        return Masked(dataset, seq_len)
    plan = load_plan(dataset, seq_len, cache=cache or CacheConfig())
    return Packed(dataset, seq_len, plan=plan)


@dataclass(frozen=True)
class Joined:
    """Window i is tokens [iL, iL + L]: every token of the split but the first (and the last < L)
    is a target exactly once."""

    dataset: TokenDataset
    seq_len: int

    @property
    def count(self) -> int:
        return max(0, (self.dataset.total_tokens - 1) // self.seq_len)

    def fill(
        self, indices: Ints, tokens: NDArray[Any], documents: NDArray[np.int32] | None
    ) -> None:
        self.dataset.gather(indices * self.seq_len, tokens)
        if documents is not None:
            documents[:] = 0

    def will_need(self, first: int, stop: int) -> None:
        self.dataset.will_need(first * self.seq_len, stop * self.seq_len + 1)

    def trace(self, index: int) -> list[Piece]:
        first = index * self.seq_len
        return trace_tokens(self.dataset, first, first + self.seq_len + 1)


class Masked(Joined):
    """The same windows; a document's first token is no target."""

    def fill(
        self, indices: Ints, tokens: NDArray[Any], documents: NDArray[np.int32] | None
    ) -> None:
        starts = indices * self.seq_len
        self.dataset.gather(starts, tokens)
        if documents is None or len(indices) == 0:
            return
        ends = self.dataset.document_at(np.concatenate([starts, starts + self.seq_len]))
        first, last = ends[: len(starts)], ends[len(starts) :]
        counts = last - first + 1
        numbers = np.repeat(last + 1 - np.cumsum(counts), counts) + np.arange(counts.sum())
        begins, _ = self.dataset.document_bounds(numbers)
        number_parts(documents, counts, np.maximum(begins - np.repeat(starts, counts), 0))


def trace_tokens(dataset: TokenDataset, start: int, stop: int, *, column: int = 0) -> list[Piece]:
    """The documents that tokens [start, stop) of the split come from; the first stands at
    ``column``."""
    first, last = dataset.document_at(np.array([start, stop - 1])).tolist()
    numbers = np.arange(first, last + 1)
    pieces = []
    for number, low, high in zip(
        numbers.tolist(), *(b.tolist() for b in dataset.document_bounds(numbers)), strict=True
    ):
        begin, end = max(start, low), min(stop, high)
        pieces.append(
            Piece(document=number, start=begin - low, stop=end - low, column=column + begin - start)
        )
    return pieces
