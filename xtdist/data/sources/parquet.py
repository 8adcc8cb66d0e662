"""Parquet files: each row is one document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from xtdist.data.sources.root import Root, reading
from xtdist.data.sources.tables import check_column, rows
from xtdist.data.sources.text import Policy, changed
from xtdist.data.sources.unit import Document, Input, Part

_BATCH_BYTES = 2**22
_READ_BYTES = 2**20
_MAX_ROWS = 2**13
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class ParquetFiles:
    """Cut at row groups; of each only the column of the text is read, some rows at a time."""

    root: Root
    pattern: str
    field: str
    policy: Policy

    def inputs(self) -> list[Input]:
        return self.root.files(self.pattern)

    def parts(self, unit_bytes: int) -> Iterable[Part]:
        """A part is one row group that has rows; ``bytes`` are those of its text, unpacked."""
        names = [found.name for found in self.inputs()]
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:  # remote footers take a while each
            for name, groups in zip(names, pool.map(self._groups, names), strict=True):
                for group, size in groups:
                    yield Part(file=name, start=group, stop=group + 1, bytes=size)

    def read(self, part: Part) -> Iterator[Document]:
        where = self.root.where(part.file)
        with reading(where), self.root.open(part.file) as stored:
            file = self._opened(stored, where)
            about = file.metadata
            if part.stop > about.num_row_groups:
                raise changed(where)
            row = sum(about.row_group(g).num_rows for g in range(part.start))
            for group in range(part.start, part.stop):
                for batch in file.iter_batches(
                    batch_size=_batch_rows(about.row_group(group), self._column(about)),
                    row_groups=[group],
                    columns=[self.field],
                    use_threads=False,
                ):
                    yield from rows(
                        batch.column(self.field),
                        name=part.file,
                        where=where,
                        first_row=row,
                        policy=self.policy,
                    )
                    row += batch.num_rows

    def _groups(self, name: str) -> list[tuple[int, int]]:
        """The row groups that have rows: their numbers and the unpacked bytes of their text."""
        where = self.root.where(name)
        with reading(where), self.root.open(name) as stored:
            about = self._opened(stored, where).metadata
            column = self._column(about)
            groups = enumerate(about.row_group(g) for g in range(about.num_row_groups))
            return [(i, g.column(column).total_uncompressed_size) for i, g in groups if g.num_rows]

    def _opened(self, stored: Any, where: str) -> Any:
        from pyarrow import parquet

        # Without these two, whole column chunks are read at once.
        file = parquet.ParquetFile(stored, pre_buffer=False, buffer_size=_READ_BYTES)
        check_column(file.schema_arrow, self.field, where)
        return file

    def _column(self, about: Any) -> int:
        """The number of the text among the leaf columns."""
        names = [about.schema.column(i).path for i in range(about.num_columns)]
        return names.index(self.field)


def _batch_rows(group: Any, column: int) -> int:
    """So many rows that their text has about ``_BATCH_BYTES``."""
    row_bytes = group.column(column).total_uncompressed_size // max(1, group.num_rows)
    return max(1, min(_MAX_ROWS, _BATCH_BYTES // max(1, row_bytes)))
