"""Things that may never come back: a dead NFS server, a driver that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def limited(work: Callable[[], T], *, seconds: float) -> T:
    """The result of ``work``, which goes on by itself when its time is over: a thread that waits
    for a disk can't be ended.

    Raises:
        TimeoutError: no result in ``seconds``.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def do() -> None:
        try:
            results.append(work())
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return results[0]


def output_of(
    command: Sequence[str], *, seconds: float, env: Mapping[str, str] | None = None
) -> str | None:
    """What a program prints; None if it is not here, fails, or takes longer (then it is killed,
    with all that it started)."""
    try:
        child = subprocess.Popen(
            command,
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        out, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        return None
    return out if child.returncode == 0 else None
