"""Records as Ray's metrics, against Ray's own classes with their transport taken out."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xtdist.track import Tracker
from xtdist.track.ray_metrics import CHECKPOINTS, GAUGES, NOTES, PHASES, RANKS, STEPS, RayMetrics


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would be sent: (name, value, tags)."""
    from ray.util import metrics

    calls: list[tuple[Any, ...]] = []

    def keep(self: Any, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.info["tag_keys"])
        calls.append((self.info["name"], value, tags.get("phase")))

    monkeypatch.setattr(metrics.Gauge, "set", keep)
    monkeypatch.setattr(metrics.Counter, "inc", keep)
    monkeypatch.setattr(metrics.Histogram, "observe", keep)
    return calls


def test_a_record_sets_each_metric_of_the_table_by_its_name(told: list[Any]) -> None:
    shown = RayMetrics("small", clock=lambda: 0.0)
    record = {m.record: float(i) for i, m in enumerate(GAUGES) if m.record != "step"}
    shown.log(9, {**record, "perf/forward_s": 0.5, "perf/checkpoint_s": 2.0, "train/other": 1.0})
    assert {(m.name, record.get(m.record, 9), None) for m in GAUGES} <= set(told)
    assert (PHASES.name, 0.5, "forward") in told
    assert (CHECKPOINTS.name, 2.0, None) in told
    assert (STEPS.name, 1, None) in told
    assert len(told) == len(GAUGES) + 4  # the checkpoint's seconds are a phase too


def test_gauges_are_set_once_a_second_with_the_newest_values_and_counters_always(
    told: list[Any],
) -> None:
    now = [0.0]
    shown = RayMetrics("small", clock=lambda: now[0])
    for step in range(1, 6):
        shown.log(step, {"train/loss": float(step)})
        now[0] += 0.3
    now[0] += 1
    shown.log(2, {"eval/valid/loss": 7.0})  # of an earlier step
    assert [v for name, v, _ in told if name == "xtdist_train_step"][-1] == 5
    losses = [value for name, value, _ in told if name == "xtdist_train_loss"]
    assert losses == [1.0, 5.0]
    assert sum(value for name, value, _ in told if name == STEPS.name) == 5


def test_names_are_valid_for_prometheus_and_there_once() -> None:
    names = [m.name for m in (*GAUGES, PHASES, RANKS, CHECKPOINTS, STEPS, NOTES)]
    assert len(set(names)) == len(names)
    assert all(n.startswith("xtdist_train_") and n.replace("_", "a").isalpha() for n in names)


def test_a_tracker_reports_to_ray_only_where_ray_runs(
    told: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for running in (False, True):
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda r=running: r))
        with Tracker(tmp_path) as tracker:
            tracker.log(1, {"train/loss": 2.0})
            tracker.note(1, "warning: slow")
            tracker.ranks([0.5, 0.25])
        assert bool(told) == running
    assert (NOTES.name, 1, None) in told
    assert [value for name, value, _ in told if name == RANKS.name] == [0.5, 0.25]
