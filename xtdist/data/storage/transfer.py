"""Bytes of remote objects: in ranges that are each tried again, several at a time, and verified."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

from xtdist.config import DataError
from xtdist.data.storage.location import Location
from xtdist.data.storage.retry import TransferError, retry

if TYPE_CHECKING:
    from xtdist.data.manifest import ShardInfo

COMPRESSED = ".zst"  # a shard may lie on a store as name.arrow.zst: the whole file, zstd
CHUNK_BYTES = 8 * 2**20
THREADS = 4


class RemoteFile(io.RawIOBase):
    """An object as a file that can seek. Each read is one range request, tried again if it fails;
    wrap it in ``io.BufferedReader`` for small reads. An answer that is cut short is noticed unless
    its header states the shorter length (pyarrow then gives zeros): only a hash finds that.

    Raises (in opening):
        FileNotFoundError: no such object.
        DataError: see ``retry``.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self._file = retry(
            lambda: location.filesystem.open_input_file(location.path), what=location.name
        )
        self.size: int = self._file.size()
        self._at = 0

    def read_range(self, start: int, length: int) -> bytes:
        """Bytes [start, start + length), which must exist. Safe for many threads."""

        def once() -> bytes:
            data: bytes = self._file.read_at(length, start)
            if len(data) != length:
                raise TransferError(f"{len(data)} bytes came instead of {length}")
            return data

        return retry(once, what=self.location.name)

    def chunks(self) -> Iterator[bytes]:
        """The whole content in order; up to four chunks are on their way at a time."""
        sizes = [
            (start, min(CHUNK_BYTES, self.size - start))
            for start in range(0, self.size, CHUNK_BYTES)
        ]
        if len(sizes) <= 1:
            yield from (self.read_range(*s) for s in sizes)
            return
        coming: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(THREADS, "download") as pool:
            for start, length in sizes:
                coming.append(pool.submit(self.read_range, start, length))
                if len(coming) >= THREADS:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self.size - self._at))
        buffer[:length] = self.read_range(self._at, length) if length else b""
        self._at += length
        return length

    def readall(self) -> bytes:
        data = self.read_range(self._at, self.size - self._at) if self._at < self.size else b""
        self._at = self.size
        return data


def open_input(location: Location) -> io.BufferedReader:
    """A file for reading, local or remote, that can seek; reads of remote ones are tried again.

    Raises:
        FileNotFoundError: no such file.
        DataError: see ``retry``.
    """
    if not location.remote:
        return open(location.path, "rb")
    return io.BufferedReader(RemoteFile(location), CHUNK_BYTES)


def read_small(folder: Location, name: str) -> bytes:
    """The content of a file of a few MB. A remote one is read until two readings agree: its hash
    isn't known, and a flipped bit must not look like a damaged dataset.

    Raises:
        FileNotFoundError: no such file.
        DataError: see ``retry``.
    """
    where = folder.join(name)

    def once() -> bytes:
        with open_input(where) as first, open_input(where) as second:
            data = first.read()
            if data != second.read():
                raise TransferError("two readings differ")
        return data

    if folder.remote:
        return retry(once, what=where.name)
    with open_input(where) as file:
        return file.read()


def download(folder: Location, info: ShardInfo, out: BinaryIO) -> None:
    """Write the shard's content to ``out`` from its start, hashed on the way; what does not have
    the size and sha256 of ``info`` is fetched again.

    Raises:
        DataError: naming the object: it is missing, or never came with the right content.
    """
    where = folder.join(info.path)
    try:
        retry(lambda: _download_once(where, info, out), what=where.name)
    except FileNotFoundError:
        raise DataError(
            f"{where.name}: shard is missing; copy the dataset there again (xtdist data copy)"
        ) from None


def intact(folder: Location, info: ShardInfo) -> bool:
    """Whether the shard lies in a remote folder with the right content: reads all of it.

    Raises:
        DataError: see ``retry``.
    """
    try:
        _download_once(folder.join(info.path), info, None)
    except (TransferError, FileNotFoundError):
        return False
    return True


def _download_once(where: Location, info: ShardInfo, out: BinaryIO | None) -> None:
    if out is not None:
        out.seek(0)
    size, digest = 0, hashlib.sha256()
    for chunk in _content(where):
        size += len(chunk)
        if size > info.bytes:
            raise TransferError(f"more than the {info.bytes} bytes that the manifest states")
        if out is not None:
            view = memoryview(chunk)
            while view:  # an unbuffered file may take less at a time
                view = view[out.write(view) :]
        digest.update(chunk)
    if size != info.bytes:
        raise TransferError(f"{size} bytes, the manifest says {info.bytes}")
    if digest.hexdigest() != info.sha256:
        raise TransferError("the content's sha256 is not the one in the manifest")


def _content(where: Location) -> Iterator[bytes]:
    try:
        file = RemoteFile(where)
    except FileNotFoundError:
        suffixed = Location(
            name=where.name + COMPRESSED,
            filesystem=where.filesystem,
            path=where.path + COMPRESSED,
            remote=where.remote,
        )
        return _unpacked(RemoteFile(suffixed))
    return file.chunks()


def _unpacked(file: RemoteFile) -> Iterator[bytes]:
    import pyarrow as pa

    source = pa.PythonFile(_Stream(file.chunks()), mode="r")
    try:
        with pa.CompressedInputStream(source, "zstd") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except (OSError, pa.ArrowException) as e:
        raise TransferError(f"can't be unpacked ({e})") from None


class _Stream:
    """Chunks as the file that pyarrow reads from."""

    closed = False

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._left = chunks, memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        size = len(self._left) if size < 0 else size
        data, self._left = bytes(self._left[:size]), self._left[size:]
        return data

    def close(self) -> None:
        self.closed = True
