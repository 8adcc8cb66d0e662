"""Which documents share a row: a plan that drops nothing and pads next to nothing.

Best-fit decreasing (Johnson 1973) over the documents of a group, counted by length: each goes where
it leaves least room. Documents longer than a row are cut first, into pieces that overlap by one
token as windows do. Where much room is left (two documents just above half a row never share one),
the emptiest rows are taken apart and their pieces cut to close the holes of the others, again with
an overlap of one: every token but a document's first is a target exactly once.

A plan follows from the lengths and ``seq_len`` alone.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xtdist.data.arrays import Ints
from xtdist.data.documents import counted

ALGORITHM = 1
MAX_PADDING = 0.0003
GROUP_TOKENS = 2**26
GROUP_ROWS = 2048


class Split(Protocol):
    """What a plan has to know of a split."""

    @property
    def total_tokens(self) -> int: ...

    @property
    def num_documents(self) -> int: ...

    def document_at(self, positions: Ints) -> Ints: ...

    def document_bounds(self, numbers: Ints) -> tuple[Ints, Ints]: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Row r holds the pieces [rows[r], rows[r + 1]) one after the other; piece p is the tokens
    [starts[p], starts[p] + lengths[p]) of the split and lies within one document."""

    starts: Ints
    lengths: NDArray[np.int32]
    rows: Ints

    @property
    def num_rows(self) -> int:
        return len(self.rows) - 1


def plan_documents(split: Split, seq_len: int) -> Plan:
    """The plan for a whole split: groups of neighbouring documents are planned one by one, so that
    memory is bounded and a row's documents lie close together."""
    plans = [
        plan_rows(starts, lengths, seq_len=seq_len)
        for starts, lengths in _groups(split, max(GROUP_TOKENS, GROUP_ROWS * (seq_len + 1)))
    ]
    offsets = np.cumsum([0, *(p.rows[-1] for p in plans)])
    return Plan(
        starts=np.concatenate([np.empty(0, np.int64), *(p.starts for p in plans)]),
        lengths=np.concatenate([np.empty(0, np.int32), *(p.lengths for p in plans)]),
        rows=np.concatenate(
            [np.zeros(1, np.int64), *(p.rows[1:] + o for p, o in zip(plans, offsets, strict=False))]
        ),
    )


def _groups(split: Split, tokens: int) -> Iterator[tuple[Ints, Ints]]:
    """Starts and lengths of the documents that end within each stretch of ``tokens``."""
    edges = split.document_at(np.arange(0, split.total_tokens, tokens, dtype=np.int64))
    for first, last in zip(edges, [*edges[1:], split.num_documents], strict=True):
        if first < last:
            starts, stops = split.document_bounds(np.arange(first, last, dtype=np.int64))
            yield starts, stops - starts


def plan_rows(starts: Ints, lengths: Ints, *, seq_len: int) -> Plan:
    """The plan for documents of ``lengths`` tokens that begin at ``starts``."""
    width = seq_len + 1
    starts, sizes = _cut_long(starts, lengths, seq_len)
    order = np.argsort(-sizes, kind="stable")
    starts, sizes = starts[order], sizes[order]
    bins = _best_fit(sizes, width)
    starts, sizes, bins = _fill(starts, sizes, bins, width=width)
    return _in_order(starts, sizes, bins)


