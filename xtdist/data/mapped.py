"""One shard in memory: mapped, checked, and never copied.

Files are mapped by Arrow, which lets go of the file: Python's ``mmap`` keeps a descriptor for each,
and a large dataset has more shards than a process may have files. The advice to the kernel goes
through libc.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import resource
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xtdist.config import DataError
from xtdist.data.manifest import ShardInfo
from xtdist.data.shards import DOC_ID_BYTES, RESTORE, Tokens, shard_schema
from xtdist.data.storage.config import CacheConfig
from xtdist.data.storage.folder import Folder

# Linux allows a process 65,530 maps.
MOST_MAPPED = 16_384
# Of a longer stretch Linux reads only the beginning.
READ_AHEAD_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class MappedShard:
    """Views of a mapped file, read-only; it is unmapped when the last of them is gone.

    Attributes:
        tokens: all documents, one after the other.
        raw: the bytes of ``tokens``.
        offsets: docs + 1 of them; document i is tokens [offsets[i], offsets[i + 1]).
        doc_ids: 16 bytes per document.
        file: the whole file.
    """

    tokens: Tokens
    raw: memoryview
    offsets: NDArray[np.int32]
    doc_ids: NDArray[np.void]
    file: Any

    def will_need(self, start: int, stop: int) -> None:
        """Have the kernel read tokens [start, stop) from the disk, without waiting for it."""
        at, size = self.tokens.ctypes.data - self.file.address, self.tokens.itemsize
        for first in range(at + start * size, at + stop * size, READ_AHEAD_BYTES):
            last = min(first + READ_AHEAD_BYTES, at + stop * size)
            advise(self.file, first, last, advice=mmap.MADV_WILLNEED)


def advise(buffer: Any, start: int, stop: int, *, advice: int) -> None:
    """madvise for bytes [start, stop) of a mapped buffer. Advice only: a refusal changes nothing
    but the speed."""
    first = (buffer.address + start) // mmap.PAGESIZE * mmap.PAGESIZE
    _libc().madvise(
        ctypes.c_void_p(first), ctypes.c_size_t(buffer.address + stop - first), ctypes.c_int(advice)
    )


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def open_shard(path: Path, info: ShardInfo, *, dtype: str, hashed: bool) -> MappedShard:
    """Map one shard.

    Windows are read here and there, so the kernel is told not to read around them (98 times the
    bytes asked for, otherwise); whoever reads a stretch asks for it by ``will_need``.

    Raises:
        DataError: naming the file, if it is missing, or (``hashed``) any byte differs from what was
            written, or it doesn't hold what the manifest says.
    """
    try:
        with pa.memory_map(str(path)) as file:
            buffer = file.read_buffer()
    except FileNotFoundError:
        raise DataError(f"{path}: shard is missing; {RESTORE}") from None
    except (OSError, pa.ArrowException) as e:
        raise DataError(f"{path}: shard can't be read ({e}); {RESTORE}") from None
    if buffer.size != info.bytes:
        raise DataError(f"{path}: shard has {buffer.size} bytes, not {info.bytes}; {RESTORE}")
    if hashed:
        advise(buffer, 0, buffer.size, advice=mmap.MADV_SEQUENTIAL)
        if hashlib.sha256(buffer).hexdigest() != info.sha256:
            raise DataError(
                f"{path}: content changed since it was written (sha256 differs); {RESTORE}"
            )
    advise(buffer, 0, buffer.size, advice=mmap.MADV_RANDOM)
    try:
        reader = pa.ipc.open_file(buffer)
        count = reader.num_record_batches
        batch = reader.get_batch(0) if count == 1 else None
    except (OSError, pa.ArrowException) as e:
        raise DataError(f"{path}: not a readable shard ({e}); {RESTORE}") from None
    if batch is None:
        raise DataError(f"{path}: has {count} record batches, a shard has one; {RESTORE}")
    try:
        return _views(batch, info, dtype=dtype, file=buffer)
    except (ValueError, pa.ArrowException) as e:
        problem = f"holds other data than the manifest says ({e})"
        raise DataError(f"{path}: {problem}; {RESTORE}") from None


@functools.cache
def _columns(dtype: str) -> dict[str, Any]:
    """The Arrow type of each column that is read."""
    return {field.name: field.type for field in shard_schema(dtype, tokenizer_sha256="")}


def _views(batch: Any, info: ShardInfo, *, dtype: str, file: Any) -> MappedShard:
    """The batch as numpy arrays; ValueError says what is wrong with it."""
    columns = {}
    for name, kind in _columns(dtype).items():
        at = batch.schema.get_field_index(name)
        if at < 0:
            raise ValueError(f"there is no column {name}")
        columns[name] = batch.column(at)
        if columns[name].type != kind:
            raise ValueError(f"column {name} is {columns[name].type}, not {kind}")
        if columns[name].null_count:
            raise ValueError(f"column {name} has nulls")
    batch.validate()
    docs, lists = len(batch), columns["tokens"]
    if docs != info.docs:
        raise ValueError(f"{docs} documents, not {info.docs}")
    offsets = np.frombuffer(lists.buffers()[1], np.int32, docs + 1)
    tokens = lists.values.to_numpy()
    if len(tokens) != info.tokens:
        raise ValueError(f"{len(tokens)} tokens, not {info.tokens}")
    if offsets[0] != 0 or offsets[-1] != len(tokens) or not (offsets[1:] > offsets[:-1]).all():
        raise ValueError("its document offsets don't ascend from 0 to the number of tokens")
    ids = np.frombuffer(columns["doc_id"].buffers()[1], f"V{DOC_ID_BYTES}", docs)
    return MappedShard(
        tokens=tokens, raw=memoryview(tokens).cast("B"), offsets=offsets, doc_ids=ids, file=file
    )


class MappedShards:
    """A split's shards, each mapped when it is first used, by whichever thread comes first.

    Args:
        hashed: compare each with its sha256 then.
        most: how many stay mapped; the one not used for longest gives way.
    """

    def __init__(
        self,
        folder: Folder,
        infos: tuple[ShardInfo, ...],
        *,
        dtype: str,
        hashed: bool,
        most: int,
    ) -> None:
        self.folder, self.infos, self.dtype, self.hashed = folder, infos, dtype, hashed
        self.most = most
        self._open: OrderedDict[int, MappedShard] = OrderedDict()
        self._raw: list[memoryview | None] = [None] * len(infos)
        self._ready = np.zeros(len(infos), np.bool_)
        self._bounded = most < len(infos)
        self._turns: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> MappedShard:
        shard = self._open.get(number)
        if shard is None:
            return self._first_use(number)
        if self._bounded:
            with self._lock:
                if number in self._open:
                    self._open.move_to_end(number)
        return shard

    def raw(self, numbers: NDArray[np.int64]) -> Any:
        """What gives the token bytes of each shard in ``numbers``, by its number."""
        if self._bounded:
            return {k: self[k].raw for k in np.unique(numbers).tolist()}
        ready = self._ready[numbers]
        if not ready.all():
            for k in np.unique(numbers[~ready]).tolist():
                self[k]
        return self._raw

    def _first_use(self, number: int) -> MappedShard:
        """Map it. Others that want the same shard wait; those that want another don't."""
        with self._lock:
            turn = self._turns.setdefault(number, threading.Lock())
        with turn:
            if (shard := self._open.get(number)) is not None:
                return shard
            self._make_room()
            info = self.infos[number]
            path = self.folder.shard(info)
            try:
                shard = open_shard(path, info, dtype=self.dtype, hashed=self.hashed)
            except BaseException:
                self.folder.release(info)
                raise
            with self._lock:
                self._open[number] = shard
                if not self._bounded:
                    self._raw[number] = shard.raw
                    self._ready[number] = True
            return shard

    def _make_room(self) -> None:
        while True:
            with self._lock:
                if len(self._open) < self.most:
                    return
                number, _ = self._open.popitem(last=False)
            self.folder.release(self.infos[number])


def most_mapped(folder: Folder, infos: tuple[ShardInfo, ...], cache: CacheConfig) -> int:
    """How many shards a reader keeps. What is mapped can't leave the cache of a remote folder,
    which the processes of a host and their corpora share: a small part of it is for one of each.
    And each holds a file open, as its lock: a part of what the process may have."""
    if not folder.verified:
        return MOST_MAPPED
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_MAPPED if files == resource.RLIM_INFINITY else min(MOST_MAPPED, files // 8)
    sizes = [info.bytes for info in infos]
    if sum(sizes) > cache.limit_bytes // 8:
        most = min(most, cache.limit_bytes // 16 // max(sizes))
    return max(1, most)
