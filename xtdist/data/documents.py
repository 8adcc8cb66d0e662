"""Which document each token of a row belongs to, for a whole batch of rows at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtdist.data.arrays import Ints


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Tokens [start, stop) of a document, counted from its first, stand from ``column`` of a row.
    ``document`` is its number in the split."""

    document: int
    start: int
    stop: int
    column: int


def counted(counts: Ints) -> Ints:
    """0 … counts[0] - 1, 0 … counts[1] - 1, and so on."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def number_parts(documents: NDArray[np.int32], counts: Ints, columns: Ints) -> None:
    """Number the parts of each row: 0, 1, 2 …

    Args:
        documents: filled, (r, w).
        counts: how many parts each row has, (r,); at least one.
        columns: where each part begins, row after row; the first part of a row at 0.
    """
    rows, width = documents.shape
    if len(columns) == rows:
        documents[:] = 0
        return
    ends = np.empty(len(columns) + 1, np.int64)
    np.add(np.repeat(np.arange(rows) * width, counts), columns, out=ends[:-1])
    ends[-1] = rows * width
    numbers = np.repeat(counted(counts).astype(np.int32), np.diff(ends))
    documents[:] = numbers.reshape(rows, width)


def pad(
    tokens: NDArray[Any], documents: NDArray[np.int32] | None, *, used: Ints, pad_id: int
) -> None:
    """Padding behind the ``used`` first tokens of each row: ``pad_id``, with the document numbers
    -1, -2, -3 …, so that each such token reads none and is read by none.

    Args:
        tokens: (r, w), contiguous, as are ``documents``; changed in place.
        used: (r,).
    """
    rows, width = tokens.shape
    if int(used.sum()) == rows * width:
        return
    missing = width - used
    number = counted(missing)
    places = np.repeat(np.arange(rows) * width + used, missing) + number
    tokens.reshape(-1)[places] = pad_id
    if documents is not None:
        documents.reshape(-1)[places] = -1 - number
