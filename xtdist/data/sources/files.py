"""Text files: each is one document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from xtdist.data.sources.root import Root, packing, reading
from xtdist.data.sources.text import BOM, MAX_DOCUMENT_BYTES, Policy, changed, too_large
from xtdist.data.sources.unit import Document, Input, Part

_CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    root: Root
    pattern: str
    policy: Policy

    def inputs(self) -> list[Input]:
        return self.root.files(self.pattern)

    def parts(self, unit_bytes: int) -> Iterable[Part]:
        return (Part(file=i.name, start=0, stop=i.bytes, bytes=i.bytes) for i in self.inputs())

    def read(self, part: Part) -> Iterator[Document]:
        where = self.root.where(part.file)
        yield Document(part.file, self._text(where, self._bytes(part)))

    def _text(self, where: str, raw: bytes) -> str | None:
        mark = len(BOM) if raw.startswith(BOM) else 0
        try:
            return str(memoryview(raw)[mark:], "utf-8")
        except UnicodeDecodeError as e:
            self.policy.refuse(where, f"not UTF-8 text (byte {mark + e.start})", "convert it")
            return None

    def _bytes(self, part: Part) -> bytes:
        where, chunks, size = self.root.where(part.file), [], 0
        with reading(where), self.root.unpacked(part.file) as file:
            while chunk := file.read(_CHUNK):
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_DOCUMENT_BYTES:
                    too_large(where)
        if packing(part.file) is None and size != part.stop:
            raise changed(where)
        return b"".join(chunks)
