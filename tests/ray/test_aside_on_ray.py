"""Validations and samples by Ray tasks beside the workers of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cluster_tools import Cluster

from xtdist.checkpoint import CheckpointStore
from xtdist.config import from_mapping, to_mapping
from xtdist.track import read_series
from xtdist.train import RunSpec
from xtdist.train.aside import AsideJob, examine

pytestmark = pytest.mark.ray
ASIDE = {"loop.aside": {}, "loop.sample_prompts": ["def "], "loop.sample_tokens": 4}


def test_a_task_validates_the_last_checkpoint_before_the_command_ends(
    cluster: Cluster, make_config
):
    config = make_config("aside", ASIDE | {"workers.count": 1, "checkpoint.keep": 1})
    result = cluster.xtdist("train", str(config))
    assert result.code == 0, result.out + result.err
    assert "warning" not in result.out
    assert "aside    validations and samples of checkpoints, by a task of 1 CPU\n" in result.out
    folder = config.parent / "runs" / "aside"
    series = read_series(folder)
    assert "aside/misses" not in series
    assert len(series["train/loss"].steps) == 8
    assert series["eval/valid/loss"].steps[-1] == 8
    (name,) = CheckpointStore(folder / "checkpoints").names()
    manifest = json.loads((folder / "checkpoints" / name / "manifest.json").read_text())
    job = AsideJob(
        spec=from_mapping(RunSpec, manifest["meta"]["config"]),
        place=str(folder / "checkpoints"),
        name=name,
        step=8,
        validate=True,
    )
    found = examine(to_mapping(job))
    assert series["eval/valid/loss"].values[-1] == pytest.approx(
        found["metrics"]["eval/valid/loss"], rel=1e-6
    )
    last = json.loads((folder / "samples.jsonl").read_text().splitlines()[-1])
    assert last == {"step": 8, "prompt": "def ", "text": found["texts"][0]}


def test_a_cluster_without_room_for_the_task_is_refused_at_once(cluster: Cluster, make_config):
    config: Path = make_config("no-room", ASIDE)
    result = cluster.xtdist("train", str(config), timeout_s=60)
    assert result.code == 2
    assert "loop.aside: 2 workers of 1 CPU beside a task of 1 CPU (loop.aside) are needed" in (
        result.err
    )
    assert "room for 1: room for 1 more is missing" in result.err
    assert not (config.parent / "runs" / "no-room").exists()
