"""A file in an object store as a Python file."""

from __future__ import annotations

import io
from typing import Any

from xtdist.data.storage.retry import TransferError, retry


class RemoteFile(io.RawIOBase):
    """A remote file of which every read is tried again after a failed transfer."""

    def __init__(self, file: Any, where: str) -> None:
        self._file, self._where, self._at = file, where, 0
        self._size = int(file.size())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, into: Any) -> int:
        wanted = min(len(into), max(0, self._size - self._at))
        if not wanted:
            return 0
        into[:wanted] = retry(lambda: self._read(wanted), what=self._where)
        self._at += wanted
        return wanted

    def _read(self, wanted: int) -> bytes:
        got: bytes = self._file.read_at(wanted, self._at)
        if len(got) != wanted:
            raise TransferError(f"{len(got)} of {wanted} bytes arrived")
        return got

    def close(self) -> None:
        self._file.close()
        super().close()
