"""Where text comes from: folders of files, JSON lines, the Python standard library.

A source gives (name, text) pairs in a fixed order; names are relative to the source's root.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from xtdist.config import DataError
from xtdist.data.config import FilesSource, JsonlSource, SourceConfig, StdlibSource, local_path

_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True, kw_only=True)
class Document:
    """``text`` is None for a document that can't be read and that the config says to skip."""

    name: str
    text: str | None


def documents(source: SourceConfig) -> Iterator[Document]:
    """The documents of ``source``, in order, read one at a time.

    Raises:
        DataError: a path that doesn't exist, no file that matches, or a document that is not valid
            Unicode text (unless the config says to skip those).
    """
    match source:
        case FilesSource():
            yield from _files(source)
        case JsonlSource():
            yield from _jsonl(source)
        case StdlibSource():
            yield from _stdlib()
        case _:
            assert_never(source)


def _files(source: FilesSource) -> Iterator[Document]:
    root = local_path(source.path)
    if not root.is_dir():
        raise DataError(f"source.path: {root} is not a folder; give the folder that holds the text")
    paths = _matching(root, source.pattern)
    for path in paths:
        name = path.relative_to(root).as_posix()
        try:
            yield Document(name=name, text=_read(path).decode())
        except UnicodeDecodeError as e:
            if source.bad_documents == "error":
                raise DataError(
                    f"{path}: not UTF-8 text (byte {e.start}); convert it, or set "
                    "source.bad_documents=skip"
                ) from None
            yield Document(name=name, text=None)


def _jsonl(source: JsonlSource) -> Iterator[Document]:
    root = local_path(source.path)
    if not root.exists():
        raise DataError(
            f"source.path: {root} does not exist; give a .jsonl file or a folder of them"
        )
    paths = [root] if root.is_file() else _matching(root, "**/*.jsonl")
    for path in paths:
        stem = path.name if path == root else path.relative_to(root).as_posix()
        try:
            with open(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _json_line(source, line, name=f"{stem}:{number}", path=path)
        except OSError as e:
            raise DataError(f"{path}: can't be read ({e.strerror})") from None


def _json_line(source: JsonlSource, line: bytes, *, name: str, path: Path) -> Document:
    try:
        row = json.loads(line.decode())
        text = row[source.field]
        text.encode()
        return Document(name=name, text=text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        if source.bad_documents == "skip":
            return Document(name=name, text=None)
        where = f"{path}:{name.rsplit(':', 1)[1]}"
        raise DataError(
            f"{where}: expected a JSON object with text under {source.field!r} "
            f"({type(e).__name__}: {e}); fix the line, or set source.field or "
            "source.bad_documents=skip"
        ) from None


def _stdlib() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in _matching(root, "**/*.py"):
        name = path.relative_to(root)
        if _NOT_STDLIB.isdisjoint(name.parts):
            try:
                text = _read(path).decode()
            except UnicodeDecodeError:
                text = None
            yield Document(name=name.as_posix(), text=text)


def _matching(root: Path, pattern: str) -> list[Path]:
    if ".." in Path(pattern).parts:
        raise DataError(f"source.pattern: {pattern!r} leaves the folder {root}")
    try:
        paths = sorted((p for p in root.glob(pattern) if p.is_file()), key=lambda p: p.as_posix())
    except (ValueError, NotImplementedError) as e:
        raise DataError(f"source.pattern: {pattern!r} is not a usable pattern ({e})") from None
    if not paths:
        raise DataError(f"source: no file in {root} matches {pattern!r}")
    return paths


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: can't be read ({e.strerror})") from None
