"""Ctrl-C and SIGTERM in the process that a user sees."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM calls ``stop``; the second one is obeyed. In another thread than
    the main one, which gets no signals, nothing happens."""

    def handler(number: int, frame: object) -> None:
        stop()
        signal.signal(number, previous[signal.Signals(number)])

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {n: signal.signal(n, handler) for n in numbers}
    try:
        yield
    finally:
        for n in numbers:
            signal.signal(n, previous[n])
