"""Worker processes on this machine.

Each is a fresh interpreter that runs ``worker.py`` (the user's script is not imported again), gets
one task at a time over a socket of its own, and ends when its standard input does, that is: also
when this process is killed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from xtdist.config import ResourceError

MODULE = "xtdist.data.build.worker"


class Processes:
    """At most ``count`` processes, started when there is more than one task to do."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._workers: list[_Worker] = []

    def run(self, tasks: Sequence[Any], advance: Callable[[int], None]) -> list[Any]:
        count = min(self.count, len(tasks))
        if count <= 1:
            return [task(advance) for task in tasks]
        while len(self._workers) < count:
            self._workers.append(_Worker())
        try:
            return self._share_out(tasks, advance)
        except BaseException:
            self._end()  # what is half done would answer into the next run
            raise

    def _share_out(self, tasks: Sequence[Any], advance: Callable[[int], None]) -> list[Any]:
        results: list[Any] = [None] * len(tasks)
        waiting = iter(enumerate(tasks))
        busy = {}
        for worker, (number, task) in zip(self._workers, waiting, strict=False):
            worker.begin(number, task)
            busy[worker.line] = worker
        while busy:
            for line in wait(list(busy)):
                worker = busy[line]  # type: ignore[index]
                kind, value = worker.hear()
                if kind == "advance":
                    advance(value)
                    continue
                if kind == "failed":
                    raise value
                results[worker.number] = value
                following = next(waiting, None)
                if following is None:
                    del busy[worker.line]
                else:
                    worker.begin(*following)
        return results

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []


class _Worker:
    """One process, its line, and the task that it has."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(p for p in sys.path if p)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the builder, which ends its workers
            )
        self.line: Connection[Any, Any] = Connection(ours.detach())
        self.number, self.name = -1, ""

    def begin(self, number: int, task: Any) -> None:
        self.number, self.name = number, task.name
        try:
            self.line.send(task)
        except OSError:
            raise self._died() from None

    def hear(self) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = self.line.recv()
        except (EOFError, OSError):
            raise self._died() from None
        return message

    def end(self) -> None:
        self.line.close()
        self.process.kill()
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()

    def _died(self) -> ResourceError:
        code = self.process.wait()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        hint = "; out of memory? then set fewer runner.workers" if code == -9 else ""
        return ResourceError(
            f"a worker died ({how}) on {self.name}{hint}; run again: finished parts are kept"
        )
