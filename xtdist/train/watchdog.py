"""A thread in every worker that notices when the workers get nowhere, and ends them.

A worker that is stuck in a collective can't be told anything and may wait for ten minutes. So each
worker's thread looks at how long its own step stands still. When that is too long, it looks at what
the others do (``beats.py``), the workers write the stacks of all their threads to
``<run>/stacks/<attempt>/``, ``<run>/hang.json`` names who is to blame, and all end. Ray then starts
them again from the newest checkpoint.

The thread needs neither the device nor the process group; only a native call that keeps Python's
lock stops it, and then the other workers' threads see that it does not beat.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist

from xtdist.files import write_atomic
from xtdist.train.beats import Beat, Verdict, judge, read_beats, write_beat
from xtdist.train.meters import Phases
from xtdist.train.spec.stability import WatchdogSpec

HANG_FILE = "hang.json"
HANG_EXIT = 86
"""The exit code of a worker that was ended because the run hung."""
PAUSES = frozenset(("start", "restore", "checkpoint", "evaluate"))


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds between beats, and within which a living worker must have beaten and the workers
    must have written their stacks."""

    beat_s: float = 1.0
    answer_s: float = 5.0


class Watchdog:
    """Watches one worker and, when it stands still, all of them. See :func:`watching`."""

    def __init__(
        self, folder: Path, attempt: str, *, spec: WatchdogSpec, timing: Timing | None = None
    ) -> None:
        self.folder, self.spec, self.timing = folder, spec, timing or Timing()
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._attempt, self._count = attempt, 0
        self._phases: Phases | None = None
        self._first_step = 0
        self._since = time.perf_counter()
        self._steps = _StepTimes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)
        self._thread.start()

    def follow(self, phases: Phases | None) -> None:
        """Watch ``phases`` from now on; None while there are none, as at the start."""
        self._since = time.perf_counter()
        self._first_step = phases.now.step if phases is not None else 0
        self._phases = phases

    def close(self) -> None:
        """This worker's part of the run has ended."""
        self._over.set()
        self._thread.join(timeout=10)
        self._beat("over")

    @property
    def _stacks(self) -> Path:
        return self.folder / "stacks" / self._attempt

    def _work(self) -> None:
        while not self._over.wait(self.timing.beat_s):
            step, phase, still_s = self._now()
            self._beat(phase)
            self._steps.see(step, paused=phase in PAUSES)
            if (self._stacks / HANG_FILE).exists():
                self._end()
            elif still_s > self._limit_s(step, phase):
                self._accuse(step, phase, still_s)
        if (self._stacks / HANG_FILE).exists():  # one that was woken must not slip away
            self._end()

    def _now(self) -> tuple[int, str, float]:
        """Finished steps, phase, and for how many seconds it stands there."""
        phases, at = self._phases, time.perf_counter()
        if phases is None:
            return self._first_step, "start", at - self._since
        now = phases.now
        return now.step, now.phase, at - max(now.since, self._since)

    def _limit_s(self, step: int, phase: str) -> float:
        """After which standing still is looked at."""
        return max(self.spec.stuck_s, 0.0 if phase in PAUSES else 5 * self._steps.slow_s)

    def _patient(self, step: int, phase: str, still_s: float) -> bool:
        """Whether a worker that lives may stand still for as long: it may compile, or save."""
        slow = phase in PAUSES or step == self._first_step
        return slow and still_s <= self.spec.pause_s

    def _beat(self, phase: str) -> None:
        self._count += 1
        write_beat(
            self.folder,
            Beat(
                attempt=self._attempt,
                rank=self.rank,
                count=self._count,
                step=self._now()[0],
                phase=phase,
                pid=os.getpid(),
                host=socket.gethostname(),
            ),
        )

    def _look(self) -> dict[int, Beat]:
        return read_beats(self.folder, attempt=self._attempt, world=self.world)

    def _accuse(self, step: int, phase: str, still_s: float) -> None:
        """Look at all workers; if somebody hangs, have all end."""
        before, until = self._look(), time.monotonic() + self.timing.answer_s
        while time.monotonic() < until and not self._over.wait(self.timing.beat_s):
            self._beat(phase)
        moved = self._now()[2] < still_s
        verdict = judge(before, self._look(), world=self.world)
        patient = self._patient(step, phase, still_s) and not verdict.stopped
        if moved or patient or self._over.is_set():
            return
        self._publish(verdict, step, still_s)
        self._end()

    def _publish(self, verdict: Verdict, step: int, still_s: float) -> None:
        """Say it once for all: the first worker to come here."""
        self._stacks.mkdir(parents=True, exist_ok=True)
        text = f"no progress for {still_s:.0f} s after step {step}: {verdict.text}"
        told = {
            "text": text,
            "ranks": list(verdict.ranks),
            "stopped": list(verdict.stopped),
            "step": step,
            "attempt": self._attempt,
            "stacks": str(self._stacks),
        }
        part = self._stacks / f".{HANG_FILE}.{self.rank}"
        part.write_text(json.dumps(told))
        try:
            os.link(part, self._stacks / HANG_FILE)
        except FileExistsError:
            return
        write_atomic(self.folder / HANG_FILE, json.dumps(told))
        print(f"{text}\n  stacks of all threads: {self._stacks}", file=sys.stderr, flush=True)

    def _end(self) -> None:
        """Leave the stacks, give the others the time to leave theirs, end this process."""
        self._dump()
        stopped = json.loads((self._stacks / HANG_FILE).read_text())["stopped"]
        beats = self._look()
        mine = [b for r, b in beats.items() if r in stopped and b.host == socket.gethostname()]
        for beat in mine:
            _send(beat, signal.SIGCONT)  # its own watchdog then leaves its stacks
        until = time.monotonic() + self.timing.answer_s
        wanted = [r for r in range(self.world) if r not in stopped or r in {b.rank for b in mine}]
        while time.monotonic() < until and not all(self._dumped(r) for r in wanted):
            time.sleep(self.timing.beat_s / 10)
        for beat in mine:
            _send(beat, signal.SIGKILL)
        os._exit(HANG_EXIT)

    def _dump(self) -> None:
        path = self._stacks / f"rank-{self.rank}.txt"
        part = path.with_suffix(".part")
        with contextlib.suppress(OSError):
            with part.open("w") as file:
                step, phase, still_s = self._now()
                file.write(f"after step {step}, in {phase} for {still_s:.1f} s\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            part.rename(path)

    def _dumped(self, rank: int) -> bool:
        return (self._stacks / f"rank-{rank}.txt").exists()


class _StepTimes:
    """How long the last steps took, as seen once a second; what else is done between is no step."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=200)
        self._step, self._at, self._paused = -1, time.perf_counter(), True

    @property
    def slow_s(self) -> float:
        """The slowest 1 % take longer."""
        return float(np.percentile(list(self._times), 99)) if self._times else 0.0

    def see(self, step: int, *, paused: bool) -> None:
        self._paused |= paused
        if step == self._step:
            return
        at = time.perf_counter()
        if step > self._step and not self._paused:
            self._times.append((at - self._at) / (step - self._step))
        self._step, self._at, self._paused = step, at, paused


def _send(beat: Beat, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        os.kill(beat.pid, number)


@contextmanager
def watching(folder: Path, spec: WatchdogSpec) -> Iterator[Watchdog | None]:
    """Watch this worker until the run has ended; all workers call it together. None: it is off."""
    if not spec.stuck_s:
        yield None
        return
    attempt = [uuid.uuid4().hex[:8]]
    dist.broadcast_object_list(attempt, src=0)
    watchdog = Watchdog(folder, attempt[0], spec=spec)
    try:
        yield watchdog
    finally:
        watchdog.close()
