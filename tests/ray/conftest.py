"""One local cluster for all tests of this folder, a byte-level dataset, and tiny runs on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cluster_tools import Cluster, local_sh, parse_exports

from xtdist.cli.main import main

WORDS = [
    "def",
    "return",
    "class",
    "self",
    "for",
    "in",
    "if",
    "None",
    "x",
    "y",
    "0",
    "(",
    ")",
    ":",
    "=",
]
MakeConfig = Callable[..., Path]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    state = tmp_path_factory.mktemp("cluster") / "of 2 CPUs"
    up = local_sh("up", str(state), cpus=2)
    assert up.returncode == 0, up.stderr
    running = Cluster(state, parse_exports(up.stdout))
    yield running
    for child in running.processes:
        if child.poll() is None:
            child.kill()
    assert local_sh("down", str(state)).returncode == 0


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 documents of 50 to 150 words as bytes, made by ``xtdist prepare``."""
    root = tmp_path_factory.mktemp("bytes")
    rng = np.random.default_rng(0)
    (root / "text").mkdir()
    for i in range(40):
        words = rng.choice(WORDS, size=rng.integers(50, 150))
        (root / "text" / f"{i}.txt").write_text(" ".join(words))
    config = {
        "output": str(root / "dataset"),
        "source": {"kind": "files", "path": str(root / "text")},
        "tokenizer": {"kind": "byte"},
        "valid_fraction": 0.2,
    }
    (root / "prepare.yaml").write_text(yaml.safe_dump(config))
    assert main(["prepare", str(root / "prepare.yaml")]) == 0
    return root / "dataset"


@pytest.fixture(scope="session")
def make_config(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeConfig:
    """``make_config("name", {"loop.steps": 4})``: the YAML of a run of 8 steps of 8 sequences on
    2 workers. The run's folder is ``runs/name`` beside it."""
    root = tmp_path_factory.mktemp("runs")

    def make(name: str, changes: dict[str, Any] | None = None) -> Path:
        tree: dict[str, Any] = {
            "name": name,
            "output": str(root / "runs"),
            "seed": 3,
            "data": {"path": str(dataset), "seq_len": 32},
            "model": {"dim": 32, "depth": 2, "heads": 2, "attention": {"dim_head": 16}},
            "optim": {"lr": 3e-3, "schedule": {"kind": "constant", "warmup_steps": 2}},
            "batch": {"tokens_per_step": 256, "micro_batch_tokens": 64},
            "loop": {"steps": 8, "valid_every": 4, "valid_windows": 8},
            "checkpoint": {"every": 4},
            "engine": {"zero_stage": 2, "precision": "fp32"},
            "workers": {"count": 2},
        }
        for path, value in (changes or {}).items():
            *parents, last = path.split(".")
            node = tree
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = value
        path = root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return make
