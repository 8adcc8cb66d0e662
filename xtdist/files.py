"""Files that are whole or not there, also after a power cut."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds all of it, or what it held before, also if other
    processes write it at the same time."""
    with replacing(path, part=f".{path.name}.{os.getpid()}.partial") as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path, *, part: str | None = None) -> Iterator[BinaryIO]:
    """A file that takes the name ``path`` once it is written and on the disk; nothing is left of it
    otherwise. ``part``: its name until then; that of ``part_name`` is for one writer at a time."""
    partial = path.with_name(part or part_name(path.name))
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line in one write. It stands on its own also after one that a kill or a full disk left
    half written.

    Raises:
        OSError: it can't be written, or not all of it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        end = os.fstat(fd).st_size
        torn = end > 0 and os.pread(fd, 1, end - 1) != b"\n"
        data = b"\n" * torn + line.encode() + b"\n"
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)


def part_name(name: str) -> str:
    """What a file of one writer is called until it is whole."""
    return f".{name}.part"


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on the disk before going on."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
