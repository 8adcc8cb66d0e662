"""The hidden folder that a build works in. It outlives a build that was killed or failed.

.<output>.build/
  lock            held by the builder; the lock dies with its process
  plan.json       digest of what is built; another plan starts over
  spool/          documents that came from an iterator
  <digest>/       everything of this plan, so that what a dead build left running harms no other
    scan-00003.json .rows   what scanning a unit found: receipt, one row for each document
    codes-00003             what becomes of each document
    sample-00003            text for training the tokenizer
    receipt-00003.json      the unit's shards are in dataset/
    attempts/               of encoding units
    dataset/                what will be published by renaming it
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xtdist.config import ResourceError, UserError
from xtdist.files import sync, write_atomic

MARGIN_BYTES = 16 * 2**20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Work:
    """Paths of one plan's files; picklable."""

    def __init__(self, root: Path, plan: str) -> None:
        self.root, self.folder = root, root / plan[:16]
        self.dataset = self.folder / "dataset"
        self.attempts = self.folder / "attempts"

    def path(self, what: str, unit: int, ending: str = "") -> Path:
        return self.folder / f"{what}-{unit:05d}{ending}"


class Workspace:
    """The folder of one output, locked."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.root = work_folder(output)
        self.needed_bytes = 0
        self.work: Work | None = None

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    def open_plan(self, plan: str) -> Work:
        """The work on ``plan``: what is there of it is kept, what is there of another removed."""
        note, work = self.root / "plan.json", Work(self.root, plan)
        try:
            same = json.loads(note.read_bytes()) == {"plan": plan}
        except (OSError, ValueError):
            same = False
        self.work = work
        for path in self.root.iterdir():
            if path.is_dir() and path != self.spool and not (same and path == work.folder):
                shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(work.attempts, ignore_errors=True)
        for folder in (work.folder, work.attempts, work.dataset):
            folder.mkdir(exist_ok=True)
        if not same:
            write_atomic(note, json.dumps({"plan": plan}) + "\n")
        return work

    def check_space(self, needed_bytes: int) -> None:
        """Raise ResourceError unless the disk has room for ``needed_bytes`` more."""
        self.needed_bytes = needed_bytes
        free = shutil.disk_usage(self.root).free
        if free < needed_bytes + MARGIN_BYTES:
            raise ResourceError(self._no_room(free))

    def failure(self, e: OSError) -> ResourceError:
        """What a failed write is to the user."""
        if e.errno in _NO_ROOM:
            return ResourceError(self._no_room(shutil.disk_usage(self.output.parent).free))
        return ResourceError(
            f"output: can't write in {self.output.parent} ({e.strerror or e}); set another with "
            "output="
        )

    def _no_room(self, free: int) -> str:
        return (
            f"no space left on the disk of {self.output.parent}: the dataset needs about "
            f"{(self.needed_bytes + MARGIN_BYTES) / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; "
            "make room and run again (finished parts are kept), or set another place with output="
        )


def work_folder(output: Path) -> Path:
    return output.parent / f".{output.name}.build"


@contextmanager
def workspace(output: Path) -> Iterator[Workspace]:
    """Take the build of ``output`` over: one builder at a time. The folder is removed when all went
    well, or when no unit was finished, now or before, and there is nothing in it to go on from.

    Raises:
        ResourceError: another build of ``output`` is running; no space or no right to write.
    """
    space = Workspace(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(space.root, output)
    except OSError as e:
        raise space.failure(e) from e
    done = False
    try:
        _bring_back(space.root, output)
        yield space
        done = True
    except (UserError, OSError) as e:
        done = not any(space.root.glob("*/receipt-*.json"))
        raise (space.failure(e) if isinstance(e, OSError) else e) from e.__cause__
    finally:
        if done:
            shutil.rmtree(space.root, ignore_errors=True)
        os.close(lock)


def _locked(root: Path, output: Path) -> int:
    """A descriptor of the locked lock file. The one that had it may have removed the folder just
    before letting go: then the file is no longer the one at its path, and a new one is made."""
    path = root / "lock"
    while True:
        root.mkdir(exist_ok=True)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(lock).st_ino == path.stat().st_ino:
                os.truncate(lock, 0)
                os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return lock
        except BlockingIOError:
            who = os.pread(lock, 300, 0).decode(errors="replace") or "another process"
            os.close(lock)
            raise ResourceError(
                f"output: {output} is being built by {who}; wait for it, or stop it and run again"
            ) from None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def publish(work: Work, output: Path, *, replace: bool) -> None:
    """Make the finished dataset visible as ``output``; what ``replace`` puts away waits in the work
    folder until then, and comes back if the builder dies between the two renames.

    Raises:
        OSError: something appeared in ``output`` meanwhile, and ``replace`` is false.
    """
    sync(work.dataset)
    if replace and output.is_dir() and any(output.iterdir()):
        os.rename(output, work.root / "replaced")
    os.rename(work.dataset, output)
    sync(output.parent)


def _bring_back(root: Path, output: Path) -> None:
    with contextlib.suppress(OSError):
        if (root / "replaced").exists() and not output.exists():
            os.rename(root / "replaced", output)
