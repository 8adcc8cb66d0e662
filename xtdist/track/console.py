"""What a waiting person sees: one live line on a terminal, else a plain line every few seconds.

``NO_COLOR`` is honoured (by rich). Plain output has no control characters, so it reads well in a
job's log.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar as RichBar
from rich.table import Table
from rich.text import Text

from xtdist.track.notes import NoteTail
from xtdist.track.records import Record, Tail
from xtdist.track.text import duration, human

PLAIN_INTERVAL_S = 5.0
POLL_S = 0.2
SHOW_INTERVAL_S = 0.1
WINDOW = 50  # records that the ETA is fitted on
BAR_WIDTH = 24
SHARES = (  # metric, its label, and from where on it is shown
    ("perf/mfu", "mfu", 0.005),
    ("perf/data_wait_share", "data wait", 0.05),
    ("perf/goodput", "goodput", 0.005),
)


class Line:
    """One line that changes in place on a terminal; elsewhere printed now and then.

    A broken pipe or full disk under ``out`` ends the showing, never the work.
    """

    def __init__(
        self,
        out: TextIO | None = None,
        *,
        interval_s: float = PLAIN_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out if out is not None else sys.stdout
        self._interval_s = interval_s
        self._clock = clock
        self._printed_at: float | None = None
        self._printed = ""
        self._shown: tuple[float | None, str] | None = None
        console = Console(file=self._out, highlight=False)
        live = self._out.isatty() and not console.is_dumb_terminal
        self._live = Live(console=console, refresh_per_second=8) if live else None
        if self._live is not None:
            self._live.start()

    def show(self, fraction: float | None, text: str) -> None:
        """Show ``text`` behind a bar filled to ``fraction`` (None: no bar)."""
        self._shown = (fraction, text)
        if self._live is not None:
            self._live.update(_rich_line(fraction, text))
            return
        now = self._clock()
        if self._printed_at is None or now - self._printed_at >= self._interval_s:
            self._print()

    def note(self, text: str) -> None:
        """Print ``text`` as a line of its own, which stays."""
        try:
            if self._live is not None:
                self._live.console.print(Text(text, style="yellow"))
            else:
                print(text, file=self._out, flush=True)
        except (OSError, ValueError):
            self._shown = None

    def close(self) -> None:
        """Leave the last state standing."""
        if self._live is not None:
            self._live.stop()
        else:
            self._print()

    def _print(self) -> None:
        if self._shown is None:
            return
        line = plain_line(*self._shown)
        self._printed_at = self._clock()
        if line == self._printed:
            return
        self._printed = line
        try:
            print(line, file=self._out, flush=True)
        except (OSError, ValueError):
            self._shown = None

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class TrainStatus:
    """The state of a training run, told by its records."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.step = 0
        self._values: dict[str, float] = {}
        self._pace: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def update(self, record: Record, *, live: bool) -> None:
        """Take a record in. ``live=False`` (one from before) says nothing about today's pace."""
        self._values.update(record.values)
        if record.step < self.step and record.values and "train/loss" not in record.values:
            return  # what became known later of an earlier step
        self.step = record.step
        if not live or (self._pace and record.step < self._pace[-1][0]):
            self._pace.clear()
        if live:
            self._pace.append((record.step, record.time))

    @property
    def fraction(self) -> float:
        """How much is done, 0 to 1."""
        return min(1.0, self.step / max(1, self.total_steps))

    def eta_s(self) -> float | None:
        """Seconds left at the pace of the last records; None if not known yet."""
        if len(self._pace) < 2:
            return None
        (step0, time0), (step1, time1) = self._pace[0], self._pace[-1]
        if step1 == step0 or time1 <= time0:
            return None
        return max(0, self.total_steps - step1) * (time1 - time0) / (step1 - step0)

    def text(self) -> str:
        """``step 450/1000  loss 3.214  valid 3.301  12.3k tok/s  mfu 48 %  goodput 97 %  eta 1m``;
        what is seldom of interest (the wait for data) only where it is."""
        parts = [f"step {self.step}/{self.total_steps}"]
        for name, label in (("train/loss", "loss"), ("eval/valid/loss", "valid")):
            if name in self._values:
                parts.append(f"{label} {self._values[name]:.3f}")
        if "perf/tokens_per_s" in self._values:
            parts.append(f"{human(self._values['perf/tokens_per_s'])} tok/s")
        for name, label, least in SHARES:
            if self._values.get(name, 0.0) >= least:
                parts.append(f"{label} {100 * self._values[name]:.0f} %")
        eta = self.eta_s()
        if eta is not None and self.step < self.total_steps:
            parts.append(f"eta {duration(eta)}")
        return "  ".join(parts)


