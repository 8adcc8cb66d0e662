"""``goodput.jsonl``: where a run's time went, from its first start on, over all its attempts.

Each line is what rank 0 spent between two moments, or that an attempt began (the driver and rank 0
write one each) or ended. The buckets are those of Google's goodput library.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from xtdist.track.text import duration

FILE = "goodput.jsonl"
Bucket = Literal[
    "productive",  # steps whose result was kept
    "wasted_progress",  # steps that were done again after a restart
    "program_start",  # processes, libraries, model, data, until the first step
    "data_wait",
    "checkpoint_save",
    "checkpoint_restore",
    "evaluation",
    "infrastructure_recovery",  # from an attempt's last sign to the next attempt's start
    "other",  # between steps, and between an orderly end and the next start
]
BUCKETS: tuple[Bucket, ...] = get_args(Bucket)
Event = Literal["start", "spent", "end"]
_log = logging.getLogger(__name__)


@dataclass
class Goodput:
    """Seconds since a run's first start, by bucket; they add up to ``elapsed``."""

    seconds: dict[Bucket, float] = field(default_factory=lambda: dict.fromkeys(BUCKETS, 0.0))
    attempts: int = 0
    _began: float | None = None
    _until: float = 0.0
    _last: Event = "end"
    _kept: list[tuple[int, int, float]] = field(default_factory=list)

    @property
    def elapsed(self) -> float:
        """Seconds from the first start to the last sign."""
        return self._until - self._began if self._began is not None else 0.0

    @property
    def share(self) -> float:
        """Productive seconds of all; 0 before there are any."""
        return self.seconds["productive"] / self.elapsed if self.elapsed > 0 else 0.0

    def text(self) -> str:
        """``goodput 93.1 % of 2h 05m: program_start 3.2 %, …``, largest losses first."""
        shares = {b: 100 * s / (self.elapsed or 1.0) for b, s in self.seconds.items()}
        lost = sorted(set(shares) - {"productive"}, key=lambda b: -shares[b])
        parts = [f"{b} {shares[b]:.1f} %" for b in lost if shares[b] >= 0.05]
        tail = f": {', '.join(parts)}" if parts else ""
        return f"goodput {100 * self.share:.1f} % of {duration(self.elapsed)}{tail}"

    def add(self, line: Mapping[str, Any]) -> None:
        """Take one line in."""
        event, at, step = line["event"], float(line["time"]), int(line["step"])
        since = min(float(line.get("since", at)), at)
        if self._began is None:
            self._began = self._until = since
        gap = max(0.0, since - self._until)  # hosts' clocks may differ: time never goes back
        self.seconds[self._bucket_of_gap()] += gap
        room = max(0.0, at - max(since, self._until))
        self._until = max(self._until, at)
        self._last = event
        if event == "start":
            self.attempts += bool(line.get("attempt"))
            self._waste(step)
        elif event == "spent":
            self._spend(line["seconds"], room, int(line["first"]), step)

    def _bucket_of_gap(self) -> Bucket:
        if self._last == "start":
            return "program_start"
        return "other" if self._last == "end" else "infrastructure_recovery"

    def _spend(self, seconds: Mapping[Bucket, float], room: float, first: int, step: int) -> None:
        total = sum(seconds.values())
        scale = room / total if total > 0 else 0.0
        for bucket, value in seconds.items():
            self.seconds[bucket] += value * scale
        if total <= 0:
            self.seconds["other"] += room
        productive = seconds.get("productive", 0.0) * scale
        if productive:
            self._kept.append((first, step, productive))

    def _waste(self, step: int) -> None:
        """What was done beyond ``step`` is done again."""
        while self._kept and self._kept[-1][1] > step:
            first, last, seconds = self._kept.pop()
            kept = max(0.0, (step - first) / (last - first)) if last > first else 0.0
            if kept:
                self._kept.append((first, step, kept * seconds))
            self.seconds["productive"] -= (1 - kept) * seconds
            self.seconds["wasted_progress"] += (1 - kept) * seconds


def read_goodput(run_folder: str | Path) -> Goodput:
    """What became of a run's time so far; all zero for a run without a record. Torn lines are
    skipped."""
    goodput = Goodput()
    try:
        lines = (Path(run_folder) / FILE).read_bytes().splitlines()
    except OSError:
        return goodput
    for line in lines:
        try:
            raw = json.loads(line)
            if _sound(raw):
                goodput.add(raw)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue
    return goodput


def _sound(line: Mapping[str, Any]) -> bool:
    """Whether its numbers can be counted with: one that can't would spoil all sums."""
    seconds = line.get("seconds", {})
    numbers = [line.get(key, 0) for key in ("time", "since", "step", "first")]
    return set(seconds) <= set(BUCKETS) and all(
        math.isfinite(float(number)) for number in (*numbers, *seconds.values())
    )


class Ledger:
    """Writes ``<run_folder>/goodput.jsonl``, and knows the sums.

    Lines are a second apart, or a thousandth of the attempt; that much of a killed attempt's time
    is counted as recovery. Never raises for the file.
    """

    def __init__(self, run_folder: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(run_folder) / FILE
        self._clock = clock
        self.goodput = read_goodput(run_folder)
        self._open: dict[Bucket, float] = {}
        self._first = 0
        self._step = 0
        self._since = self._started = clock()

    def start(self, step: int, *, ago_s: float = 0.0, attempt: bool = False) -> None:
        """An attempt began ``ago_s`` ago and goes on from ``step``. ``attempt``: its workers did
        (the driver writes one for itself before, which is not counted as another attempt)."""
        self._first = self._step = step
        self._since = self._started = self._clock() - ago_s
        self._write({"event": "start", "time": self._since, "step": step, "attempt": attempt})

    def spend(self, step: int, seconds: Mapping[Bucket, float], *, flush: bool = False) -> None:
        """``seconds`` went by until ``step`` was finished. ``flush`` at steps that a later attempt
        may go on from, so that what it repeats is known exactly."""
        for bucket, value in seconds.items():
            self._open[bucket] = self._open.get(bucket, 0.0) + value
        self._step = step
        now = self._clock()
        if flush or now - self._since >= max(1.0, (now - self._started) / 1000):
            self.flush()

    def flush(self) -> None:
        """Write what was spent since the last line."""
        if not self._open:
            return
        now = self._clock()
        seconds = {bucket: round(value, 6) for bucket, value in self._open.items()}
        line = {"event": "spent", "time": now, "since": self._since, "step": self._step}
        self._write({**line, "first": self._first, "seconds": seconds})
        self._since, self._first, self._open = now, self._step, {}

    def close(self, *, ended: bool) -> None:
        """Write what is left. ``ended``: the run was finished, or stopped by its user; the time
        until it is started again is then nobody's loss."""
        self.flush()
        if ended:
            self._write({"event": "end", "time": self._clock(), "step": self._step})

    def _write(self, line: Mapping[str, Any]) -> None:
        self.goodput.add(line)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                # A line begins with a break: one torn by a kill or a full disk spoils no other.
                os.write(fd, b"\n" + json.dumps(line).encode())
            finally:
                os.close(fd)
        except OSError as e:
            _log.warning("%s: not written (%s)", self._path, e.strerror)
