"""Sequences that ranks share are trained on like those that one rank has."""

from __future__ import annotations

from typing import Any

import pytest
from ranks import run_ranks
from runs import records

from xtdist.train import RunSpec

TWO = {"engine.sequence_parallel": 2}
KEYS = ("train/loss", "train/grad_norm", "eval/valid/loss")
MODELS: dict[str, dict[str, Any]] = {
    "rotary": {"engine.zero_stage": 3},  # with one key head for both ranks
    "window": {"model.attention": {"dim_head": 16, "window": 5, "sink": True}},
    "packed": {"data.documents": "packed", "engine.zero_stage": 1},
    "learned": {
        "data.documents": "masked",
        "model.position": {"kind": "learned"},
        "model.recompute": {},
        "batch.micro_batch_tokens": 16,
        "engine.zero_stage": 0,
    },
    "masked": {
        "objective": {"kind": "nonautoregressive", "self_cond": True},
        "model.causal": False,
        "data.documents": "packed",
    },
}


def assert_same(spec: RunSpec, like: RunSpec) -> None:
    for key in KEYS:
        tolerance = 1e-6 if "loss" in key else 1e-5
        want = records(like, key)
        assert len(want) >= 2
        assert records(spec, key) == pytest.approx(want, rel=tolerance), (spec.name, key)


def test_losses_and_norms_are_those_of_ranks_with_rows_of_their_own(make_spec: Any) -> None:
    short = {"loop.steps": 4, "loop.valid_every": 2}
    plain = [make_spec(name, short | change) for name, change in MODELS.items()]
    shared = [make_spec(f"{n}-2", short | change | TWO) for n, change in MODELS.items()]
    outcomes = run_ranks([*plain, *shared])
    assert all(outcome.ok for outcome in outcomes), outcomes[0].printed
    for spec, like in zip(shared, plain, strict=True):
        assert_same(spec, like)
