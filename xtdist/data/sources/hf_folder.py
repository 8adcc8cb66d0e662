"""Folders written by ``save_to_disk`` of Hugging Face datasets: each row is one document.

Such a folder holds ``state.json``, which lists Arrow stream files in order; a ``DatasetDict`` holds
``dataset_dict.json`` and such a folder for each split. Only pyarrow reads them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from xtdist.config import DataError
from xtdist.data.sources.root import Root, reading
from xtdist.data.sources.tables import check_column, checked, rows
from xtdist.data.sources.text import Policy
from xtdist.data.sources.unit import Document, Input, Part

_STATE = "state.json"
_SPLITS = "dataset_dict.json"
_MAX_JSON_BYTES = 2**26
_END = bytes.fromhex("ffffffff00000000")


@dataclass(frozen=True, kw_only=True)
class HfFolder:
    """Files are read whole, one record batch at a time."""

    root: Root
    split: str | None
    field: str
    policy: Policy

    def inputs(self) -> list[Input]:
        """The Arrow files, in the order of the dataset."""
        below = self._folder()
        state = self._json(f"{below}{_STATE}")
        try:
            names = [entry["filename"] for entry in state["_data_files"]]
        except (KeyError, TypeError):
            names = []
        if not all(isinstance(n, str) and n and not set(n) & set("/\\\0") for n in names):
            names = []
        if not names:
            raise DataError(f"{self.root.where(below + _STATE)}: names no data files; {_HOW}")
        if self.split is not None and not below and self.split != state.get("_split"):
            raise DataError(
                f"source.split: got {self.split!r}, but {self.root.at.name} holds one dataset "
                f"(split: {state.get('_split')}), not several; leave source.split out"
            )
        if state.get("_indices_data_files"):
            raise DataError(
                f"{self.root.where(below + _STATE)}: a selection of rows was stored beside the "
                "data; call flatten_indices() and save_to_disk again"
            )
        return [Input(name=f"{below}{n}", bytes=self.root.size(f"{below}{n}")) for n in names]

    def parts(self, unit_bytes: int) -> Iterable[Part]:
        for found in self.inputs():
            where = self.root.where(found.name)
            with reading(where), _damage(), self.root.open(found.name) as stored:
                check_column(pa.ipc.open_stream(stored).schema, self.field, where)
            yield Part(file=found.name, start=0, stop=found.bytes, bytes=found.bytes)

    def read(self, part: Part) -> Iterator[Document]:
        where, row = self.root.where(part.file), 0
        with reading(where), _damage(), self.root.open(part.file) as stored:
            stored.seek(-min(part.stop, len(_END)), os.SEEK_END)
            if stored.read() != _END:
                raise DataError(
                    f"{where}: can't be read (no end of the Arrow stream: it was cut short); copy "
                    "it again, or save the dataset again"
                )
            stored.seek(0)
            stream = pa.ipc.open_stream(stored)
            check_column(stream.schema, self.field, where)
            for batch in stream:
                yield from rows(
                    checked(batch.column(self.field)),
                    name=part.file,
                    where=where,
                    first_row=row,
                    policy=self.policy,
                )
                row += batch.num_rows

    def _folder(self) -> str:
        """The folder of the chosen dataset, below the root: '' or ``train/``."""
        if self.root.has(_STATE):
            return ""
        if not self.root.has(_SPLITS):
            raise DataError(f"source.path: {self.root.at.name} has no {_STATE}; {_HOW}")
        about = self._json(_SPLITS)
        splits = about.get("splits")
        if not isinstance(splits, list) or self.split not in splits:
            names = ", ".join(map(repr, splits)) if isinstance(splits, list) else "(none)"
            raise DataError(
                f"source.split: got {self.split!r}; {self.root.at.name} holds several datasets, "
                f"give one of {names}"
            )
        if set(str(self.split)) & set("/\0") or self.split in (".", ".."):
            raise DataError(f"source.split: {self.split!r} is no name of a folder")
        return f"{self.split}/"

    def _json(self, name: str) -> dict[str, Any]:
        where = self.root.where(name)
        with reading(where), self.root.open(name) as file:
            raw = file.read(_MAX_JSON_BYTES)
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{where}: not JSON ({e}); {_HOW}") from None
        if not isinstance(found, dict):
            raise DataError(f"{where}: not a JSON object; {_HOW}")
        return found


@contextmanager
def _damage() -> Iterator[None]:
    """What pyarrow raises besides its own errors when names or sizes are damaged."""
    try:
        yield
    except (MemoryError, UnicodeDecodeError) as e:
        raise pa.ArrowInvalid(str(e) or "a size in it is larger than the memory") from None


_HOW = "give a folder that save_to_disk of Hugging Face datasets wrote"
