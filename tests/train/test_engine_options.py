"""Every option of the engine gives the numbers of a run without it, and is seen to be in force."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ranks import run_ranks
from runs import folder_of, records

CPU = {"kind": "cpu"}
OPTIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "cpu1": (1, {"offload_optimizer": CPU}),
    "cpu2": (2, {"offload_optimizer": CPU, "overlap_comm": True, "round_robin_gradients": True}),
    "cpu3": (3, {"offload_optimizer": CPU, "offload_parameters": CPU, "persist_below": 0}),
    "overlap1": (1, {"overlap_comm": True, "reduce_bucket": 1000}),
    "buckets2": (
        2,
        {"reduce_bucket": 1000, "allgather_bucket": 500, "contiguous_gradients": False},
    ),
    "hpz3": (3, {"hpz_partition_size": 2, "prefetch_bucket": 500, "persist_below": 50}),
}


def test_options_of_the_engine_change_no_loss_and_are_in_force(make_spec: Any) -> None:
    short = {"loop.steps": 3, "loop.valid_every": 0}
    changes = {name: {"engine.zero_stage": s} | _keys(o) for name, (s, o) in OPTIONS.items()}
    changes["auto"] = {"batch.micro_batch_tokens": "auto"}
    specs = [make_spec(name, short | change) for name, change in {"base": {}, **changes}.items()]
    outcomes = run_ranks(specs)
    base = records(specs[0], "train/loss")
    for spec, outcome in zip(specs, outcomes, strict=True):
        assert outcome.ok, outcome.printed
        assert records(spec, "train/loss") == pytest.approx(base, rel=1e-6), spec.name
        found = json.loads((folder_of(spec) / "in_force.json").read_text())
        assert found["sequences in a micro-batch"] == 4  # of 8 by 2 workers
        assert found["zero stage"] == spec.engine.zero_stage
        away = "cpu" if spec.name.startswith("cpu") else "nothing"
        assert found["optimizer offloaded to"] == away
        assert found["parameters offloaded to"] == ("cpu" if spec.name == "cpu3" else "nothing")
        groups = {g["name"]: g for g in found["optimizer groups"]}
        assert groups["no_decay"]["weight_decay"] == 0.0
        assert sum(g["parameters"] for g in groups.values()) == found["optimized parameters"]


def _keys(options: dict[str, Any]) -> dict[str, Any]:
    return {f"engine.{name}": value for name, value in options.items()}
