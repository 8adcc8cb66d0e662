"""A dataset's folder, wherever it lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from xtdist.config import DataError
from xtdist.data.shards import RESTORE
from xtdist.data.storage.config import CacheConfig
from xtdist.data.storage.location import is_remote, locate

if TYPE_CHECKING:
    from xtdist.data.manifest import ShardInfo


class Folder(Protocol):
    """What reading a dataset needs of its folder. Safe for many threads.

    Attributes:
        name: as given, for messages.
        verified: ``shard`` gives only what it checked against its sha256; the reader need not.
    """

    name: str
    verified: bool

    def exists(self) -> bool:
        """Whether there is such a folder (an object store has it if it holds anything)."""
        ...

    def read_bytes(self, name: str) -> bytes:
        """The content of a small file.

        Raises:
            FileNotFoundError: there is none.
            DataError: it is there and can't be read.
        """
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is missing."""
        ...

    def check(self, info: ShardInfo) -> None:
        """Raise DataError unless the shard is there with the size that the manifest states."""
        ...

    def shard(self, info: ShardInfo) -> Path:
        """A local file with the shard's content, that stays until ``release``.

        Raises:
            DataError: it is missing, or (remote) can't be had with the right content.
            ResourceError: no room for it in the cache (remote).
        """
        ...

    def release(self, info: ShardInfo) -> None:
        """The shard that ``shard`` gave is no longer mapped here; once per call of ``shard``."""
        ...


class LocalFolder:
    """A folder of this machine (or mounted). Shards are read in place."""

    verified = False

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        self.path = Path(path).expanduser()

    def exists(self) -> bool:
        return self.path.is_dir()

    def read_bytes(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as e:
            raise DataError(f"{self.path / name}: can't be read ({e.strerror})") from None

    def size(self, name: str) -> int | None:
        try:
            return (self.path / name).stat().st_size
        except OSError:
            return None

    def check(self, info: ShardInfo) -> None:
        size = self.size(info.path)
        if size != info.bytes:
            has = "is missing" if size is None else f"has {size} bytes, not {info.bytes}"
            raise DataError(f"{self.path / info.path}: shard {has}; {RESTORE}")

    def shard(self, info: ShardInfo) -> Path:
        return self.path / info.path

    def release(self, info: ShardInfo) -> None:
        pass  # nothing is held


def open_folder(path: str | Path, cache: CacheConfig | None = None) -> Folder:
    """The folder at ``path``: local, ``s3://`` or ``gs://`` (see ``locate``).

    Args:
        cache: where shards of a remote folder are kept; default ``CacheConfig()``. Local folders
            need none.

    Raises:
        ConfigError: see ``locate``.
        ResourceError: the cache's folder can't be made.
    """
    if not is_remote(path):
        return LocalFolder(path)
    from xtdist.data.storage.remote import RemoteFolder  # a local run loads nothing of it

    return RemoteFolder(locate(path), cache or CacheConfig())
