"""Checkpoints on an object store.

Files are put under their final names, several at a time, and ``manifest.json`` last; a folder
without one is of a save that never ended. Beside a manifest may lie ``damaged.json`` or
``undone.json`` (set aside), or ``abandoned.json``: then the manifest is a tombstone, put there so
that an owner that was cut off can't publish any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from xtdist.checkpoint.conditional import PATIENCE, put_if_absent
from xtdist.checkpoint.layout import (
    MANIFEST,
    FileEntry,
    Manifest,
    hash_file,
    manifest_text,
    parse_manifest,
    safe_join,
)
from xtdist.checkpoint.lease import FencedError
from xtdist.checkpoint.naming import ASIDE, NAME
from xtdist.config import CheckpointError
from xtdist.data.storage.location import Location, locate
from xtdist.data.storage.retry import retry
from xtdist.data.storage.transfer import RemoteFile, read_small
from xtdist.data.storage.write import delete, upload, write_small

ABANDONED_MARK = "abandoned.json"
SCRATCH = "xtdist-save-"
DOWNLOADS = 2  # times that a file is fetched before it counts as damaged


def default_cache() -> Path:
    """Where fetched checkpoints lie on this host."""
    return Path("~/.cache/xtdist/checkpoints").expanduser()


class ObjectStorage:
    """A prefix of a bucket. See ``Storage``."""

    per_host = True

    def __init__(self, url: str, *, cache: Callable[[], Path] | None = None) -> None:
        self._given = url
        self.url = url.partition("?")[0].rstrip("/")
        self._cache = cache or default_cache
        self._verified: set[tuple[str, str]] = set()

    @cached_property
    def location(self) -> Location:
        return locate(self._given)

    def names(self) -> list[str]:
        marks = {ABANDONED_MARK, *map(_mark, ASIDE)}
        return [
            name
            for name, files in self._saves().items()
            if MANIFEST in files and not files.keys() & marks
        ]

    def leftovers(self) -> list[str]:
        return [name for name, files in self._saves().items() if MANIFEST not in files]

    def manifest(self, name: str) -> Manifest:
        where = self.location.join(f"{name}/{MANIFEST}")
        try:
            raw = read_small(self.location.join(name), MANIFEST)
        except FileNotFoundError:
            raise CheckpointError(f"{where.name}: missing; not a finished checkpoint") from None
        return parse_manifest(raw, where.name)

    def scratch(self, name: str, rank: int) -> Path:
        _remove_orphans()
        folder = Path(tempfile.gettempdir()) / f"{SCRATCH}{os.getpid()}-{rank}" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def put(self, name: str, path: Path, file: str) -> None:
        where = self.location.join(f"{name}/{file}")
        with path.open("rb") as source:
            retry(lambda: upload(where, source, compress=False), what=where.name, backoff=PATIENCE)

    def publish(self, name: str, files: dict[str, FileEntry], meta: dict[str, object]) -> None:
        there = self._list(name)
        for file, entry in files.items():
            if there.get(file) != entry.bytes:
                raise OSError(f"{self.url}/{name}/{file}: not there as it was put")
        text = manifest_text(files, meta).encode()
        if not put_if_absent(self._given, self.location.join(name), MANIFEST, text):
            raise FencedError(f"{self.url}/{name}: another process took over and abandoned it")

    def clear(self, name: str, rank: int) -> None:
        shutil.rmtree(Path(tempfile.gettempdir()) / f"{SCRATCH}{os.getpid()}-{rank}")

    def remove(self, name: str) -> None:
        folder = self.location.join(name)
        files = self._list(name)
        for file in sorted(files, key=lambda f: f != MANIFEST):  # the manifest first
            where = folder.join(file)
            retry(partial(delete, where), what=where.name, backoff=PATIENCE)

    def bury(self, name: str) -> None:
        folder = self.location.join(name)
        mark = json.dumps({"abandoned": os.urandom(8).hex()}).encode()
        write_small(folder, ABANDONED_MARK, mark)
        if not put_if_absent(self._given, folder, MANIFEST, mark):
            delete(folder.join(ABANDONED_MARK))  # its owner was faster: it is a checkpoint
            return
        for file in self._list(name):
            if file not in (MANIFEST, ABANDONED_MARK):
                delete(folder.join(file))

    def aside(self, kind: str) -> list[str]:
        return [n for n, files in self._saves().items() if _mark(kind) in files]

    def set_aside(self, name: str, kind: str, why: str) -> str:
        write_small(self.location.join(name), _mark(kind), json.dumps({"why": why}).encode())
        return f"{self.url}/{name}/{_mark(kind)}"

    def fetch(self, name: str, manifest: Manifest, files: Iterable[str]) -> Path:
        own = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        folder = self._cache() / own / name
        for file in files:
            if (name, file) in self._verified:
                continue
            target = safe_join(folder, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(target.with_name(f".{target.name}.lock")):
                if not target.is_file() or hash_file(target) != manifest.files[file]:
                    self._download(name, file, manifest.files[file], target)
            self._verified.add((name, file))
        return folder

    def _download(self, name: str, file: str, entry: FileEntry, target: Path) -> None:
        """An outage is a DataError; only content that stays wrong is damage."""
        where = self.location.join(f"{name}/{file}")
        part = target.with_name(f".{target.name}.part")
        try:
            for _ in range(DOWNLOADS):
                with part.open("wb") as out:
                    for chunk in RemoteFile(where).chunks():
                        out.write(chunk)
                found = hash_file(part)
                if found == entry:
                    part.replace(target)
                    return
        except FileNotFoundError:
            raise CheckpointError(f"{where.name}: missing, but the manifest lists it") from None
        finally:
            part.unlink(missing_ok=True)
        raise CheckpointError(
            f"{where.name}: its sha256 is {found.sha256} ({found.bytes} bytes), the manifest says "
            f"{entry.sha256} ({entry.bytes} bytes): damaged; use another checkpoint"
        )

    def _list(self, below: str) -> dict[str, int]:
        """Relative path and bytes of every object under ``below``."""
        from pyarrow import fs

        where = self.location.join(below) if below else self.location
        selector = fs.FileSelector(where.path, allow_not_found=True, recursive=True)
        found = retry(
            lambda: where.filesystem.get_file_info(selector), what=where.name, backoff=PATIENCE
        )
        start = len(where.path) + 1
        return {f.path[start:]: f.size for f in found if f.type == fs.FileType.File}

    def _saves(self) -> dict[str, dict[str, int]]:
        saves: dict[str, dict[str, int]] = {}
        for path, size in self._list("").items():
            name, _, file = path.partition("/")
            if NAME.fullmatch(name):
                saves.setdefault(name, {})[file] = size
        return saves


def _mark(kind: str) -> str:
    return f"{kind}.json"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes of this host."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_orphans() -> None:
    """What processes of this host that were killed left in the temporary folder."""
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*-*"):
        pid: Any = path.name.removeprefix(SCRATCH).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)
