"""Where a token or a document of a split lies: in which shard, and where in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from xtdist.data.arrays import Ints
from xtdist.data.manifest import ShardInfo


class Stream:
    """A split's shards end to end, by their sizes alone.

    Attributes:
        starts: [shards + 1] the first token of each, counted over the split.
        first_docs: [shards + 1] the first document of each.
    """

    def __init__(self, infos: tuple[ShardInfo, ...]) -> None:
        self.starts = np.cumsum([0, *(s.tokens for s in infos)], dtype=np.int64)
        self.first_docs = np.cumsum([0, *(s.docs for s in infos)], dtype=np.int64)
        self.tokens, self.docs = int(self.starts[-1]), int(self.first_docs[-1])

    def locate(self, positions: Ints) -> tuple[Ints, Ints]:
        """The shard of each token, and its number there. Unchecked: see ``check``."""
        shards = self.starts.searchsorted(positions, side="right") - 1
        return shards, positions - self.starts[shards]

    def locate_documents(self, numbers: Ints) -> tuple[Ints, Ints]:
        """The shard of each document, and its number there."""
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < self.docs):
            raise IndexError(f"documents {numbers.min()} to {numbers.max()} of {self.docs}")
        shards = self.first_docs.searchsorted(numbers, side="right") - 1
        return shards, numbers - self.first_docs[shards]

    def cut(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Tokens [start, stop) as (shard, start in it, stop in it)."""
        shard = int(self.starts.searchsorted(start, side="right")) - 1
        while start < stop:
            low, high = self.starts[shard : shard + 2].tolist()
            yield shard, start - low, min(stop, high) - low
            start, shard = high, shard + 1

    def check(self, start: int, stop: int) -> None:
        """Raise IndexError unless tokens [start, stop) are of the split."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.tokens}")


def by_value(values: Ints) -> Iterator[tuple[int, Any]]:
    """Each value and where it stands (an index)."""
    if len(values) and (values == values[0]).all():
        yield int(values[0]), slice(None)
        return
    order = values.argsort(kind="stable")
    ordered = values[order]
    cuts = (np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist()
    for a, b in itertools.pairwise([0, *cuts, len(values)] if len(values) else []):
        yield int(ordered[a]), order[a:b]
