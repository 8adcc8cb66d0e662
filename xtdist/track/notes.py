"""``notes.jsonl``: what a person should know of a run beside its numbers, one line each."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from xtdist.files import append_line

FILE = "notes.jsonl"


@dataclass(frozen=True, kw_only=True)
class Note:
    """A sentence about a step, at seconds since 1970."""

    step: int
    time: float
    text: str


def write_note(run_folder: str | Path, step: int, text: str) -> None:
    """Append one note; a disk that takes none loses it."""
    line = json.dumps({"step": step, "time": round(time.time(), 3), "text": text})
    with contextlib.suppress(OSError):
        append_line(Path(run_folder) / FILE, line)


class NoteTail:
    """Reads notes as they are written, from the end that there is now."""

    def __init__(self, run_folder: str | Path) -> None:
        self._path = Path(run_folder) / FILE
        self._offset = self._path.stat().st_size if self._path.exists() else 0

    def poll(self) -> list[Note]:
        """What has come since; torn lines are skipped."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        notes = []
        for line in data[:whole].splitlines():
            try:
                raw = json.loads(line)
                notes.append(
                    Note(step=int(raw["step"]), time=float(raw["time"]), text=str(raw["text"]))
                )
            except (ValueError, KeyError, TypeError, OverflowError):
                continue
        return notes
