"""What the driver of a run does about failures: who is started again, with how many workers, when,
and when it is enough.

Each attempt is one ``fit`` of Ray Train with a fixed number of workers. After a failure as many are
started as the cluster has room for; when there has been room for more for a while, the workers
are asked to save and end, and more are started: no step is lost by growing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xtdist.checkpoint import CheckpointStore
from xtdist.checkpoint.lease import Lease
from xtdist.config import UserError
from xtdist.launch.attempts import Attempts, attempt_line
from xtdist.launch.failures import EARLY, ERROR, HANG_FILE, NO_ROOM, PREEMPTED, Failure, classify
from xtdist.launch.fit import Worker, fit
from xtdist.launch.preflight import Plan
from xtdist.launch.room import POLL_S, NoRoomError, Room
from xtdist.launch.signals import stop_on_signal
from xtdist.track.records import FILE as METRICS_FILE
from xtdist.train.loop import ERROR_FILE
from xtdist.train.run import STOP_FILE
from xtdist.train.stability.interventions import stopped_early


class TrainingFailedError(RuntimeError):
    """Workers kept failing without progress, or the nodes for them did not come."""


@dataclass(frozen=True)
class Watch:
    """Of one attempt. ``over``: it has ended, or must. ``growing``: its workers were asked to end
    so that more can start."""

    over: threading.Event = field(default_factory=threading.Event)
    growing: threading.Event = field(default_factory=threading.Event)


@dataclass
class Driver:
    """``run`` trains a plan to its end. One driver works on a run's folder at a time."""

    plan: Plan
    payload: dict[str, Any]
    worker: Worker
    lease: Lease
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        workers, aside = self.plan.spec.workers, self.plan.spec.loop.aside
        self.room = Room(workers, self.plan.gpus_per_worker, aside=aside)
        self.attempts = Attempts(self.plan.folder, workers.max_failures)
        self.waited_since: float | None = None
        self.newest = self.plan.done_step

    def run(self) -> Exception | None:
        """Attempts until the run is done, stopped (None), or has failed for good (the error)."""
        with stop_on_signal(self._save_and_end):
            while True:
                self._clear()
                if self.stop.is_set():
                    return None
                try:
                    count = self.room.wait(stop=self.stop, say=_say)
                except NoRoomError as e:
                    return _for_good(str(e))
                if not count:
                    return None
                ended, error = self._attempt(count)
                if ended:
                    return error

    def _attempt(self, count: int) -> tuple[bool, Exception | None]:
        """One attempt; whether it was the last one, and the run's error."""
        folder, total = self.plan.folder, self.plan.spec.loop.steps
        self.attempts.started(workers=count, step=self._newest())
        _say(f"starting {count} workers …")
        with self._watch(count) as watch:
            error = fit(self.plan, self.payload, self.worker, count=count, over=watch.over)
        if self.lease.lost:
            return True, _for_good("another process took over this run; this one ends")
        step = self._newest()
        mistake = _mistake(folder, self.lease.epoch)
        if error is None and mistake is None:
            done = step >= total or stopped_early(folder, step)
            kind = self._kind_of_end(done, growing=watch.growing.is_set())
            if kind is not None:
                self.attempts.ended(kind, step)
                return kind != "resized", None
        failure = self._failure(error, mistake, step)
        self.attempts.failed(failure, step)
        if mistake is not None:
            return True, mistake
        _say(attempt_line(failure, self.attempts, step))
        return self._after(failure, error)

    def _metrics(self) -> int:
        """Changes with every step. Before its first one, an attempt's own workers may not yet have
        taken their place, which would look like room for more."""
        try:
            return (self.plan.folder / METRICS_FILE).stat().st_size
        except FileNotFoundError:
            return 0

    def _newest(self) -> int:
        """The step of the newest checkpoint, or what it was when the store last answered."""
        try:
            self.newest = newest_step(self.plan)
        except (OSError, UserError) as e:
            _say(f"the checkpoints can't be listed now: {e}")
        return self.newest

    def _failure(
        self, error: BaseException | None, mistake: UserError | None, step: int
    ) -> Failure:
        if mistake is not None:
            return Failure(ERROR, f"{type(mistake).__name__}: {mistake}")
        if error is not None:
            return classify(error, self.plan.folder)
        saved = step > self.attempts.from_step
        return Failure(
            PREEMPTED if saved else EARLY, "the workers were told to end before the last step"
        )

    def _kind_of_end(self, done: bool, *, growing: bool) -> str | None:
        if done or self.stop.is_set():
            return "done" if done else "stopped"
        return "resized" if growing else None

    def _after(
        self, failure: Failure, error: BaseException | None
    ) -> tuple[bool, Exception | None]:
        """Whether to give up after ``failure``; else wait until it is time for the next start."""
        if self.stop.is_set():
            return True, None
        if self.attempts.given_up:
            return True, _for_good(str(error or failure))
        if self._out_of_patience(failure):
            return True, _for_good(f"the workers never started: {failure}")
        self.stop.wait(self.attempts.delay_s)
        return False, None

    def _out_of_patience(self, failure: Failure) -> bool:
        """Whether starts have timed out one after the other for ``wait_minutes``."""
        if failure.kind != NO_ROOM:
            self.waited_since = None
            return False
        self.waited_since = self.waited_since or time.monotonic()
        return time.monotonic() - self.waited_since > 60 * self.plan.spec.workers.wait_minutes

    def _clear(self) -> None:
        """Forget what the attempt before left for this one to read."""
        for name in (STOP_FILE, ERROR_FILE, HANG_FILE):
            (self.plan.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _watch(self, count: int) -> Iterator[Watch]:
        """Keep an eye on what concerns an attempt from outside while it runs."""
        watch = Watch()
        thread = threading.Thread(target=self._look, args=(watch, count), name="watch", daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            watch.over.set()
            thread.join()

    def _look(self, watch: Watch, count: int) -> None:
        """End the attempt when the run is another's; have the workers save and end when they are to
        stop, or when there was room for more of them for a while."""
        workers, since, began = self.plan.spec.workers, None, self._metrics()
        while not watch.over.wait(POLL_S):
            if self.lease.lost:
                watch.over.set()
            elif self.stop.is_set():
                (self.plan.folder / STOP_FILE).touch()
            elif count < workers.count and not watch.growing.is_set():
                room = self._metrics() != began and _free(self.room)
                since = (since or time.monotonic()) if room else None
                if since is not None and time.monotonic() - since >= workers.grow_after_s:
                    _say("there is room for more workers: saving a checkpoint, then starting them")
                    watch.growing.set()
                    (self.plan.folder / STOP_FILE).touch()

    def _save_and_end(self) -> None:
        _say("\nstopping: saving a checkpoint first (once more: at once)")
        self.stop.set()
        if not self.lease.lost:
            (self.plan.folder / STOP_FILE).touch()


def newest_step(plan: Plan) -> int:
    """The step of the newest checkpoint by its name; 0 without one."""
    return CheckpointStore(plan.spec.checkpoint.place(plan.folder)).newest_step()


def _free(room: Room) -> int:
    try:
        return room.slots().free
    except Exception:  # the cluster does not answer just now: no reason to end an attempt
        return 0


def _mistake(folder: Path, epoch: int) -> UserError | None:
    """The own clear error of the workers of ``epoch``, if they left one."""
    try:
        raw = json.loads((folder / ERROR_FILE).read_text())
    except FileNotFoundError:
        return None
    if raw.get("epoch", epoch) != epoch:
        return None
    kinds: dict[str, type[UserError]] = {k.__name__: k for k in UserError.__subclasses__()}
    return kinds.get(raw["kind"], UserError)(raw["message"])


def _for_good(why: str) -> TrainingFailedError:
    return TrainingFailedError(f"{why}\nThe same command goes on from the last checkpoint.")


def _say(line: str) -> None:
    print(line, flush=True)
