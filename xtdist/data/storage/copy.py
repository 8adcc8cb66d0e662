"""Copy a dataset between local folders and object stores, verified, its manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from xtdist.config import ConfigError, DataError
from xtdist.data.manifest import MANIFEST_FILE, SIDE_FILES, Manifest, ShardInfo, parse_manifest
from xtdist.data.shards import file_sha256
from xtdist.data.storage.location import Location, locate
from xtdist.data.storage.remote import list_files
from xtdist.data.storage.retry import TransferError, retry
from xtdist.data.storage.transfer import CHUNK_BYTES, COMPRESSED, download, intact
from xtdist.data.storage.write import (
    delete,
    local_file,
    read_if_there,
    sole_writer,
    upload,
    write_small,
)
from xtdist.data.tokenizer import TOKENIZER_FILE
from xtdist.files import part_name

SHARDS_AT_A_TIME = 4

CopyProgress = Callable[[int, int], None]  # bytes of shards done, of all


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """What ``copy_dataset`` did: shards written, and those that were there already."""

    dataset_id: str
    target: str
    copied: int
    kept: int
    bytes: int


def copy_dataset(
    source: str | Path,
    target: str | Path,
    *,
    compress: bool = False,
    progress: CopyProgress | None = None,
) -> CopyReport:
    """Copy a dataset; either side is a local folder, ``s3://`` or ``gs://``.

    Every shard is checked against its sha256 after it was written (a remote one is read back); the
    manifest comes last, so a copy that was interrupted is no dataset, and copying again goes on
    where it stopped. What is there already with the right content is kept.

    Args:
        compress: put shards as ``name.arrow.zst`` (remote targets only).
        progress: called with (bytes of shards done, of all).

    Raises:
        ConfigError: no such kind of path, both are the same place, or ``compress`` to a local one.
        DataError: ``source`` is no dataset or damaged; ``target`` holds another dataset or other
            files; a transfer failed for good (naming the object).
    """
    here, there = locate(source), locate(target)
    if (here.remote, here.path) == (there.remote, there.path):
        raise ConfigError(f"{target}: source and target are the same place; give another target")
    if here.remote == there.remote and _nested(here.path, there.path):
        raise ConfigError(f"{target}: lies in {source}, or around it; give a target beside it")
    if compress and not there.remote:
        raise ConfigError(
            f"{target}: compress is for remote targets; shards of local datasets are mapped as "
            "they are"
        )
    raw = read_if_there(here, MANIFEST_FILE)
    if raw is None:
        raise DataError(f"{here.name}: has no {MANIFEST_FILE}, so it is not a (finished) dataset")
    manifest = parse_manifest(raw, here.join(MANIFEST_FILE).name)
    shards = [shard for split in manifest.splits.values() for shard in split]
    small = _small_files(here, manifest)
    with sole_writer(there):
        found = _refuse_foreign(there, manifest, small)
        work = _Copy(here, there, found=found, compress=compress)
        copied = _copy_shards(work, shards, progress or (lambda done, total: None))
        for name, data in small.items():
            write_small(there, name, data)
        # Again: stores have no lock against another writer, and pyarrow no conditional put
        _refuse_foreign(there, manifest, small)
        write_small(there, MANIFEST_FILE, raw)
    return CopyReport(
        dataset_id=manifest.dataset_id,
        target=there.name,
        copied=copied,
        kept=len(shards) - copied,
        bytes=sum(shard.bytes for shard in shards),
    )


def _copy_shards(work: _Copy, shards: list[ShardInfo], progress: CopyProgress) -> int:
    """Have all shards at the target; how many had to be copied."""
    total = sum(shard.bytes for shard in shards)
    copied = done = 0
    progress(done, total)
    with ThreadPoolExecutor(SHARDS_AT_A_TIME, "copy") as pool:
        try:
            for future in as_completed([pool.submit(work.shard, shard) for shard in shards]):
                size, was_copied = future.result()
                copied, done = copied + was_copied, done + size
                progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return copied


def _nested(one: str, other: str) -> bool:
    a, b = (path.rstrip("/") + "/" for path in (one, other))
    return a.startswith(b) or b.startswith(a)


def _small_files(source: Location, manifest: Manifest) -> dict[str, bytes]:
    """The dataset's files beside its shards and its manifest."""
    found = {name: read_if_there(source, name) for name in (TOKENIZER_FILE, *SIDE_FILES)}
    tokenizer = found[TOKENIZER_FILE]
    where = source.join(TOKENIZER_FILE).name
    if tokenizer is None:
        raise DataError(f"{where}: is missing; restore it")
    if hashlib.sha256(tokenizer).hexdigest() != manifest.tokenizer.sha256:
        raise DataError(f"{where}: content changed since it was written; restore the file")
    return {name: data for name, data in found.items() if data is not None}


