"""Rows of Arrow tables as documents: what Parquet files and folders of datasets share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from xtdist.config import DataError
from xtdist.data.sources.text import MAX_DOCUMENT_BYTES, Policy, too_large
from xtdist.data.sources.unit import Document

_BYTES_OF = (
    (pa.string(), pa.binary()),
    (pa.large_string(), pa.large_binary()),
    (pa.string_view(), pa.binary_view()),
)


def check_column(schema: Any, field: str, where: str) -> None:
    """Raise DataError unless the Arrow schema has exactly one column ``field``, that of text."""
    columns = [column for column in schema if column.name == field]
    if not columns:
        texts = [repr(column.name) for column in schema if _is_text(column.type)]
        raise DataError(
            f"{where}: no column {field!r}; set source.field to a column of text: "
            f"{', '.join(texts[:20]) or '(there is none)'}"
        )
    if len(columns) > 1:
        raise DataError(f"{where}: {len(columns)} columns are named {field!r}; rename one")
    if not _is_text(columns[0].type):
        raise DataError(
            f"{where}: column {field!r} is {columns[0].type}; set source.field to a column of "
            "strings or of binary values that hold UTF-8"
        )


def checked(column: Any) -> Any:
    """The text of an Arrow file as bytes, once all its offsets are known to lie within: pyarrow
    believes them, and a damaged file would end the process.

    Raises:
        pa.ArrowInvalid: they don't.
    """
    column.validate()
    if pa.types.is_dictionary(column.type):
        values = checked(column.dictionary)
        return pa.DictionaryArray.from_arrays(column.indices, values).dictionary_decode()
    for text, raw in _BYTES_OF:
        if column.type == text:
            column = column.view(raw)  # whether it is UTF-8 is asked later, for each row
    column.validate(full=True)
    return column


def rows(
    column: Any, *, name: str, where: str, first_row: int, policy: Policy
) -> Iterator[Document]:
    """The documents of an Arrow array of text; ``first_row`` numbers them within the file."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    binary = column.cast(pa.large_binary())  # no copy of strings; they are checked below
    for row, value in enumerate(binary, first_row):
        text, buffer = None, value.as_buffer()
        if buffer is None:
            policy.refuse(f"{where}, row {row}", "the text is null", "remove the row")
        elif buffer.size > MAX_DOCUMENT_BYTES:
            too_large(f"{where}, row {row}", buffer.size)
        else:
            try:
                text = str(buffer, "utf-8")
            except UnicodeDecodeError as e:
                policy.refuse(
                    f"{where}, row {row}", f"not UTF-8 text (byte {e.start})", "convert it"
                )
        yield Document(f"{name}:{row}", text)


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
    )
