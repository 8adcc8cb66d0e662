"""A run submitted as a Ray job: what it leaves behind, and what the same command does again."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cluster_tools import ROOT, Cluster, Result, finish, steps_done, wait_until

from xtdist.checkpoint import CheckpointStore, load_weights, read_manifest, verify
from xtdist.data import TokenDataset
from xtdist.track.mlflow import metric_history

pytestmark = pytest.mark.ray
PROMPTS = {"loop.sample_prompts": ["def "], "loop.sample_tokens": 8}


@dataclass(frozen=True)
class Run:
    """A finished command and the run's folder."""

    config: Path
    result: Result
    folder: Path

    @property
    def checkpoints(self) -> CheckpointStore:
        return CheckpointStore(self.folder / "checkpoints")

    @property
    def mlflow(self) -> tuple[str, str]:
        """(uri, run id)"""
        noted = json.loads((self.folder / "mlflow_run.json").read_text())
        return noted["uri"], noted["run_id"]

    def metrics(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def first(cluster: Cluster, make_config) -> Run:
    config = make_config("submitted", PROMPTS)
    result = cluster.xtdist("train", str(config), "--submit", cluster.address)
    assert result.code == 0, result.out + result.err
    return Run(config, result, config.parent / "runs" / "submitted")


@pytest.fixture(scope="module")
def again(cluster: Cluster, first: Run) -> tuple[Run, dict[str, int]]:
    """The same run again, without a job, and when its files were written before that."""
    before = {str(p): p.stat().st_mtime_ns for p in first.folder.rglob("*") if p.is_file()}
    result = cluster.xtdist("train", str(first.config))
    return Run(first.config, result, first.folder), before


@pytest.fixture(scope="module")
def extended(cluster: Cluster, again: tuple[Run, dict[str, int]]) -> Run:
    """The finished run with more steps, as a job that gets a Ctrl-C on the way."""
    run, _ = again
    words = ("loop.steps=10000", "--submit", cluster.address)
    child = cluster.start("train", str(run.config), *words)
    wait_until(lambda: len(steps_done(run.folder)) >= 12, child=child)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: all processes of the command
    return Run(run.config, finish(child), run.folder)


def test_the_job_got_the_whole_package(cluster, first):
    """Nothing of it may come from an installation that other hosts don't have."""
    packages = Path((cluster.state / "tmp").read_text().strip()) / "session_latest"
    found = packages.glob("runtime_resources/working_dir_files/_ray_pkg_*")
    sent = min((p for p in found if p.is_dir()), key=lambda p: p.stat().st_ctime)
    for folder in ("xtdist", "jobs"):
        here = {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*.py")}
        assert here <= {p.relative_to(sent) for p in sent.rglob("*.py")}
    assert not (sent / "tests").exists()
    assert not (sent / ".git").exists()


def test_the_plan_and_the_end_are_said(first):
    assert "2 workers x 2 micro-batches of 2" in first.result.out
    assert "ZeRO-2, fp32, CPU" in first.result.out
    assert "step 8/8" in first.result.out
    assert f"step 8 of 8 done; all of it is in {first.folder}" in first.result.out


def test_checkpoints_are_whole_and_name_their_dataset(first, dataset):
    store = first.checkpoints
    steps = [int(n.split("_")[1].split("-")[0]) for n in store.names()]
    assert steps[:2] == [4, 8]
    data_id = TokenDataset.open(dataset).dataset_id
    for name in store.names()[:2]:
        manifest = read_manifest(store.root / name)
        verify(store.root / name, manifest)
        assert manifest.meta["identity"]["data"]["dataset_id"] == data_id
        assert "weights/model.safetensors" in manifest.files
        assert sum(f.startswith("state/rank-") for f in manifest.files) == 2  # one per worker
    assert not list(store.root.glob(".*"))
    assert load_weights(store.root / store.names()[1]).meta["step"] == 8


def test_every_step_has_its_metrics(first):
    train = [r for r in first.metrics() if "train/loss" in r][:8]
    assert [r["step"] for r in train] == list(range(1, 9))
    assert train[-1]["train/tokens"] == 8 * 256
    assert train[-1]["train/loss"] < train[0]["train/loss"]
    assert {"train/lr", "train/grad_norm", "perf/tokens_per_s", "perf/data_wait_share"} <= set(
        train[0]
    )
    valid = [r for r in first.metrics() if "eval/valid/loss" in r][:2]
    assert [r["step"] for r in valid] == [4, 8]


def test_samples_and_plots_are_there(first):
    samples = [json.loads(line) for line in (first.folder / "samples.jsonl").open()][:2]
    assert [(s["step"], s["prompt"]) for s in samples] == [(4, "def "), (8, "def ")]
    assert all(s["text"] for s in samples)
    assert (first.folder / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "train/loss" in (first.folder / "loss.html").read_text()


def test_mlflow_has_params_metrics_dataset_and_artifacts(first, dataset):
    from mlflow import MlflowClient

    uri, run_id = first.mlflow
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    resolved = yaml.safe_load((first.folder / "config.yaml").read_text())
    assert run.data.params["model.num_tokens"] == str(resolved["model"]["num_tokens"]) == "259"
    assert run.data.params["optim.lr"] == "0.003"
    assert run.data.params["workers.count"] == "2"
    data = TokenDataset.open(dataset)
    given = {i.tags[0].value: json.loads(i.dataset.profile) for i in run.inputs.dataset_inputs}
    assert {(name, d["split"], d["dataset_id"]) for name, d in given.items()} == {
        ("training", "train", data.dataset_id),
        ("validation", "valid", data.dataset_id),
    }
    valid = TokenDataset.open(dataset, "valid")
    assert given["training"]["tokens"] == data.total_tokens
    assert given["validation"]["tokens"] == valid.total_tokens
    artifacts = {a.path for a in client.list_artifacts(run_id)}
    assert {"loss.png", "loss.html", "config.yaml", "in_force.json"} <= artifacts
    for name in ("train/loss", "train/grad_norm", "eval/valid/loss"):
        here = {r["step"]: r[name] for r in first.metrics() if name in r}
        there = metric_history(uri, run_id, name)
        assert there.steps[:2] == list(here)[:2]
        assert there.values == pytest.approx([here[s] for s in there.steps])


def test_a_finished_run_is_left_as_it_is(again):
    run, before = again
    assert run.result.code == 0
    assert "already at step 8 of 8: nothing to train" in run.result.out
    after = {str(p): p.stat().st_mtime_ns for p in run.folder.rglob("*") if p.is_file()}
    assert {p: t for p, t in after.items() if p in before} == before


def test_a_longer_run_goes_on_from_its_checkpoint(extended):
    assert "going on from the checkpoint at step 8" in extended.result.out
    losses = [r for r in extended.metrics() if "train/loss" in r]
    assert [r["step"] for r in losses] == list(range(1, len(losses) + 1))
    assert losses[-1]["train/tokens"] == len(losses) * 256


def test_ctrl_c_stops_the_job_which_saves_a_checkpoint_first(extended):
    step = steps_done(extended.folder)[-1]
    assert extended.result.code == 130, extended.result.out + extended.result.err
    assert f"stopped at step {step} of 10000; the same command goes on" in extended.result.out
    newest = extended.checkpoints.newest_valid()
    assert newest is not None
    assert newest.step == step
    assert len(extended.checkpoints.names()) == 3  # checkpoint.keep


def test_a_longer_run_is_the_same_mlflow_run(extended):
    from mlflow import MlflowClient

    uri, run_id = extended.mlflow
    client = MlflowClient(tracking_uri=uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    assert [r.info.run_id for r in client.search_runs(experiments)] == [run_id]
    assert client.get_run(run_id).info.status == "KILLED"
    assert client.get_run(run_id).data.tags["changed.loop.steps"] == "10000"
    there = {p.step: p.value for p in client.get_metric_history(run_id, "train/loss")}
    here = {r["step"]: r["train/loss"] for r in extended.metrics() if "train/loss" in r}
    assert there == pytest.approx(here)


def test_a_users_mistake_ends_the_job_with_code_2(cluster, first, make_config):
    """A mistake that only the cluster can see, and one that is seen before anything is sent."""
    config = make_config("mistake", {"workers.count": 4})
    result = cluster.xtdist("train", str(config), "--submit", cluster.address)
    assert result.code == 2
    assert "workers.count: 4 with 1 CPU each need 4 CPUs; the cluster has 2" in result.out
    assert "Traceback" not in result.out + result.err
    assert not (config.parent / "runs" / "mistake").exists()
    result = cluster.xtdist("train", str(config), "loop.step=4", "--submit", cluster.address)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: override 'loop.step=4': unknown key 'step'; did you mean")
    nobody = cluster.xtdist("train", str(config), "--submit", "http://127.0.0.1:1")
    assert nobody.code == 2
    assert "no Ray job server at http://127.0.0.1:1" in nobody.err
