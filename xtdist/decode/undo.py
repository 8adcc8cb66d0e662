"""Puts requests back where they were before a step that was broken off, at whatever place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xtdist.decode.kv_cache import KVPool
from xtdist.decode.request import Request, Sequence


class Undo:
    """What a step may change of ``requests`` once it is planned.

    A step takes no pages after its plan, so the pages that it gave up still hold what they held.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = [(r, _fields(r)) for r in requests]
        self._searches = [
            (x, _fields(x))
            for r, fields in self._requests
            for x in (r.beams, r.search, fields.get("filling"))
            if x is not None
        ]
        self._sequences = [(s, _Progress(s)) for r, _ in self._requests for s in r.sequences]

    def restore(self, pool: KVPool, requests: Iterable[Request]) -> None:
        """Nothing of the step has happened, but for what the models wrote behind the tables' ends.
        ``requests``: all of the engine. What the step has touched, nobody else shall use."""
        for changed, fields in (*self._requests, *self._searches):
            vars(changed).update(fields)
        for sequence, progress in self._sequences:
            progress.restore(sequence)
        pool.distrust(page for _, progress in self._sequences for page in progress.pages)
        pool.recount(s.table for r in requests for s in r.sequences)
        for sequence, _ in self._sequences:
            pool.trim(sequence.table)


class _Progress:
    """Where one sequence stands."""

    __slots__ = ("count", "digests", "dropped", "length", "pages", "stream", "tokens")

    def __init__(self, sequence: Sequence) -> None:
        self.tokens, self.count = sequence.tokens, len(sequence.tokens)
        table = sequence.table
        self.pages, self.length, self.dropped = table.pages.copy(), table.length, table.dropped
        self.digests = table.digests.copy()
        self.stream = sequence.stream.progress()

    def restore(self, sequence: Sequence) -> None:
        sequence.tokens = self.tokens
        del sequence.tokens[self.count :]
        table = sequence.table
        table.pages, table.length, table.dropped = self.pages, self.length, self.dropped
        table.digests = self.digests
        sequence.stream.resume(self.stream)


def _fields(of: object) -> dict[str, Any]:
    """Its attributes; lists are copied, because they grow in place."""
    return {k: v.copy() if type(v) is list else v for k, v in vars(of).items()}
