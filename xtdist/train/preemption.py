"""Everything that asks a run to save and end: the user, a SIGTERM, a node that is taken away.

Each worker may learn of it alone and at another time; the step's all-reduce makes one decision of
it. The driver knows what it asked for; a run that ended before its last step otherwise is one that
was cut off, and is started again from the checkpoint.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

LOOK_S = 1.0  # between two looks at the stop file, which may be on a slow shared disk


class Notices:
    """What this worker has heard. Ask it every step; that costs a comparison."""

    def __init__(self, stop_file: Path) -> None:
        self._stop_file, self._look_at = stop_file, 0.0
        self._asked = threading.Event()
        self.over = threading.Event()

    @property
    def stop_wanted(self) -> bool:
        """Whether the run is to be saved and ended."""
        if not self._asked.is_set() and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            if self._stop_file.exists():
                self._asked.set()
        return self._asked.is_set()

    def ask(self, why: str) -> None:
        """Have the run saved and ended. From any thread; a second time changes nothing."""
        if not self._asked.is_set():
            self._asked.set()
            print(f"{why}: saving a checkpoint, then ending", file=sys.stderr, flush=True)

    def poll_ray(self, every_s: float) -> None:
        """Ask Ray until it says that a node is taken away. Blocks: a thread's whole work, so that
        its barrier keeps no step waiting. All workers ask equally often."""
        from ray.train import get_preemption_info

        while not self.over.wait(every_s):
            try:
                info = get_preemption_info()
            except Exception:  # not under Ray Train, or it is going down
                return
            if info is not None:
                ranks = ", ".join(map(str, info.preempted_ranks))
                self.ask(f"the node of rank {ranks} is about to be taken away")
                return


@contextmanager
def listening(stop_file: Path, *, poll_s: float) -> Iterator[Notices]:
    """Hear what asks this worker to end, until the block is left."""
    notices = Notices(stop_file)
    if poll_s and "ray" in sys.modules:
        threading.Thread(
            target=notices.poll_ray, args=(poll_s,), name="preemption", daemon=True
        ).start()

    def handler(number: int, frame: FrameType | None) -> None:
        notices.ask("SIGTERM")

    before = _set_handler(handler)
    try:
        yield notices
    finally:
        notices.over.set()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _set_handler(handler: Callable[[int, FrameType | None], None]) -> Any:
    """Set it for SIGTERM; the handler before, where it can be put back."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)

    # Ray runs a worker's function in a thread, and only the main thread may set a handler: it is
    # left to do it, which it does within the second, as soon as Ray asks the worker for its state.
    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
    def pending(_: int) -> int:
        signal.signal(signal.SIGTERM, handler)
        return 0

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(pending))  # it may come after this returns
    ctypes.pythonapi.Py_AddPendingCall(pending, None)
    return None
