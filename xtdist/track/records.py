"""``metrics.jsonl``: the run's own record of its metrics, one JSON object per line.

    {"step": 20, "time": 1730000000.0, "train/loss": 3.2, "train/lr": 0.0003}

``step`` counts finished optimizer steps. The file is only appended to. After a crash a run repeats
steps; readers follow one rule, per metric: **a later point at step s replaces every earlier point
at s or beyond**. So what they see is the history of the weights that exist now.

Names: ``train/loss train/lr train/grad_norm train/tokens eval/<set>/loss
eval/<set>/bits_per_byte``; seconds of a step ``perf/step_s`` and of its parts ``perf/data_wait_s
perf/forward_s perf/backward_s perf/reduce_s perf/optimizer_s perf/rest_s perf/other_s``, and of
what stands between steps ``perf/checkpoint_s perf/evaluate_s``; means over the last steps
``perf/tokens_per_s perf/tokens_per_s_per_device perf/mfu``; ``perf/goodput``; now and then
``perf/slowest_rank perf/slowest_ratio perf/rss_gb perf/host_memory_share perf/host_load``. What a
task beside the workers finds (``loop.aside``) comes later than the metrics of its step, and after
those of later ones.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xtdist.config import ResourceError

FILE = "metrics.jsonl"
CHUNK_BYTES = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The metrics of one step at one time (seconds since 1970)."""

    step: int
    time: float
    values: dict[str, float]


@dataclass(kw_only=True)
class Series:
    """One metric over the steps, steps strictly rising."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, step: int, value: float, at: float) -> None:
        """Append a point; points at this step or beyond belonged to a discarded attempt."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
            self.times.pop()
        self.steps.append(step)
        self.values.append(value)
        self.times.append(at)


class MetricLog:
    """Appends to ``<run_folder>/metrics.jsonl``. Only one process writes it (rank 0).

    A line is one write, so a killed process leaves at most one torn line, which readers skip.

    Raises:
        ResourceError: the file can't be opened. Later errors are logged once and never raised.
    """

    def __init__(self, run_folder: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(run_folder) / FILE
        self._clock = clock
        self._failed = 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._torn = _ends_inside_a_line(self._path)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as e:
            raise ResourceError(
                f"{self._path}: can't be written ({e.strerror}); give a run folder that can"
            ) from None

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one record. Never raises: a metric is not worth a training step."""
        try:
            line = to_line(Record(step=step, time=self._clock(), values=dict(metrics)))
            data = (b"\n" if self._torn else b"") + line
            self._torn = os.write(self._fd, data) != len(data)
            if self._torn:
                raise OSError("disk full")
        except (OSError, TypeError, ValueError) as e:
            self._torn = True
            self._failed += 1
            if self._failed == 1:
                _log.warning("%s: metrics of step %s are lost (%s)", self._path, step, e)

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Tail:
    """Reads a run's records as they are written.

    ``offset`` (bytes) is where the next read starts; it lies between two lines.
    """

    def __init__(self, run_folder: str | Path, *, offset: int = 0) -> None:
        self.path = Path(run_folder) / FILE
        self.offset = offset

    def poll(self) -> list[Record]:
        """The records of up to 1 MB of whole lines that have come since; empty if none (yet)."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self.offset:
                    self.offset = 0  # another file by now
                file.seek(self.offset)
                data = file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return []
        whole = data.rfind(b"\n") + 1
        if whole == 0 and len(data) == CHUNK_BYTES:
            whole = CHUNK_BYTES  # no line of ours; don't stop here for ever
        self.offset += whole
        records = (parse_line(line) for line in data[:whole].splitlines())
        return [r for r in records if r is not None]

    def poll_all(self) -> list[Record]:
        """All records that have come since."""
        records: list[Record] = []
        while True:
            before = self.offset
            records += self.poll()
            if self.offset == before:
                return records


def to_line(record: Record) -> bytes:
    """One line of valid JSON; numbers that JSON lacks are the strings "nan", "inf", "-inf"."""
    values = {name: _plain(float(value)) for name, value in record.values.items()}
    out = {"step": int(record.step), "time": round(record.time, 3), **values}
    return json.dumps(out, allow_nan=False).encode() + b"\n"


def parse_line(line: bytes) -> Record | None:
    """The record of a line, or None if it is torn or holds something else."""
    try:
        raw = json.loads(line)
        step, at = int(raw.pop("step")), float(raw.pop("time"))
        return Record(step=step, time=at, values={k: float(v) for k, v in raw.items()})
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def to_series(records: Iterable[Record]) -> dict[str, Series]:
    """Metric name → its points, repeated steps settled by the rule above."""
    out: dict[str, Series] = {}
    for record in records:
        for name, value in record.values.items():
            out.setdefault(name, Series()).add(record.step, value, record.time)
    return out


def read_series(run_folder: str | Path) -> dict[str, Series]:
    """All metrics of a run; empty if it has written none."""
    return to_series(Tail(run_folder).poll_all())


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _ends_inside_a_line(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except FileNotFoundError:
        return False
