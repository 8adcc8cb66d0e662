"""Which documents are kept, against a plain walk over all of them with a set."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtdist.config import DataError
from xtdist.data.build.content import PIECE_CHARS, ROW, content_hash
from xtdist.data.build.duplicates import (
    BLANK,
    DUPLICATE,
    KNOWN,
    TRAIN,
    VALID,
    check_splits,
    codes_of,
    sort_out,
)
from xtdist.data.build.scan import ScanReceipt
from xtdist.data.build.work import Work

TEXTS = st.lists(st.lists(st.sampled_from([f"text {i}" for i in range(12)] + ["", " \n"])))


def scanned(work: Work, units: list[list[str]]) -> list[ScanReceipt]:
    """What scanning the units leaves."""
    work.folder.mkdir(parents=True)
    receipts = []
    for number, texts in enumerate(units):
        rows = np.empty(len(texts), ROW)
        for row, text in zip(rows, texts, strict=True):
            row["digest"] = np.frombuffer(hashlib.sha256(text.encode()).digest(), ">u8")
            row["bytes"], row["blank"] = len(text.encode()), not text.strip()
        rows.tofile(work.path("scan", number, ".rows"))
        receipts.append(
            ScanReceipt(
                fingerprint="", documents=len(texts), unreadable=1, rows_sha256="", inputs={}
            )
        )
    return receipts


def expected_codes(units: list[list[str]], known: set[str], fraction: float) -> list[list[int]]:
    seen: dict[str, int] = dict.fromkeys(known, KNOWN)
    result = []
    for texts in units:
        codes = []
        for text in texts:
            digest = hashlib.sha256(text.encode()).digest()
            lot = (int.from_bytes(digest[16:24], "big") >> 11) / 2**53
            if not text.strip():
                codes.append(BLANK)
            elif text in seen:
                codes.append(seen[text])
            else:
                codes.append(VALID if lot < fraction else TRAIN)
                seen[text] = DUPLICATE
        result.append(codes)
    return result


@settings(max_examples=25, deadline=None)
@given(units=TEXTS, known=st.sets(st.integers(0, 11)), part_documents=st.sampled_from([1, 3, 1000]))
def test_the_first_of_equal_documents_is_kept_in_however_many_parts_hashes_are_compared(
    units: list[list[str]], known: set[int], part_documents: int
) -> None:
    names = {f"text {i}" for i in known}
    ids = np.array(
        [np.frombuffer(hashlib.sha256(n.encode()).digest()[:16], ">u8") for n in sorted(names)],
        np.uint64,
    ).reshape(-1, 2)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder), "plan")
        scans = scanned(work, units)
        counts = sort_out(work, scans, valid_fraction=0.4, known=ids, part_documents=part_documents)
        codes = [codes_of(work, i).tolist() for i in range(len(units))]
    assert codes == expected_codes(units, names, 0.4)
    flat = [c for unit in codes for c in unit]
    found = (counts.empty, counts.duplicates, counts.known, counts.documents["valid"])
    assert found == tuple(flat.count(c) for c in (BLANK, DUPLICATE, KNOWN, VALID))
    kept = [
        t
        for us, cs in zip(units, codes, strict=True)
        for t, c in zip(us, cs, strict=True)
        if c in (TRAIN, VALID)
    ]
    assert counts.total_bytes == sum(len(t) for t in kept)
    assert counts.unreadable == len(units)
    everything = b"".join(hashlib.sha256(t.encode()).digest() for unit in units for t in unit)
    assert counts.sha256 == hashlib.sha256(everything).hexdigest()


@pytest.mark.parametrize("text", ["", "short", "ü東" * PIECE_CHARS, "a" * PIECE_CHARS + "€"])
def test_the_hash_of_a_long_text_is_that_of_its_utf_8(text: str) -> None:
    raw = text.encode()
    assert content_hash(text) == (hashlib.sha256(raw).digest(), len(raw))


def test_an_extension_without_a_new_document_is_refused(tmp_path: Path) -> None:
    work = Work(tmp_path, "plan")
    scans = scanned(work, [["a", "a"]])
    known = np.frombuffer(hashlib.sha256(b"a").digest()[:16], ">u8").astype(np.uint64)
    counts = sort_out(work, scans, valid_fraction=0.5, known=known.reshape(1, 2))
    with pytest.raises(DataError, match="nothing to add; the dataset of extends has all 2"):
        check_splits(counts, 0.5, {"train": 1, "valid": 1})
