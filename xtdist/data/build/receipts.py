"""Receipts of finished work, written last: each with a digest of its own, so that a damaged one
counts as none and its work is done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from xtdist.config import ConfigError, digest, from_mapping, to_mapping
from xtdist.files import write_atomic

T = TypeVar("T")


def write_receipt(path: Path, receipt: object) -> None:
    """Write a config, atomically."""
    tree = {"receipt": to_mapping(receipt), "sha256": digest(receipt)}
    write_atomic(path, json.dumps(tree) + "\n")


def read_receipt(cls: type[T], path: Path) -> T | None:
    """The ``cls`` that was written to ``path``; None if there is none, or not as it was written."""
    try:
        tree = json.loads(path.read_bytes())
        receipt = from_mapping(cls, tree["receipt"])
        return receipt if digest(receipt) == tree["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError):
        return None
