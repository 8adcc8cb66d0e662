"""What happened to a run beside its steps: starts that came after others, and interventions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from xtdist.track.records import Series

ATTEMPTS = "attempts.jsonl"
INTERVENTIONS = "interventions.jsonl"
Kind = Literal["restart", "intervention"]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """At a step (counted as in the metrics) and a time (seconds since 1970)."""

    kind: Kind
    step: int
    time: float
    text: str


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; torn lines are left out, a missing file has none."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows


def read_marks(run_folder: str | Path) -> list[Mark]:
    """Of a run, oldest first; rows that make no sense are left out."""
    marks: list[tuple[Kind, dict[str, Any], str]] = []
    why = ""
    for row in read_rows(Path(run_folder) / ATTEMPTS):
        if row.get("event") == "ended":
            why = f" after: {row.get('kind')}" + (f" ({row['text']})" if row.get("text") else "")
        elif number(row.get("attempt"), 1) > 1:
            text = f"attempt {row['attempt']} from step {row.get('step')}{why}"
            marks.append(("restart", row, text))
            why = ""
    for row in read_rows(Path(run_folder) / INTERVENTIONS):
        marks.append(("intervention", row, f"{row.get('what')}: {row.get('text')}"))
    found = [
        Mark(kind=kind, step=int(number(row.get("step"))), time=number(row.get("time")), text=text)
        for kind, row, text in marks
        if number(row.get("step"), -1) >= 0
    ]
    return sorted(found, key=lambda mark: mark.time)


def number(value: Any, otherwise: float = 0.0) -> float:
    """A finite number, or ``otherwise``."""
    good = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if good else otherwise


def parts_of(steps: Sequence[int]) -> list[int]:
    """A number for each point; two neighbours have different ones if records are missing between:
    more than three times the distance on either side of it."""
    gaps = [b - a for a, b in pairwise(steps)]
    parts, part = [0][: len(steps)], 0
    for i, gap in enumerate(gaps):
        around = [*gaps[max(0, i - 1) : i], *gaps[i + 1 : i + 2]]
        part += bool(around) and gap > 3 * max(around)
        parts.append(part)
    return parts


def first_sign(series: Sequence[Series], run_folder: str | Path) -> float:
    """When a run began, seconds since 1970: its first attempt, or record."""
    times = [number(r.get("time")) for r in read_rows(Path(run_folder) / ATTEMPTS)]
    known = [t for t in (*times, *(s.times[0] for s in series if s.times)) if t > 0]
    return min(known, default=0.0)
