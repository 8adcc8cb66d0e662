"""Canonical reduction: the number of workers changes no bit of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain import plain_loop
from ranks import run_ranks
from runs import checkpoints, folder_of, records
from safetensors.torch import load_file

from xtdist.config import ConfigError
from xtdist.data import rank_slice
from xtdist.train import RunSpec
from xtdist.train.reduction import Node, TreeSum, micro_batches, nodes_of

KEYS = ("train/loss", "train/grad_norm", "train/tokens", "eval/valid/loss")
CHANGES: dict[str, Any] = {
    "engine.reduction": "canonical",
    "batch.tokens_per_step": 176,  # 11 sequences, in 6 micro-batches of which one has one
    "batch.micro_batch_tokens": 32,
    "loop.valid_every": 5,
    "model.feedforward": {"kind": "mlp", "dropout": 0.1},
}


def whole_sum(leaves: list[float]) -> float:
    """The same tree by its definition: halves of the next power of two, missing leaves left out."""

    def node(first: int, size: int) -> torch.Tensor | None:
        if first >= len(leaves):
            return None
        if size == 1:
            return torch.tensor(leaves[first])
        left, right = node(first, size // 2), node(first + size // 2, size // 2)
        return left if right is None or left is None else left + right

    total = node(0, 2 ** math.ceil(math.log2(len(leaves))))
    assert total is not None
    return float(total)


@given(
    leaves=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    world=st.integers(1, 6),
)
def test_any_cut_of_the_leaves_gives_the_bits_of_the_whole_tree(
    leaves: list[float], world: int
) -> None:
    first = TreeSum()
    for rank in range(world):
        mine = rank_slice(len(leaves), rank, world)
        part = TreeSum()
        for i in range(mine.start, mine.stop):
            part.add(Node(i, 1, torch.tensor(leaves[i])))
        wanted = nodes_of(range(mine.start, mine.stop))
        assert [(n.first, n.size) for n in part.nodes] == wanted
        assert len(wanted) <= 2 * math.log2(len(leaves) + 1) + 1
        for node in part.nodes:
            first.add(node)
    assert float(first.total()) == whole_sum(leaves)


def test_every_micro_batch_is_of_one_rank_and_the_same_with_any_number() -> None:
    for rows in range(1, 30):
        for world in range(1, 6):
            shares = [micro_batches(rows, size=4, rank=r, world=world) for r in range(world)]
            assert [i for share in shares for i in share] == list(range(math.ceil(rows / 4)))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "stage 3": ({"engine.zero_stage": 3}, "engine.reduction: got 'canonical', which zero_stage 3"),
    "fp16": ({"engine.precision": "fp16"}, "precision=fp16"),
    "offload": ({"engine.offload_optimizer": {"kind": "cpu"}}, "with offload_optimizer"),
    "compile": ({"engine.compile": {}}, "with compile"),
    "muon": ({"optim": {"kind": "muon"}}, "optim.kind 'muon'"),
}


@pytest.mark.parametrize(("changes", "text"), REFUSED.values(), ids=REFUSED)
def test_what_canonical_cannot_promise_is_refused(
    make_spec: Any, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        make_spec("refused", {"engine.reduction": "canonical", **changes})


def trained(make_spec: Any, worlds: list[int], cases: dict[str, Any]) -> dict[int, list[RunSpec]]:
    """The same runs with other numbers of workers."""
    found = {}
    for world in worlds:
        found[world] = [
            make_spec(f"{name}-{world}", {**CHANGES, **changes, "workers.count": world})
            for name, changes in cases.items()
        ]
        for outcome in run_ranks(found[world]):
            assert outcome.ok, outcome.printed
    return found


def assert_same_bits(one: RunSpec, other: RunSpec) -> None:
    for key in KEYS:
        assert records(other, key) == records(one, key), (one.name, other.name, key)
    weights = [load_file(weights_of(spec)) for spec in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), (one.name, other.name, name)


def weights_of(spec: RunSpec) -> Path:
    (path,) = (checkpoints(spec)[-1] / "weights").glob("*.safetensors")
    return path


@pytest.mark.slow
def test_two_workers_and_one_agree_in_every_bit(make_spec: Any) -> None:
    cases = {
        "zero0": {"engine.zero_stage": 0, "loop.steps": 6},
        "zero1": {"engine.zero_stage": 1, "loop.steps": 6},
    }
    found = trained(make_spec, [1, 2], cases)
    for one, other in zip(found[1], found[2], strict=True):
        assert_same_bits(one, other)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_to_four_workers_agree_in_every_bit_of_a_longer_run(
    make_spec: Any, precision: str
) -> None:
    """Also with steps of fewer micro-batches than workers, and rows that are cut."""
    warmups = {
        "batch.warmup": [
            {"until_step": 3, "tokens_per_step": 16},
            {"until_step": 8, "tokens_per_step": 80},
        ],
        "batch.seq_len_warmup": [{"until_step": 5, "seq_len": 4}],
    }
    base = {"engine.precision": precision, "loop.steps": 25}
    cases = {f"{precision}-{z}": {**base, "engine.zero_stage": z} for z in range(3)}
    cases[f"{precision}-warm"] = {**base, **warmups, "engine.zero_stage": 1}
    found = trained(make_spec, [1, 2, 3, 4], cases)
    for world in (2, 3, 4):
        for one, other in zip(found[1], found[world], strict=True):
            assert_same_bits(one, other)


@pytest.mark.slow
def test_the_numbers_are_those_of_a_plain_loop(make_spec: Any) -> None:
    spec = make_spec(
        "plain",
        {
            "engine.reduction": "canonical",
            "engine.zero_stage": 1,
            "batch.micro_batch_tokens": 48,
            "workers.count": 2,
        },
    )
    (outcome,) = run_ranks([spec])
    assert outcome.ok, outcome.printed
    for key, values in plain_loop(spec).items():
        tolerance = 1e-6 if "loss" in key else 1e-4
        assert records(spec, key) == pytest.approx(values, rel=tolerance), key
    assert folder_of(spec).exists()
