"""The stored files that units are read from: their digests, and whether they changed."""

from __future__ import annotations

import hashlib

from xtdist.data.sources import SourceConfig, Unit, input_sha256, input_stamp


def fingerprint(source: SourceConfig, unit: Unit) -> str:
    """Digest of sizes and times of change of the unit's files: text that was scanned before is not
    scanned again while it stays."""
    content = hashlib.sha256()
    for name in sorted({part.file for part in unit.parts}):
        content.update(f"{name}\0{input_stamp(source, name)}\n".encode())
    return content.hexdigest()


def digests(source: SourceConfig, unit: Unit) -> dict[str, str]:
    """sha256 of every input that begins in this unit, as it is stored."""
    begun = [part.file for part in unit.parts if part.start == 0]
    return {name: input_sha256(source, name) for name in begun}
