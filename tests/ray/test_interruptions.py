"""Ctrl-C, a killed worker, a damaged shard, a cluster that is too small."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
from cluster_tools import Cluster, Result, finish, steps_done, wait_until, workers_of

from xtdist.checkpoint import CheckpointStore

pytestmark = pytest.mark.ray
NAR = {
    "objective": {"kind": "nonautoregressive"},
    "model.causal": False,
    "model.position": {"kind": "learned"},
    "optim.lr": 1e-2,
    "loop.steps": 60,
    "loop.valid_every": 20,
    "checkpoint.every": 10,
}


@pytest.fixture(scope="module")
def interrupted(cluster: Cluster, make_config) -> tuple[Path, Path, Result, int]:
    """(config, run folder, result, newest step) of a non-autoregressive run that got a Ctrl-C."""
    config = make_config("nar", NAR)
    folder = config.parent / "runs" / "nar"
    child = cluster.start("train", str(config))
    wait_until(lambda: len(steps_done(folder)) >= 13, child=child)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: all processes of the command
    result = finish(child)
    return config, folder, result, steps_done(folder)[-1]


@pytest.fixture(scope="module")
def finished(cluster: Cluster, interrupted) -> tuple[Path, Result, int]:
    """The same command again; one of its workers is killed on the way."""
    config, folder, first, stopped = interrupted
    assert first.code == 130, first.out + first.err
    child = cluster.start("train", str(config))
    wait_until(lambda: steps_done(folder)[-1] >= stopped + 12, child=child)
    os.kill(workers_of(cluster)[-1], signal.SIGKILL)
    return folder, finish(child), stopped


def test_ctrl_c_saves_a_checkpoint_and_ends_with_130(interrupted):
    _, folder, result, stopped = interrupted
    assert result.code == 130, result.out + result.err
    assert 13 <= stopped < 60
    newest = CheckpointStore(folder / "checkpoints").newest_valid()
    assert newest is not None
    assert newest.step == stopped
    assert f"stopped at step {stopped} of 60; the same command goes on" in result.out
    assert "Traceback" not in result.out + result.err


def test_the_same_command_goes_on_and_survives_a_killed_worker(finished):
    folder, result, stopped = finished
    assert result.code == 0, result.out + result.err
    assert f"going on from the checkpoint at step {stopped}" in result.out
    done = steps_done(folder)
    assert done[: stopped + 1] == list(range(1, stopped + 2))  # Ctrl-C lost and repeated nothing
    (fall,) = [i for i in range(1, len(done)) if done[i] != done[i - 1] + 1]
    assert done[fall] % 10 == 1 or done[fall] == stopped + 1  # after a periodic checkpoint
    assert done[fall:] == list(range(done[fall], 61))
    assert "Traceback" not in result.out


def test_a_repeated_step_has_the_same_loss(finished):
    """From the checkpoint the run is the one that was not killed, bit for bit."""
    folder, _, _ = finished
    losses: dict[int, set[float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "train/loss" in record:
            losses.setdefault(record["step"], set()).add(record["train/loss"])
    assert all(len(values) == 1 for values in losses.values())


def test_the_non_autoregressive_model_learns_evaluates_and_generates(cluster, finished, dataset):
    folder, _, _ = finished
    records = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    valid = {r["step"]: r["eval/valid/loss"] for r in records if "eval/valid/loss" in r}
    assert list(valid) == [20, 40, 60]
    assert max(valid.values()) < 0.7 * math.log(259)  # of knowing nothing
    report = folder / "evaluation.json"
    done = cluster.xtdist("evaluate", str(folder), "--data", str(dataset), "--json", str(report))
    assert done.code == 0, done.err
    assert "model at step 60 (upper bound)" in done.out
    assert json.loads(report.read_text())["objective"] == "nonautoregressive"
    said = cluster.xtdist(
        "generate", str(folder), "--prompt", "def ", "--max-tokens", "12", "--steps", "4"
    )
    assert said.code == 0, said.err
    assert said.out.startswith("--- mask-predict\ndef ")
    assert len(said.out) > len("--- mask-predict\ndef \n")


def test_more_workers_than_cpus_is_refused_at_once(cluster, make_config):
    config = make_config("too-many", {"workers.count": 3})
    result = cluster.xtdist("train", str(config), timeout_s=60)
    assert result.code == 2
    assert "workers.count: 3 with 1 CPU each need 3 CPUs; the cluster has 2" in result.err
    assert "Set workers.count to at most 2" in result.err
    assert not (config.parent / "runs" / "too-many").exists()


def test_a_shard_damaged_after_the_preflight_is_one_clear_error(
    cluster, make_config, dataset, tmp_path
):
    """`verify: touch` reads it in the workers only; they say so instead of restarting for ever."""
    copy = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    shard = next(copy.glob("train*.arrow"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    config = make_config("damaged", {"data.path": str(copy)})
    result = cluster.xtdist("train", str(config))
    assert result.code == 2
    assert result.err.count("error: ") == 1
    assert str(shard) in result.err
    assert "sha256" in result.err
    assert "Traceback" not in result.out + result.err
    assert not list((config.parent / "runs" / "damaged" / "checkpoints").glob("step_*"))
