"""Telling the datasets which blocks a block shuffle reads next, so that they are there by then."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from xtdist.data.order import Ahead
from xtdist.data.windows import Windows

Key = tuple[int, int, int]


class LooksAhead(Protocol):
    """What of an ``Order`` is asked here."""

    def size(self, step: int) -> int: ...

    def ahead(self, step: int) -> list[Ahead]: ...


class ReadAhead:
    """Each group of blocks is announced once: the one that is read now at once, the one after it
    bit by bit, twice as fast as the run reads, since a remote block takes as long as it takes."""

    def __init__(self, order: LooksAhead, windows: Sequence[Windows]) -> None:
        self._order, self._windows = order, windows
        self._known: set[Key] = set()
        self._later: deque[tuple[Key, int, int]] = deque()

    def announce(self, step: int, *, steps: int) -> None:
        """Steps [step, step + steps) are read next."""
        groups = {(a.corpus, a.epoch, a.group): a.spans for a in self._order.ahead(step)}
        now = {next(key for key in groups if key[0] == corpus) for corpus, _, _ in groups}
        for key, spans in groups.items():
            if key not in self._known:
                self._later += [(key, first, stop) for first, stop in spans.tolist()]
        self._known = set(groups)
        room = 2 * steps * self._order.size(step)
        waiting, self._later = self._later, deque()
        for key, first, stop in waiting:
            if key in now or room > 0:
                room -= 0 if key in now else stop - first
                self._windows[key[0]].will_need(first, stop)
            else:
                self._later.append((key, first, stop))
