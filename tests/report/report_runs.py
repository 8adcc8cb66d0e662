"""What the tests of reports write into runs' folders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import yaml

HOSTILE = '</script><img src=x onerror="hacked=1"><b>{{7*7}}\'&'


def lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def losses(steps: int) -> list[float]:
    return [2 + 4 * math.exp(-s / 30) + 0.01 * (s % 7) for s in range(1, steps + 1)]


def give_config(folder: Path, **changes) -> None:
    tree = {
        "name": folder.name,
        "data": {"path": str(folder / "no-data"), "seq_len": 32},
        "model": {"dim": 16, "depth": 1, "heads": 2, "num_tokens": 259, "max_seq_len": 32},
        "batch": {"tokens_per_step": 64, "micro_batch_tokens": 64},
        "loop": {"steps": 80},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree | changes))
