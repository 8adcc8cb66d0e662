"""What the benchmark of the data path reads: datasets of random tokens, the same tokens as a plain
file, a dataset of very many shards, and text."""

from __future__ import annotations

import hashlib
import json
import mmap
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xtdist.data import byte_tokenizer
from xtdist.data.manifest import (
    MANIFEST_FILE,
    BuildInfo,
    Manifest,
    ShardInfo,
    TokenizerInfo,
    canonical_text,
)
from xtdist.data.shards import DOC_ID_BYTES, ShardWriter
from xtdist.data.tokenizer import TOKENIZER_FILE

BYTES = 256
MEAN_LENGTH = 813  # of documents, with the spread that web pages have
ROWS_PER_TABLE = 1000
FLAT_FILE = "tokens.bin"
SHARD_FILE = "train-00000-00000.arrow"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """``tokens`` ids in ``folder``: ``whole`` is a dataset of them all, ``first`` and ``second`` of
    a half each, ``flat`` a plain file; peers write theirs beside it."""

    folder: Path
    tokens: int
    seq_len: int = 1024
    batch: int = 32

    @property
    def width(self) -> int:
        return self.seq_len + 1

    @property
    def flat(self) -> Path:
        return self.folder / FLAT_FILE

    def dataset(self, name: str) -> str:
        return str(self.folder / name)

    def write(self, *, shard_tokens: int = 32 * 2**20) -> None:
        """Make the datasets and the plain file, from one seed."""
        ids, ends = random_documents(self.tokens)
        ids.tofile(self.flat)
        half = int(ends.searchsorted(self.tokens // 2))
        parts = {"whole": slice(None), "first": slice(half + 1), "second": slice(half, None)}
        for name, part in parts.items():
            write_dataset(self.folder / name, ids, ends[part], shard_tokens=shard_tokens)

    def check(self, batch: Any, *, in_order: bool = True) -> None:
        """Refuse a batch of another shape or type, or (``in_order``) whose first row is not one
        stretch of the tokens."""
        if tuple(batch.shape) != (self.batch, self.width) or str(batch.dtype) != "torch.int64":
            raise ValueError(f"a batch is {batch.dtype} {tuple(batch.shape)}")
        row = batch[0].numpy().astype(np.uint16).tobytes()
        with open(self.flat, "rb") as file, mmap.mmap(file.fileno(), 0, access=1) as flat:
            if in_order and flat.find(row) < 0:
                raise ValueError("a row is not a stretch of the tokens")


def random_documents(tokens: int) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Random bytes as ids, cut into documents of lognormal lengths that end with end-of-text; where
    each of them ends, from 0 to ``tokens``."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, BYTES, tokens, np.uint8).astype(np.uint16)
    count = 2 * tokens // MEAN_LENGTH + 16
    lengths = generator.lognormal(np.log(MEAN_LENGTH) - 0.5, 1.0, count).astype(np.int64) + 2
    ends = np.concatenate([[0], lengths.cumsum()])
    ends = np.append(ends[ends < tokens], tokens)
    ids[ends[1:] - 1] = byte_tokenizer().eot_id
    return ids, ends


def write_dataset(
    folder: Path, ids: NDArray[np.uint16], ends: NDArray[np.int64], *, shard_tokens: int
) -> None:
    """A dataset of the documents between ``ends``."""
    folder.mkdir(parents=True)
    writer = ShardWriter(
        folder,
        "train-00000",
        dtype="uint16",
        shard_tokens=shard_tokens,
        tokenizer_sha256=byte_tokenizer().sha256,
    )
    for number, (start, stop) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        name = number.to_bytes(DOC_ID_BYTES, "big")
        writer.add(ids[start:stop], text_bytes=stop - start, doc_id=name)
    publish(folder, writer.close())


def publish(folder: Path, shards: tuple[ShardInfo, ...]) -> None:
    """Tokenizer and manifest of a dataset with these shards."""
    tokenizer = byte_tokenizer()
    tokenizer.save(folder / TOKENIZER_FILE)
    manifest = Manifest(
        dtype="uint16",
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        tokenizer=TokenizerInfo(kind=tokenizer.kind, sha256=tokenizer.sha256),
        build=BuildInfo(
            settings_sha256="0" * 64,
            inputs_sha256="0" * 64,
            documents=sum(s.docs for s in shards),
            text_bytes=sum(s.text_bytes for s in shards),
        ),
        splits={"train": shards},
    )
    (folder / MANIFEST_FILE).write_text(canonical_text(manifest))


def write_many_shards(folder: Path, count: int, *, shard_tokens: int = 4096) -> None:
    """A dataset of ``count`` small shards with the same content, in files of their own."""
    ids, ends = random_documents(shard_tokens)
    write_dataset(folder, ids, ends, shard_tokens=2 * shard_tokens)
    path = folder / SHARD_FILE
    raw = path.read_bytes()
    document = len(ids)
    names = [f"train-{i:05d}-00000.arrow" for i in range(count)]
    for name in names:
        (folder / name).write_bytes(raw)
    shards = tuple(
        ShardInfo(
            path=name,
            bytes=len(raw),
            docs=len(ends) - 1,
            tokens=document,
            text_bytes=document,
            max_id=int(ids.max()),
            sha256=hashlib.sha256(raw).hexdigest(),
        )
        for name in names
    )
    publish(folder, shards)


@dataclass(frozen=True, kw_only=True)
class Text:
    """The same distinct documents in a folder of jsonl and one of Parquet files."""

    jsonl: Path
    parquet: Path
    documents: int
    text_bytes: int
    sha256: str


def python_sources() -> Iterator[str]:
    """The Python files of the standard library, then of the installed packages, in the order of
    their names."""
    packages = ("site-packages", "dist-packages")
    installed = [Path(p) for p in dict.fromkeys(sys.path) if Path(p).name in packages]
    roots = [Path(sysconfig.get_paths()["stdlib"]), *installed]
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if root is roots[0] and path.relative_to(root).parts[0] in packages:
                continue
            try:
                yield path.read_bytes().decode()
            except (UnicodeDecodeError, OSError):
                continue


def write_text(folder: Path, *, limit_bytes: int, row_group: int = 256) -> Text:
    """About ``limit_bytes`` of Python sources, if as many are installed; each text once and none
    that is blank, as a dataset holds them."""
    folder.mkdir(parents=True)
    seen: set[bytes] = set()
    digest, size, documents = hashlib.sha256(), 0, []
    for text in python_sources():
        raw = text.encode()
        name = hashlib.sha256(raw).digest()
        if not text.strip() or name in seen:
            continue
        seen.add(name)
        digest.update(name)
        documents.append(text)
        size += len(raw)
        if size >= limit_bytes:
            break
    parquet, jsonl = folder / "text.parquet", folder / "text.jsonl"
    pq.write_table(pa.table({"text": documents}), parquet, row_group_size=row_group)
    with jsonl.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in documents)
    return Text(
        jsonl=jsonl,
        parquet=parquet,
        documents=len(documents),
        text_bytes=size,
        sha256=digest.hexdigest(),
    )
