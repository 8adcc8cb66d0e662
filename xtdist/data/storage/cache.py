"""The host's cache of remote shards: content-addressed, bounded, shared by all processes.

``<folder>/<sha256[:2]>/<sha256>.arrow`` holds a shard, ``….part`` one on its way. All agreement is
by ``flock``, which ends with its process, so nothing needs cleaning up after a kill -9:

- A reader holds a shared lock on the ``.arrow`` file while it has it mapped. Whoever needs room
  takes away only files whose exclusive lock it gets, least recently used first.
- The downloader holds the exclusive lock on the ``.part`` file; others wait for it. A ``.part``
  without that lock was left by a dead process: it is taken over, or removed.
- ``.lock`` is held for moments while room is made and reserved (the ``.part`` gets its full size at
  once), so the files together never exceed the limit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from xtdist.config import DataError, ResourceError
from xtdist.data.storage.config import CacheConfig

Fetch = Callable[[BinaryIO], None]

ROOM_WAIT_S = 60.0  # for other processes to release shards
STALLED_S = 900.0  # a download that wrote nothing for that long
POLL_S = 0.05


class _Lock:
    """An open file that carries a lock; the lock goes with the last reference."""

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        self.path, self.fd = path, -1
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o600)

    def take(self, kind: int) -> bool:
        """False if ``kind`` has LOCK_NB and another holds it."""
        try:
            fcntl.flock(self.fd, kind)
        except BlockingIOError:
            return False
        return True

    def in_place(self) -> bool:
        """Whether the path still is this file."""
        try:
            there, here = os.stat(self.path), os.fstat(self.fd)
        except FileNotFoundError:
            return False
        return (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    __del__ = close


class ShardCache:
    """The cache in ``config.folder``. Safe for many threads and processes.

    Raises:
        ResourceError: the folder can't be made or written.
    """

    def __init__(self, config: CacheConfig) -> None:
        self.folder = Path(config.folder).expanduser()
        self.limit = config.limit_bytes
        self._held: dict[str, tuple[_Lock, int, int]] = {}  # by sha256: lock, bytes, how many times
        self._checked: set[str] = set()
        self._threads = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._exclusive():
                self._sweep()
        except OSError as e:
            raise ResourceError(f"cache.folder: {self.folder}: {e.strerror}") from None

    def acquire(self, sha256: str, size: int, fetch: Fetch) -> Path:
        """A file with that content, kept until ``release``. It was hashed in this process: on the
        way in, or when first taken from the cache (a damaged one is fetched again).

        Args:
            fetch: writes the right content to an empty file, or raises.

        Raises:
            ResourceError: no room, or the disk is full; naming ``cache.limit_gb``.
        """
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise DataError(f"{sha256!r} in the manifest is not a sha256; the manifest is damaged")
        path = self.folder / sha256[:2] / f"{sha256}.arrow"
        if not self._again(sha256):
            lock = None
            while lock is None:
                lock = self._cached(path, size, sha256) or self._fetched(path, size, fetch)
            self._hold(sha256, lock, size)
        return path

    def release(self, sha256: str) -> None:
        """Once per ``acquire``: the file may go when room is needed."""
        with self._threads:
            lock, size, times = self._held.pop(sha256)
            if times > 1:
                self._held[sha256] = lock, size, times - 1

    def _again(self, sha256: str) -> bool:
        with self._threads:
            if held := self._held.get(sha256):
                self._held[sha256] = held[0], held[1], held[2] + 1
            return held is not None

    def _hold(self, sha256: str, lock: _Lock, size: int) -> None:
        with self._threads:
            self._checked.add(sha256)
            times = self._held[sha256][2] if sha256 in self._held else 0  # another thread's
            self._held[sha256] = lock, size, times + 1

    def _cached(self, path: Path, size: int, sha256: str) -> _Lock | None:
        """The file in the cache, locked and intact; None if there is none."""
        try:
            lock = _Lock(path)
        except FileNotFoundError:
            return None
        lock.take(fcntl.LOCK_SH)
        if not lock.in_place():  # taken away before it was locked
            return None
        if os.fstat(lock.fd).st_size == size:
            with contextlib.suppress(PermissionError):  # another user's file
                os.utime(lock.fd)
            if sha256 in self._checked or _sha256(lock.fd) == sha256:
                return lock
        with self._exclusive():
            if lock.in_place():
                path.unlink()  # who has it mapped keeps what it mapped
        return None

    def _fetched(self, path: Path, size: int, fetch: Fetch) -> _Lock | None:
        """Download as the one elected; None if another was, and it is done or gone."""
        part = path.with_suffix(".part")
        part.parent.mkdir(exist_ok=True)
        lock = _Lock(part, os.O_RDWR | os.O_CREAT)
        if not lock.take(fcntl.LOCK_EX | fcntl.LOCK_NB):
            self._wait_for(lock)
            return None
        if not lock.in_place():
            return None
        try:
            if path.exists():  # finished between our look and our election
                return None
            os.ftruncate(lock.fd, 0)
            self._reserve(lock.fd, size)
            with open(lock.fd, "r+b", buffering=0, closefd=False) as file:
                fetch(file)
            os.fsync(lock.fd)
            with self._exclusive():  # who adds up sizes must not miss it between its names
                part.rename(path)
            lock.path = path
        finally:
            if lock.path == part:
                part.unlink(missing_ok=True)
        lock.take(fcntl.LOCK_SH)  # lets go of the exclusive lock first: it may be taken away there
        return lock if lock.in_place() else None

    def _wait_for(self, lock: _Lock) -> None:
        """Until the downloader is done or dead."""
        while not lock.take(fcntl.LOCK_SH | fcntl.LOCK_NB):
            idle_s = time.time() - os.fstat(lock.fd).st_mtime
            if idle_s > STALLED_S:
                raise ResourceError(
                    f"{lock.path}: another process began this download and wrote nothing for "
                    f"{idle_s:.0f} s; stop it (its lock ends with it)"
                )
            time.sleep(POLL_S)

    def _reserve(self, fd: int, size: int) -> None:
        """Give the empty file its size once there is room for it."""
        end = time.monotonic() + ROOM_WAIT_S
        while True:
            with self._exclusive():
                if self._make_room(size):
                    return _allocate(fd, size, self.folder)
            with self._threads:
                mine = sum(held for _, held, _ in self._held.values())
            if size + mine > self.limit or time.monotonic() > end:
                break
            time.sleep(POLL_S)
        raise ResourceError(
            f"cache.limit_gb: {self.limit / 1e9:g} GB are too few: a shard of {size / 1e9:g} GB "
            f"needs room beside what is being read ({mine / 1e9:g} GB by this process, the rest by "
            f"others that share {self.folder}); give more, or make smaller shards"
        )

    def _make_room(self, size: int) -> bool:
        """Take away least recently used files until ``size`` more bytes fit the limit."""
        files = sorted(self._sweep())
        total = sum(held for _, held, _ in files)
        for _, held, path in files:
            if total + size <= self.limit:
                break
            if path.suffix == ".arrow" and _take_away(path):
                total -= held
        return total + size <= self.limit

    def _sweep(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of all files; those that dead downloaders left are removed."""
        files = []
        for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
            for entry in os.scandir(folder):
                path = Path(entry.path)
                if path.suffix == ".part" and _take_away(path):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    stat = os.stat(path)  # not the entry's: a download may have ended since
                    files.append((stat.st_mtime, stat.st_size, path))
        return files

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        lock = _Lock(self.folder / ".lock", os.O_RDWR | os.O_CREAT)
        lock.take(fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.close()


def _take_away(path: Path) -> bool:
    """Remove a file that nobody has locked."""
    try:
        lock = _Lock(path)
    except FileNotFoundError:
        return True
    if not lock.take(fcntl.LOCK_EX | fcntl.LOCK_NB) or not lock.in_place():
        return False
    path.unlink(missing_ok=True)
    return True


def _allocate(fd: int, size: int, folder: Path) -> None:
    """Have the disk's room now rather than run out of it half-way."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise ResourceError(
                f"cache.folder: no space left on the disk of {folder} for a shard of "
                f"{size / 1e9:g} GB; free some, or lower cache.limit_gb"
            ) from None
        os.ftruncate(fd, size)  # a filesystem that can't reserve


def _sha256(fd: int) -> str:
    with open(fd, "rb", buffering=0, closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
