"""How far a build is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a build is: ``done_bytes`` of ``total_bytes`` (0: not known) in ``stage``: ``spool``,
    ``scan`` (stored bytes), ``tokenizer``, ``encode`` (bytes of text)."""

    stage: str
    done_bytes: int
    total_bytes: int


OnProgress = Callable[[Progress], None]


class Meter:
    """Adds up what is done in a stage, and tells."""

    def __init__(self, tell: OnProgress, stage: str, total_bytes: int) -> None:
        self._tell, self._stage, self._total = tell, stage, total_bytes
        self._done = 0

    def __call__(self, amount: int) -> None:
        self._done += amount
        self._tell(Progress(stage=self._stage, done_bytes=self._done, total_bytes=self._total))
