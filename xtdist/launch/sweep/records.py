"""``<sweep>/trials.jsonl``: how each trial ended, so that the same command does not repeat it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from xtdist.config import CheckpointError, ResourceError, to_mapping
from xtdist.files import append_line, write_atomic
from xtdist.launch.sweep.draw import trial_name
from xtdist.launch.sweep.spec import SweepSpec
from xtdist.track import read_series

FILE, SWEEP_FILE = "trials.jsonl", "sweep.yaml"
Status = Literal["finished", "stopped", "failed", "unfinished"]
FREE = ("search", "stop", "max_concurrent", "max_failed")
"""What may change between two calls of one sweep."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial's end. finished: it came to its last step (or stopped by itself, early_stop);
    stopped: the search did not let it go on; failed: see ``error``."""

    number: int
    status: Status
    error: str = ""


def note_end(folder: Path, end: Ended) -> None:
    """Append a line."""
    append_line(folder / FILE, json.dumps(asdict(end)))


def read_ends(folder: Path) -> dict[int, Ended]:
    """The last line of each trial; torn ones are left out."""
    try:
        lines = (folder / FILE).read_bytes().splitlines()
    except OSError:
        return {}
    ends = {}
    for line in lines:
        try:
            end = Ended(**json.loads(line))
        except (ValueError, TypeError):
            continue
        ends[end.number] = end
    return ends


def settle(sweep: SweepSpec, folder: Path) -> None:
    """Write down what is swept, or refuse to mix it with another sweep in the same folder.

    Raises:
        CheckpointError: the folder holds trials of another sweep; says what differs.
        ResourceError: it can't be written.
    """
    path, now = folder / SWEEP_FILE, to_mapping(sweep)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = yaml.safe_load(path.read_text()) if path.exists() else None
        if isinstance(before, dict) and read_ends(folder):
            _check_same(before, now, folder)
        write_atomic(path, yaml.safe_dump(now, sort_keys=False))
    except OSError as e:
        raise ResourceError(f"output: {folder} can't be written ({e.strerror})") from None


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    keys = [k for k in now if k not in FREE and before.get(k) != now[k]]
    if before.get("search", {}).get("kind") != now["search"]["kind"]:
        keys.append("search")
    if keys:
        rows = [f"  {k}: {before.get(k)!r} then, {now[k]!r} now" for k in keys]
        raise CheckpointError(
            f"{folder} holds trials of another sweep:\n"
            + "\n".join(rows)
            + "\nGive the sweep another name, or put these back."
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """A row of the table. ``best``: the metric's best value, at ``best_step``; None: it was never
    measured. ``step``: of its last validation."""

    number: int
    status: Status
    values: Mapping[str, Any]
    best: float | None
    best_step: int
    step: int
    folder: str
    error: str = ""

    @property
    def name(self) -> str:
        return trial_name(self.number)


def results_of(sweep: SweepSpec, points: Sequence[Mapping[str, Any]], folder: Path) -> list[Result]:
    """All trials, the best first; those without a value last, and failed ones behind others."""
    ends = read_ends(folder)
    rows = []
    for number, values in enumerate(points):
        run = folder / trial_name(number)
        series = read_series(run).get(sweep.metric)
        points_seen = list(zip(series.values, series.steps, strict=True)) if series else []
        finite = [(v, s) for v, s in points_seen if math.isfinite(v)]
        sign = 1 if sweep.lower_is_better else -1
        best = min(finite, key=lambda p: (sign * p[0], p[1])) if finite else None
        end = ends.get(number, Ended(number=number, status="unfinished"))
        rows.append(
            Result(
                number=number,
                status=end.status,
                values=values,
                best=best[0] if best else None,
                best_step=best[1] if best else 0,
                step=series.steps[-1] if series and series.steps else 0,
                folder=str(run),
                error=end.error,
            )
        )
    return sorted(rows, key=lambda r: _rank(r, lower=sweep.lower_is_better))


def _rank(row: Result, *, lower: bool) -> tuple[bool, bool, float, int]:
    value = math.inf if row.best is None else row.best if lower else -row.best
    return row.best is None, row.status == "failed", value, row.number
