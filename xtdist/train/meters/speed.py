"""A step's seconds as the metrics of a record."""

from __future__ import annotations

from collections import deque

from xtdist.track.goodput import Bucket
from xtdist.train.meters.phases import Lap, Phase

WINDOW = 10  # steps that rates are means over
BESIDE: tuple[Phase, ...] = ("start", "restore", "checkpoint", "evaluate")
SHOWN: tuple[Phase, ...] = ("forward", "backward", "reduce", "optimizer", "rest", "other")

BUCKET_OF: dict[Phase, Bucket] = {
    "start": "program_start",
    "restore": "checkpoint_restore",
    "data": "data_wait",
    "forward": "productive",
    "backward": "productive",
    "reduce": "productive",
    "optimizer": "productive",
    "rest": "productive",
    "checkpoint": "checkpoint_save",
    "evaluate": "evaluation",
    "other": "other",
}


def buckets_of(lap: Lap) -> dict[Bucket, float]:
    """A lap's seconds by the buckets of the goodput ledger."""
    found: dict[Bucket, float] = {}
    for phase, seconds in lap.host.items():
        bucket = BUCKET_OF[phase]
        found[bucket] = found.get(bucket, 0.0) + seconds
    return found


class Speed:
    """Rates over the last steps. ``flops``: of one token in training, None if not known; ``peak``:
    of one device in 10¹² operations a second, None if not known."""

    def __init__(self, *, devices: int, flops: float | None, peak: float | None) -> None:
        self._devices, self._flops, self._peak = devices, flops, peak
        self._steps: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def metrics(self, lap: Lap, *, tokens: int) -> dict[str, float]:
        """``perf/…`` of the step of ``tokens`` that ``lap`` ends."""
        step_s = lap.total - sum(lap.host.get(phase, 0.0) for phase in BESIDE)
        wait_s = lap.host.get("data", 0.0)
        self._steps.append((tokens, step_s))
        done, seconds = (sum(values) for values in zip(*self._steps, strict=True))
        rate = done / seconds
        found = {
            "perf/tokens_per_s": rate,
            "perf/tokens_per_s_per_device": rate / self._devices,
            "perf/step_s": step_s,
            "perf/data_wait_s": wait_s,
            "perf/data_wait_share": wait_s / step_s,
            **{f"perf/{phase}_s": lap.shown.get(phase, 0.0) for phase in SHOWN},
        }
        if self._flops is not None and self._peak is not None:
            found["perf/mfu"] = rate * self._flops / (self._devices * self._peak * 1e12)
        return found
