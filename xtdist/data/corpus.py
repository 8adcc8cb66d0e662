"""The documents of a source as they go into a dataset: no empty ones, no exact duplicates, each
with its split. What is kept, and where it goes, follows from a document's content alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from xtdist.config import DataError
from xtdist.data.sources import SourceConfig, documents

Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")


@dataclass(frozen=True, kw_only=True)
class Text:
    """One kept document. ``lot`` is a number in [0, 1) drawn from its content, for subsets;
    ``doc_id`` the first 16 bytes of its sha256."""

    text: str
    doc_id: bytes
    bytes: int
    split: Split
    lot: float


@dataclass(kw_only=True)
class Counts:
    """What a pass over the source saw."""

    documents: dict[Split, int] = field(default_factory=lambda: {"train": 0, "valid": 0})
    text_bytes: dict[Split, int] = field(default_factory=lambda: {"train": 0, "valid": 0})
    duplicates: int = 0
    empty: int = 0
    unreadable: int = 0
    sha256: str = ""

    @property
    def total_documents(self) -> int:
        return sum(self.documents.values())

    @property
    def total_bytes(self) -> int:
        return sum(self.text_bytes.values())


def texts(source: SourceConfig, valid_fraction: float, counts: Counts) -> Iterator[Text]:
    """Kept documents in order; ``counts`` and its digest are complete once the last one was taken.

    Memory: one document and 16 bytes (plus Python's overhead) for each one seen.
    """
    seen: set[bytes] = set()
    everything = hashlib.sha256()
    for document in documents(source):
        if document.text is None:
            counts.unreadable += 1
            continue
        raw = document.text.encode()
        content = hashlib.sha256(raw).digest()
        everything.update(content)
        if not document.text.strip():
            counts.empty += 1
        elif content[:16] in seen:
            counts.duplicates += 1
        else:
            seen.add(content[:16])
            split: Split = "valid" if _lot(content[16:24]) < valid_fraction else "train"
            counts.documents[split] += 1
            counts.text_bytes[split] += len(raw)
            yield Text(
                text=document.text,
                doc_id=content[:16],
                bytes=len(raw),
                split=split,
                lot=_lot(content[24:32]),
            )
    counts.sha256 = everything.hexdigest()


def scan(source: SourceConfig, valid_fraction: float, progress: Callable[[int], None]) -> Counts:
    """Read everything once: sizes, splits and the digest of the input.

    Raises:
        DataError: nothing to build from, or a split that would be empty.
    """
    counts = Counts()
    for _ in texts(source, valid_fraction, counts):
        progress(counts.total_bytes)
    if not counts.total_documents:
        raise DataError(
            f"source: the corpus is empty ({counts.empty} empty and {counts.unreadable} unreadable "
            "documents, none with text); give one with text"
        )
    for split in SPLITS:
        if not counts.documents[split]:
            way = "raise" if split == "valid" else "lower"
            raise DataError(
                f"valid_fraction: with {valid_fraction}, none of the {counts.total_documents} "
                f"documents falls into the {split} split; {way} valid_fraction or add documents"
            )
    return counts


def _lot(eight_bytes: bytes) -> float:
    return (int.from_bytes(eight_bytes, "big") >> 11) / 2**53
