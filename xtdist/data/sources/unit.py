"""What a source is made of: inputs (stored files), documents, and units of work."""

from __future__ import annotations

from typing import NamedTuple

from xtdist.config import configclass


class Document(NamedTuple):
    """``text`` is None for a document that can't be read and that the config says to skip.

    ``name`` says where it is, below the source's root: ``a/b.txt`` of files, ``a.jsonl@120`` (the
    byte that its line starts at, unpacked) of JSON lines, ``a.parquet:7`` (the row, from 0) of
    tables.
    """

    name: str
    text: str | None


class Input(NamedTuple):
    """A stored file: its name below the source's root, with ``/``, and its size."""

    name: str
    bytes: int


class Part(NamedTuple):
    """A piece of one input: ``start`` to ``stop`` (left out) of what it can be cut into: bytes of
    plain JSON lines, row groups of Parquet, and stored bytes (all of them) of the rest.
    ``bytes``: its share of the input's size."""

    file: str
    start: int
    stop: int
    bytes: int


@configclass
class Unit:
    """Consecutive parts of a source that are read in one go, on any machine, in any order.

    The documents of all units, by ``number``, are the documents of the source in their order.
    """

    number: int
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def name(self) -> str:
        """For messages: the files, and how far into them."""
        first, last = self.parts[0], self.parts[-1]
        if len(self.parts) > 1:
            return f"{first.file} to {last.file} ({len(self.parts)} parts)"
        return f"{first.file} [{first.start}, {first.stop})"
