"""Sequences that ranks share are trained on like those that one rank has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import run_ranks
from runs import records
from slices import run_slices

from xtdist.config import ConfigError, from_mapping
from xtdist.model import ModelConfig
from xtdist.model.options.examples import tree_of
from xtdist.model.options.table import OPTIONS
from xtdist.objective import Prepared
from xtdist.objective.base import check_trainable
from xtdist.train import RunSpec
from xtdist.train.spec.sequence import MODEL, refused
from xtdist.train.step import Stepper

TWO = {"engine.sequence_parallel": 2}
SHORT = {"loop.steps": 4, "loop.valid_every": 4}
KEYS = ("train/loss", "train/grad_norm", "eval/valid/loss")
RUNS: dict[str, dict[str, Any]] = {
    # Both ranks read the one key head, also of documents that end within a slice.
    "rotary": {"data.documents": "packed", "engine.zero_stage": 3},
    "learned": {
        "data.documents": "masked",
        "model.position": {"kind": "learned"},
        "model.attention": {"dim_head": 16, "window": 5, "sink": True},
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
        found = records(spec, key)[-len(want) :]  # a run that was resumed also validated before
        assert want
        assert found == pytest.approx(want, rel=tolerance), (spec.name, key)


def test_losses_and_norms_are_those_of_ranks_with_rows_of_their_own(make_spec: Any) -> None:
    plain = [make_spec(name, SHORT | change) for name, change in RUNS.items()]
    shared = [make_spec(f"{n}-2", SHORT | change | TWO) for n, change in RUNS.items()]
    half = {"loop.steps": 2, "loop.valid_every": 0}
    begun = make_spec("resumed", SHORT | RUNS["rotary"] | TWO | half)
    ended = make_spec("resumed", SHORT | RUNS["rotary"])
    outcomes = run_ranks([*plain, *shared, begun, ended])
    assert all(outcome.ok for outcome in outcomes), outcomes[0].printed
    for spec, like in zip([*shared, ended], [*plain, plain[0]], strict=True):
        assert_same(spec, like)


@pytest.mark.long
def test_so_they_are_with_other_rows_beside_them(make_spec: Any) -> None:
    """10 sequences a step: of two pairs of ranks, each gets 5, in micro-batches of 2, 2, 1."""
    heads = {"model.heads": 4, "workers.count": 4, "batch.tokens_per_step": 160}
    heads["batch.micro_batch_tokens"] = 16
    changes = [{}, TWO, {"engine.sequence_parallel": 4}]
    for name, change in RUNS.items():
        specs = [
            make_spec(f"{name}-four-{i}", SHORT | change | heads | {"engine.zero_stage": 2} | more)
            for i, more in enumerate(changes)
        ]
        assert specs[1].split(4).accumulation == 3
        outcomes = run_ranks(specs)
        assert all(outcome.ok for outcome in outcomes), outcomes[0].printed
        for spec in specs[1:]:
            assert_same(spec, specs[0])


@pytest.mark.long
def test_so_they_are_compiled(make_spec: Any) -> None:
    plain = make_spec("not-compiled", SHORT | RUNS["rotary"] | {"engine.zero_stage": 2})
    compiled = make_spec(
        "compiled", SHORT | RUNS["rotary"] | TWO | {"engine.zero_stage": 2, "engine.compile": {}}
    )
    outcomes = run_ranks([plain, compiled])
    assert all(outcome.ok for outcome in outcomes), outcomes[0].printed
    assert_same(compiled, plain)


SOME: list[dict[str, Any]] = [
    {"attention": {"dim_head": 8, "kv_heads": 2, "window": 3, "sink": True, "softclamp": 5.0}},
    {"attention": {"dim_head": 8, "kv_heads": 1, "laser": 15.0, "zero_kv": True}},
    {"attention": {"dim_head": 8, "latent": {"kv_dim": 12, "q_dim": 12, "rotary_heads": 2}}},
    {"causal": False, "position": {"kind": "polar"}, "value_residual": {}},
]


def test_hidden_states_and_gradients_are_those_of_whole_sequences() -> None:
    sizes = {"dim": 32, "depth": 2, "heads": 4, "num_tokens": 40, "max_seq_len": 24}
    assert run_slices([sizes | tree for tree in SOME], world=2) == {}


@pytest.mark.long
@pytest.mark.parametrize("world", [2, 4])
def test_so_they_are_with_every_option_that_is_not_refused(world: int) -> None:
    trees = [tree for o in OPTIONS for s in o.samples if (tree := tree_of(s)) and _trains(tree)]
    assert len(trees) > 120
    wrong = run_slices(trees, world=world)
    assert {text for text in wrong.values() if text != "draws"} == set()
    assert len(wrong) < 10


def _trains(tree: dict[str, Any]) -> bool:
    config = from_mapping(ModelConfig, tree)
    try:
        check_trainable(config, causal=config.causal, name="model", alone=True)
    except ConfigError:
        return False
    return not list(refused(config, MODEL))


def test_slices_of_rows_add_up_to_them() -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, -9], [3, 3, 3, 3, 3, 3, 3, 3]])
    whole = Prepared(
        inputs=torch.arange(16).view(2, 8),
        targets=torch.arange(1, 17).view(2, 8),
        weights=torch.rand(2, 8),
        counts=torch.tensor([7.0, 8.0]),
        sample_ids=torch.tensor([5, 6]),
        documents=documents,
    )
    parts = [whole.slice_of(i, 4) for i in range(4)]
    for name in ("inputs", "targets", "weights", "documents"):
        together = torch.cat([getattr(part, name) for part in parts], dim=1)
        assert torch.equal(together, getattr(whole, name))
    assert sum(float(part.weight) for part in parts) == 15
    positions = torch.cat([part.positions for part in parts], dim=1)
    assert positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0], [*range(8)]]
    assert all(part.sample_ids.tolist() == [5, 6] and part.mask is None for part in parts)


def test_slices_drop_out_differently(make_spec: Any) -> None:
    def drawn(sequence: Any) -> float:
        spec, batch = make_spec("x"), SimpleNamespace(step=2)
        stepper = Stepper(None, None, spec, torch.device("cpu"), None, sequence)
        micro = SimpleNamespace(sample_ids=torch.tensor([7, 8]))
        return float(stepper._forward(lambda _: torch.rand(()), micro, batch))

    values = [drawn(None), *(drawn(SimpleNamespace(rank=i, size=2)) for i in range(2))]
    assert values[1] == drawn(SimpleNamespace(rank=0, size=2))
    assert len(set(values)) == 3


def test_workers_that_share_sequences_have_the_same_rows(make_spec: Any) -> None:
    spec = make_spec("x", TWO | {"workers.count": 4, "batch.micro_batch_tokens": 16})
    assert [spec.data_place(rank, 4) for rank in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert spec.data_place(0, 1) == (0, 1)  # whole sequences, in no group
    split = spec.split(4)
    assert (split.share, split.micro_batch, split.accumulation) == (4, 2, 2)  # 8 tokens of a row


NAR = {"objective": {"kind": "nonautoregressive"}, "model.causal": False}
CRITIC = {"kind": "nonautoregressive", "self_token_critic": True}
REFUSED: dict[str, dict[str, Any]] = {
    "workers.count (3)": {"workers.count": 3},
    "model.heads (1)": {"model.heads": 1},
    "data.seq_len (15)": {"data.seq_len": 15, "batch.tokens_per_step": 120},
    "batch.seq_len_warmup.0.seq_len (1)": {
        "batch.seq_len_warmup": [{"until_step": 2, "seq_len": 1}]
    },
    "engine.reduction": {"engine.reduction": "canonical"},
    "batch.micro_batch_tokens": {"batch.micro_batch_tokens": "auto"},
    "workers.min_count": {"workers.min_count": 1},
    "model.shift_tokens": {"model.shift_tokens": 1},
    "model.position_bias": {"model.position_bias": {"kind": "alibi"}},
    "model.position.xpos_scale_base": {"model.position": {"kind": "rotary", "xpos_scale_base": 64}},
    "model.attention.cope": {"model.attention.cope": {}},
    "model.attention.forgetting": {"model.attention.forgetting": {}},
    "model.attention.relative_projection": {"model.attention.relative_projection": {}},
    "model.attention.selective": {"model.attention.selective": True},
    "model.attention.pre_talking_heads": {"model.attention.pre_talking_heads": True},
    "model.attention.memory_kv": {"model.attention.memory_kv": 2},
    "model.residual_attention": {"model.residual_attention": True},
    "model.residual": {**NAR, "model.residual": {"kind": "mv_split"}},
    "model.residual.over": {**NAR, "model.residual": {"kind": "orthogonal", "over": "sequence"}},
    "model.memory_tokens": {"model.memory_tokens": {"tokens": 2}},
    "model.loop": {"model.loop": {"kind": "recycling"}},
    "model.feedforward": {"model.feedforward": {"kind": "moe"}},
    "model.layer_dropout": {"model.layer_dropout": 0.1},
    "model.head.next_embedding": {"model.head": {"next_embedding": True}},
    "objective.add_attn_z_loss": {"objective": {"kind": "autoregressive", "add_attn_z_loss": True}},
    "objective.self_token_critic": {**NAR, "objective": CRITIC},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_reads_other_tokens_or_does_not_divide_is_refused(make_spec: Any, name: str) -> None:
    make_spec("without", {k: v for k, v in REFUSED[name].items() if k != "workers.min_count"})
    with pytest.raises(ConfigError) as told:
        make_spec("with", REFUSED[name] | TWO)
    assert name in str(told.value)
    assert "engine.sequence_parallel" in str(told.value)
