"""Shards on disk: uncompressed Arrow IPC files, one row = one document.

The column ``tokens: list<uint16>`` (``uint32`` for vocabularies above 65 536) has the flat token
stream as its child buffer, read zero-copy from a memory map, and the document boundaries as its
offsets. Every document ends with the end-of-text id. The column ``doc_id`` holds 16 bytes for each:
the first of the sha256 of its text in UTF-8.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xtdist.config import DataError
from xtdist.data.arrays import Ints
from xtdist.data.manifest import FORMAT_VERSION, ShardInfo
from xtdist.files import replacing

Tokens = NDArray[Any]

DOC_ID_BYTES = 16
RESTORE = "restore the file, or delete the folder and prepare the dataset again"


def token_dtype(vocab_size: int) -> str:
    """The narrowest of the two id types that holds the vocabulary."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def shard_schema(dtype: str, *, tokenizer_sha256: str) -> Any:
    """The Arrow schema of a shard; its metadata tell what a lone shard belongs to."""
    return pa.schema(
        [
            pa.field("tokens", pa.list_(pa.field("item", dtype, nullable=False)), nullable=False),
            pa.field("doc_id", pa.binary(DOC_ID_BYTES), nullable=False),
        ],
        metadata={"format_version": str(FORMAT_VERSION), "tokenizer_sha256": tokenizer_sha256},
    )


class ShardWriter:
    """Collects documents and writes one shard per ``shard_tokens`` tokens.

    Documents stay whole; one that is longer than a shard is a shard of its own.

    Shards are named ``<prefix>-00000.arrow`` and on; each is one record batch, written under a
    temporary name, synced and renamed. Memory: one shard's tokens, in one buffer used again; a
    longer document is written from where it is.
    """

    def __init__(
        self, folder: Path, prefix: str, *, dtype: str, shard_tokens: int, tokenizer_sha256: str
    ) -> None:
        self.folder, self.prefix, self.shard_tokens = folder, prefix, shard_tokens
        self.shards: list[ShardInfo] = []
        self._schema = shard_schema(dtype, tokenizer_sha256=tokenizer_sha256)
        self._buffer = np.empty(0, dtype)
        self._reset()

    def add(self, tokens: Tokens, *, text_bytes: int, doc_id: bytes) -> None:
        """Append one document; its last token is the end-of-text id."""
        start = self._ends[-1]
        stop = start + len(tokens)
        if len(tokens) >= 2**31 - self.shard_tokens:
            raise DataError(f"a document of {len(tokens)} tokens is too long; cut it into parts")
        if len(tokens) == 0 or len(doc_id) != DOC_ID_BYTES:
            raise ValueError(f"a document has tokens and a doc_id of {DOC_ID_BYTES} bytes")
        if tokens.max() > np.iinfo(self._buffer.dtype).max:
            raise DataError(f"id {tokens.max()} doesn't fit {self._buffer.dtype}")
        if len(tokens) >= self.shard_tokens:
            self.close()
            self._note(len(tokens), text_bytes, doc_id)
            self._write(tokens.astype(self._buffer.dtype, copy=False))
            return
        if stop > len(self._buffer):
            larger = np.empty(max(stop, 2 * len(self._buffer)), self._buffer.dtype)
            larger[:start] = self._buffer[:start]
            self._buffer = larger
        self._buffer[start:stop] = tokens
        self._note(stop, text_bytes, doc_id)
        if stop >= self.shard_tokens:
            self._write(self._buffer[:stop])

    def close(self) -> tuple[ShardInfo, ...]:
        """Write what is left; all shards, in order."""
        if len(self._ends) > 1:
            self._write(self._buffer[: self._ends[-1]])
        return tuple(self.shards)

    def _note(self, stop: int, text_bytes: int, doc_id: bytes) -> None:
        self._ends.append(stop)
        self._doc_ids += doc_id
        self._text_bytes += text_bytes

    def _reset(self) -> None:
        self._ends = array("i", [0])
        self._doc_ids = bytearray()
        self._text_bytes = 0

    def _write(self, flat: Tokens) -> None:
        name = f"{self.prefix}-{len(self.shards):05d}.arrow"
        docs = len(self._ends) - 1
        lists, ids = (self._schema.field(i).type for i in range(2))
        columns = [
            pa.Array.from_buffers(
                lists, docs, [None, pa.py_buffer(self._ends)], children=[pa.array(flat)]
            ),
            pa.Array.from_buffers(ids, docs, [None, pa.py_buffer(self._doc_ids)]),
        ]
        batch = pa.record_batch(columns, self._schema)
        size, sha256 = _write_file(self.folder / name, batch)
        self.shards.append(
            ShardInfo(
                path=name,
                bytes=size,
                docs=docs,
                tokens=len(flat),
                text_bytes=self._text_bytes,
                max_id=int(flat.max()),
                sha256=sha256,
            )
        )
        self._reset()


class _HashingFile:
    """A file for pyarrow to write to that hashes what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.hash = file, 0, hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.file.write(view)
        self.hash.update(view)
        self.size += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.closed = True


def _write_file(path: Path, batch: Any) -> tuple[int, str]:
    """Write one record batch; the file's size and sha256."""
    with replacing(path) as raw:
        out = _HashingFile(raw)
        with pa.PythonFile(out, mode="w") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
    return out.size, out.hash.hexdigest()


def repeated_ids(ids: NDArray[np.uint64]) -> tuple[Ints, Ints]:
    """An order [n] that sorts document ids [n, 2], equal ones as they come; and the places in it
    whose id is that of the place before."""
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    ordered = ids[order]
    return order, np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1)) + 1


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def total(shards: Iterable[ShardInfo], what: str) -> int:
    """Sum of one field over shards."""
    return sum(int(getattr(s, what)) for s in shards)
