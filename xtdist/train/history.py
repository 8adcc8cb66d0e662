"""What a run's metrics were, for those who have to know it again after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from xtdist.track import read_series


def history_together(
    folder: Path, names: list[str], *, last: int, until: int
) -> dict[str, list[float]]:
    """The ``last`` values of each metric up to step ``until``, oldest first: those of
    ``metrics.jsonl`` as rank 0 sees it, on all ranks."""
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        series = read_series(folder)
        answer[0] = {}
        for name in names:
            found = series.get(name)
            points = zip(found.steps, found.values, strict=True) if found else ()
            answer[0][name] = [value for step, value in points if step <= until][-last:]
    dist.broadcast_object_list(answer, src=0)
    values: dict[str, list[float]] = answer[0]
    return values
