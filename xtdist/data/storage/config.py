"""What a run may keep of remote datasets on its hosts."""

from __future__ import annotations

from xtdist.config import ConfigError, PositiveFloat, configclass


@configclass
class CacheConfig:
    """The cache of remote shards, one per host, shared by all its processes.

    Attributes:
        folder: a folder on a local disk.
        limit_gb: never more than this many GB (10^9 bytes) of shards lie there. What processes have
            mapped at one time must fit.
    """

    folder: str = "~/.cache/xtdist/shards"
    limit_gb: PositiveFloat = 100.0

    def __post_init__(self) -> None:
        if "://" in self.folder or not self.folder:
            raise ConfigError(f"folder: got {self.folder!r}; the cache must be a local folder")

    @property
    def limit_bytes(self) -> int:
        return int(self.limit_gb * 1e9)
