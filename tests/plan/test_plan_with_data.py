"""A plan where the dataset is there: what a dry run checks, and what a run leaves in its folder."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import yaml

from xtdist.cli.main import main
from xtdist.config import from_mapping
from xtdist.data import ByteTokenizerConfig, FilesSource, PrepareConfig, TokenDataset, prepare
from xtdist.launch.planned import FILE, device_of, planned
from xtdist.launch.preflight import preflight, resolve
from xtdist.train import RunSpec


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("planned")
    (root / "text").mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        (root / "text" / f"{i}.txt").write_text(" ".join(rng.choice(["a", "b", "c"], size=40)))
    config = PrepareConfig(
        output=str(root / "dataset"),
        source=FilesSource(path=str(root / "text")),
        tokenizer=ByteTokenizerConfig(),
        valid_fraction=0.3,
    )
    prepare(config)
    return root / "dataset"


@pytest.fixture
def tree(dataset, tmp_path):
    return {
        "name": "run",
        "output": str(tmp_path / "runs"),
        "data": {"path": str(dataset), "seq_len": 16},
        "model": {"dim": 16, "depth": 1, "heads": 2, "attention": {"dim_head": 8}},
        "objective": {"kind": "autoregressive"},
        "optim": {"schedule": {"kind": "constant", "warmup_steps": 1}},
        "batch": {"tokens_per_step": 160, "micro_batch_tokens": 32},
        "loop": {"steps": 10},
        "engine": {"precision": "fp32"},
        "workers": {"count": 2},
    }


def test_a_dry_run_reads_the_dataset_and_finds_what_would_stop_the_run(tree, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tree))
    assert main(["train", str(config), "--dry-run", "--json", "--gpu", "cpu"]) == 0
    shown = json.loads(capsys.readouterr().out)
    data = TokenDataset.open(tree["data"]["path"])
    assert shown["epochs"] == pytest.approx(1600 / data.total_tokens)
    assert shown["notes"] == []
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run").touch()
    assert main(["train", str(config), "--dry-run", "--gpu", "cpu"]) == 2
    assert "is a file" in capsys.readouterr().err


def test_a_run_leaves_its_plan_in_its_folder_without_being_kept_waiting(tree):
    plan = preflight(resolve(from_mapping(RunSpec, tree)), cluster_gpus=0)
    plan.folder.mkdir(parents=True)
    with planned(plan, {"CPU": 2.0}):
        assert any(thread.name == "plan" for thread in threading.enumerate())
    found = json.loads((plan.folder / FILE).read_text())
    assert found["parameters"]["total"] == plan.parameters
    assert found["workers"] == 2
    assert [row["chosen"] for row in found["memory"]] == [True]


def test_a_plan_that_cannot_be_written_is_said_and_the_run_goes_on(tree, capsys):
    plan = preflight(resolve(from_mapping(RunSpec, tree)), cluster_gpus=0)
    with planned(plan, {}):
        pass
    assert "plan.json: left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mark", "name"), [("H100", "h100"), ("A100-80G", "a100-80"), ("TPU-V5", None), (None, None)]
)
def test_the_gpu_is_the_one_that_ray_names(tree, mark, name):
    tree["workers"]["device"] = "gpu"
    plan = preflight(resolve(from_mapping(RunSpec, tree)), cluster_gpus=2)
    found = device_of(plan, {"GPU": 2.0} | ({f"accelerator_type:{mark}": 1.0} if mark else {}))
    assert (found.name if found else None) == name
