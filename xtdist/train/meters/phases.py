"""A stopwatch over the phases of a step.

Every moment belongs to exactly one phase, the innermost that was entered, so the seconds of a lap
always add up to the time since the lap before.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, get_args

import torch

Phase = Literal[
    "start",  # building the run, until its first step
    "restore",  # reading a checkpoint
    "data",  # waiting for the next batch
    "forward",
    "backward",
    "reduce",  # waiting in collectives; see Phases
    "optimizer",
    "rest",  # in a step and none of these: cutting the batch, reading the loss back
    "checkpoint",  # what a save keeps the step waiting
    "evaluate",  # validation and samples
    "other",  # between steps
]
PHASES: tuple[Phase, ...] = get_args(Phase)
# Elsewhere a collective is part of the phase: validation is validation, whoever waits for whom.
REDUCING: frozenset[Phase] = frozenset(("forward", "backward", "optimizer", "rest", "other"))
Item = TypeVar("Item")


class Now(NamedTuple):
    """What a process is doing. ``since`` is on the clock of ``time.perf_counter``."""

    step: int
    phase: Phase
    since: float


@dataclass(frozen=True, kw_only=True)
class Lap:
    """Seconds by phase between two calls of :meth:`Phases.lap`; phases without any are left out.

    ``host`` is what this process's clock says and adds up to ``total``. ``shown`` is the same on a
    CPU; on CUDA it is what the device spent between the marks, where the host only queues work.
    """

    host: dict[Phase, float]
    shown: dict[Phase, float]

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.host.values())


class Phases:
    """Counts the seconds of each phase.

    Example:
        >>> phases = Phases()
        >>> with phases("forward"):
        ...     with phases("reduce"):  # not counted as forward
        ...         pass
        >>> sorted(phases.lap(step=1).host)
        ['forward', 'reduce', 'start']

    A mark costs about a microsecond. On CUDA it also records an event on the current stream;
    nothing ever waits for one: spans whose events the device has not reached yet are counted in
    the next lap. What DeepSpeed reduces during the backward pass on CUDA overlaps with it and is
    part of ``backward`` there; ``reduce`` is then the step's own small reductions only.

    One thread marks, the one that made the object (marks of others are ignored); any may read
    ``now``.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        *,
        step: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._thread = threading.get_ident()
        self._seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._outer: list[Phase] = []
        self._spans = {name: _Span(self, name) for name in PHASES}
        cuda = device is not None and device.type == "cuda"
        self._device = _DeviceClock() if cuda else None
        self._now = Now(step, "start", clock())

    @property
    def now(self) -> Now:
        """The finished steps at the last lap, the current phase, and since when; from any thread.
        As long as ``since`` changes, the process gets on."""
        return self._now

    def __call__(self, name: Phase) -> _Span:
        """A context manager in which time is counted as ``name``."""
        return self._spans[name]

    def over(self, name: Phase, items: Iterable[Item]) -> Iterator[Item]:
        """``items``; the wait for each is counted as ``name``."""
        iterator = iter(items)
        while True:
            with self(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def lap(self, *, step: int) -> Lap:
        """The seconds since the last lap; ``step`` counts the finished steps. The first lap ends
        the phase ``start``."""
        if self._now.phase == "start":
            self._switch("other")
        self._outer = ["other" if name == "start" else name for name in self._outer]
        self._switch(self._now.phase, step=step)
        host = {name: s for name, s in self._seconds.items() if s}
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return Lap(host=host, shown=self._device.take() if self._device else host)

    def _enter(self, name: Phase) -> None:
        if threading.get_ident() == self._thread:
            now = self._now.phase
            self._outer.append(now)
            self._switch(now if name == "reduce" and now not in REDUCING else name)

    def _leave(self) -> None:
        if threading.get_ident() == self._thread:
            self._switch(self._outer.pop())

    def _switch(self, name: Phase, *, step: int | None = None) -> None:
        at, before = self._clock(), self._now
        self._seconds[before.phase] += at - before.since
        self._now = Now(before.step if step is None else step, name, at)
        if self._device is not None:
            self._device.mark(name)


class _Span:
    """``with`` over one phase; stateless, so one serves every time, also within itself."""

    __slots__ = ("_name", "_phases")

    def __init__(self, phases: Phases, name: Phase) -> None:
        self._phases, self._name = phases, name

    def __enter__(self) -> None:
        self._phases._enter(self._name)

    def __exit__(self, *error: object) -> None:
        self._phases._leave()


class _DeviceClock:
    """The marks on a CUDA stream's own time."""

    def __init__(self) -> None:
        self._stream = torch.cuda.current_stream()
        self._marks: deque[tuple[Phase, torch.cuda.Event]] = deque()
        self._free: list[torch.cuda.Event] = []

    def mark(self, name: Phase) -> None:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        self._marks.append((name, event))

    def take(self) -> dict[Phase, float]:
        """Seconds between the marks that the device has passed."""
        seconds: dict[Phase, float] = {}
        while len(self._marks) > 1 and self._marks[1][1].query():
            name, event = self._marks.popleft()
            seconds[name] = seconds.get(name, 0.0) + event.elapsed_time(self._marks[0][1]) / 1e3
            self._free.append(event)
        return seconds
