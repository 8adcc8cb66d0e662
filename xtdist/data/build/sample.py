"""Text for training the tokenizer: a subset of the training split, chosen by content hash."""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtdist.data.build.content import lots
from xtdist.data.build.duplicates import TRAIN, Counts, codes_of
from xtdist.data.build.scan import rows_of
from xtdist.data.build.work import Work
from xtdist.data.sources import SourceConfig, Unit, read_unit

_SIZE = struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which training documents are read: those with a lot below ``share``, at most ``most_chars``
    of each; if none has one, as with a few large documents, the one with the lowest lot (``only``:
    its unit and row)."""

    share: float
    most_chars: int
    only: tuple[int, int] | None

    def rows(self, work: Work, unit: int) -> NDArray[np.int64]:
        if self.only:
            return np.array([self.only[1]] if self.only[0] == unit else [], np.int64)
        return np.flatnonzero(_training_lots(work, unit) < self.share)


def choose(work: Work, units: int, counts: Counts, train_bytes: int) -> Choice:
    """Documents of about ``train_bytes`` of text in all."""
    share = min(1.0, train_bytes / max(counts.text_bytes["train"], 1))
    lowest, only = np.inf, None
    for unit in range(units):
        lot = _training_lots(work, unit)
        if len(lot) and lot.min() < lowest:
            lowest, only = float(lot.min()), (unit, int(lot.argmin()))
    return Choice(share=share, most_chars=train_bytes, only=None if lowest < share else only)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The task of collecting the chosen documents of a unit; gives the file that holds them."""

    source: SourceConfig
    unit: Unit
    work: Work
    choice: Choice

    @property
    def name(self) -> str:
        return self.unit.name

    def __call__(self, advance: Callable[[int], None]) -> Path:
        path = self.work.path("sample", self.unit.number)
        part = self.work.attempts / f"sample-{self.unit.number:05d}-{secrets.token_hex(4)}"
        rows = self.choice.rows(self.work, self.unit.number)
        with open(part, "wb") as file:
            for text in _picked(self.source, self.unit, rows):
                raw = text[: self.choice.most_chars].encode()
                file.write(_SIZE.pack(len(raw)) + raw)
                advance(len(raw))
        os.replace(part, path)
        return path


def sample_texts(paths: Sequence[Path]) -> Iterator[str]:
    """The documents that samples hold, in order."""
    for path in paths:
        with open(path, "rb") as file:
            while size := file.read(_SIZE.size):
                yield file.read(_SIZE.unpack(size)[0]).decode()


def _picked(source: SourceConfig, unit: Unit, rows: NDArray[np.int64]) -> Iterator[str]:
    wanted = iter(rows.tolist())
    next_row, row = next(wanted, None), 0
    if next_row is None:
        return
    for document in read_unit(source, unit):
        if document.text is None:
            continue
        if row == next_row:
            yield document.text
            if (next_row := next(wanted, None)) is None:
                return
        row += 1


def _training_lots(work: Work, unit: int) -> NDArray[Any]:
    """The lots of a unit's documents; infinite for those that are not of the training split."""
    lot: NDArray[Any] = lots(rows_of(work, unit)["digest"][:, 3])
    lot[codes_of(work, unit) != TRAIN] = np.inf
    return lot
