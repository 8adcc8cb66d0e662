"""Reading what a run left behind."""

from __future__ import annotations

import json
from pathlib import Path

from xtdist.checkpoint import CheckpointStore
from xtdist.train import RunSpec


def folder_of(spec: RunSpec) -> Path:
    return Path(spec.output) / spec.name


def records(spec: RunSpec, key: str) -> list[float]:
    """One metric of a run, in order, from its metrics.jsonl."""
    lines = (folder_of(spec) / "metrics.jsonl").read_text().splitlines()
    return [row[key] for row in map(json.loads, lines) if key in row]


def checkpoints(spec: RunSpec) -> list[Path]:
    """The committed checkpoints of a run, oldest first."""
    store = CheckpointStore(folder_of(spec) / "checkpoints")
    return [store.root / name for name in store.names()]


def steps_of(spec: RunSpec) -> list[int]:
    return [int(path.name.split("_")[1].split("-")[0]) for path in checkpoints(spec)]
