"""A worker process of a local build: ``python -m xtdist.data.build.worker <descriptor>``."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from xtdist.config import UserError

INTERVAL_S = 0.1


def serve(line: Connection[Any, Any]) -> None:
    """Do the tasks that come over ``line`` until it is closed."""
    while True:
        try:
            task = line.recv()
        except (EOFError, OSError):
            return
        try:
            advance = _Sender(line)
            result = task(advance)
            advance.flush()
            answer = ("done", result)
        except (UserError, OSError) as e:
            answer = ("failed", e)
        except Exception as e:
            text = "".join(traceback.format_exception(e))
            answer = ("failed", RuntimeError(f"a worker failed on {task.name}\n{text}"))
        line.send(answer)


class _Sender:
    """Sends progress a few times a second."""

    def __init__(self, line: Connection[Any, Any]) -> None:
        self._line, self._sent, self._amount = line, time.monotonic(), 0

    def __call__(self, amount: int) -> None:
        self._amount += amount
        if time.monotonic() - self._sent >= INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        self._line.send(("advance", self._amount))
        self._sent, self._amount = time.monotonic(), 0


def _end_with_builder() -> None:
    """Standard input ends when the builder does, however it ends."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_builder, daemon=True).start()
    serve(Connection(int(sys.argv[1])))