def _cut_long(starts: Ints, lengths: Ints, seq_len: int) -> tuple[Ints, Ints]:
    """Documents longer than a row as pieces of a row; neighbours share one token."""
    pieces = np.maximum(1, -(-(lengths - 1) // seq_len))
    if len(pieces) == 0 or pieces.max() == 1:
        return starts, lengths
    number = counted(pieces)
    sizes = np.minimum(np.repeat(lengths, pieces) - number * seq_len, seq_len + 1)
    return np.repeat(starts, pieces) + number * seq_len, sizes


def _best_fit(sizes: Ints, width: int) -> Ints:
    """The bin of each piece; ``sizes`` descend.

    Pieces of one length and bins with one room are handled together: a move (first bin, pieces per
    bin, bins) stands for many pieces. Bins with equal room are kept as ranges of numbers.
    """
    values, counts = np.unique(sizes, return_counts=True)
    rooms: list[int] = []  # ascending: every room that some bin has
    ranges: dict[int, list[tuple[int, int]]] = {}
    moves: list[tuple[int, int, int]] = []
    opened = 0

    def put(room: int, low: int, high: int) -> None:
        if room and low < high:
            if room not in ranges:
                ranges[room] = []
                insort(rooms, room)
            ranges[room].append((low, high))

    for size, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            at = bisect_left(rooms, size)
            if at < len(rooms):
                room = rooms[at]
                low, high = ranges[room].pop()
                if not ranges[room]:
                    del ranges[room], rooms[at]
            else:
                room, low = width, opened
                opened = high = low - (-count // (width // size))
            each = room // size
            full = min(high - low, count // each)
            moves.append((low, each, full))
            put(room - each * size, low, low + full)
            count -= each * full
            low += full
            if low < high and 0 < count < each:
                moves.append((low, count, 1))
                put(room - count * size, low, low + 1)
                low, count = low + 1, 0
            put(room, low, high)
    first, each_, bins = np.array(moves, np.int64).reshape(-1, 3).T
    many = each_ * bins
    return np.repeat(first, many) + counted(many) // np.repeat(each_, many)


def _fill(starts: Ints, sizes: Ints, bins: Ints, *, width: int) -> tuple[Ints, Ints, Ints]:
    """Take apart the emptiest bins, as many as it needs for ``MAX_PADDING``, and close the holes of
    the others with their pieces, the largest holes first."""
    free = width - np.bincount(bins, weights=sizes).astype(np.int64)
    spare = int(free.sum()) - MAX_PADDING * len(free) * width
    apart = min(math.ceil(spare / (width * (1 - MAX_PADDING))), int(free.sum()) // width)
    if apart <= 0:
        return starts, sizes, bins
    emptiest = np.argsort(-free, kind="stable")
    rank = np.empty_like(emptiest)
    rank[emptiest] = np.arange(len(emptiest))
    loose = rank[bins] < apart
    taken = np.flatnonzero(loose)[np.argsort(rank[bins[loose]], kind="stable")]
    kept = emptiest[apart:]
    holes = list(zip(kept.tolist(), free[kept].tolist(), strict=True))
    parts = _pour(starts[taken].tolist(), sizes[taken].tolist(), holes=holes, width=width)
    more = np.array(parts, np.int64).reshape(-1, 3).T
    old = starts[~loose], sizes[~loose], bins[~loose]
    starts, sizes, bins = (np.concatenate(pair) for pair in zip(old, more, strict=True))
    return starts, sizes, bins


def _pour(
    starts: list[int], sizes: list[int], *, holes: list[tuple[int, int]], width: int
) -> list[tuple[int, int, int]]:
    """Pieces into holes (bin, room), in order, cut where a hole ends; then into new bins. Gives
    (start, size, bin). A cut piece goes on with its last token, so one room is too little."""
    fresh = max((b for b, _ in holes), default=-1) + 1
    left = iter(holes)
    target, room = -1, 0
    parts = []
    for start, size in zip(starts, sizes, strict=True):
        while size:
            while room < min(size, 2):
                target, room = next(left, (fresh, width))
                fresh += target == fresh
            part = min(size, room)
            parts.append((start, part, target))
            room -= part
            rest = size - part
            start, size = (start + part - 1, rest + 1) if rest else (start, 0)
    return parts


def _in_order(starts: Ints, sizes: Ints, bins: Ints) -> Plan:
    """Pieces of a row by their place in the split, rows by their first piece: neighbouring rows
    then read neighbouring documents of mixed lengths."""
    first = np.full(int(bins.max()) + 1 if len(bins) else 0, np.iinfo(np.int64).max)
    np.minimum.at(first, bins, starts)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    rows = rank[bins]
    order = np.lexsort((starts, rows))
    counts = np.bincount(rows) if len(rows) else np.empty(0, np.int64)
    return Plan(
        starts=starts[order],
        lengths=sizes[order].astype(np.int32),
        rows=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
    )
