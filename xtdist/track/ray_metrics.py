"""The metrics that Ray exports to Prometheus. This table is their documentation; dashboards use
these names, before which Ray puts ``ray_``. Every one has the tag ``run``.

Only rank 0 reports, and only in a process of Ray.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

PHASE_TAGGED = "xtdist_train_phase_seconds"


class RayMetric(NamedTuple):
    """``record``: the metric of metrics.jsonl that it shows."""

    name: str
    record: str
    meaning: str


GAUGES = (
    RayMetric("xtdist_train_loss", "train/loss", "loss of the newest step, nats a token"),
    RayMetric("xtdist_train_valid_loss", "eval/valid/loss", "loss on the validation split"),
    RayMetric("xtdist_train_grad_norm", "train/grad_norm", "gradient norm before clipping"),
    RayMetric("xtdist_train_lr", "train/lr", "learning rate"),
    RayMetric("xtdist_train_tokens", "train/tokens", "target tokens trained on"),
    RayMetric("xtdist_train_step", "step", "finished optimizer steps"),
    RayMetric("xtdist_train_tokens_per_second", "perf/tokens_per_s", "of all devices"),
    RayMetric("xtdist_train_step_seconds", "perf/step_s", "one step, without saves, evaluation"),
    RayMetric("xtdist_train_mfu", "perf/mfu", "model FLOPs as a share of the peak, 0 to 1"),
    RayMetric("xtdist_train_data_wait_share", "perf/data_wait_share", "of a step, 0 to 1"),
    RayMetric("xtdist_train_goodput", "perf/goodput", "kept step time, share of elapsed, 0 to 1"),
    RayMetric("xtdist_train_slowest_rank", "perf/slowest_rank", "the rank with the most own work"),
    RayMetric("xtdist_train_slowest_rank_ratio", "perf/slowest_ratio", "its time by the median"),
    RayMetric("xtdist_train_rss_gigabytes", "perf/rss_gb", "resident memory, the largest rank's"),
    RayMetric("xtdist_train_host_memory_share", "perf/host_memory_share", "the fullest host, 0-1"),
    RayMetric("xtdist_train_cuda_reserved_gigabytes", "perf/cuda_reserved_gb", "rank 0's peak"),
)
PHASES = RayMetric(PHASE_TAGGED, "perf/<phase>_s", "seconds of the newest step by tag phase")
RANKS = RayMetric(
    "xtdist_train_rank_seconds", "", "own work in a step, without waits for others, by tag rank"
)
CHECKPOINTS = RayMetric(
    "xtdist_train_checkpoint_seconds", "perf/checkpoint_s", "what saves kept steps waiting"
)
STEPS = RayMetric("xtdist_train_steps_total", "train/loss", "steps run, repeated ones too")
NOTES = RayMetric("xtdist_train_notes_total", "", "warnings and interventions of the run")
CHECKPOINT_BUCKETS_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
INTERVAL_S = 1.0  # gauges are set so often; Prometheus reads them far less often


class RayMetrics:
    """Shows a run's records in Ray's metrics. ``connect`` gives one where Ray runs."""

    def __init__(self, run: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._clock = clock
        self._next = 0.0
        self._values: dict[str, float] = {}
        self._tags = {"run": run}
        keys = ("run",)
        self._gauges = {m.record: Gauge(m.name, m.meaning, tag_keys=keys) for m in GAUGES}
        self._phases = Gauge(PHASES.name, PHASES.meaning, tag_keys=("run", "phase"))
        self._ranks = Gauge(RANKS.name, RANKS.meaning, tag_keys=("run", "rank"))
        self._steps = Counter(STEPS.name, STEPS.meaning, tag_keys=keys)
        self._notes = Counter(NOTES.name, NOTES.meaning, tag_keys=keys)
        self._checkpoints = Histogram(
            CHECKPOINTS.name,
            CHECKPOINTS.meaning,
            boundaries=CHECKPOINT_BUCKETS_S,
            tag_keys=keys,
        )

    @classmethod
    def connect(cls, run: str) -> RayMetrics | None:
        """None in a process that does not belong to a Ray cluster."""
        ray: Any = sys.modules.get("ray")
        return cls(run) if ray is not None and ray.is_initialized() else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take one record in."""
        self._values.update(metrics)
        if STEPS.record in metrics:  # others may come later, of an earlier step
            self._values["step"] = step
            self._steps.inc(1, tags=self._tags)
        if CHECKPOINTS.record in metrics:
            self._checkpoints.observe(metrics[CHECKPOINTS.record], tags=self._tags)
        if self._clock() >= self._next:
            self._next = self._clock() + INTERVAL_S
            self._set()

    def ranks(self, seconds: Sequence[float]) -> None:
        """What each rank's own work took in a step, by rank."""
        for rank, value in enumerate(seconds):
            self._ranks.set(value, tags={**self._tags, "rank": str(rank)})

    def note(self) -> None:
        """Count a warning or an intervention."""
        self._notes.inc(1, tags=self._tags)

    def _set(self) -> None:
        for record, value in self._values.items():
            gauge = self._gauges.get(record)
            if gauge is not None:
                gauge.set(value, tags=self._tags)
            elif record.startswith("perf/") and record.endswith("_s"):
                phase = record.removeprefix("perf/").removesuffix("_s")
                self._phases.set(value, tags={**self._tags, "phase": phase})
        self._values.clear()
