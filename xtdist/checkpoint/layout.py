"""A committed folder: its files, plus a ``manifest.json`` that names, sizes and hashes them.

The manifest is written last and renamed into place, so a folder that has one is whole; a folder
without one was never finished. Nothing is loaded before its bytes were compared with the manifest:
a flipped bit in a saved tensor loads silently otherwise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xtdist.checkpoint.bounds import read_bounded
from xtdist.config import CheckpointError, ConfigError, PositiveInt, configclass, from_mapping
from xtdist.config.base import NonNegativeInt, to_mapping
from xtdist.files import write_atomic

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
_BLOCK = 1 << 20
_MOST_BYTES = 256 * 2**20
_SEALED = re.compile(rb'(.*),\n "sha256": "([0-9a-f]{64})"\n}', re.DOTALL)


@configclass
class FileEntry:
    """Size and digest of one file."""

    bytes: NonNegativeInt
    sha256: str


@configclass
class Manifest:
    """What a committed folder holds. ``meta`` says what it is: step, config, dataset id …"""

    format_version: PositiveInt = FORMAT_VERSION
    files: dict[str, FileEntry]
    meta: dict[str, Any]


def hash_file(path: Path) -> FileEntry:
    """Size and sha256 of ``path``, read in blocks."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as f:
        while block := f.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return FileEntry(bytes=size, sha256=digest.hexdigest())


def list_files(folder: Path) -> list[str]:
    """Relative paths of all files under ``folder`` but the manifest and hidden ones, sorted."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(
        p.as_posix()
        for p in found
        if p.as_posix() != MANIFEST and not any(part.startswith(".") for part in p.parts)
    )


class FormatError(CheckpointError):
    """Not damaged, but of a version of this program that wrote it differently."""


def manifest_text(files: dict[str, FileEntry], meta: dict[str, Any]) -> str:
    """What stands in the manifest of these files; its last line is the sha256 of the rest."""
    body = json.dumps(to_mapping(Manifest(files=dict(sorted(files.items())), meta=meta)), indent=1)
    own = hashlib.sha256(body.encode()).hexdigest()
    return f'{body[:-2]},\n "sha256": "{own}"\n}}'


def write_manifest(folder: Path, files: dict[str, FileEntry], meta: dict[str, Any]) -> Manifest:
    """Commit ``folder``: from now on it is valid."""
    write_atomic(folder / MANIFEST, manifest_text(files, meta))
    return Manifest(files=files, meta=meta)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of ``folder``.

    Raises:
        CheckpointError: no manifest (unfinished or another kind of folder), or not a readable one.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise CheckpointError(
            f"{folder}: no {MANIFEST} there: not a finished checkpoint or weights folder"
        )
    return parse_manifest(read_bounded(path, _MOST_BYTES), str(path))


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """A manifest's content; ``where`` is what messages call it.

    Raises:
        CheckpointError: it is none, or a byte of it was changed.
        FormatError: it is one of a newer version.
    """
    sealed = _SEALED.fullmatch(raw)
    body = sealed[1] + b"\n}" if sealed else raw
    try:
        tree = json.loads(body.decode("utf-8"))
        version = tree.get("format_version", 1) if isinstance(tree, dict) else None
        if sealed and hashlib.sha256(body).hexdigest() != sealed[2].decode():
            raise ValueError("its own sha256 is another; it is damaged")
        if not sealed and isinstance(version, int) and version == FORMAT_VERSION:
            raise ValueError("its own sha256 is missing; it is damaged")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FormatError(
                f"{where}: format {version} was written by a newer version; this one reads up to "
                f"{FORMAT_VERSION}: upgrade xtdist"
            )
        return from_mapping(Manifest, tree, where=where)
    except (ConfigError, TypeError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{where}: not a manifest of this program: {e}") from None


def verify(folder: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Compare the files with the manifest, byte for byte (about 1 s for 1 GB).

    Raises:
        CheckpointError: a file is missing, or has another size or content; it is named.
    """
    for name in manifest.files if names is None else names:
        entry, path = manifest.files[name], safe_join(folder, name)
        try:
            found = _measure(path, entry.bytes)
        except OSError as e:
            raise CheckpointError(f"{path}: {e.strerror}, but the manifest lists it") from None
        if found != entry:
            what = "size" if found.bytes != entry.bytes else "content (sha256)"
            given = dataclasses.asdict(found)["bytes" if what == "size" else "sha256"]
            wanted = dataclasses.asdict(entry)["bytes" if what == "size" else "sha256"]
            raise CheckpointError(
                f"{path}: its {what} is {given}, the manifest says {wanted}: damaged; "
                "restore the file or use another checkpoint"
            )


def _measure(path: Path, expected_bytes: int) -> FileEntry:
    """Size and sha256; of another size than expected it is not read."""
    size = path.stat().st_size
    if not path.is_file():
        raise CheckpointError(f"{path}: not a plain file")
    return hash_file(path) if size == expected_bytes else FileEntry(bytes=size, sha256="")


def safe_join(folder: Path, name: str) -> Path:
    """``folder/name``, refusing names that would leave the folder."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise CheckpointError(f"{folder}: the manifest names a file outside of it: {name!r}")
    return path
