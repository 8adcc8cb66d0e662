"""Short ways to read a source whole, in units, and file by file without the package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from xtdist.config import from_mapping, to_mapping
from xtdist.data.sources import Document, SourceConfig, Unit, plan_units, read_unit


def documents(source: SourceConfig) -> Iterator[Document]:
    """All documents, in order; units of about a MB."""
    for unit in plan_units(source, 2**20):
        yield from read_unit(source, unit)


def texts(source: SourceConfig) -> list[str | None]:
    return [d.text for d in documents(source)]


def in_units(source: SourceConfig, unit_bytes: int) -> list[Document]:
    """All documents, each unit sent as JSON and read from its end to its start."""
    sent = [json.dumps(to_mapping(u)) for u in plan_units(source, unit_bytes)]
    units = [from_mapping(Unit, json.loads(text)) for text in sent]
    assert [u.number for u in units] == list(range(len(units)))
    read = {u.number: list(read_unit(source, u)) for u in reversed(units)}
    return [d for number in sorted(read) for d in read[number]]


def json_texts(path: Path) -> list[str]:
    """The texts of plain JSON lines, all at once."""
    lines = path.read_bytes().decode("utf-8-sig").split("\n")
    return [json.loads(line)["text"] for line in lines if line.strip()]
