"""What a place for checkpoints can do; a local folder here, an object store in ``objects.py``.

A checkpoint is a folder ``step_00000100-<attempt>``. It is there from the moment at which its
manifest is, and not before; everything else is what a save left that never came to its end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from xtdist.checkpoint.layout import (
    MANIFEST,
    FileEntry,
    Manifest,
    read_manifest,
    verify,
    write_manifest,
)
from xtdist.checkpoint.naming import DOOMED, NAME, STAGING
from xtdist.data.storage.location import is_remote
from xtdist.files import sync


class Storage(Protocol):
    """Where the checkpoints of one run lie. OSError, DataError and ResourceError of a place that
    does not answer or is full come through; CheckpointError says that one is missing or damaged."""

    url: str
    per_host: bool  # whether each host needs its own copy of the files to read them

    def names(self) -> list[str]:
        """Names of committed checkpoints, in no order."""
        ...

    def leftovers(self) -> list[str]:
        """Names of saves without an end."""
        ...

    def manifest(self, name: str) -> Manifest: ...

    def scratch(self, name: str, rank: int) -> Path:
        """A local folder for the files that ``rank`` writes for the save ``name``."""
        ...

    def put(self, name: str, path: Path, file: str) -> None:
        """Have the written ``path`` last, as ``file`` of that save."""
        ...

    def publish(self, name: str, files: dict[str, FileEntry], meta: dict[str, object]) -> None:
        """From now on it is a checkpoint.

        Raises:
            OSError: a file is not there, or somebody swept the save away.
        """
        ...

    def clear(self, name: str, rank: int) -> None:
        """``rank`` needs its scratch folder no more."""
        ...

    def remove(self, name: str) -> None:
        """Delete a checkpoint or a save without an end, so that no moment shows half of one."""
        ...

    def bury(self, name: str) -> None:
        """Delete a save without an end for good: who is about to publish it fails."""
        ...

    def aside(self, kind: str) -> list[str]:
        """Names of those that were set aside as ``kind``."""
        ...

    def set_aside(self, name: str, kind: str, why: str) -> str:
        """Have a checkpoint be none any more, but keep it; where it is now. ``kind``: one of
        ``naming.ASIDE``."""
        ...

    def fetch(self, name: str, manifest: Manifest, files: Iterable[str]) -> Path:
        """The local folder with ``files``, their content compared with the manifest.

        Raises:
            CheckpointError: one is missing or has another content.
        """
        ...


class LocalStorage:
    """A folder of this machine, or one that all hosts see."""

    per_host = False

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, str(root)

    def names(self) -> list[str]:
        return [n for n in self._entries() if NAME.fullmatch(n)]

    def leftovers(self) -> list[str]:
        return [n.removeprefix(STAGING) for n in self._entries() if n.startswith(STAGING)]

    def _entries(self) -> list[str]:
        return os.listdir(self.root) if self.root.is_dir() else []

    def manifest(self, name: str) -> Manifest:
        return read_manifest(self.root / name)

    def scratch(self, name: str, rank: int) -> Path:
        folder = self._staging(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def put(self, name: str, path: Path, file: str) -> None:
        sync(path)

    def publish(self, name: str, files: dict[str, FileEntry], meta: dict[str, object]) -> None:
        staging = self._staging(name)
        for folder in {(staging / file).parent for file in files}:
            sync(folder)
        write_manifest(staging, files, meta)
        staging.rename(self.root / name)
        sync(self.root)

    def clear(self, name: str, rank: int) -> None:
        """The scratch folder is the checkpoint's own."""

    def remove(self, name: str) -> None:
        doomed = self.root / f"{DOOMED}{name}"
        for path in (self.root / name, self._staging(name)):
            # One rename takes it away from readers, and from an owner that is about to publish.
            with contextlib.suppress(FileNotFoundError):
                path.rename(doomed)
                _remove_tree(doomed)

    def bury(self, name: str) -> None:
        self.remove(name)

    def aside(self, kind: str) -> list[str]:
        return [n for n in self._entries() if n.startswith(f"{kind}-")]

    def set_aside(self, name: str, kind: str, why: str) -> str:
        target = self.root / f"{kind}-{name}"
        (self.root / name).rename(target)
        sync(self.root)
        return str(target)

    def fetch(self, name: str, manifest: Manifest, files: Iterable[str]) -> Path:
        verify(self.root / name, manifest, files)
        return self.root / name

    def _staging(self, name: str) -> Path:
        return self.root / f"{STAGING}{name}"


def _remove_tree(path: Path) -> None:
    """The manifest first: what is left of a deletion that was cut off is no checkpoint."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def open_storage(url: str | Path, *, cache: Callable[[], Path] | None = None) -> Storage:
    """The storage that ``url`` names: a local folder, ``s3://bucket/path`` or ``gs://…``.

    Args:
        cache: where fetched files lie on this host, for object stores; asked when first needed.
    """
    if is_remote(url):
        from xtdist.checkpoint.objects import ObjectStorage

        return ObjectStorage(str(url), cache=cache)
    return LocalStorage(Path(os.path.abspath(os.path.expanduser(url))))


def place_of(url: str | None, folder: Path) -> str:
    """Where the checkpoints of the run in ``folder`` lie; ``url``: its ``checkpoint.url``."""
    if url is None:
        return str(folder / "checkpoints")
    path, mark, options = url.partition("?") if is_remote(url) else (url, "", "")
    return f"{path.rstrip('/')}/{folder.name}{mark}{options}"
