"""``<run>/attempts.jsonl``: every start of the workers and how it ended, over all submissions."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xtdist.files import append_line
from xtdist.launch.failures import Failure
from xtdist.track.text import duration

ATTEMPTS_FILE = "attempts.jsonl"
EVENTS = ("started", "ended")
MAX_DELAY_S = 60.0
_log = logging.getLogger(__name__)


@dataclass
class Attempts:
    """The attempts of one driver. Lines are ``{"event": "started", "attempt", "time", "workers",
    "step"}`` and ``{"event": "ended", …, "kind", "text", "ranks"}``; a start without an end is one
    whose driver was killed.

    max_failures: in a row without a new checkpoint between them.
    """

    folder: Path
    max_failures: int
    number: int = 0
    in_row: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    lost_s: float = 0.0
    _began: float = 0.0
    from_step: int = 0

    def __post_init__(self) -> None:
        self.number = sum(row["event"] == "started" for row in read_attempts(self.folder))

    def started(self, *, workers: int, step: int) -> None:
        self.number += 1
        self._began, self.from_step = time.monotonic(), step
        self._write("started", workers=workers, step=step)

    def ended(self, kind: str, step: int) -> None:
        """An attempt that did not fail: done, stopped, or asked to make room for more workers."""
        self._write("ended", kind=kind, step=step, text="", ranks=[])

    def failed(self, failure: Failure, step: int) -> None:
        """Counted, unless it is the cluster's doing; a new checkpoint begins the count anew."""
        if step > self.from_step:
            self.in_row = 0
        self.in_row += failure.counts
        self.kinds[failure.kind] += 1
        self._write(
            "ended", kind=failure.kind, step=step, text=failure.text, ranks=list(failure.ranks)
        )

    @property
    def given_up(self) -> bool:
        return self.in_row > self.max_failures

    @property
    def delay_s(self) -> float:
        """Before the next start: none after one failure, then 2, 4, 8 … at most 60 s."""
        return min(2.0 ** (self.in_row - 1), MAX_DELAY_S) if self.in_row > 1 else 0.0

    def summary(self) -> str:
        """What failed, by kind; empty if nothing did."""
        if not self.kinds:
            return ""
        parts = ", ".join(f"{n} x {kind}" for kind, n in self.kinds.most_common())
        return f"failures: {parts} (see {self.folder / ATTEMPTS_FILE})"

    def _write(self, event: str, **values: Any) -> None:
        row: dict[str, Any] = {"event": event, "attempt": self.number, "time": time.time()}
        if event == "ended":
            row["seconds"] = round(time.monotonic() - self._began, 3)
        try:
            append_line(self.folder / ATTEMPTS_FILE, json.dumps(row | values))
        except OSError as e:  # a record, which no run waits for
            _log.warning("%s: not written (%s)", self.folder / ATTEMPTS_FILE, e.strerror)


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's file; torn and foreign ones are left out, and a file that can't be read
    has none."""
    try:
        lines = (folder / ATTEMPTS_FILE).read_bytes().splitlines()
    except OSError:
        return []
    rows = (_row(line) for line in lines)
    return [row for row in rows if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and row.get("event") in EVENTS else None


def attempt_line(failure: Failure, attempts: Attempts, step: int) -> str:
    """``attempt 2 failed at checkpoint 40: worker killed: rank 1: …; going on in 4s (2 of 3 …)``"""
    head = f"attempt {attempts.number} ended (newest checkpoint: step {step}): {failure}"
    if attempts.given_up:
        return f"{head}; given up: {attempts.in_row} failures in a row without a new checkpoint"
    count = f" ({attempts.in_row} of workers.max_failures {attempts.max_failures} in a row)"
    after = f" in {duration(attempts.delay_s)}" if attempts.delay_s else ""
    return f"{head}; starting again{after}{count if failure.counts else ''}"
