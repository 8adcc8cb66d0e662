"""``tokenizer.json`` of tokenizers that were taken over: a small JSON object with the original.

Hugging Face's loader refuses other keys in its own format, so the ids of the special tokens can't
stand there.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from xtdist.config import DataError

VERSION_KEY, VERSION = "xtdist_tokenizer", 1
MOST_BYTES = 256 * 2**20


def read_file(path: Path) -> bytes:
    """Raises DataError if there is none, or it is too large to be a tokenizer."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(f"{path}: {size} bytes; a tokenizer has at most {MOST_BYTES}")
        return path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: can't be read ({e.strerror}); give a tokenizer's file") from None


def parse_json(
    raw: bytes, where: str, *, wanted: str = "a tokenizer.json made by `xtdist prepare`"
) -> Any:
    """Raises DataError for what is not JSON, or too large; ``wanted`` is what to give then."""
    if len(raw) > MOST_BYTES:
        raise DataError(f"{where}: {len(raw)} bytes; a tokenizer has at most {MOST_BYTES}")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: not JSON; give {wanted}") from None


def seal(kind: str, content: dict[str, Any]) -> str:
    """The one text of an envelope."""
    tree = {VERSION_KEY: VERSION, "kind": kind, **content}
    return json.dumps(tree, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"


def unseal(tree: dict[str, Any], keys: tuple[str, ...], where: str) -> list[Any]:
    """The values of ``keys``. Raises DataError unless the envelope has exactly these."""
    if tree.get(VERSION_KEY) != VERSION:
        raise DataError(
            f"{where}: {VERSION_KEY} is {tree.get(VERSION_KEY)!r}, this version reads {VERSION}"
        )
    expected = {VERSION_KEY, "kind", *keys}
    if set(tree) != expected:
        raise DataError(
            f"{where}: has the keys {', '.join(sorted(tree))}; a {tree['kind']} tokenizer has "
            f"{', '.join(sorted(expected))}"
        )
    return [tree[key] for key in keys]


def from_base64(text: Any, where: str) -> bytes:
    """Raises DataError for what ``to_base64`` does not write (some texts decode to the same)."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raw = None
    if raw is None or to_base64(raw) != text:
        raise DataError(f"{where}: damaged: not base64 where it must be")
    return raw


def to_base64(raw: bytes) -> str:
    """As ``from_base64`` reads it."""
    return base64.b64encode(raw).decode()
