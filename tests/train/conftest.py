"""A byte-level dataset and a way to describe tiny runs on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtdist.config import from_mapping
from xtdist.data import ByteTokenizerConfig, FilesSource, PrepareConfig, load_tokenizer, prepare
from xtdist.train import RunSpec, fit_to_data

WORDS = ["def", "return", "class", "self", "for", "in", "None", "x", "y", "0", "(", ")", ":", "="]
MakeSpec = Callable[..., RunSpec]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), seed=0)


@pytest.fixture(scope="session")
def other_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("other-data"), seed=1)


def make_dataset(root: Path, *, seed: int) -> Path:
    """40 documents of 50 to 150 words as bytes, in ``root/dataset``."""
    rng = np.random.default_rng(seed)
    (root / "text").mkdir()
    for i in range(40):
        words = rng.choice(WORDS, size=rng.integers(50, 150))
        (root / "text" / f"{i}.txt").write_text(" ".join(words))
    prepare(
        PrepareConfig(
            output=str(root / "dataset"),
            source=FilesSource(path=str(root / "text")),
            tokenizer=ByteTokenizerConfig(),
            valid_fraction=0.2,
        )
    )
    return root / "dataset"


@pytest.fixture(scope="module")
def make_spec(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeSpec:
    """``make_spec("name", {"engine.zero_stage": 3, …})``: a run of 8 steps of 8 sequences."""
    output = tmp_path_factory.mktemp("runs")

    def make(name: str, changes: dict[str, Any] | None = None) -> RunSpec:
        tree: dict[str, Any] = {
            "name": name,
            "output": str(output),
            "seed": 3,
            "data": {"path": str(dataset), "seq_len": 16},
            "model": {
                "dim": 32,
                "depth": 2,
                "heads": 2,
                "attention": {"dim_head": 16, "kv_heads": 1},
                "norm": {"kind": "rmsnorm"},
                "tie_embedding": True,
            },
            "optim": {
                "lr": 3e-3,
                "grad_clip": 0.5,
                "schedule": {"kind": "constant", "warmup_steps": 2},
            },
            "batch": {"tokens_per_step": 128, "micro_batch_tokens": 128},
            "loop": {
                "steps": 8,
                "valid_every": 4,
                "valid_windows": 9,
            },
            "checkpoint": {"every": 100},
            "engine": {"zero_stage": 2, "precision": "fp32"},
            "workers": {"count": 2},
        }
        for path, value in (changes or {}).items():
            *parents, last = path.split(".")
            node = tree
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = copy.deepcopy(value)
        spec = from_mapping(RunSpec, tree)
        folder = Path(next(iter(spec.data.sources.values())))
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        return fit_to_data(spec, vocab_size=tokenizer.vocab_size)

    return make
