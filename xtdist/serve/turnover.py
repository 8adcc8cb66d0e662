"""How long a queue is, in seconds."""

from __future__ import annotations

MEMORY = 64
KNOWN = 8  # turns: the first ones may be compiled for, or come all at once


class Turnover:
    """How fast requests get their turn while some wait: a mean over about the last ``MEMORY``
    turns, kept while there is no queue. Written by one thread, read by any."""

    def __init__(self) -> None:
        self._count = 0
        self._turns = 0.0
        self._seconds = 0.0
        self._per_turn = 0.0

    def note(self, turns: int, seconds: float) -> None:
        """In so many ``seconds``, in which somebody waited, so many requests got their turn."""
        self._count += turns
        fade = (1 - 1 / MEMORY) ** turns
        self._turns = self._turns * fade + turns
        self._seconds = self._seconds * fade + seconds
        if self._count >= KNOWN:
            self._per_turn = self._seconds / self._turns

    def wait_s(self, waiting: int) -> float:
        """For one that comes behind ``waiting`` others; 0 while nothing is known."""
        return waiting * self._per_turn
