"""JSON lines: each line is one document."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from xtdist.data.sources.root import Root, packing, reading
from xtdist.data.sources.text import BOM, MAX_DOCUMENT_BYTES, Policy, changed, too_large
from xtdist.data.sources.unit import Document, Input, Part

_CHUNK = 2**20
_NOT_TEXT = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class JsonLines:
    """Plain files are cut at line ends, found by seeking; packed ones are read whole."""

    root: Root
    pattern: str
    field: str
    policy: Policy

    def inputs(self) -> list[Input]:
        return self.root.files(self.pattern)

    def parts(self, unit_bytes: int) -> Iterable[Part]:
        for name, size in self.inputs():
            if packing(name) is None:
                for start, stop in self._ranges(name, size, unit_bytes):
                    yield Part(file=name, start=start, stop=stop, bytes=stop - start)
            else:
                yield Part(file=name, start=0, stop=size, bytes=size)

    def read(self, part: Part) -> Iterator[Document]:
        name, field, where = part.file, self.field, self.root.where(part.file)
        offset, stop = part.start, part.stop if packing(name) is None else math.inf
        line: Any
        with reading(where), self.root.unpacked(name) as file:
            if offset:
                file.seek(offset - 1)
                if file.read(1) != b"\n":
                    raise changed(where)
            while offset < stop and (line := file.readline(MAX_DOCUMENT_BYTES + 1)):
                at, offset = offset, offset + len(line)
                if offset - at > MAX_DOCUMENT_BYTES:
                    too_large(f"{where} (line at byte {at})")
                try:
                    # In place of the bytes: of a large document no copy stays without need.
                    line = (line if at else line.removeprefix(BOM)).decode()
                    text = _parsed(line)[field]
                    if not text.isascii() and "\\u" in line:  # a number has no such method
                        text.encode()  # a lone surrogate has no bytes
                except _NOT_TEXT as e:
                    if not line.strip():
                        continue
                    self._refused(part, at, e)
                    text = None
                del line
                yield Document(f"{name}@{at}", text)
            if offset != stop < math.inf:
                raise changed(where)

    def _ranges(self, name: str, size: int, unit_bytes: int) -> Iterator[tuple[int, int]]:
        """Bytes from line start to line end, of at least ``unit_bytes`` each but for the last."""
        if size <= unit_bytes:
            if size:
                yield 0, size
            return
        with reading(self.root.where(name)), self.root.open(name) as file:
            start = 0
            while start < size:
                stop = start + unit_bytes
                stop = size if stop >= size else _line_end(file, stop - 1)
                yield start, stop
                start = stop

    def _refused(self, part: Part, offset: int, error: Exception) -> None:
        if self.policy.bad_documents == "error":
            where = f"{self.root.where(part.file)}:{self._line_number(part.file, offset)}"
            self.policy.refuse(
                where,
                f"expected a JSON object with text under {self.field!r} ({_said(error)})",
                "fix the line, or set source.field",
            )

    def _line_number(self, name: str, offset: int) -> int:
        """Of the line that starts at ``offset``, from 1; counted only when a message needs it."""
        lines = 1
        with reading(self.root.where(name)), self.root.unpacked(name) as file:
            while offset and (chunk := file.read(min(_CHUNK, offset))):
                lines += chunk.count(b"\n")
                offset -= len(chunk)
        return lines


def _parsed(line: str) -> Any:
    """Python reads no whole number of thousands of digits; beside the text it may stand."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(line, parse_int=float)


def _said(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"  # not the line: it knows only this one
    return f"{type(error).__name__}: {str(error)[:200]}"


def _line_end(file: BinaryIO, at: int) -> int:
    """Where the line ends that holds byte ``at``."""
    file.seek(at)
    while chunk := file.readline(_CHUNK):
        at += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return at
