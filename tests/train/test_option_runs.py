"""Models full of options train as in a plain loop: every parameter is gathered where it is read,
and has its gradient on every rank."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from option_models import MODELS
from plain import plain_loop, valid_loss
from ranks import run_ranks
from runs import folder_of, records

from xtdist.checkpoint.weights import load_weights
from xtdist.train import RunSpec

WORKERS = 2


def option_spec(make_spec: Any, name: str, changes: dict[str, Any], **model: Any) -> RunSpec:
    """A run of 3 steps with a name of its own."""
    label = hashlib.sha256(json.dumps([changes, model]).encode()).hexdigest()[:12]
    base = {
        "model": {"dim": 32, "depth": 2, "heads": 4, **MODELS[name], **model},
        "optim.weight_decay": 0.0,  # which parameters it concerns is tested elsewhere
        "workers.count": WORKERS,
        "loop.steps": 3,
        "loop.valid_every": 3,
    }
    spec: RunSpec = make_spec(f"{name.replace(' ', '-')}-{label}", base | changes)
    return spec


def assert_trained_as(spec: RunSpec, want: dict[str, list[float]]) -> None:
    for key, values in want.items():
        tolerance = 1e-6 if "loss" in key else 1e-4
        assert records(spec, key) == pytest.approx(values, rel=tolerance), (spec.name, key)


@pytest.mark.slow
def test_models_full_of_options_train_as_in_a_plain_loop_and_their_weights_load(
    make_spec: Any,
) -> None:
    specs = {
        name: [option_spec(make_spec, name, {"engine.zero_stage": z}) for z in (0, 2, 3)]
        for name in MODELS
    }
    outcomes = iter(run_ranks([spec for same in specs.values() for spec in same]))
    for same in specs.values():
        want = plain_loop(same[0], parts=WORKERS)
        assert want["train/loss"][-1] < want["train/loss"][0] - 0.05
        for spec in same:
            outcome = next(outcomes)
            assert outcome.ok, outcome.printed
            assert_trained_as(spec, want)
            loaded = load_weights(folder_of(spec)).model
            assert loaded.config == spec.model
            assert valid_loss(spec, loaded) == pytest.approx(want["eval/valid/loss"][-1], rel=1e-6)
    routed = specs["experts"][0]
    assert len(records(routed, "train/aux/balance")) == len(records(routed, "train/loss"))


@pytest.mark.long
def test_recomputed_activations_change_nothing_where_parameters_are_sharded(make_spec: Any) -> None:
    """What a dropout draws is drawn again alike."""
    blocks, feedforward = {"blocks": 1}, {"blocks": 2, "only": "feedforward"}
    specs = {
        name: [
            option_spec(
                make_spec, name, {"engine.zero_stage": 3}, layer_dropout=0.2, recompute=recompute
            )
            for recompute in ((None, blocks, feedforward) if name == "experts" else (None, blocks))
        ]
        for name in MODELS
    }
    outcomes = iter(run_ranks([spec for same in specs.values() for spec in same]))
    for kept, *again in specs.values():
        assert next(outcomes).ok
        want = {key: records(kept, key) for key in ("train/loss", "train/grad_norm")}
        for spec in again:
            outcome = next(outcomes)
            assert outcome.ok, outcome.printed
            assert_trained_as(spec, want)


@pytest.mark.slow
def test_masked_training_of_such_models_does_not_depend_on_the_number_of_workers(
    make_spec: Any,
) -> None:
    """One worker in two micro-batches sees what two see in one: auxiliary losses are the same."""
    changes = {
        "objective": {"kind": "nonautoregressive"},
        "loop.steps": 8,
        "loop.valid_every": 8,
        "optim.lr": 1e-2,
        "batch.micro_batch_tokens": 64,
    }
    dense = {"feedforward": {"kind": "glu"}, "residual": {"kind": "plain"}}
    alone, together = (
        [
            option_spec(make_spec, "experts", changes | {"workers.count": n}, causal=False, **model)
            for model in ({}, dense)
        ]
        for n in (1, 2)
    )
    assert (alone[0].split(1).accumulation, together[0].split(2).accumulation) == (2, 1)
    for outcome in run_ranks(alone) + run_ranks(together):
        assert outcome.ok, outcome.printed
    for one, two in zip(alone, together, strict=True):
        losses = records(one, "train/loss")
        assert losses[-1] < losses[0] - 1
        for key in ("train/loss", "eval/valid/loss"):
            assert records(two, key) == pytest.approx(records(one, key), rel=1e-5), key


@pytest.mark.long
def test_models_full_of_options_train_in_bf16_close_to_fp32(make_spec: Any) -> None:
    half = {"engine.precision": "bf16", "engine.zero_stage": 3}
    specs = [option_spec(make_spec, name, half) for name in MODELS]
    for spec, outcome in zip(specs, run_ranks(specs), strict=True):
        assert outcome.ok, outcome.printed
        want = plain_loop(spec, parts=WORKERS)["train/loss"]
        assert records(spec, "train/loss") == pytest.approx(want, rel=0.02), spec.name
