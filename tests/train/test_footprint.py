"""What a run needs of memory, against what autograd really keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from xtdist.config import ConfigError
from xtdist.data import load_tokenizer
from xtdist.model import build_model
from xtdist.objective import build_objective
from xtdist.train.footprint import DTYPES, Footprint, footprint, kept_bytes, state_bytes
from xtdist.train.spec import EngineSpec

MODELS: list[dict[str, Any]] = [
    {},
    {"engine.precision": "bf16"},
    {"model.recompute": {"blocks": 1}},
    {"model.attention": {"dim_head": 16, "softclamp": 20.0}},
    {"objective": {"kind": "nonautoregressive"}, "model.causal": False},
]


@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_the_traced_bytes_are_those_that_autograd_keeps(
    make_spec: Any, changes: dict[str, Any]
) -> None:
    spec = make_spec("footprint", changes)
    tokenizer = load_tokenizer(f"{spec.data.path}/tokenizer.json")
    found = footprint(spec, tokenizer, device="cpu", world=1)
    objective = build_objective(
        spec.objective,
        build_model(spec.model),
        mask_id=tokenizer.mask_id,
        pad_id=tokenizer.pad_id,
    ).to(DTYPES[spec.engine.precision])
    for rows in (1, 3, 8):
        tokens = torch.randint(0, 256, (rows, spec.data.seq_len + 1))
        prepared = objective.prepare(tokens, seed=0, sample_ids=torch.arange(rows))
        kept = kept_bytes(objective.losses, prepared, objective.parameters())
        traced = found.fixed + rows * found.per_sequence
        assert kept <= traced <= 1.1 * kept  # masked prediction: as if every token were masked


def test_a_model_whose_memory_depends_on_its_tokens_is_refused(make_spec: Any) -> None:
    spec = make_spec("experts", {"model.feedforward": {"kind": "moe"}})
    tokenizer = load_tokenizer(f"{spec.data.path}/tokenizer.json")
    with pytest.raises(ConfigError, match="give a number"):
        footprint(spec, tokenizer, device="cpu", world=1)


@pytest.mark.parametrize(
    ("stage", "precision", "bytes_each"),
    [(0, "fp32", 16), (2, "fp32", 4 + 16 / 4), (3, "bf16", (2 + 4 + 12) / 4), (0, "bf16", 16)],
)
def test_state_is_cut_as_the_stage_says(stage: int, precision: str, bytes_each: float) -> None:
    engine = EngineSpec(zero_stage=stage, precision=precision)
    assert state_bytes(1000, engine, world=4, on_cpu=True) == 1000 * bytes_each


def test_as_many_sequences_fit_as_memory_is_left_for() -> None:
    assert Footprint(state=100, fixed=10, per_sequence=20).sequences(171) == 3
    assert Footprint(state=100, fixed=10, per_sequence=20).sequences(50) < 1
