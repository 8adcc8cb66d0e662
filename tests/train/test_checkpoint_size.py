"""What a checkpoint was expected to take on disk, against what it takes."""

from __future__ import annotations

from typing import Any

import pytest
from ranks import run_ranks
from runs import checkpoints, folder_of
from safetensors.torch import load_file

from xtdist.checkpoint.weights import load_weights
from xtdist.data import load_tokenizer
from xtdist.train.footprint import count
from xtdist.train.state import checkpoint_bytes
from xtdist.train.trace import DTYPES

SCHEDULE = {"schedule": {"kind": "constant", "warmup_steps": 1}}
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {"engine.precision": "fp32"},
    "bf16": {"engine.precision": "bf16"},
    "averaged": {"engine.precision": "bf16", "optim": {"ema": {}, **SCHEDULE}},
    "muon": {"engine.precision": "bf16", "optim": {"kind": "muon", **SCHEDULE}},
}


@pytest.mark.slow
def test_a_checkpoint_takes_what_was_planned(make_spec: Any) -> None:
    specs = {
        name: make_spec(name, {"loop.steps": 2, "checkpoint.every": 2, "model.dim": 64, **changes})
        for name, changes in KINDS.items()
    }
    for outcome in run_ranks(list(specs.values())):
        assert outcome.ok, outcome.printed
    for name, spec in specs.items():
        parameters = sum(p.numel() for p in load_weights(folder_of(spec)).model.parameters())
        files = checkpoints(spec)[-1].rglob("*.safetensors")
        saved = sum(t.nbytes for file in files for t in load_file(file).values())
        planned = checkpoint_bytes(
            parameters,
            averaged=spec.optim.ema is not None,
            size=DTYPES[spec.engine.precision].itemsize,
            muon=count(spec, load_tokenizer(f"{spec.data.path}/tokenizer.json")).muon,
        )
        assert saved == pytest.approx(planned - 1_000_000, rel=0.02), name
