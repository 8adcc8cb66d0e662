"""The decode engine in a thread of its own, spoken to from an asyncio event loop.

The loop never waits for the engine and the engine never waits for a client: jobs go in by a queue
that is read between steps, and each step comes back as one wake-up of the loop, however many
requests it served. An exception in a request's admission, and one in a step that the engine blames
on one request, fails that request; any other in a step fails those that are new in it. Without new
ones, or again and again, it fails all jobs and marks the engine as broken, and the replica is
replaced.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from xtdist.config import ConfigError
from xtdist.decode.outputs import Output, QueueFull, RequestFailed
from xtdist.decode.params import EngineConfig, GenerationParams
from xtdist.decode.stats import EngineStats
from xtdist.serve.errors import (
    ApiError,
    deadline_exceeded,
    internal,
    outline,
    overloaded,
    slow_reader,
    unhealthy,
)
from xtdist.serve.job import Event, Job, Params, Piece
from xtdist.serve.metrics import Meter
from xtdist.serve.protocol import refused
from xtdist.serve.turnover import Turnover

log = logging.getLogger(__name__)
_MOST_FAILURES = 3  # steps in a row that may fail for their new requests
_LOOK_S = 1.0  # seconds between looks at the deadlines while the engine is idle


class EngineLike(Protocol):
    """What is used of :class:`xtdist.decode.Engine`."""

    @property
    def config(self) -> EngineConfig: ...
    @property
    def has_work(self) -> bool: ...
    @property
    def waiting(self) -> Collection[str]: ...
    def stats(self) -> EngineStats: ...
    def add(
        self,
        prompt_ids: Sequence[int],
        params: Params,
        *,
        request_id: str | None = None,
        salt: str = "",
    ) -> str: ...
    def step(self) -> list[Output]: ...
    def abort(self, request_id: str) -> object: ...
    def knows(self, request_id: str) -> bool: ...
    def compile(self, params: GenerationParams) -> None: ...


class EngineThread:
    """Runs ``engine`` until :meth:`stop`.

    Args:
        engine: used by this thread only.
        max_unread_tokens: a job with more tokens that nobody has read is aborted before the next
            step.
        max_wait_s: for a turn; where it takes longer there is no room.
        clock: monotonic seconds.

    Attributes:
        meter: told of every delivery, in the event loop.
        stats: the engine's, after the last step.
    """

    def __init__(
        self,
        engine: EngineLike,
        *,
        name: str,
        max_unread_tokens: int = 4096,
        max_wait_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.name = name
        self.steps = 0
        self._step_began: float | None = None
        self._failures = 0  # steps in a row
        self.broken = False
        self.meter: Meter | None = None
        self.stats = engine.stats()
        self.turnover = Turnover()
        self.max_wait_s = max_wait_s
        self._max_unread_tokens = max_unread_tokens
        self._clock = clock
        self._ids = itertools.count()
        self._jobs: dict[str, tuple[Job, int]] = {}  # engine request id -> job, prompt index
        self._queued: set[str] = set()  # of them, those that no step was made for
        self._inbox: list[tuple[str, Job]] = []
        self._news = threading.Condition()
        self._stopping = False
        self._ending: ApiError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    @property
    def stalled_s(self) -> float:
        """How long the step that is running has taken so far; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else self._clock() - began

    @property
    def running(self) -> int:
        """Engine requests that have not finished."""
        return len(self._jobs)

    @property
    def wait_s(self) -> float:
        """How long a request that comes now waits for its turn, as far as that is known."""
        return self.turnover.wait_s(self.stats.waiting)

    @property
    def has_room(self) -> bool:
        """Whether the queue was not full, or too slow, after the last step."""
        return (
            self.stats.waiting < self.engine.config.max_waiting and self.wait_s <= self.max_wait_s
        )

    def check_room(self) -> None:
        """Refuse a request for which there is no room now, before it is tokenized.

        Raises:
            ApiError: 503 with the time to come back.
        """
        if not self.has_room:
            raise overloaded(self.wait_s)

    def submit(self, job: Job) -> None:
        """Hand a job over; call it in the event loop that reads the job.

        Raises:
            ApiError: 503 when the engine has failed.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread.start()
        job.began = self._clock()
        job.deadline = job.began + job.timeout_s
        self._post("add", job)

    def cancel(self, job: Job) -> None:
        """Forget a job; what is left of it is aborted before the next step. Twice is once."""
        if self.meter is not None and not job.over:
            self.meter.left(job)
        self._post("cancel", job)

    def cut(self, job: Job) -> None:
        """Forget a job whose client does not take what it is sent."""
        if self.meter is not None and not job.over:
            self.meter.cut(job)
        job.failed = True
        self.cancel(job)

    def fail(self, error: ApiError) -> None:
        """End all jobs of this moment with ``error``."""
        with self._news:
            self._ending = error
            self._news.notify()

    def stop(self) -> None:
        """End the thread after the step that is running."""
        with self._news:
            self._stopping = True
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _post(self, what: str, job: Job) -> None:
        with self._news:
            if self.broken and what == "add":
                raise unhealthy()
            self._inbox.append((what, job))
            self._news.notify()

    def _run(self) -> None:
        try:
            while self._wait():
                self._turn()
        except Exception as e:
            log.error("engine %s failed; all its requests fail with it\n%s", self.name, outline(e))
            self.broken = True
            self._fail_everything()

    def _wait(self) -> bool:
        """Sleep while there is nothing to do. False when it is time to end.

        While there are jobs it wakes at least every second, so that their deadlines are kept even
        if the engine has nothing to do for them."""
        with self._news:
            while not (self._inbox or self._ending or self._stopping or self.engine.has_work):
                if not self._news.wait(_LOOK_S if self._jobs else None) and self._jobs:
                    break
            return not self._stopping

    def _turn(self) -> None:
        """Read the inbox, drop what is late, make one step, wake the loop once."""
        events: list[tuple[Job, Event]] = []
        with self._news:
            inbox, self._inbox = self._inbox, []
            ending, self._ending = self._ending, None
        for what, job in inbox:
            if what == "add":
                events.append((job, self._admit(job)))
            else:
                self._drop(job)
        events += self._end_overdue(ending)
        if self.engine.has_work:
            began = self._step_began = self._clock()
            queued = bool(self._queued)
            outputs = self._step()
            starts = self._note_starts()
            if queued:
                self.turnover.note(starts, self._clock() - began)
            events += self._collect(outputs)
            self._step_began = None
        events += self._end_lost()
        self.stats = self.engine.stats()
        self._wake_loop(events)

    def _end_overdue(self, ending: ApiError | None) -> list[tuple[Job, Event]]:
        """Errors for the jobs that may not go on: all of them for ``ending``; those past their
        deadline; those that are made faster than they are read."""
        now, errors = self._clock(), list[tuple[Job, Event]]()
        for job in {id(job): job for job, _ in self._jobs.values()}.values():
            error = ending
            if error is None and now > job.deadline:
                error = deadline_exceeded(job.timeout_s)
            elif error is None and job.made - job.taken > self._max_unread_tokens:
                error = slow_reader()
            if error is not None:
                self._drop(job)
                errors.append((job, error))
        return errors

    def _step(self) -> list[Output]:
        """A request that fails alone is lost; the engine goes on with the others. Where it can't
        tell which one fails, those go that the step was the first one of, a few times in a row."""
        try:
            outputs = self.engine.step()
        except RequestFailed as e:
            log.error("engine %s dropped a request\n%s", self.name, outline(e))
            self.steps += 1
            return []
        except Exception as e:
            new = self._queued.difference(self.engine.waiting) & self._jobs.keys()
            self._failures += 1
            if not new or self._failures > _MOST_FAILURES:
                raise
            log.error("engine %s goes on without %d requests\n%s", self.name, len(new), outline(e))
            for request_id in new:
                self.engine.abort(request_id)
            return []
        self._failures = 0
        self.steps += 1
        return outputs

    def _admit(self, job: Job) -> Event:
        """Add all prompts of a job or none; the event that tells which."""
        try:
            for index, prompt in enumerate(job.prompts):
                request_id = f"{self.name}-{next(self._ids)}"
                self.engine.add(prompt, job.params_of(index), request_id=request_id, salt=job.salt)
                self._jobs[request_id] = (job, index)
                self._queued.add(request_id)
                job.live[request_id] = job.choices_of(index)
        except QueueFull:
            refusal = overloaded()
        except ConfigError as e:
            refusal = refused(e)
        except Exception as e:
            log.error("engine %s could not take a request\n%s", self.name, outline(e))
            refusal = internal()
        else:
            return []
        self._drop(job)
        return refusal

    def _drop(self, job: Job) -> None:
        for request_id in job.live:
            self.engine.abort(request_id)
            del self._jobs[request_id]
        job.live.clear()

    def _end_lost(self) -> list[tuple[Job, Event]]:
        """Errors for the jobs with a request that is over in the engine, but with fewer endings
        than were asked for: nothing more would come."""
        jobs = ((name, job) for name, (job, _) in self._jobs.items())
        lost = {id(job): job for name, job in jobs if not self.engine.knows(name)}
        for job in lost.values():
            log.error("engine %s ended a request without all of its outputs", self.name)
            self._drop(job)
        return [(job, internal()) for job in lost.values()]

    def _collect(self, outputs: list[Output]) -> list[tuple[Job, Event]]:
        """The outputs of a step, by job."""
        by_job: dict[int, tuple[Job, Event]] = {}
        for output in outputs:
            if output.request_id not in self._jobs:
                continue
            job, index = self._jobs[output.request_id]
            pieces = by_job.setdefault(id(job), (job, []))[1]
            assert isinstance(pieces, list)
            pieces.append(piece := Piece(index, output))
            job.made += piece.size
            if output.finish_reason is not None:
                job.live[output.request_id] -= 1
                if not job.live[output.request_id]:
                    del job.live[output.request_id], self._jobs[output.request_id]
        return list(by_job.values())

    def _note_starts(self) -> int:
        """The step that was made is the first one of the jobs that are no longer queued: of so
        many requests."""
        starts = 0
        if self._queued:
            waiting = self.engine.waiting
            for request_id in self._queued.difference(waiting):
                self._queued.discard(request_id)
                if request_id in self._jobs:
                    job = self._jobs[request_id][0]
                    job.started = self._step_began if job.started is None else job.started
                    starts += 1
        return starts

    def _wake_loop(self, events: list[tuple[Job, Event]]) -> None:
        if not events or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._deliver, events)
        except RuntimeError:  # the loop is closed: nobody is left to read
            self._stopping = True

    def _fail_everything(self) -> None:
        """Jobs that nothing was done for yet may go to another replica."""
        with self._news:
            waiting = [job for what, job in self._inbox if what == "add"]
            self._inbox.clear()
        running = {id(job): job for job, _ in self._jobs.values()}.values()
        self._jobs.clear()
        failed: list[tuple[Job, Event]] = [(job, unhealthy()) for job in waiting]
        self._wake_loop([*failed, *((job, internal()) for job in running)])

    def _deliver(self, events: list[tuple[Job, Event]]) -> None:
        now = self._clock()
        for job, event in events:
            job.deliver(event)
            if self.meter is not None and event:
                self.meter.delivered(job, event, now=now)
