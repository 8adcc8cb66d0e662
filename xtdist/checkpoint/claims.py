"""The files of a lease: one per epoch, created once and never changed, and its heartbeat.

.lease/epoch-00000007   who took it, JSON; creating it is what taking is
.lease/beat-00000007    changes while its holder is well
"""

from __future__ import annotations

import contextlib
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Protocol

from xtdist.checkpoint.conditional import PATIENCE, put_if_absent
from xtdist.data.storage.location import Location, is_remote, locate
from xtdist.data.storage.remote import list_files
from xtdist.data.storage.retry import retry
from xtdist.data.storage.write import delete, read_if_there
from xtdist.files import sync

FOLDER = ".lease"
_EPOCH = re.compile(r"epoch-(\d{8,})")


class Claims(Protocol):
    """Small files of one folder."""

    name: str

    def listed(self) -> list[str]: ...

    def create(self, name: str, data: bytes) -> bool:
        """Whether ``name`` is now there and ours; False if another process was first."""
        ...

    def write(self, name: str, data: bytes) -> None: ...

    def read(self, name: str) -> bytes | None: ...

    def delete(self, name: str) -> None: ...


class LocalClaims:
    """In a folder of this machine, or one that all hosts see."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, str(folder)

    def listed(self) -> list[str]:
        return os.listdir(self.folder) if self.folder.is_dir() else []

    def create(self, name: str, data: bytes) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
        try:
            part.write_bytes(data)
            sync(part)
            os.link(part, self.folder / name)  # fails if it is there, on NFS too
        except FileExistsError:
            return False
        finally:
            part.unlink(missing_ok=True)
        sync(self.folder)
        return True

    def write(self, name: str, data: bytes) -> None:
        # In place, and of one length: works on a full disk, and a torn beat still is a change.
        fd = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, data, 0)
        finally:
            os.close(fd)

    def read(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / name).read_bytes()
        return None

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


class ObjectClaims:
    """Under a prefix of an object store."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.name = f"{url.partition('?')[0].rstrip('/')}/{FOLDER}"

    @cached_property
    def _folder(self) -> Location:
        return locate(self._url).join(FOLDER)

    def listed(self) -> list[str]:
        return list(list_files(self._folder))

    def create(self, name: str, data: bytes) -> bool:
        return put_if_absent(self._url, self._folder, name, data)

    def write(self, name: str, data: bytes) -> None:
        where = self._folder.join(name)

        def once() -> None:
            with where.filesystem.open_output_stream(where.path, compression=None) as out:
                out.write(data)

        retry(once, what=where.name, backoff=PATIENCE)

    def read(self, name: str) -> bytes | None:
        return read_if_there(self._folder, name)

    def delete(self, name: str) -> None:
        delete(self._folder.join(name))


def open_claims(place: str | Path) -> Claims:
    """The claims on ``place``: a run's folder, or where its checkpoints are on a store."""
    if is_remote(place):
        return ObjectClaims(str(place))
    return LocalClaims(Path(place) / FOLDER)


def newest_epoch(claims: Claims) -> int:
    """The highest epoch that was ever taken; 0 if none."""
    return max((int(m[1]) for n in claims.listed() if (m := _EPOCH.fullmatch(n))), default=0)


def epoch_file(epoch: int) -> str:
    return f"epoch-{epoch:08d}"


def beat_file(epoch: int) -> str:
    return f"beat-{epoch:08d}"
