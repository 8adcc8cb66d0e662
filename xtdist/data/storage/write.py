"""Files and objects that are there whole, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from xtdist.config import DataError, ResourceError
from xtdist.data.storage.location import Location
from xtdist.data.storage.retry import TransferError, retry
from xtdist.data.storage.transfer import CHUNK_BYTES, read_small
from xtdist.files import replacing


def upload(where: Location, file: BinaryIO, *, compress: bool) -> None:
    """One try to put an object. pyarrow publishes what it has even when a stream is given up, so
    what may be half of it is deleted."""
    file.seek(0)
    try:
        with where.filesystem.open_output_stream(
            where.path, compression="zstd" if compress else None
        ) as out:
            for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
                out.write(chunk)
    except BaseException:
        with contextlib.suppress(OSError):
            where.filesystem.delete_file(where.path)
        raise


def delete(where: Location) -> None:
    """Delete an object that may be there."""
    with contextlib.suppress(FileNotFoundError):
        where.filesystem.delete_file(where.path)


def read_if_there(folder: Location, name: str) -> bytes | None:
    """The content of a small file; None if it is missing."""
    try:
        return read_small(folder, name)
    except FileNotFoundError:
        return None


def write_small(folder: Location, name: str, data: bytes) -> None:
    """Have a file hold ``data``; a remote one is read back.

    Raises:
        DataError, ResourceError: see ``retry`` and ``local_file``.
    """
    if read_if_there(folder, name) == data:
        return
    where = folder.join(name)
    if not folder.remote:
        with local_file(Path(where.path)) as out:
            out.write(data)
        return

    def once() -> None:
        with where.filesystem.open_output_stream(where.path, compression=None) as stream:
            stream.write(data)
        if read_if_there(folder, name) != data:
            raise TransferError("what was written reads back differently")

    retry(once, what=where.name)


@contextlib.contextmanager
def local_file(path: Path) -> Iterator[BinaryIO]:
    """``replacing``, for a copy.

    Raises:
        ResourceError: it can't be written (disk full, no right to).
    """
    try:
        with replacing(path) as out:
            yield out
    except OSError as e:
        raise ResourceError(f"{path}: can't be written ({e.strerror})") from None


@contextlib.contextmanager
def sole_writer(target: Location) -> Iterator[None]:
    """Hold the lock of a local folder, which is made; stores have none.

    Raises:
        DataError: another process holds it, or the folder can't be made.
    """
    if target.remote:
        yield
        return
    try:
        os.makedirs(target.path, exist_ok=True)
        fd = os.open(target.path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as e:
        raise DataError(f"{target.name}: can't be made a folder ({e.strerror})") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{target.name}: another process is copying to it") from None
        yield
    finally:
        os.close(fd)
