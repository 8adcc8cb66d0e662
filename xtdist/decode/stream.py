"""Outputs as they come: an iterator over one request of an engine that may run others beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from xtdist.decode.outputs import Output, RequestFailed


class Stepping(Protocol):
    """What a stream needs of the engine."""

    def knows(self, request_id: str) -> bool: ...
    def abort(self, request_id: str) -> bool: ...
    def pump(self) -> None: ...


@dataclass
class Mail:
    """Keeps outputs for those who read them: ``boxes`` of requests that are iterated over, and
    ``unread`` for whoever asks the engine for its next outputs. ``failures``: of requests that came
    to no end, until somebody is told."""

    boxes: dict[str, deque[Output]] = field(default_factory=dict)
    unread: list[Output] = field(default_factory=list)
    failures: dict[str, RequestFailed] = field(default_factory=dict)

    @property
    def waits(self) -> bool:
        """Whether there is something that belongs to no box."""
        return bool(self.unread) or any(name not in self.boxes for name in self.failures)

    def open(self, request_id: str) -> deque[Output]:
        """The box of a request that was just added."""
        self.boxes[request_id] = deque()
        return self.boxes[request_id]

    def close(self, request_id: str) -> None:
        """Nobody reads this box any more."""
        if self.boxes.pop(request_id, None) is not None:
            self.failures.pop(request_id, None)

    def sort(self, outputs: Iterable[Output]) -> None:
        """Put every output where it is read."""
        for output in outputs:
            self.boxes.get(output.request_id, self.unread).append(output)

    def drop(self, request_id: str) -> None:
        """Forget what is unread of an aborted request."""
        self.unread = [o for o in self.unread if o.request_id != request_id]

    def check(self, request_ids: Iterable[str]) -> None:
        """Raises what made one of these requests fail."""
        if not self.failures:
            return
        for name in request_ids:
            if name in self.failures:
                cause = self.failures.pop(name).__cause__
                assert cause is not None
                raise cause

    def take(self) -> list[Output]:
        """What belongs to no box, once.

        Raises:
            RequestFailed: for each such request that failed, once; the outputs stay.
        """
        lost = next((name for name in self.failures if name not in self.boxes), None)
        if lost is not None:
            raise self.failures.pop(lost)
        taken, self.unread = self.unread, []
        return taken


class OutputStream(Iterator[Output]):
    """The outputs of one request; asking for the next one makes the engine step until it is there.

    Several streams of one engine may be read in any order, by one thread. The request ends with the
    stream: by ``close``, at the end of a ``with`` block, or when nobody holds the stream any more.
    What its own processor or grammar raises comes after the outputs before it; the engine and its
    other streams go on.
    """

    def __init__(self, engine: Stepping, request_id: str, mail: Mail) -> None:
        self._engine, self._mail = engine, mail
        self.request_id = request_id
        self._box = mail.open(request_id)

    def __next__(self) -> Output:
        try:
            while not self._box and self._engine.knows(self.request_id):
                self._engine.pump()
        except BaseException:
            self.close()
            raise
        if self._box:
            return self._box.popleft()
        try:
            self._mail.check((self.request_id,))
        finally:
            self.close()
        raise StopIteration

    def close(self) -> None:
        """Abort the request if it is not finished; nothing more comes."""
        if self._mail.boxes.get(self.request_id) is not self._box:
            return
        self._mail.close(self.request_id)
        self._box.clear()
        self._engine.abort(self.request_id)

    def __enter__(self) -> OutputStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_box"):
            self.close()
