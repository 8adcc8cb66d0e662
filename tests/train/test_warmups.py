"""Fewer tokens in a step, and shorter rows, at the beginning of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import plain_loop
from ranks import run_ranks
from runs import records

from xtdist.config import CheckpointError, ConfigError
from xtdist.train import RunSpec
from xtdist.train.run import open_data
from xtdist.train.state.identity import check_identity, identity
from xtdist.train.step import _cut

SIZES = [{"until_step": 2, "tokens_per_step": 16}, {"until_step": 5, "tokens_per_step": 80}]
LENGTHS = [{"until_step": 3, "seq_len": 4}, {"until_step": 6, "seq_len": 8}]
BOTH = {"batch.warmup": SIZES, "batch.seq_len_warmup": LENGTHS}


@pytest.mark.slow
def test_losses_norms_and_tokens_are_those_of_a_plain_loop_for_any_stage(make_spec: Any) -> None:
    """The first steps have one sequence for two workers, then 5 in 2 + 1 micro-batches, then 8."""
    small = {"batch.micro_batch_tokens": 32, "loop.valid_every": 4}
    specs = [make_spec(f"warm{z}", {**BOTH, **small, "engine.zero_stage": z}) for z in range(4)]
    outcomes, want = run_ranks(specs), plain_loop(specs[0])
    for spec, outcome in zip(specs, outcomes, strict=True):
        assert outcome.ok, outcome.printed
        for key, values in want.items():
            tolerance = 1e-6 if "loss" in key else 1e-4
            assert records(spec, key) == pytest.approx(values, rel=tolerance), (spec.name, key)
        assert records(spec, "train/tokens") == [16, 32, 112, 192, 272, 400, 528, 656]


@pytest.mark.slow
def test_cut_rows_are_those_of_a_run_with_shorter_samples(make_spec: Any) -> None:
    """Unshuffled, samples of 16 cut in two are the samples of 8 in their order: the same bits, also
    of what is masked or dropped, and of documents that don't see each other."""
    common: dict[str, Any] = {
        "data.shuffle": {"kind": "none"},
        "model.max_seq_len": 16,
        "model.feedforward": {"kind": "mlp", "dropout": 0.1},
        "batch.micro_batch_tokens": 32,
        "loop.steps": 4,
        "loop.valid_every": 0,
    }
    masked = {"objective": {"kind": "nonautoregressive"}, "model.causal": False}
    kinds = {"ar": {}, "nar": masked, "apart": {"data.documents": "masked"}}
    cut = {"batch.seq_len_warmup": [{"until_step": 100, "seq_len": 8}]}
    pairs = [
        [make_spec(f"{kind}-{name}", {**common, **tree, **changes}) for kind, tree in kinds.items()]
        for name, changes in {"cut": cut, "short": {"data.seq_len": 8}, "whole": {}}.items()
    ]
    for outcome in run_ranks([spec for specs in pairs for spec in specs]):
        assert outcome.ok, outcome.printed
    for one, other, whole in zip(*pairs, strict=True):
        for key in ("train/loss", "train/grad_norm", "train/tokens"):
            assert records(one, key) == records(other, key), (one.name, key)
        assert records(one, "train/loss") != records(whole, "train/loss")


def test_a_cut_row_ends_with_the_first_token_of_the_next() -> None:
    assert _cut(torch.arange(9)[None], 4).tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    rows = torch.arange(26).view(2, 13)
    assert torch.equal(_cut(rows, 12), rows)
    assert _cut(rows, 4)[:, :-1].flatten().tolist() == rows[:, :-1].flatten().tolist()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch.warmup": [{"until_step": 2, "tokens_per_step": 24}]}, "warmup.0.tokens_per_step"),
        ({"batch.seq_len_warmup": [{"until_step": 2, "seq_len": 5}]}, "must divide data.seq_len"),
        ({"batch.warmup": [SIZES[1], SIZES[0]]}, "warmup.1.until_step: got 2 after 5"),
        ({"batch.seq_len_warmup": [LENGTHS[0]] * 2}, "seq_len_warmup.1.until_step"),
        ({"batch.warmup": [{"until_step": 0, "tokens_per_step": 16}]}, "until_step"),
    ],
)
def test_stages_that_do_not_fit_are_refused(
    make_spec: Any, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        make_spec("refused", changes)


def test_a_run_goes_on_with_another_warm_up_only_where_that_is_still_to_come(
    make_spec: Any,
) -> None:
    def pinned(step: int, warmup: list[dict[str, int]], **changes: Any) -> dict[str, Any]:
        spec: RunSpec = make_spec("identity", {"batch.warmup": warmup, **changes})
        return identity(spec, open_data(spec, "train"), precision="fp32", step=step)

    longer = [SIZES[0], {"until_step": 7, "tokens_per_step": 80}]
    assert pinned(5, SIZES) == pinned(5, longer)
    assert pinned(6, SIZES) != pinned(6, longer)
    assert pinned(6, SIZES)["batch"] == {
        "tokens_per_step": 128,
        "warmup": [[2, 16], [5, 80]],
    }
    assert pinned(2, SIZES)["batch"] == {"tokens_per_step": 16}


def test_rows_that_were_read_stay_as_long_as_they_were(make_spec: Any) -> None:
    def pinned(step: int, *stages: tuple[int, int]) -> Any:
        lengths = [{"until_step": until, "seq_len": length} for until, length in stages]
        spec: RunSpec = make_spec("rows", {"batch.seq_len_warmup": lengths})
        found = identity(spec, open_data(spec, "train"), precision="fp32", step=step)
        return found["batch"].get("seq_len_warmup")

    assert pinned(0, (2, 4)) is pinned(9) is pinned(9, (20, 16)) is None
    assert pinned(2, (2, 4)) == pinned(2, (5, 4), (9, 8)) == [[0, 4]]
    assert pinned(3, (2, 4)) == pinned(3, (1, 4), (2, 4)) == [[0, 4], [2, 16]]


def test_computing_again_may_change_when_a_run_goes_on() -> None:
    saved = {"model": {"depth": 2, "recompute": None}}
    check_identity(saved, {"model": {"depth": 2, "recompute": {"blocks": 1}}}, Path("x"))
    with pytest.raises(CheckpointError, match=r"model\.depth"):
        check_identity(saved, {"model": {"depth": 3, "recompute": {"blocks": 1}}}, Path("x"))


def test_settings_that_came_after_a_checkpoint_are_at_their_defaults_in_it(make_spec: Any) -> None:
    spec: RunSpec = make_spec("older", {})
    now = identity(spec, open_data(spec, "train"), precision="fp32", step=2)
    saved = json.loads(json.dumps(now))
    del saved["model"]["attention"]["bias"], saved["objective"]["label_smoothing"]
    check_identity(saved, now, Path("x"))
    with_bias = json.loads(json.dumps(now))
    with_bias["model"]["attention"]["bias"] = True
    with pytest.raises(CheckpointError, match=r"model\.attention\.bias"):
        check_identity(saved, with_bias, Path("x"))
