"""The masked-token objective goes the whole way; a repetition is exact, dropout included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks
from runs import folder_of, records

from xtdist.checkpoint.weights import load_weights
from xtdist.config import derive_seed
from xtdist.model import build_model
from xtdist.objective import NonAutoregressiveConfig, Objective, build_objective
from xtdist.train import RunSpec

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


CRITIC = {"dim": 24, "depth": 1, "heads": 2, "causal": False, "attention": {"dim_head": 8}}
OWN: dict[str, dict[str, Any]] = {
    "self": {"self_cond": True, "self_token_critic": True, "critic_loss_weight": 0.5},
    "critic": {"self_cond": True, "token_critic": CRITIC, "random_token_prob": 0.1},
}
OWN_RUNS = {
    kind: {
        "objective": {"kind": "nonautoregressive", **objective},
        "model.causal": False,
        "loop.steps": 4,
        "loop.valid_every": 2,
        "checkpoint.every": 2,
        "loop.sample_prompts": ("def ",),
        "loop.sample_tokens": 4,
        "optim.lr": 1e-2,
    }
    for kind, objective in OWN.items()
}


@pytest.mark.slow
def test_what_an_objective_has_of_its_own_is_trained_saved_and_resumed(make_spec: Any) -> None:
    """The same numbers on one worker in micro-batches and on two, replicated and sharded."""
    alone, zero, three, short, whole = (
        [make_spec(f"{kind}-{name}", tree | changes) for kind, tree in OWN_RUNS.items()]
        for name, changes in (
            ("alone", {"workers.count": 1, "batch.micro_batch_tokens": 48}),
            ("zero", {"engine.zero_stage": 0}),
            ("three", {"engine.zero_stage": 3}),
            ("resumed", {"engine.zero_stage": 3, "loop.steps": 2}),
            ("resumed", {"engine.zero_stage": 3}),
        )
    )
    assert alone[0].split(1).accumulation > 1
    for outcome in (*run_ranks(alone), *run_ranks([*zero, *three, *short, *whole])):
        assert outcome.ok, outcome.printed
    for one, *others in zip(alone, zero, three, whole, strict=True):
        assert_same_runs(one, others)
        start, trained = build(one), [load_weights(folder_of(s)).trained for s in (one, *others)]
        end, *states = (part.state_dict() for part in trained)
        assert any(not name.startswith("net.") for name in end)
        for name, tensor in end.items():
            assert not torch.equal(start.state_dict()[name], tensor), name
            for state in states:
                torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-4)
            assert torch.equal(states[-1][name], states[-2][name]), name


def assert_same_runs(one: RunSpec, others: list[RunSpec]) -> None:
    keys = ("train/loss", "train/generator_loss", "train/critic_loss", "eval/valid/loss")
    want = {key: records(one, key) for key in keys}
    assert isinstance(one.objective, NonAutoregressiveConfig)
    for loss, generator, critic in zip(*(want[key] for key in keys[:3]), strict=True):
        assert loss == pytest.approx(generator + one.objective.critic_loss_weight * critic)
    for spec in others:
        for key in keys:
            assert records(spec, key) == pytest.approx(want[key], rel=1e-5), (spec.name, key)


def build(spec: RunSpec) -> Objective:
    """The objective as a run starts with it."""
    generator = torch.Generator().manual_seed(derive_seed(spec.seed, "init"))
    net = build_model(spec.model, generator=generator)
    return build_objective(spec.objective, net, mask_id=257, pad_id=258, generator=generator)
