"""Scanning a unit: the content hash and size of every document, and digests of what was read."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtdist.config import NonNegativeInt, configclass
from xtdist.data.build.content import ROW, content_hash
from xtdist.data.build.inputs import digests, fingerprint
from xtdist.data.build.receipts import read_receipt, write_receipt
from xtdist.data.build.work import Work
from xtdist.data.shards import file_sha256
from xtdist.data.sources import SourceConfig, Unit, read_unit

Advance = Callable[[int], None]


@configclass
class ScanReceipt:
    """``rows_sha256`` is that of the file of rows (see ``content.ROW``); ``inputs`` the sha256 of
    each stored file that begins in the unit."""

    fingerprint: str
    documents: NonNegativeInt
    unreadable: NonNegativeInt
    rows_sha256: str
    inputs: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The task of scanning one unit; done again it finds its receipt."""

    source: SourceConfig
    unit: Unit
    work: Work

    @property
    def name(self) -> str:
        return self.unit.name

    def __call__(self, advance: Advance) -> ScanReceipt:
        stamp = fingerprint(self.source, self.unit)
        path, rows = self._paths
        known = _valid(path, rows, stamp)
        if known is None:
            known = self._scan(stamp, _Bounded(advance, self.unit.bytes))
        else:
            advance(self.unit.bytes)
        return known

    @property
    def _paths(self) -> tuple[Path, Path]:
        return tuple(self.work.path("scan", self.unit.number, e) for e in (".json", ".rows"))  # type: ignore[return-value]

    def _scan(self, stamp: str, advance: _Bounded) -> ScanReceipt:
        content, sizes, blank = bytearray(), array("Q"), bytearray()
        unreadable = 0
        for document in read_unit(self.source, self.unit):
            text = document.text
            if text is None:
                unreadable += 1
                continue
            digest, size = content_hash(text)
            content += digest
            sizes.append(size)
            blank.append(not text or text.isspace())
            advance(size)
        rows = np.empty(len(sizes), ROW)
        rows["digest"] = np.frombuffer(content, ">u8").reshape(-1, 4)
        rows["bytes"] = sizes
        rows["blank"] = np.frombuffer(blank, "?")
        path, rows_path = self._paths
        rows_path.write_bytes(rows.view(np.uint8).data)  # tofile hides why it failed
        receipt = ScanReceipt(
            fingerprint=stamp,
            documents=len(rows),
            unreadable=unreadable,
            rows_sha256=hashlib.sha256(rows.tobytes()).hexdigest(),
            inputs=digests(self.source, self.unit),
        )
        write_receipt(path, receipt)
        advance.finish()
        return receipt


class _Bounded:
    """Counts text as stored bytes: packed text is longer than its file, JSON shorter."""

    def __init__(self, advance: Advance, total: int) -> None:
        self._advance, self._left = advance, total

    def __call__(self, amount: int) -> None:
        amount = min(amount, self._left)
        self._left -= amount
        self._advance(amount)

    def finish(self) -> None:
        self(self._left)


def rows_of(work: Work, unit: int) -> NDArray[Any]:
    """The rows of a scanned unit, mapped."""
    path = work.path("scan", unit, ".rows")
    if not path.stat().st_size:
        return np.empty(0, ROW)
    return np.memmap(path, ROW, mode="r")


def forget(work: Work) -> None:
    """Have all units scanned anew by the next build."""
    for path in work.folder.glob("scan-*.json"):
        path.unlink(missing_ok=True)


def _valid(path: Path, rows: Path, stamp: str) -> ScanReceipt | None:
    receipt = read_receipt(ScanReceipt, path)
    if receipt is None or receipt.fingerprint != stamp:
        return None
    try:
        return receipt if file_sha256(rows) == receipt.rows_sha256 else None
    except OSError:
        return None
