"""Encoding a unit: its kept documents into shards of each split, and a receipt at the end."""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtdist.config import DataError, configclass
from xtdist.data.build.content import SPLITS, content_hash
from xtdist.data.build.duplicates import CODE_OF, codes_of
from xtdist.data.build.lengths import count_lengths
from xtdist.data.build.long_documents import LONG_CHARS, long_document
from xtdist.data.build.receipts import read_receipt, write_receipt
from xtdist.data.build.scan import forget, rows_of
from xtdist.data.build.work import Work
from xtdist.data.manifest import ShardInfo
from xtdist.data.shards import ShardWriter, file_sha256, token_dtype
from xtdist.data.sources import Document, SourceConfig, Unit, read_unit
from xtdist.data.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer
from xtdist.files import sync


@configclass
class Receipt:
    """A unit is done. ``key``: digest of all that its shards follow from. ``lengths``: counts of
    documents by length, see ``lengths.py``."""

    key: str
    splits: dict[str, tuple[ShardInfo, ...]]
    lengths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Encode:
    """The task of encoding one unit; done again it finds its receipt and checks the shards.

    Attributes:
        digest: of what the scan found and the filter decided.
        number: that the unit's shards are named by.
    """

    source: SourceConfig
    unit: Unit
    work: Work
    digest: str
    number: int
    tokenizer_sha256: str
    shard_tokens: int

    @property
    def name(self) -> str:
        return self.unit.name

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.digest} {self.tokenizer_sha256}".encode()).hexdigest()

    def __call__(self, advance: Callable[[int], None]) -> Receipt:
        path = self.work.path("receipt", self.unit.number, ".json")
        receipt = self._finished(path)
        if receipt is not None:
            advance(sum(s.text_bytes for shards in receipt.splits.values() for s in shards))
            return receipt
        attempt = self.work.attempts / f"{self.unit.number:05d}-{secrets.token_hex(4)}"
        attempt.mkdir()
        try:
            receipt = self._encode(attempt, advance)
            for shards in receipt.splits.values():
                for shard in shards:
                    os.replace(attempt / shard.path, self.work.dataset / shard.path)
        finally:
            shutil.rmtree(attempt, ignore_errors=True)
        sync(self.work.dataset)
        write_receipt(path, receipt)
        return receipt

    def _finished(self, path: Path) -> Receipt | None:
        receipt = read_receipt(Receipt, path)
        if receipt is None or receipt.key != self.key:
            return None
        shards = [s for split in receipt.splits.values() for s in split]
        return receipt if all(_intact(self.work.dataset, s) for s in shards) else None

    def _encode(self, folder: Path, advance: Callable[[int], None]) -> Receipt:
        tokenizer = _tokenizer(self.work.dataset / TOKENIZER_FILE, self.tokenizer_sha256)
        dtype = token_dtype(tokenizer.vocab_size)
        writers = {
            CODE_OF[split]: ShardWriter(
                folder,
                f"{split}-{self.number:05d}",
                dtype=dtype,
                shard_tokens=self.shard_tokens,
                tokenizer_sha256=self.tokenizer_sha256,
            )
            for split in SPLITS
        }
        eot = np.array([tokenizer.eot_id], np.uint32)
        lengths: list[int] = []
        for text, digest, size, code in self._kept():
            if len(text) > LONG_CHARS:
                tokens = long_document(text, tokenizer, folder / "long", dtype)
            else:
                tokens = np.concatenate([tokenizer.encode(text), eot])
            writers[code].add(tokens, text_bytes=size, doc_id=digest[:16])
            lengths.append(len(tokens))
            advance(size)
        return Receipt(
            key=self.key,
            splits={split: writers[CODE_OF[split]].close() for split in SPLITS},
            lengths=count_lengths(np.array(lengths, np.int64)),
        )

    def _kept(self) -> Iterator[tuple[str, bytes, int, int]]:
        """Text, digest, size and code of each kept document, which must be what was scanned.

        Raises:
            DataError: the text changed since.
        """
        number = self.unit.number
        codes: NDArray[Any] = codes_of(self.work, number)
        if not np.isin(codes, list(CODE_OF.values())).any():
            return
        wanted, digests = codes.tolist(), rows_of(self.work, number)["digest"].tobytes()
        row = -1
        for document in read_unit(self.source, self.unit):
            if document.text is None:
                continue
            row += 1
            digest, size = content_hash(document.text)
            if digests[32 * row : 32 * row + 32] != digest:
                raise self._changed(document)
            if wanted[row] in CODE_OF.values():
                yield document.text, digest, size, wanted[row]
        if row + 1 != len(wanted):
            raise self._changed(None)

    def _changed(self, document: Document | None) -> DataError:
        forget(self.work)
        where = document.name if document else self.unit.name
        return DataError(
            f"source: the text changed while it was read (at {where}); run again when it is at rest"
        )


def _intact(folder: Path, shard: ShardInfo) -> bool:
    path = folder / shard.path
    try:
        return path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256
    except OSError:
        return False


@functools.lru_cache(maxsize=1)
def _tokenizer(path: Path, sha256: str) -> Tokenizer:
    """A worker reads it once, not for every unit."""
    tokenizer = load_tokenizer(path)
    if tokenizer.sha256 != sha256:
        raise DataError(f"{path}: not the tokenizer of this build")
    return tokenizer
