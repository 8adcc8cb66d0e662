"""Cutting a source into units of work, and reading them."""

from __future__ import annotations

import dataclasses
import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from typing import Protocol, assert_never

from xtdist.config import DataError
from xtdist.data.sources.config import (
    FilesSource,
    HfFolderSource,
    JsonlSource,
    ParquetSource,
    SourceConfig,
    StdlibSource,
)
from xtdist.data.sources.files import TextFiles
from xtdist.data.sources.hf_folder import HfFolder
from xtdist.data.sources.jsonl import JsonLines
from xtdist.data.sources.parquet import ParquetFiles
from xtdist.data.sources.root import Root, open_root, reading
from xtdist.data.sources.text import Policy
from xtdist.data.sources.unit import Document, Input, Part, Unit

_MAX_PARTS = 2**14
_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "__pycache__"})


class _Reader(Protocol):
    """What each kind of source does."""

    @property
    def root(self) -> Root: ...

    def inputs(self) -> list[Input]: ...

    def parts(self, unit_bytes: int) -> Iterable[Part]: ...

    def read(self, part: Part) -> Iterator[Document]: ...


def plan_units(source: SourceConfig, unit_bytes: int) -> list[Unit]:
    """Cut ``source`` into units of about ``unit_bytes``, without reading the text.

    The same files give the same units on every machine. Plain JSON lines are cut at line ends and
    Parquet at row groups; packed files, text files and Arrow files stay whole, so that such a unit
    may be larger. Small files are put together. A source whose files are all empty has no units.

    Raises:
        DataError: a path that doesn't exist, no file that matches, a file that can't be read or is
            not of the kind, a column that is missing or holds no text.
        ConfigError: a URI that is none of ours.
    """
    units: list[Unit] = []
    parts: list[Part] = []
    held = count = 0
    for part in _reader(source).parts(unit_bytes):
        if parts and (held + part.bytes > unit_bytes or count == _MAX_PARTS):
            units.append(Unit(number=len(units), parts=tuple(parts)))
            parts, held, count = [], 0, 0
        _append(parts, part)
        held, count = held + part.bytes, count + 1
    if parts:
        units.append(Unit(number=len(units), parts=tuple(parts)))
    return units


def read_unit(source: SourceConfig, unit: Unit) -> Iterator[Document]:
    """The documents of a unit, in order, in memory for about the largest of them.

    Raises:
        DataError: a file that can't be read, is damaged, is not of the kind or has changed since it
            was planned; a bad document, unless the config says to skip those.
    """
    reader = _reader(source)
    for part in unit.parts:
        yield from reader.read(part)


def inputs(source: SourceConfig) -> list[Input]:
    """The stored files of ``source`` in its order, with their sizes; none is read.

    Raises:
        DataError: as ``plan_units``.
    """
    return _reader(source).inputs()


def input_sha256(source: SourceConfig, name: str) -> str:
    """sha256 of the stored bytes of the input ``name``.

    Raises:
        DataError: it can't be read.
    """
    root = _reader(source).root
    with reading(root.where(name)), root.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_stamp(source: SourceConfig, name: str) -> str:
    """Size and time of change of the input ``name``, without reading it.

    Raises:
        DataError: it is not there.
    """
    root = _reader(source).root
    with reading(root.where(name)):
        return root.stamp(name)


def _append(parts: list[Part], part: Part) -> None:
    """Add a part; one that goes on where the last ended makes that one longer."""
    last = parts[-1] if parts else None
    if last and last.file == part.file and last.stop == part.start:
        parts[-1] = last._replace(stop=part.stop, bytes=last.bytes + part.bytes)
    else:
        parts.append(part)


def _reader(source: SourceConfig) -> _Reader:
    if isinstance(source, StdlibSource):
        root = open_root(sysconfig.get_path("stdlib"), may_be_file=False)
        root = dataclasses.replace(root, leave_out=_NOT_STDLIB)
        skip = Policy(bad_documents="skip")
        return TextFiles(root=root, pattern="**/*.py", policy=skip)
    policy = Policy(bad_documents=source.bad_documents)
    if isinstance(source, HfFolderSource):
        root = open_root(source.path, may_be_file=False)
        return HfFolder(root=root, split=source.split, field=source.field, policy=policy)
    root = open_root(source.path, may_be_file=True)
    if root.only is not None and source.pattern != type(source).pattern:
        raise DataError(
            f"source.pattern: got {source.pattern!r}, but source.path is one file; leave the "
            "pattern out, or give the folder"
        )
    match source:
        case FilesSource():
            return TextFiles(root=root, pattern=source.pattern, policy=policy)
        case JsonlSource():
            return JsonLines(root=root, pattern=source.pattern, field=source.field, policy=policy)
        case ParquetSource():
            return ParquetFiles(
                root=root, pattern=source.pattern, field=source.field, policy=policy
            )
        case _:
            assert_never(source)
