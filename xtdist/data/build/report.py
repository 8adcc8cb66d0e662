"""What a build made, for people and for later builds: files beside the shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xtdist.data.build.duplicates import Counts
from xtdist.data.build.lengths import bin_edges, draw_lengths
from xtdist.data.manifest import LENGTHS_FILE, REPORT_FILE, Manifest
from xtdist.data.shards import total
from xtdist.files import write_atomic


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    documents: int
    tokens: int
    text_bytes: int
    shards: int


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What ``prepare`` made, or found made already (``reused``). Of the source's documents those
    were left out that are ``duplicates`` of others, ``known`` to the dataset of ``extends``,
    ``empty`` or ``unreadable``."""

    folder: str
    dataset_id: str
    reused: bool
    vocab_size: int
    splits: dict[str, SplitReport]
    duplicates: int
    known: int
    empty: int
    unreadable: int
    seconds: float


def settings_sha256(settings: dict[str, Any]) -> str:
    """The digest of a build's settings that its manifest holds."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def settings_of(folder: Path, manifest: Manifest) -> dict[str, Any] | None:
    """The settings that the dataset in ``folder`` was made with; None if its report is missing or
    was changed."""
    try:
        settings: dict[str, Any] = json.loads((folder / REPORT_FILE).read_bytes())["settings"]
        same = settings_sha256(settings) == manifest.build.settings_sha256
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return settings if same else None


def other_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, as ``key: old value there, new value here``."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict) and old.get("kind") == new.get("kind"):
            found += [f"{key}.{inner}" for inner in other_settings(old, new)]
        else:
            found.append(f"{key}: {_shown(old)} there, {_shown(new)} here")
    return found


def _shown(value: Any) -> str:
    """A setting in few words: a tokenizer by its kind, an id by its first digits."""
    if isinstance(value, dict):
        return str(value.get("kind"))
    return value[:12] if isinstance(value, str) else json.dumps(value)


def split_reports(manifest: Manifest) -> dict[str, SplitReport]:
    return {
        name: SplitReport(
            documents=total(shards, "docs"),
            tokens=total(shards, "tokens"),
            text_bytes=total(shards, "text_bytes"),
            shards=len(shards),
        )
        for name, shards in manifest.splits.items()
    }


def write_report(
    folder: Path,
    manifest: Manifest,
    *,
    source: str,
    settings: dict[str, Any],
    counts: Counts,
    lengths: Sequence[int],
) -> None:
    """Write ``report.json`` and ``lengths.png``: they follow from text, its kind of ``source`` and
    the settings alone."""
    splits = {
        name: {**asdict(s), "bytes_per_token": round(s.text_bytes / s.tokens, 4)}
        for name, s in split_reports(manifest).items()
    }
    edges = bin_edges().tolist()
    tree = {
        "dataset_id": manifest.dataset_id,
        "source": source,
        "settings": settings,
        "vocab_size": manifest.vocab_size,
        "splits": splits,
        "left_out": {
            "duplicates": counts.duplicates,
            "known": counts.known,
            "empty": counts.empty,
            "unreadable": counts.unreadable,
        },
        "document_tokens": [
            {"from": round(edges[i], 3), "below": round(edges[i + 1], 3), "documents": n}
            for i, n in enumerate(lengths)
            if n
        ],
    }
    write_atomic(folder / REPORT_FILE, json.dumps(tree, indent=1) + "\n")
    draw_lengths(lengths, folder / LENGTHS_FILE)
