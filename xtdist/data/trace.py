"""Which documents the rows of a batch come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xtdist.data.dataset import TokenDataset
from xtdist.data.documents import Piece
from xtdist.data.order import Samples
from xtdist.data.windows import Windows


@dataclass(frozen=True, kw_only=True)
class TracedPiece:
    """Tokens [``start``, ``stop``) of a document, counted from its first, stand from ``column`` of
    a row on.

    Attributes:
        document: its number in the split.
        doc_id: the first 16 bytes of the sha256 of its text, in hex.
    """

    document: int
    doc_id: str
    start: int
    stop: int
    column: int


@dataclass(frozen=True, kw_only=True)
class TracedRow:
    """One row of a step's global batch.

    Attributes:
        row: in the global batch.
        sample_id: in the whole run.
        window: of the corpus.
        pieces: from left to right; what they leave free is padding.
    """

    row: int
    sample_id: int
    corpus: str
    window: int
    pieces: tuple[TracedPiece, ...]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The rows of a training step. ``data_step``: the step of data that it reads, which phases and
    skipped ranges are counted in."""

    step: int
    data_step: int
    rows: tuple[TracedRow, ...]


@dataclass(frozen=True, kw_only=True)
class Corpora:
    """The datasets of a run and their windows, by number of the corpus."""

    names: tuple[str, ...]
    datasets: Sequence[TokenDataset]
    windows: Sequence[Windows]


def trace_rows(samples: Samples, corpora: Corpora, *, first_row: int = 0) -> tuple[TracedRow, ...]:
    """Name the documents of ``samples`` (of one step, [rows]).

    Raises:
        DataError: a shard that has to be read is missing or damaged.
    """
    numbers = samples.corpus.tolist()
    pieces = [
        corpora.windows[corpus].trace(index)
        for corpus, index in zip(numbers, samples.index.tolist(), strict=True)
    ]
    names = _doc_ids(corpora, numbers, pieces)
    return tuple(
        TracedRow(
            row=first_row + i,
            sample_id=int(samples.ids[i]),
            corpus=corpora.names[corpus],
            window=int(samples.index[i]),
            pieces=tuple(
                TracedPiece(
                    document=piece.document,
                    doc_id=names[corpus, piece.document],
                    start=piece.start,
                    stop=piece.stop,
                    column=piece.column,
                )
                for piece in row
            ),
        )
        for i, (corpus, row) in enumerate(zip(numbers, pieces, strict=True))
    )


def _doc_ids(
    corpora: Corpora, numbers: list[int], pieces: list[list[Piece]]
) -> dict[tuple[int, int], str]:
    """The ids of all documents that ``pieces`` name, one question for each corpus."""
    found: dict[tuple[int, int], str] = {}
    for corpus in sorted(set(numbers)):
        rows = [row for number, row in zip(numbers, pieces, strict=True) if number == corpus]
        documents = np.unique([piece.document for row in rows for piece in row])
        ids = corpora.datasets[corpus].doc_ids(documents)
        found |= {(corpus, d): i.hex() for d, i in zip(documents.tolist(), ids, strict=True)}
    return found
