"""The trajectory of a run depends on neither workers, accumulation nor ZeRO stage, and is that of
a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
from plain import plain_loop
from ranks import run_ranks
from runs import records


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_losses_and_norms_are_those_of_a_plain_loop_for_any_stage_and_accumulation(
    make_spec: Any, workers: int
) -> None:
    """8 sequences a step: 3 workers get 3, 3 and 2; the last of 9 validation windows leaves two
    of them without one."""
    base = {"workers.count": workers, "loop.steps": 8}
    four = {"batch.micro_batch_tokens": 32 if workers == 1 else 16}
    stages = range(4)
    accumulating = stages if workers == 2 else [2]
    specs = [
        *(make_spec(f"zero{z}-{workers}", base | {"engine.zero_stage": z}) for z in stages),
        *(
            make_spec(f"acc{z}-{workers}", base | four | {"engine.zero_stage": z})
            for z in accumulating
        ),
    ]
    assert specs[4].split(workers).accumulation == {1: 4, 2: 4, 3: 3}[workers]
    outcomes = run_ranks(specs)
    want = plain_loop(specs[0])
    for spec, outcome in zip(specs, outcomes, strict=True):
        assert outcome.ok, outcome.printed
        for key, values in want.items():
            tolerance = 1e-6 if "loss" in key else 1e-4
            assert records(spec, key) == pytest.approx(values, rel=tolerance), (spec.name, key)
    assert outcomes[0].printed == ""
    first, last = want["train/loss"][0], want["train/loss"][-1]
    assert last < first - 0.5  # or the comparison would say little


@pytest.mark.slow
def test_other_models_and_no_clipping_agree_with_the_plain_loop_too(make_spec: Any) -> None:
    untied = {
        "model.tie_embedding": False,
        "model.position": {"kind": "learned"},
        "model.norm": {"kind": "layernorm"},
        "model.attention": {"dim_head": 16, "qk_rmsnorm": True},
        "model.feedforward": {"kind": "glu"},
        "optim.grad_clip": 0.0,
        "loop.steps": 4,
    }
    specs = [make_spec(f"other{z}", untied | {"engine.zero_stage": z}) for z in range(4)]
    want = plain_loop(specs[0])
    for spec, outcome in zip(specs, run_ranks(specs), strict=True):
        assert outcome.ok, outcome.printed
        for key, values in want.items():
            assert records(spec, key) == pytest.approx(values, rel=1e-6 if "loss" in key else 1e-4)
