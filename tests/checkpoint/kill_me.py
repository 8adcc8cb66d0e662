"""A process that saves small checkpoints until it is killed: ``kill_me.py root failpoint``.

It kills itself at the ``failpoint``-th call that changes the disk (a rename, a write, a removal …),
so every point of a save is met, without luck.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def die_at(failpoint: int) -> None:
    """Count calls that change the disk and end the process before the one of that number."""
    left = failpoint

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **keywords)

        return call

    for owner, names in (
        (os, ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")),
        (pathlib.Path, ("write_bytes", "rename", "replace", "unlink", "mkdir")),
        (shutil, ("rmtree",)),
    ):
        for name in names:
            setattr(owner, name, counted(getattr(owner, name)))


def save_for_ever(root: Path) -> None:
    from xtdist.checkpoint import CheckpointStore, Ranks, Retention, Saver, saver
    from xtdist.checkpoint.saver import Shared, Writer

    saver.POLL_S = 0.001

    store = CheckpointStore(root)
    store.sweep()
    exchange = Shared()
    attempt = store.attempt()
    savers = [
        Saver(
            store,
            attempt=attempt,
            ranks=Ranks(rank=rank, world=2, exchange=exchange),
            retention=Retention(keep=2),
        )
        for rank in range(2)
    ]

    def writer(byte: int) -> Writer:
        return lambda path: (path.write_bytes(bytes([byte % 256]) * 50), None)[1]

    step = store.newest_step()
    while True:
        step += 1
        for rank, each in enumerate(savers):
            each.submit(step, {f"state/{rank}.bin": writer(step + rank)}, {})
        for each in savers:
            each.wait()


if __name__ == "__main__":
    # One process is forked for every failpoint, so that imports are paid for once.
    import xtdist.checkpoint  # noqa: F401

    for point in map(int, sys.argv[2:]):
        child = os.fork()
        if child == 0:
            die_at(point)
            save_for_ever(Path(sys.argv[1]))
        os.waitpid(child, 0)
        print(point, flush=True)
        sys.stdin.readline()  # the test looks at what is there
