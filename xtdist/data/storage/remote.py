"""A dataset's folder on an object store, read through the host's cache."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from xtdist.config import DataError
from xtdist.data.storage.cache import ShardCache
from xtdist.data.storage.config import CacheConfig
from xtdist.data.storage.location import Location
from xtdist.data.storage.retry import retry
from xtdist.data.storage.transfer import COMPRESSED, download, read_small

if TYPE_CHECKING:
    from xtdist.data.manifest import ShardInfo


class RemoteFolder:
    """A ``Folder`` at a remote location. Listed once; shards are downloaded when first asked for.

    A shard may lie there as ``name.arrow`` or, compressed as a whole, as ``name.arrow.zst``.
    """

    verified = True

    def __init__(self, location: Location, cache: CacheConfig) -> None:
        self.name, self.location = location.name, location
        self._cache = ShardCache(cache)
        self._sizes: dict[str, int] | None = None
        self._lock = threading.Lock()

    def exists(self) -> bool:
        return bool(self._listing())

    def read_bytes(self, name: str) -> bytes:
        return read_small(self.location, name)

    def size(self, name: str) -> int | None:
        return self._listing().get(name)

    def check(self, info: ShardInfo) -> None:
        size = self.size(info.path)
        if size == info.bytes or (size is None and self.size(info.path + COMPRESSED)):
            return
        has = "is missing" if size is None else f"has {size} bytes, not {info.bytes}"
        raise DataError(
            f"{self.location.join(info.path).name}: shard {has}; copy the dataset there again "
            "(xtdist data copy)"
        )

    def shard(self, info: ShardInfo) -> Path:
        return self._cache.acquire(
            info.sha256, info.bytes, lambda file: download(self.location, info, file)
        )

    def release(self, info: ShardInfo) -> None:
        self._cache.release(info.sha256)

    def _listing(self) -> dict[str, int]:
        with self._lock:
            if self._sizes is None:
                self._sizes = list_files(self.location)
            return self._sizes


def list_files(location: Location) -> dict[str, int]:
    """Name and bytes of every file directly below ``location``; nothing if there is no such place.

    Raises:
        DataError: see ``retry``.
    """
    from pyarrow import fs

    selector = fs.FileSelector(location.path, allow_not_found=True)
    files = retry(lambda: location.filesystem.get_file_info(selector), what=location.name)
    return {f.base_name: f.size for f in files if f.type == fs.FileType.File}
