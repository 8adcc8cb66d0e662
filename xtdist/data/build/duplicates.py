"""What becomes of every document: kept for a split, or left out. Of equal documents the first one
in the order of the source is kept; memory stays bounded by doing a part of all hashes at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtdist.config import DataError
from xtdist.data.build.content import SPLITS, Split, lots
from xtdist.data.build.scan import ScanReceipt, rows_of
from xtdist.data.build.work import Work
from xtdist.data.shards import repeated_ids

TRAIN, VALID, BLANK, DUPLICATE, KNOWN = range(5)
CODE_OF: dict[Split, int] = {"train": TRAIN, "valid": VALID}
PART_DOCUMENTS = 2**21
"""Documents whose hashes are compared at a time: about 100 MB."""


@dataclass(kw_only=True)
class Counts:
    """What the source holds, and what of it is kept."""

    documents: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    text_bytes: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    duplicates: int = 0
    known: int = 0
    empty: int = 0
    unreadable: int = 0
    sha256: str = ""
    codes_sha256: tuple[str, ...] = ()

    @property
    def total_documents(self) -> int:
        return sum(self.documents.values())

    @property
    def total_bytes(self) -> int:
        return sum(self.text_bytes.values())


def sort_out(
    work: Work,
    scans: Sequence[ScanReceipt],
    *,
    valid_fraction: float,
    known: NDArray[Any] | None = None,
    part_documents: int = PART_DOCUMENTS,
) -> Counts:
    """Write the codes of every unit's documents and count them.

    Args:
        known: ids of documents that are not wanted again, as rows of two words.
    """
    units = range(len(scans))
    for unit, scan in zip(units, scans, strict=True):
        _write_splits(work, unit, scan.documents, valid_fraction)
    total = sum(s.documents for s in scans) + (0 if known is None else len(known))
    bits = max(0, (max(total, 1) - 1) // part_documents).bit_length()
    for part in range(2**bits):
        _drop_repeated(work, units, (part, bits), known)
    return _count(work, scans)


def check_splits(counts: Counts, valid_fraction: float, old: dict[Split, int]) -> None:
    """Refuse what would be no dataset; ``old``: documents that each split has already.

    Raises:
        DataError: no text, nothing new, or a split that would be empty.
    """
    if not counts.total_documents:
        if counts.known:
            raise DataError(
                f"source: nothing to add; the dataset of extends has all {counts.known} documents"
            )
        raise DataError(
            f"source: the corpus is empty ({counts.empty} empty and {counts.unreadable} unreadable "
            "documents, none with text); give one with text"
        )
    if counts.total_documents + sum(old.values()) == 1:
        raise DataError(
            "source: there is one document only; a dataset needs one for each split: give the text "
            "as several files, or as JSON lines with a document in each"
        )
    for split in SPLITS:
        if not counts.documents[split] + old.get(split, 0):
            way = "raise" if split == "valid" else "lower"
            raise DataError(
                f"valid_fraction: with {valid_fraction}, none of the {counts.total_documents} "
                f"documents falls into the {split} split; {way} valid_fraction or add documents"
            )


def codes_of(work: Work, unit: int) -> NDArray[np.uint8]:
    """The codes of a unit's documents."""
    return np.fromfile(work.path("codes", unit), np.uint8)


def _write_splits(work: Work, unit: int, documents: int, valid_fraction: float) -> None:
    rows = rows_of(work, unit)
    with open(work.path("codes", unit), "wb") as file:
        for start in range(0, documents, PART_DOCUMENTS):
            part = rows[start : start + PART_DOCUMENTS]
            codes = np.where(lots(part["digest"][:, 2]) < valid_fraction, VALID, TRAIN)
            codes[part["blank"]] = BLANK
            file.write(codes.astype(np.uint8).data)  # tofile hides why it failed


def _drop_repeated(
    work: Work, units: range, part: tuple[int, int], known: NDArray[Any] | None
) -> None:
    """Among the hashes whose first bits are ``part``, mark all but the first of each."""
    ids, places = [], []  # places: unit and row; unit -1 is what is known
    if known is not None:
        chosen = np.flatnonzero(_in_part(known[:, 0], part))
        ids.append(known[chosen].astype(np.uint64))
        places.append(np.stack([np.full_like(chosen, -1), chosen], axis=1))
    for unit in units:
        rows = rows_of(work, unit)
        chosen = np.flatnonzero(_in_part(rows["digest"][:, 0], part) & ~rows["blank"])
        ids.append(rows["digest"][chosen, :2].astype(np.uint64))
        places.append(np.stack([np.full_like(chosen, unit), chosen], axis=1))
    every, place = np.concatenate(ids), np.concatenate(places)
    del ids, places
    order, repeated = repeated_ids(every)
    if not len(repeated):
        return
    first = _first_of_run(repeated)
    dropped, origin = place[order[repeated]], place[order[first]]
    code = np.where(origin[:, 0] == -1, KNOWN, DUPLICATE).astype(np.uint8)
    for unit in np.unique(dropped[:, 0]):
        if unit >= 0:
            mine, codes = dropped[:, 0] == unit, codes_of(work, int(unit))
            codes[dropped[mine, 1]] = code[mine]
            work.path("codes", int(unit)).write_bytes(codes.data)


def _first_of_run(repeated: NDArray[np.int64]) -> NDArray[np.int64]:
    """For sorted positions that each equal the one before: where their run of equals begins."""
    starts = np.ones(len(repeated), bool)
    starts[1:] = np.diff(repeated) > 1
    return (repeated[starts] - 1)[np.cumsum(starts) - 1]


def _in_part(words: NDArray[Any], part: tuple[int, int]) -> NDArray[np.bool_]:
    number, bits = part
    if not bits:
        return np.ones(len(words), bool)
    return words.astype(np.uint64) >> np.uint64(64 - bits) == number


def _count(work: Work, scans: Sequence[ScanReceipt]) -> Counts:
    counts, everything, codes_sha256 = Counts(), hashlib.sha256(), []
    for unit, scan in enumerate(scans):
        rows = rows_of(work, unit)
        counts.unreadable += scan.unreadable
        codes = codes_of(work, unit)
        codes_sha256.append(hashlib.sha256(codes.tobytes()).hexdigest())
        for start in range(0, len(rows), PART_DOCUMENTS):
            part = rows[start : start + PART_DOCUMENTS]
            everything.update(np.ascontiguousarray(part["digest"]).tobytes())
            seen = codes[start : start + PART_DOCUMENTS]
            number = np.bincount(seen, minlength=5).tolist()
            counts.empty += number[BLANK]
            counts.duplicates += number[DUPLICATE]
            counts.known += number[KNOWN]
            for split, code in CODE_OF.items():
                counts.documents[split] += number[code]
                counts.text_bytes[split] += int(part["bytes"][seen == code].sum())
    counts.sha256 = everything.hexdigest()
    counts.codes_sha256 = tuple(codes_sha256)
    return counts