def _refuse_foreign(
    target: Location, manifest: Manifest, small: dict[str, bytes]
) -> dict[str, int]:
    """The target's files by name, all of which may be part of this dataset. Without a manifest, its
    ``small`` files there must be the same ones: an interrupted copy's."""
    raw = read_if_there(target, MANIFEST_FILE)
    where = target.join(MANIFEST_FILE).name
    if raw is not None and parse_manifest(raw, where) != manifest:
        raise DataError(
            f"{target.name}: holds another dataset "
            f"({parse_manifest(raw, where).dataset_id[:12]}…, not {manifest.dataset_id[:12]}…); "
            "choose another target, or delete that one"
        )
    found = list_files(target)
    names = {shard.path for split in manifest.splits.values() for shard in split}
    names |= {name + COMPRESSED for name in names} if target.remote else set()
    names |= {MANIFEST_FILE, TOKENIZER_FILE, *SIDE_FILES}
    names |= set() if target.remote else {part_name(name) for name in names}
    foreign = sorted(found.keys() - names)
    if raw is None:
        known = found.keys() & {TOKENIZER_FILE, *SIDE_FILES}
        foreign += sorted(n for n in known if read_if_there(target, n) != small.get(n))
    if foreign:
        raise DataError(
            f"{target.name}: holds files that are not of this dataset ({foreign[0]!r}); choose a "
            "new or empty target"
        )
    return found


@dataclass(frozen=True)
class _Copy:
    """Copies single shards. ``found``: names and bytes at the target when it began."""

    source: Location
    target: Location
    found: dict[str, int]
    compress: bool

    def shard(self, info: ShardInfo) -> tuple[int, bool]:
        """The shard's bytes, and whether it had to be copied."""
        if self.target.remote:
            return info.bytes, self._put(info)
        path = Path(self.target.path) / info.path
        if self.found.get(info.path) == info.bytes and file_sha256(path) == info.sha256:
            return info.bytes, False
        with local_file(path) as out:
            if self.source.remote:
                download(self.source, info, out)
            else:
                with _opened(self.source, info) as file:
                    for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
                        out.write(chunk)
        return info.bytes, True

    def _put(self, info: ShardInfo) -> bool:
        plain, packed = info.path, info.path + COMPRESSED
        there = packed in self.found
        if not self.compress and plain in self.found:
            there = self.found[plain] == info.bytes
        if there and intact(self.target, info):
            return False
        name, other = (packed, plain) if self.compress else (plain, packed)
        where = self.target.join(name)
        with _opened(self.source, info) as file:

            def once() -> None:
                upload(where, file, compress=self.compress)
                if other in self.found:
                    delete(self.target.join(other))
                if not intact(self.target, info):
                    raise TransferError("what was written reads back differently")

            retry(once, what=where.name)
        return True


@contextlib.contextmanager
def _opened(folder: Location, info: ShardInfo) -> Iterator[BinaryIO]:
    """The source's shard as a local file at its start, checked against its sha256."""
    if folder.remote:
        with cast(BinaryIO, tempfile.TemporaryFile()) as file:
            download(folder, info, file)
            file.seek(0)
            yield file
        return
    path = Path(folder.path) / info.path
    try:
        with open(path, "rb") as file:  # the one that is read is the one that was checked
            if hashlib.file_digest(file, "sha256").hexdigest() != info.sha256:
                raise DataError(f"{path}: content changed since it was written; restore the file")
            file.seek(0)
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: shard is missing; restore the file") from None