def follow(
    run_folder: str | Path,
    total_steps: int,
    *,
    stop: threading.Event,
    out: TextIO | None = None,
) -> None:
    """Show a run's progress from its ``metrics.jsonl`` until ``stop`` is set; blocks.

    Run it in a thread of the process that waits for the run; it only reads.
    """
    tail, notes = Tail(run_folder), NoteTail(run_folder)
    status = TrainStatus(total_steps)
    for record in tail.poll_all():
        status.update(record, live=False)
    with Line(out) as line:
        if status.step:
            line.show(status.fraction, status.text())
        while True:
            last = stop.wait(POLL_S)
            for note in notes.poll():
                line.note(f"step {note.step}: {note.text}")
            for record in tail.poll_all():
                status.update(record, live=True)
                line.show(status.fraction, status.text())
            if last:
                return


class Progress:
    """A count that grows; made by :func:`progress_bar`."""

    def __init__(self, line: Line, *, total: int | None, unit: str, label: str) -> None:
        self._line = line
        self._total = total
        self._unit = unit
        self._label = label
        self._started = time.monotonic()
        self._shown = self._started
        self.done = 0

    def advance(self, amount: int = 1) -> None:
        """Count ``amount`` more."""
        self.update(self.done + amount)

    def update(self, done: int) -> None:
        """Set the count. Cheap: most calls only store it."""
        self.done = done
        now = time.monotonic()
        if now - self._shown >= SHOW_INTERVAL_S:
            self._shown = now
            self.show()

    def show(self) -> None:
        """Show the count as it is now."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = self.done / elapsed
        parts = [self._label] if self._label else []
        parts.append(self._amount())
        parts.append(f"{human(rate)}B/s" if self._unit == "B" else f"{human(rate)} {self._unit}/s")
        fraction = min(1.0, self.done / self._total) if self._total else None
        if self._total and self.done < self._total and rate > 0:
            parts.append(f"eta {duration((self._total - self.done) / rate)}")
        else:
            parts.append(f"in {duration(elapsed)}")
        self._line.show(fraction, "  ".join(parts))

    def _amount(self) -> str:
        unit = "B" if self._unit == "B" else f" {self._unit}"
        total = f" of {human(self._total)}{unit}" if self._total else unit
        done = human(self.done) + ("B" if self._total and self._unit == "B" else "")
        return done + total


@contextmanager
def progress_bar(
    total: int | None, unit: str, *, label: str = "", out: TextIO | None = None
) -> Iterator[Progress]:
    """A bar with rate and ETA. ``unit="B"`` counts bytes (shown as MB, MB/s).

    Example:
        >>> with progress_bar(3, "files", label="hash") as bar:
        ...     for _ in range(3):
        ...         bar.advance()  # doctest: +SKIP
    """
    with Line(out) as line:
        progress = Progress(line, total=total, unit=unit, label=label)
        yield progress
        progress.show()


def plain_line(fraction: float | None, text: str) -> str:
    """``[#####---------------]  25%  text`` in ASCII."""
    if fraction is None:
        return text
    filled = int(fraction * BAR_WIDTH)
    return f"[{'#' * filled}{'-' * (BAR_WIDTH - filled)}] {int(fraction * 100):3d}%  {text}"


def _rich_line(fraction: float | None, text: str) -> RenderableType:
    shown = Text(text, no_wrap=True, overflow="ellipsis")
    if fraction is None:
        return shown
    grid = Table.grid(padding=(0, 2))
    bar = RichBar(total=1.0, completed=fraction, width=BAR_WIDTH)
    grid.add_row(bar, Text(f"{int(fraction * 100):3d}%"), shown)
    return grid
