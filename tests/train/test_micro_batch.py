"""How many sequences a worker's memory holds, by what the same memory model says of each number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from xtdist.config import ConfigError, ResourceError
from xtdist.data import load_tokenizer
from xtdist.train import micro_batch
from xtdist.train.footprint import memory
from xtdist.train.micro_batch import USABLE, Need, fit_micro_batch, with_rows
from xtdist.train.trace import trace

MODELS: list[dict[str, Any]] = [
    {},
    {"engine.precision": "bf16"},
    {"model.recompute": {"blocks": 1}},
    {"model.attention": {"dim_head": 16, "softclamp": 20.0}},
    {"objective": {"kind": "nonautoregressive"}, "model.causal": False},
    {"optim": {"kind": "muon", "ema": {}, "schedule": {"kind": "constant", "warmup_steps": 1}}},
]


def need_of(spec: Any, *, world: int = 1) -> Need:
    tokenizer = load_tokenizer(f"{spec.data.path}/tokenizer.json")
    return Need.of(spec, tokenizer, place="cpu", world=world, cuda=False)


@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_what_more_sequences_need_is_told_from_two(make_spec: Any, changes: dict[str, Any]) -> None:
    spec = make_spec("rows", changes)
    need = need_of(spec)
    tokenizer = load_tokenizer(f"{spec.data.path}/tokenizer.json")
    for rows in (1, 8):
        passes = trace(spec, tokenizer, device="cpu", rows=rows)
        whole = memory(with_rows(spec, rows), need.numbers, passes, world=1, cuda=False)
        assert need.memory(rows).peak == pytest.approx(whole.peak, rel=0.01)


@pytest.mark.parametrize("world", [1, 2])
def test_the_most_sequences_fit_and_one_more_does_not(make_spec: Any, world: int) -> None:
    need = need_of(make_spec("most", {"batch.tokens_per_step": 2048}), world=world)
    share = need.spec.global_batch // world
    for rows in (1, 3, share // 2):
        peak = need.memory(rows).peak
        assert need.most_rows(peak) == rows
        assert need.most_rows(peak - 1) == rows - 1
        assert need.memory(rows + 1).peak > peak
    assert need.most_rows(1e15) == share
    assert need.most_rows(0) == 0


def test_a_model_whose_memory_depends_on_its_tokens_is_refused(make_spec: Any) -> None:
    with pytest.raises(ConfigError, match="give a number"):
        need_of(make_spec("experts", {"model.feedforward": {"kind": "moe"}}))


def test_a_run_takes_what_the_worker_with_the_least_memory_holds(
    make_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec("auto", {"batch.micro_batch_tokens": "auto"})
    tokenizer = load_tokenizer(f"{spec.data.path}/tokenizer.json")
    need = need_of(spec, world=2)
    least = need.memory(3).peak / USABLE + 1
    monkeypatch.setattr(micro_batch.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(micro_batch.dist, "all_reduce", lambda free, op: free.fill_(USABLE * least))
    found = fit_micro_batch(spec, tokenizer, torch.device("cpu"))
    assert found.batch.micro_batch_tokens == 3 * spec.data.seq_len
    least = 1000.0
    with pytest.raises(ResourceError, match=r"one sequence needs about \d+\.\d\d GB"):
        fit_micro_batch(spec, tokenizer, torch.device("cpu"))
