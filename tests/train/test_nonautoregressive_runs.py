"""The masked-token objective goes the whole way; a repetition is exact, dropout included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks
from runs import folder_of, records

from xtdist.checkpoint.weights import load_weights

NAR = {
    "objective": {"kind": "nonautoregressive"},
    "model.causal": False,
    "loop.steps": 60,
    "loop.valid_every": 30,
    "optim.lr": 1e-2,
    "loop.sample_prompts": ("def ",),
    "loop.sample_tokens": 4,
}


@pytest.mark.slow
def test_masked_training_learns_for_any_stage_and_its_weights_load(make_spec: Any) -> None:
    short = NAR | {"loop.steps": 6, "loop.valid_every": 3}
    dropout = short | {"model.feedforward": {"kind": "mlp", "dropout": 0.2}}
    specs = [make_spec("long", NAR)]
    specs += [make_spec(f"zero{z}", short | {"engine.zero_stage": z}) for z in range(4)]
    specs += [make_spec(name, dropout) for name in ("once", "again")]
    for outcome in run_ranks(specs):
        assert outcome.ok, outcome.printed
    long, first, *others = specs[:5]
    assert len((folder_of(long) / "samples.jsonl").read_text().splitlines()) == 1
    losses = records(long, "train/loss")
    assert losses[0] > 5  # near ln(259), a guess among all bytes
    assert sum(losses[-10:]) / 10 < 3.5
    assert records(long, "eval/valid/loss")[-1] < 3.5
    for other in others:
        for key in ("train/loss", "eval/valid/loss"):
            assert records(other, key) == pytest.approx(records(first, key), rel=2e-6)
    once, again = (records(spec, "train/loss") for spec in specs[5:])
    assert once == again
    assert once != records(first, "train/loss")
    loaded = load_weights(folder_of(long))
    assert not loaded.model.config.causal
    logits = loaded.model(torch.tensor([[100, 101, loaded.tokenizer.mask_id]]))
    assert torch.isfinite(logits).all()
