"""Sweeps on a cluster: trials side by side, failed ones, stopped ones, and going on."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_tools import Cluster, finish

from xtdist.checkpoint import CheckpointStore
from xtdist.track import read_series

pytestmark = pytest.mark.ray
NEVER, TOO_MUCH = 1e-6, 1e38
"""Rates at which nothing is learned, and at which the loss is not finite."""


def write_sweep(base: Path, name: str, rates: list[float], **changes: Any) -> Path:
    tree = {
        "name": name,
        "output": str(base.parent / "sweeps"),
        "base": str(base),
        "space": {"optim.lr": {"kind": "choice", "values": rates}},
        "search": {"kind": "grid"},
        **changes,
    }
    path = base.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def ends(folder: Path) -> dict[str, str]:
    whole = json.loads((folder / "results.json").read_text())
    return {trial["name"]: trial["status"] for trial in whole["trials"]}


@pytest.mark.long
def test_a_trial_that_fails_does_not_end_the_sweep(cluster: Cluster, make_config: Any) -> None:
    data = yaml.safe_load(make_config("swept").read_text())["data"]["path"]
    here = os.path.relpath(data, cluster.state)  # as seen from where the command is given
    base = make_config("swept", {"workers.count": 1, "track.mlflow": False, "data.path": here})
    config = write_sweep(base, "failing", [TOO_MUCH, 3e-3])
    result = cluster.xtdist("sweep", str(config), timeout_s=400)
    assert result.code == 0, result.out + result.err
    assert "2 trials, 2 at a time" in result.out  # each has one of the two CPUs
    folder = base.parent / "sweeps" / "failing"
    assert ends(folder) == {"trial-001": "finished", "trial-000": "failed"}
    assert "trial-000 the loss of step 1 is not finite" in result.out
    series = read_series(folder / "trial-001")["eval/valid/loss"]
    assert series.steps == [4, 8]
    best = json.loads((folder / "results.json").read_text())["trials"][0]
    assert best["best"] == min(series.values)
    assert not (folder / "tune").exists()


@pytest.mark.long
def test_an_interrupted_sweep_goes_on_and_stops_what_is_worse(
    cluster: Cluster, make_config: Any
) -> None:
    """One trial at a time: first a good one, which is interrupted; the same command finishes it,
    stops the next two at their first validation, and repeats nothing when it is given again."""
    own = {"workers.count": 1, "loop.steps": 600, "checkpoint.every": 600, "checkpoint.keep": 1}
    base = make_config("long-swept", own)
    asha = {"kind": "asha", "grace_steps": 100, "reduction_factor": 3}
    rates = [3e-3, NEVER, 2 * NEVER, TOO_MUCH]
    config = write_sweep(base, "halving", rates, stop=asha, max_concurrent=1)
    words = ("sweep", str(config), "loop.valid_every=100")
    folder = base.parent / "sweeps" / "halving"

    first = cluster.start(*words)
    for _ in range(3000):
        if "eval/valid/loss" in read_series(folder / "trial-000"):
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    interrupted = finish(first)
    assert interrupted.code == 130, interrupted.out + interrupted.err
    assert ends(folder)["trial-000"] == "unfinished"
    (saved,) = CheckpointStore(folder / "trial-000" / "checkpoints").names()

    second = cluster.xtdist(*words)
    assert second.code == 0, second.out + second.err
    went_on = (folder / "trial-000" / "driver.log").read_text()
    assert (
        f"going on from the checkpoint at step {int(saved.split('_')[1].split('-')[0])}" in went_on
    )
    assert ends(folder) == {
        "trial-000": "finished",
        "trial-001": "stopped",
        "trial-002": "stopped",
        "trial-003": "failed",
    }
    for name in ("trial-001", "trial-002"):  # each saved where it was stopped
        (stopped,) = CheckpointStore(folder / name / "checkpoints").names()
        assert 100 <= int(stopped.split("_")[1].split("-")[0]) < 600

    lines = [path.read_text() for path in sorted(folder.glob("trial-*/attempts.jsonl"))]
    third = cluster.xtdist(*words)
    assert third.code == 0, third.out + third.err
    assert "3 of them over" in third.out
    again = [path.read_text() for path in sorted(folder.glob("trial-*/attempts.jsonl"))]
    assert again[:3] == lines[:3]
    assert again[3] != lines[3]  # what failed is tried again

    with sqlite3.connect(folder / "mlflow.db") as store:
        rows = store.execute(
            "select r.name, t.value, r.run_uuid from runs r left join tags t "
            "on t.run_uuid = r.run_uuid and t.key = 'mlflow.parentRunId'"
        ).fetchall()
    parents = {name: parent for name, parent, _ in rows}
    (own,) = [run_id for name, _, run_id in rows if name == "halving"]
    assert parents == {"halving": None, **{f"trial-00{i}": own for i in range(4)}}

    alone = cluster.xtdist("train", str(folder / "best.yaml"), "loop.steps=4", "loop.valid_every=4")
    assert alone.code == 0, alone.out + alone.err
    assert (base.parent / "runs" / "halving-best" / "metrics.jsonl").exists()
